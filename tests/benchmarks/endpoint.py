"""An HTTP endpoint that costs as little as can be: `python -m tests.benchmarks.endpoint PORT`.

It answers every request with 200, and reads no more of it than where it ends.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

REPLY = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nOK"
)
_LENGTH = b"Content-Length: "
_END = b"\r\n\r\n"


class Endpoint(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        held = self._held + data
        while (end := held.find(_END)) >= 0:
            at = held.index(_LENGTH, 0, end) + len(_LENGTH)
            whole = end + len(_END) + int(held[at : held.index(b"\r", at)])
            if len(held) < whole:
                break
            held = held[whole:]
            self._transport.write(REPLY)
        self._held = held


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
