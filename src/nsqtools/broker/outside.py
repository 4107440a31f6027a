"""What others see of a broker: its listeners, and what nsqlookupds know of it.

TCP ──► Listener ──► Session ──► the broker
HTTP ─► Listener ──► HttpApi ──► the broker
        Registrar ─► nsqlookupds, and what they know of new topics
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
from typing import TYPE_CHECKING

from nsqtools.broker.accepting import Listener
from nsqtools.broker.registrar import Registrar, RegistrarTiming
from nsqtools.broker.session import Session
from nsqtools.observe.log import get_log
from nsqtools.wire.lookup import PeerInfo
from nsqtools.wire.names import is_ephemeral, is_valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from nsqtools.broker.session import Server
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.view import BrokerView

log = get_log("broker")

SWEEP_INTERVAL_S = 1.0


class Outside:
    """The outer side of one broker; all of it ends with `stop`."""

    def __init__(self, broker: BrokerView, server: Server) -> None:
        self._broker = broker
        self._server = server
        self.registrar: Registrar | None = None
        self.tcp_port = -1
        self.http_port = -1
        self._exits = contextlib.AsyncExitStack()
        self._precreating: set[asyncio.Task[None]] = set()

    async def start(self, registrations: Callable[[], Iterable[tuple[str, str | None]]]) -> None:
        """Listen, and register. Raises ConnectionFailed, OptionsError."""
        options = self._broker.options
        if options.http_address:
            await self._listen_http(options.http_address)
        await self._listen_tcp(options.tcp_address)
        tell_exposure(options.tcp_address, options.http_address)
        self._register(registrations)
        self._spawn(self._sweep())

    async def stop(self) -> None:
        """Take no more connections; a request over HTTP that is under way gets a moment."""
        await self._exits.aclose()
        for task in list(self._precreating):
            await cancel(task)

    def changed(self, topic: str) -> None:
        """A topic, or a channel of it, was created or deleted."""
        if self.registrar is not None:
            self.registrar.changed(topic)

    def created(self, topic: Topic) -> None:
        """A new topic waits for the channels that nsqlookupd knows (spec: lookupd, A5)."""
        registrar = self.registrar
        if registrar is not None and registrar.addresses and not topic.ephemeral:
            topic.hold()
            task = asyncio.create_task(self._precreate(topic, registrar))
            self._precreating.add(task)
            task.add_done_callback(self._precreating.discard)

    async def _precreate(self, topic: Topic, registrar: Registrar) -> None:
        try:
            for name in sorted(await registrar.channels(topic.name)):
                if is_valid_name(name) and not is_ephemeral(name) and not topic.exiting:
                    topic.channel(name)
        finally:
            topic.release()
            self._broker.touched(topic)

    async def _listen_tcp(self, address: str) -> None:
        admission, sessions = self._broker.admission, self._broker.sessions
        listener = Listener(
            "TCP",
            lambda: Session(self._server),
            lambda fd, coming: admission.admits(
                fd, len(sessions) + coming, admission.tcp_max, "TCP"
            ),
        )
        self.tcp_port = await listener.listen(address)
        self._exits.callback(listener.close)

    async def _listen_http(self, address: str) -> None:
        from nsqtools.broker.http import HttpApi  # aiohttp takes a third of a second

        admission = self._broker.admission
        api = HttpApi(self._broker)
        listener = Listener(
            "HTTP",
            api.connection,
            lambda fd, coming: admission.admits(
                fd, api.connection_count + coming, admission.http_max, "HTTP"
            ),
        )
        self._exits.push_async_callback(api.stop)
        self.http_port = await listener.listen(address)
        self._exits.callback(listener.close)

    def _register(self, registrations: Callable[[], Iterable[tuple[str, str | None]]]) -> None:
        """Keep nsqlookupds informed; the ports that they are told are known now."""
        options = self._broker.options
        self.registrar = Registrar(
            options.lookupd_tcp_address,
            PeerInfo(
                version=self._broker.server_limits.version,
                broadcast_address=options.effective_broadcast_address,
                hostname=socket.gethostname(),
                tcp_port=options.broadcast_tcp_port or self.tcp_port,
                http_port=options.broadcast_http_port or self.http_port,
            ),
            registrations,
            rng=random.Random(),  # noqa: S311 - jitter
            timing=RegistrarTiming(
                http_connect_timeout_s=options.http_client_connect_timeout_s,
                http_request_timeout_s=options.http_client_request_timeout_s,
            ),
        )
        self._spawn(self.registrar.run())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self._broker.bodies.sweep()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        self._exits.push_async_callback(cancel, asyncio.create_task(work))


def tell_exposure(tcp_address: str, http_address: str) -> None:
    """One line on who can do what; NSQ's defaults are open to everybody."""
    addresses = {"tcp": tcp_address, "http": http_address or "none"}
    if is_local(tcp_address) and (not http_address or is_local(http_address)):
        log.info("open to this machine only, without authentication", **addresses)
    else:
        log.warning(
            "open without authentication: whoever reaches this machine can publish, read and delete",
            **addresses,
        )


def is_local(address: str) -> bool:
    """Whether only this machine can connect to `host:port`, or to a path."""
    host = address.rpartition(":")[0].strip("[]")
    if "/" in address or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def cancel(task: asyncio.Task[None]) -> None:
    """End a task, whatever it says to that."""
    task.cancel()
    # Whoever waits here may be cancelled, too, and that is not this task's end.
    await asyncio.gather(task, return_exceptions=True)
