"""The connections to one endpoint: kept alive, opened when none is free, closed when they are old, or
not wanted any more.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.outputs.http.connection import Connection, Exchange, Owner, Reply
from nsqtools.outputs.http.routed import RoutedConnection
from nsqtools.outputs.http.tunnel import ProxyFailure, reason_of, to_proxy, tunnelled

if TYPE_CHECKING:
    import ssl

    from nsqtools.outputs.http.proxy import Proxy
    from nsqtools.outputs.http.url import Origin

# A host name may mean another machine by now: so old a connection is not used again.
CONNECTION_AGE_MAX_S = 300.0
# A connection that was not used for so long is closed: others may want the place that it takes.
IDLE_MAX_S = 30.0
# A request that hangs is noticed so much too late at the most, as a part of its timeout.
_WATCH_PART = 0.1
_WATCH_MAX_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How endpoints are asked. Times in seconds; `server_name` is what a certificate must name.

    With `keeps_location` a reply says where a redirect leads.
    """

    connect_timeout_s: float
    request_timeout_s: float
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    keeps_location: bool = False


class Pool(Owner):
    """See the module. As many connections as there are requests at once: the caller bounds them.

    `close` ends everything; requests that are on their way fail.
    """

    def __init__(self, origin: Origin, options: ClientOptions, proxy: Proxy | None = None) -> None:
        """With a `proxy`, by way of it; requests for an origin without TLS must be made for one then.

        Raises ValueError for an origin that wants TLS where `options` has none.
        """
        if origin.is_tls and options.tls is None:
            raise ValueError(f"{origin}: TLS is wanted, and not set up")
        self.origin = origin
        self.proxy = proxy
        self.opened = 0
        """Connections that were made since the start."""
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._watch_s = min(_WATCH_MAX_S, options.request_timeout_s * _WATCH_PART)

    def send(self, exchange: Exchange) -> None:
        """Send a request by a connection that is free, or by a new one; its `done` tells the end.

        Only in the next turn of the loop, or later: never from within this call.
        """
        oldest_s = self._loop.time() - CONNECTION_AGE_MAX_S
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closing and connection.made_s >= oldest_s:
                connection.send(exchange)
                return
            connection.close()
        self._open(exchange)

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._connecting) or len(self._connections) > len(self._idle)

    def close(self) -> None:
        """Close all connections."""
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # Owner

    def idle(self, connection: Connection) -> None:
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            if connection in self._idle:
                self._idle.remove(connection)

    def unanswered(self, exchange: Exchange) -> None:
        """A connection that was kept alive had been closed: that happens, and says nothing of the
        endpoint."""
        self._open(exchange)

    # Connecting

    def _open(self, exchange: Exchange) -> None:
        task = self._loop.create_task(self._connect(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: Exchange) -> None:
        try:
            connection = await self._connected()
        except asyncio.CancelledError:
            exchange.done(exchange, Reply(0, "the connection was closed by us"))
            raise
        except TimeoutError:
            timeout_s = self._options.connect_timeout_s
            way = f" through proxy {self.proxy}" if self.proxy else ""
            exchange.done(exchange, Reply(0, f"no connection within {timeout_s:g} s{way}"))
        except Exception as failure:  # noqa: BLE001 - a request without an end is held for ever
            error = f"not connected: {reason_of(failure)}"
            if self.proxy is not None and not isinstance(failure, ProxyFailure):
                error += f" through proxy {self.proxy}"
            exchange.done(exchange, Reply(0, error))
        else:
            connection.send(exchange)

    async def _connected(self) -> Connection:
        async with asyncio.timeout(self._options.connect_timeout_s):
            connection = await self._reach()
            await asyncio.sleep(0)  # one that speaks first is seen now, and not taken for an answer
        if connection.is_closing:
            raise ConnectionResetError("the endpoint closed it, or spoke before it was asked")
        self.opened += 1
        self._connections.add(connection)
        if self._watch is None:
            self._watch = self._loop.call_later(self._watch_s, self._look)
        return connection

    async def _reach(self) -> Connection:
        origin, options, proxy = self.origin, self._options, self.proxy
        tls = options.tls if origin.is_tls else None
        name = options.server_name or origin.host
        if origin.socket_path:
            return (await self._loop.create_unix_connection(self._made, origin.socket_path))[1]
        if proxy is None:
            _, connection = await self._loop.create_connection(
                self._made, origin.host, origin.port, ssl=tls, server_hostname=name if tls else None
            )
        elif tls is None:
            _, connection = await to_proxy(proxy, self._made)
        else:
            connection = await tunnelled(proxy, origin, tls, name, self._made)
        return connection

    # Not the loop's time, which has whole milliseconds only.
    def _made(self) -> Connection:
        if self.proxy is None and not self._options.keeps_location:
            return Connection(self, time.monotonic)
        is_tunnel = self.origin.is_tls
        return RoutedConnection(self, time.monotonic, self.proxy, is_tunnel=is_tunnel)

    def _look(self) -> None:
        """Give up requests whose time is over, and connections that nobody wants: one timer for all of
        them."""
        self._watch = None
        now_s = self._loop.time()
        while self._idle and self._idle[0].used_s <= now_s - IDLE_MAX_S:
            self._idle[0].close()  # the one that was not used for longest
        timeout_s = self._options.request_timeout_s
        began_s = now_s - timeout_s
        for connection in list(self._connections):
            if connection.exchange is not None and connection.exchange.sent_s <= began_s:
                connection.fail(f"no reply within {timeout_s:g} s")
        if self._connections:
            self._watch = self._loop.call_later(self._watch_s, self._look)
