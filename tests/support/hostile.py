"""A hostile nsqd: each of its connections runs a script that does what no nsqd would do.

`scripts` is one for each kind of attack; the bytes are made once, and sent as fast as they are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import zlib
from typing import TYPE_CHECKING

import cramjam
from tests.support.peer import PeerConnection, frame, message_id
from tests.support.raw import ERROR, MESSAGE, RESPONSE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Script = Callable[["Attacker"], Awaitable[None]]

BLOCK_BYTES = 1 << 18
# What forges a line, clears a screen, and turns text round.
TERMINAL = "\x1b[2J\x1b]0;owned\x07\r\n2026/01/31 23:59:00 INFO: forged \u202e"
_SNAPPY_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"


class Attacker(PeerConnection):
    """One connection of a client, seen from whoever attacks it."""

    async def pour(self, block: bytes, total_bytes: int | None = None) -> None:
        """Send `block` again and again, as fast as it is taken; for ever when there is no total."""
        sent = 0
        while total_bytes is None or sent < total_bytes:
            self.send(block)
            await self.drain()
            sent += len(block)

    async def say_all(self, data: bytes) -> None:
        """Send this, end our side, and take what the client says until it has gone."""
        self.send(data)
        self.end_our_side()
        await self.listen()

    async def listen(self) -> None:
        """Take whatever the client says, until it has gone."""
        while await self.read_some():
            pass

    async def attack(self, block: bytes, total_bytes: int | None = None) -> None:
        """Pour, and take what the client says meanwhile; then go on taking it."""
        listening = asyncio.create_task(self.listen())
        try:
            await self.pour(block, total_bytes)
            await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@contextlib.asynccontextmanager
async def hostile(script: Script) -> AsyncIterator[str]:
    """The address of an nsqd whose every connection runs `script`, and stays until the client goes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attacker = Attacker(reader, writer)
        connections.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                await script(attacker)
        finally:
            connections.discard(writer)
            writer.transport.abort()

    connections: set[asyncio.StreamWriter] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in connections:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # lets the scripts see that their clients have gone


def many(one: bytes, size_bytes: int = BLOCK_BYTES) -> bytes:
    """As many of it as make a block."""
    return one * max(1, size_bytes // len(one))


def message_block(body: bytes, size_bytes: int = BLOCK_BYTES) -> bytes:
    """Messages with ids of their own."""
    header = struct.Struct(">qH16s")
    count = max(1, size_bytes // (len(body) + 34))
    return b"".join(
        frame(MESSAGE, header.pack(1_700_000_000_000_000_000 + n, 1, message_id(n)) + body)
        for n in range(count)
    )


def flood_of_messages(body: bytes) -> Script:
    """Messages without end, whatever RDY says."""
    block = message_block(body)

    async def script(nsqd: Attacker) -> None:
        await nsqd.subscribe()
        await nsqd.command()  # RDY: what comes before it is refused for that alone
        await nsqd.attack(block)

    return script


def bomb(kind: str, opened_bytes: int = 315 << 20) -> Script:
    """A short compressed stream that opens to a great many messages."""
    block = many(message_block(b"")[:34], 1 << 20)
    if kind == "deflate":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = packer.compress(frame(RESPONSE, b"OK"))
        packed += packer.flush(zlib.Z_SYNC_FLUSH)
        subscribed = packer.compress(frame(RESPONSE, b"OK")) + packer.flush(zlib.Z_SYNC_FLUSH)
        load = b"".join(packer.compress(block) for _ in range(opened_bytes >> 20))
        load += packer.flush(zlib.Z_SYNC_FLUSH)
    else:

        def pack(data: bytes) -> bytes:
            return bytes(cramjam.snappy.compress(data))[len(_SNAPPY_IDENTIFIER) :]

        packed = _SNAPPY_IDENTIFIER + pack(frame(RESPONSE, b"OK"))
        subscribed = pack(frame(RESPONSE, b"OK"))
        load = pack(block) * (opened_bytes >> 20)

    async def script(nsqd: Attacker) -> None:
        await nsqd.identify(**{kind: True})
        nsqd.send(packed)
        await nsqd.read_some()  # SUB, compressed
        nsqd.send(subscribed)
        await nsqd.read_some()  # RDY
        await nsqd.attack(load, len(load))

    return script


def identify_answer(body: bytes) -> Script:
    """An answer to IDENTIFY that is far too large."""

    async def script(nsqd: Attacker) -> None:
        await nsqd.magic()
        await nsqd.expect(b"IDENTIFY")
        await nsqd.attack(frame(RESPONSE, body), 1)

    return script


def frames_instead_of_an_answer(block: bytes) -> Script:
    """SUB (or a publish) is followed by frames of any kind, and never answered."""

    async def script(nsqd: Attacker) -> None:
        await nsqd.identify()
        await nsqd.attack(block)

    return script


async def silence_after_sub(nsqd: Attacker) -> None:
    await nsqd.identify()
    await nsqd.listen()


def heartbeats_unread(block: bytes) -> Script:
    """Heartbeats without end, whose answers nobody reads."""

    async def script(nsqd: Attacker) -> None:
        await nsqd.subscribe()
        await nsqd.command()  # RDY: the client has taken the answer
        await nsqd.pour(block)

    return script


def after_sub(block: bytes) -> Script:
    """Frames of any kind after a subscription, without end."""

    async def script(nsqd: Attacker) -> None:
        await nsqd.subscribe()
        await nsqd.command()  # RDY: the client has taken the answer
        await nsqd.attack(block)

    return script


def error_block(*, fatal: bool, text: str = TERMINAL) -> bytes:
    """Errors that are all different, and no nsqd's."""
    return b"".join(
        frame(ERROR, (f"E_{n}{text} {text}" if fatal else f"E_FIN_FAILED {n}{text}").encode())
        for n in range(2000)
    )


def asks_for_auth(secrets: list[bytes]) -> Script:
    """Wants AUTH, and keeps what it is told."""

    async def script(nsqd: Attacker) -> None:
        await nsqd.magic()
        await nsqd.expect(b"IDENTIFY")
        nsqd.respond(json.dumps({"version": "1.3.0", "auth_required": True}).encode())
        while await nsqd.command():
            if nsqd.told[-1] == b"AUTH":
                secrets.append(nsqd.bodies[-1])
                nsqd.respond(b'{"identity":"","identity_url":"","permission_count":1}')

    return script
