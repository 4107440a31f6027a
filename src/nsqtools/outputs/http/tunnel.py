"""A way to an endpoint through a proxy: CONNECT, then TLS with the endpoint inside.

What a proxy answers is trusted in nothing but its status. Its head is bounded, and whatever it sends
behind it before we have spoken TLS ends the connection: an endpoint waits to be asked.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, TypeVar, cast

from nsqtools.options import join_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.outputs.http.connection import Connection
    from nsqtools.outputs.http.proxy import Proxy
    from nsqtools.outputs.http.url import Origin

P = TypeVar("P", bound=asyncio.Protocol)
CONNECT_REPLY_BYTES_MAX = 16 << 10
_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]")


class ProxyFailure(OSError):  # noqa: N818 - reads as the fact it states
    """A proxy is what failed; says which one."""

    def __init__(self, proxy: Proxy, what: str) -> None:
        super().__init__(f"proxy {proxy}: {what}")


def reason_of(failure: Exception) -> str:
    """Why there is no connection, in few words."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"certificate refused: {failure.verify_message}"
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    return str(failure) or type(failure).__name__


async def to_proxy(proxy: Proxy, make: Callable[[], P]) -> tuple[asyncio.Transport, P]:
    """A connection to the proxy itself. Raises ProxyFailure."""
    try:
        return await asyncio.get_running_loop().create_connection(make, proxy.host, proxy.port)
    except (OSError, ValueError) as failure:  # ValueError: a host name
        raise ProxyFailure(proxy, reason_of(failure)) from failure


async def tunnelled(
    proxy: Proxy, origin: Origin, tls: ssl.SSLContext, name: str, make: Callable[[], Connection]
) -> Connection:
    """A connection to `origin`, whose certificate must have `name`. The caller bounds the time; when it
    is over, or with a failure, nothing stays open.

    Raises ProxyFailure for what the proxy does, OSError for the endpoint's TLS.
    """
    loop = asyncio.get_running_loop()
    transport, tunnel = await to_proxy(proxy, lambda: _Tunnel(proxy, origin))
    connection = make()
    try:
        await tunnel.established
        # What comes too early finds a transport that it can end.
        connection.connection_made(transport)
        secured = await loop.start_tls(transport, connection, tls, server_hostname=name)
        # Where it was closed meanwhile, the plain one stays: closed, as the caller sees.
        connection.connection_made(transport if transport.is_closing() else secured or transport)
    except BaseException:
        transport.abort()
        raise
    return connection


class _Tunnel(asyncio.Protocol):
    """Asks for a tunnel; `established` is done when there is one, or fails."""

    def __init__(self, proxy: Proxy, origin: Origin) -> None:
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._proxy = proxy
        self._where = join_address(origin.host, origin.port)
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        where = self._where
        head = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{self._proxy.lines}\r\n"
        self._transport.write(head.encode("ascii"))

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, rest = self._head.partition(_END)
        if self.established.done() or rest:
            self._fail("spoke before it was asked")
        elif end and len(head) <= CONNECT_REPLY_BYTES_MAX:
            self._judge(head)
        elif len(self._head) > CONNECT_REPLY_BYTES_MAX:
            self._fail(f"its answer to CONNECT has more than {CONNECT_REPLY_BYTES_MAX} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"closed the connection without an answer to CONNECT{f': {exc}' if exc else ''}")

    def _judge(self, head: bytes) -> None:
        match = _STATUS.match(head + b"\r")
        if match is None:
            self._fail("its answer to CONNECT is not HTTP")
        elif match[1][:1] != b"2":
            self._fail(f"answered status {match[1].decode()} to CONNECT {self._where}")
        else:
            self._head = b""
            self.established.set_result(None)

    def _fail(self, what: str) -> None:
        if not self.established.done():
            self.established.set_exception(ProxyFailure(self._proxy, what))
        self._transport.abort()
