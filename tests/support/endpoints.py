"""HTTP endpoints that tests deliver to: aiohttp's server, and one that says whatever bytes it is told."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from nsqtools.options import join_address
from nsqtools.outputs.http.connection import Exchange, Reply

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nsqtools.outputs.http.pool import Pool

    Handler = Callable[["Received"], Awaitable[web.StreamResponse] | web.StreamResponse]
    Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Endpoint:
    """What it got, and how it answers; `status` is for all that `handler` is not asked about."""

    received: list[Received] = field(default_factory=list)
    status: int = 200
    handler: Handler | None = None
    address: str = ""
    scheme: str = "http"
    connections: set[object] = field(default_factory=set)
    most_at_once: int = 0
    at_once: int = 0

    @property
    def bodies(self) -> list[bytes]:
        return [one.body for one in self.received]

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://{self.address}{path}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.connections.add(request.transport)
        try:
            body = await request.read()
            one = Received(request.method, request.raw_path, dict(request.headers), body)
            self.received.append(one)
            if self.handler is None:
                return web.Response(status=self.status)
            found = self.handler(one)
            return found if isinstance(found, web.StreamResponse) else await found
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def serving(
    handler: Handler | None = None,
    *,
    status: int = 200,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    socket_path: str = "",
) -> AsyncIterator[Endpoint]:
    """An endpoint on aiohttp's server."""
    endpoint = Endpoint(status=status, handler=handler, scheme="https" if tls else "http")
    runner = web.ServerRunner(web.Server(endpoint.handle), shutdown_timeout=0.1)
    await runner.setup()
    site: web.BaseSite
    if socket_path:
        site = web.UnixSite(runner, socket_path)
    else:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
    await site.start()
    if not socket_path:
        endpoint.address = join_address(*runner.addresses[0][:2])
    try:
        yield endpoint
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def saying(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server whose connections run `script`; gives its address."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0, ssl=tls)
    try:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"{host}:{port}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    return head + await reader.readexactly(length)


async def ask(pool: Pool, request: bytes) -> Reply:
    """Send a request and wait for what became of it."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    pool.send(Exchange(request, lambda _, reply: answer.set_result(reply)))
    return await answer
