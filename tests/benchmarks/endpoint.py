"""What `nsq_to_http` is measured against: nginx where it is installed, else a server of our own.

That one costs as little as can be: `python -m tests.benchmarks.endpoint PORT` answers every request with
200, and reads no more of it than where it ends.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import uvloop
from tests.support.nginx import find

if TYPE_CHECKING:
    from pathlib import Path

REPLY = (
    b"HTTP/1.1 200 OK\r\nServer: bench\r\nDate: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nOK"
)
OWN = "a server of our own"
# One process, so that nothing stays when it is killed. `return` reads a body to its end, and drops it.
_NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    keepalive_requests 1000000000;
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 OK; }}
    }}
}}
"""
_LENGTH = b"Content-Length: "
_END = b"\r\n\r\n"


def server_name() -> str:
    """Which one it is, with its version."""
    if not (nginx := find()):
        return OWN
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr
    return said.strip().rpartition(" ")[2] or nginx


def server_argv(folder: Path, port: int) -> list[str]:
    """What starts it; its files are in `folder`."""
    if not (nginx := find()):
        return [sys.executable, "-m", "tests.benchmarks.endpoint", str(port)]
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port))
    return [nginx, "-e", "stderr", "-p", str(folder), "-c", str(config)]


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
