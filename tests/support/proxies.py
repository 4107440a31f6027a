"""An HTTP proxy for tests: absolute requests and CONNECT, with or without credentials."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.clients import until
from tests.support.endpoints import saying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class TestProxy:
    """What it was asked; with `user` (`name:password`) only who says so gets through. `upstream` is
    where all of it goes, whatever its name."""

    __test__ = False

    user: str = ""
    upstream: str = ""
    address: str = ""
    heads: list[bytes] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    running: int = 0

    def url(self, user: str = "") -> str:
        return f"http://{user}{'@' if user else ''}{self.address}"

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.running += 1
        try:
            await self._serve(reader, writer)
        finally:
            self.running -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        while self._is_allowed(head):
            if head.startswith(b"CONNECT "):
                await self._tunnel(head, reader, writer)
                return
            await self._forward(head, reader, writer)
            head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")

    def _is_allowed(self, head: bytes) -> bool:
        self.heads.append(head)
        wanted = base64.b64encode(self.user.encode())
        return not self.user or b"\r\nProxy-Authorization: Basic %b\r\n" % wanted in head

    async def _tunnel(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream, out = await self._connect(head.split(b" ")[1].decode())
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, out))
            group.create_task(_copy(upstream, writer))

    async def _forward(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        url = urlsplit(head.split(b" ")[1].decode())
        path = f"{url.path}?{url.query}" if url.query else url.path
        first, _, rest = head.partition(b"\r\n")
        method = first.split(b" ")[0]
        upstream, out = await self._connect(url.netloc)
        out.write(b"%b %b HTTP/1.1\r\nConnection: close\r\n%b" % (method, path.encode(), rest))
        if b"content-length:" in head.lower():
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            out.write(await reader.readexactly(length))
        answer = await upstream.read()
        writer.write(answer.replace(b"Connection: close\r\n", b"", 1))
        out.close()

    async def _connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = (self.upstream or address).rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self.writers.append(writer)
        return reader, writer


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def proxying(user: str = "", upstream: str = "") -> AsyncIterator[TestProxy]:
    proxy = TestProxy(user, upstream)
    async with saying(proxy.run) as address:
        proxy.address = address
        yield proxy
        for writer in proxy.writers:
            writer.transport.abort()
        await until(lambda: not proxy.running)
