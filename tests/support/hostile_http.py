"""A hostile HTTP endpoint: scripts for `endpoints.saying`, each of which answers as no endpoint would."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

from tests.support.endpoints import read_request
from tests.support.hostile import BLOCK_BYTES, TERMINAL, many

if TYPE_CHECKING:
    from tests.support.endpoints import Script

BOMB_BYTES = 256 << 20
# What can stand in a header, as far as a parser of ours may let it.
RAW = TERMINAL.replace("\r\n", "\x1b[31m").encode()


def answering(reply: bytes, endless: bytes = b"", *, pause_s: float = 0.0) -> Script:
    """Each request gets `reply`; with `endless`, that behind it without end, `pause_s` apart."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(reply)
            await writer.drain()
            while endless:
                writer.write(endless)
                await writer.drain()
                await asyncio.sleep(pause_s)

    return script


def speaking_first(words: bytes) -> Script:
    """Answers what nobody has asked yet."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        while await reader.read(BLOCK_BYTES):
            pass

    return script


def status(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """A whole reply."""
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + line, length, *headers, b"", body])


def chunked(line: bytes) -> bytes:
    return b"HTTP/1.1 " + line + b"\r\nTransfer-Encoding: chunked\r\n\r\n"


def bomb() -> bytes:
    """An error that says what opens to BOMB_BYTES."""
    packed = gzip.compress(bytes(1 << 20)) * (BOMB_BYTES >> 20)
    return status(b"500 Error", b"Content-Encoding: gzip", body=packed)


CHUNK = b"%x\r\n" % BLOCK_BYTES + bytes(BLOCK_BYTES) + b"\r\n"
HEADERS = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 20) for number in range(100_000))
TERMINAL_CHUNK = b"%x\r\n" % len(many(RAW)) + many(RAW) + b"\r\n"
