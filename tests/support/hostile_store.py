"""A hostile object store: it answers any request as a script says, whatever was asked.

`answers` are by the beginning of the request's line; of several the longest counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

from tests.support.endpoints import saying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    # What it says to one request: pieces, which may have no end.
    Answer = Iterable[bytes]

BLOCK_BYTES = 1 << 18
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult><Name>b</Name>'
    "<IsTruncated>{more}</IsTruncated><EncodingType>url</EncodingType>{token}{entries}"
    "</ListBucketResult>"
)
ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;e&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def whole(
    status: str, body: bytes, *headers: str, size_bytes: int | None = None
) -> tuple[bytes, ...]:
    """A reply; `size_bytes` is what it says of the size of its body."""
    length = len(body) if size_bytes is None else size_bytes
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {length}", f"Last-Modified: {DATE}", *headers)
    return ("\r\n".join((*lines, "", "")).encode(), body)


def endless(status: str, begin: bytes, block: bytes, *headers: str) -> Answer:
    """A reply whose body has no end."""
    lines = (f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *headers)
    head = "\r\n".join((*lines, "", "")).encode()
    return _Endless((head, _chunk(begin)), _chunk(block))


def listing(*entries: tuple[str, object], token: str = "") -> tuple[bytes, ...]:
    """A page of a list: keys as they stand in a URL, and sizes."""
    said = "".join(ENTRY.format(key=key, size=size) for key, size in entries)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    page = PAGE.format(more=str(bool(token)).lower(), token=more, entries=said)
    return whole("200 OK", page.encode(), "Content-Type: application/xml")


class Pages:
    """Another page each time, for ever."""

    def __init__(self, each: int = 1000) -> None:
        self._each = each
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[bytes]:
        page = next(self._numbers)
        keys = [(f"k{page:08}-{n:04}", 5) for n in range(self._each)]
        return iter(listing(*keys, token=f"t{page}"))


class _Endless:
    def __init__(self, begin: tuple[bytes, ...], block: bytes) -> None:
        self._begin = begin
        self._block = block

    def __iter__(self) -> Iterator[bytes]:
        return itertools.chain(self._begin, itertools.repeat(self._block))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n" % len(data) + data + b"\r\n"


@contextlib.asynccontextmanager
async def hostile_store(
    answers: dict[str, Answer], asked: list[str] | None = None, *, pause_s: float = 0.0
) -> AsyncIterator[str]:
    """Its URL; what is asked is added to `asked`. `pause_s` lies between the pieces of an answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *headers = head.split("\r\n")
            if asked is not None:
                asked.append(line)
            await _take_body(reader, writer, headers)
            found = max((one for one in answers if line.startswith(one)), key=len)
            for piece in answers[found]:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)

    async with saying(serve) as address:
        yield f"http://{address}"


async def _take_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, headers: list[str]
) -> None:
    values = {name.lower(): value for name, _, value in (one.partition(": ") for one in headers)}
    if "expect" in values:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await reader.readexactly(int(values.get("content-length", "0")))
