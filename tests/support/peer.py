"""A scripted nsqd: a test says what it answers, and reads the complete list of what it was told.

It reads on demand and decodes by itself, so that it shares no mistake with the code that is tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import TYPE_CHECKING, Self

from tests.support.nsqd import PATIENCE_S
from tests.support.raw import ERROR, MESSAGE, QUIET_S, RESPONSE

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from nsqtools.wire.compression import Codec

MAGIC = b"  V2"
_WITH_BODY = {b"IDENTIFY", b"AUTH", b"PUB", b"MPUB", b"DPUB"}
_READ_BYTES = 1 << 16
Reply = str | int | bool


def frame(frame_type: int, data: bytes) -> bytes:
    return struct.pack(">ii", len(data) + 4, frame_type) + data


def message_id(number: int) -> bytes:
    return b"%016d" % number


def message(number: int, body: bytes = b"body", *, attempts: int = 1) -> bytes:
    """A message frame; timestamp and id are made from the number."""
    header = struct.pack(">qH16s", 1_700_000_000_000_000_000 + number, attempts, message_id(number))
    return frame(MESSAGE, header + body)


def messages(*numbers: int) -> bytes:
    return b"".join([message(number) for number in numbers])


def fins(*numbers: int) -> list[bytes]:
    return [b"FIN " + message_id(number) for number in numbers]


class PeerConnection:
    """One connection of a client, seen from the nsqd."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.told: list[bytes] = []
        self.bodies: list[bytes] = []
        self._reader = reader
        self._writer = writer
        self._buffer = b""
        self._codec: Codec | None = None

    # Reading

    async def magic(self) -> None:
        assert await self._take(len(MAGIC)) == MAGIC

    async def command(self) -> bytes:
        """The next command without its newline; its body, if it has one, goes to `bodies`."""
        while b"\n" not in self._buffer:
            await self._fill()
        line, _, self._buffer = self._buffer.partition(b"\n")
        if line.split(b" ")[0] in _WITH_BODY:
            (size,) = struct.unpack(">i", await self._take(4))
            self.bodies.append(await self._take(size))
        self.told.append(line)
        return line

    async def expect(self, *lines: bytes) -> None:
        """These commands come next, and nothing between them."""
        for line in lines:
            assert await self.command() == line

    async def until_told(self, *lines: bytes) -> None:
        """Read until each of these commands has come, whatever comes between them."""
        while not set(lines) <= set(self.told):
            await self.command()

    async def rest(self) -> list[bytes]:
        """What the client still says before it closes its side."""
        found: list[bytes] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                found.append(await self.command())
        assert not self._buffer, "half a command at the end"
        return found

    async def rest_until_quiet(self) -> list[bytes]:
        """What the client says until it says nothing for a while; the connection stays."""
        found: list[bytes] = []
        while b"\n" in self._buffer or not await self.is_quiet():
            found.append(await self.command())
        return found

    async def is_quiet(self, quiet_s: float = QUIET_S) -> bool:
        """Whether nothing comes for a while."""
        if self._buffer:
            return False
        try:
            async with asyncio.timeout(quiet_s):
                await self._fill()
        except TimeoutError:
            return True
        return False

    async def read_some(self) -> bytes:
        """Whatever comes next, uninterpreted."""
        if not self._buffer:
            await self._fill()
        taken, self._buffer = self._buffer, b""
        return taken

    async def identify_body(self) -> dict[str, object]:
        """What IDENTIFY asked for; it is not answered."""
        await self.expect(b"IDENTIFY")
        asked: dict[str, object] = json.loads(self.bodies[-1])
        return asked

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    async def _fill(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            raw = await self._reader.read(_READ_BYTES)
        if not raw:
            raise asyncio.IncompleteReadError(self._buffer, None)
        if self._codec is not None:
            raw = self._codec.decompress(raw)
        self._buffer += raw

    # Writing

    def send(self, data: bytes) -> None:
        self._writer.write(data if self._codec is None else self._codec.compress(data))

    async def drain(self) -> None:
        """Wait until the client has taken most of what was sent."""
        await self._writer.drain()

    def respond(self, data: bytes = b"OK") -> None:
        self.send(frame(RESPONSE, data))

    def refuse(self, text: bytes) -> None:
        self.send(frame(ERROR, text))

    def cut(self) -> None:
        """Drop the connection, as a machine that goes down."""
        self._writer.transport.abort()

    def end(self) -> None:
        """Close in order."""
        self._writer.close()

    def end_our_side(self) -> None:
        """Say that nothing more comes, and go on reading."""
        self._writer.write_eof()

    # The steps that most conversations begin with

    async def identify(self, **reply: Reply) -> None:
        await self.magic()
        await self.expect(b"IDENTIFY")
        self.respond(json.dumps({"version": "1.3.0", **reply}).encode())

    async def subscribe(self, topic: str = "t", channel: str = "c", /, **reply: Reply) -> None:
        await self.identify(**reply)
        await self.expect(f"SUB {topic} {channel}".encode())
        self.respond()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self._writer.start_tls(context)
        self.respond()

    def compress(self, codec: Codec, also: bytes = b"") -> None:
        """Go over to a codec; its OK is the first that is compressed, `also` comes with it."""
        self._codec = codec
        self.send(frame(RESPONSE, b"OK") + also)


class Peer:
    """A scripted nsqd that listens; `async with Peer() as peer`, then `await peer.accept()`."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self._accepted: asyncio.Queue[PeerConnection] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # lets the transports tell that they are closed

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._accepted.put_nowait(PeerConnection(reader, writer))

    async def accept(self) -> PeerConnection:
        """The next connection."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._accepted.get()

    async def subscribed(self, **reply: Reply) -> PeerConnection:
        """The next connection, up to and with the OK to its SUB t c."""
        connection = await self.accept()
        await connection.subscribe(**reply)
        return connection

    @property
    def has_waiting(self) -> bool:
        """Whether somebody has connected and was not accepted yet."""
        return not self._accepted.empty()


def ids_of(numbers: Sequence[int]) -> list[bytes]:
    return [message_id(number) for number in numbers]
