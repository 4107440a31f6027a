"""Listening sockets, and how many connections there may be.

Theory of operation. Connections are accepted here and handed to the loop one by one, because what loops
do by themselves when descriptors run out differs: one logs each second, another closes the listener for
good. Here it is said now and then and tried again a second later. Before that happens, connections are
refused (accepted, and closed at once): files of topics need descriptors, too.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed
from nsqtools.observe.log import Repeated, get_log

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("nsqtools.broker")

BACKLOG = 1024
# What one turn of the loop accepts of one listener.
ACCEPTS_MAX = 100
RETRY_S = 1.0
TOLD_INTERVAL_S = 10.0
HTTP_CONNECTIONS_MAX = 1024
# Of the descriptors that the process may have, files of topics and channels take no more than this
# part, nor do connections over HTTP.
_SHARE = 4
_FILES_MAX = 4096
# For what is open for a moment, and for what else the process does.
_SPARE = 64
_UNLIMITED = 1 << 20


class Admission:
    """Who may still connect, over TCP and HTTP.

    `descriptors_max` is the process's limit. Descriptors are handed out lowest first, so that the
    number of a new one says how many there are, whoever opened the others.
    """

    def __init__(self, descriptors_max: int) -> None:
        self.files_max = min(_FILES_MAX, max(16, descriptors_max // _SHARE))
        self.http_max = min(HTTP_CONNECTIONS_MAX, max(16, descriptors_max // _SHARE))
        spare = min(_SPARE, descriptors_max // _SHARE)
        self.tcp_max = max(16, descriptors_max - self.files_max - self.http_max - spare)
        self.refused_count = 0
        self._last_descriptor = descriptors_max - spare
        self._trouble = Repeated(
            get_log("broker"),
            "connections are refused",
            clock=SystemClock(),
            interval_s=TOLD_INTERVAL_S,
        )

    @classmethod
    def of_process(cls) -> Admission:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return cls(soft if 0 < soft < _UNLIMITED else _UNLIMITED)

    def admits(self, descriptor: int, count: int, count_max: int, what: str) -> bool:
        """Whether one more than `count` may be there; a refusal is counted, and told."""
        if count >= count_max:
            self._refuse(f"there are {count_max} over {what}, as many as may be", what)
        elif descriptor >= self._last_descriptor:
            self._refuse("the process has too few descriptors left (ulimit -n)", what)
        else:
            return True
        return False

    def _refuse(self, why: str, what: str) -> None:
        self.refused_count += 1
        self._trouble.failed(why, over=what)


class Listener:
    """One address, over TCP or on a path; `is_admitted` gets the descriptor of a new connection, and how
    many more are on their way to their protocol."""

    def __init__(
        self,
        what: str,
        factory: Callable[[], asyncio.BaseProtocol],
        is_admitted: Callable[[int, int], bool],
    ) -> None:
        self._what = what
        self._factory = factory
        self._is_admitted = is_admitted
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._retries: dict[socket.socket, asyncio.TimerHandle] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._trouble = Repeated(
            get_log("broker"),
            "connections cannot be accepted",
            clock=SystemClock(),
            interval_s=TOLD_INTERVAL_S,
        )

    async def listen(self, address: str) -> int:
        """Listen on `host:port`, or on a path; returns the port, -1 for a path.

        Raises ConnectionFailed when that is not possible.
        """
        try:
            if "/" in address:
                self._sockets = [_bound_path(address)]
            else:
                await self._bind(address)
            for one in self._sockets:
                one.listen(BACKLOG)
        except OSError as cause:
            self.close()
            raise ConnectionFailed(address, f"cannot listen: {cause.strerror or cause}") from cause
        for one in self._sockets:
            self._loop.add_reader(one.fileno(), self._accept, one)
        port = -1 if "/" in address else self._sockets[0].getsockname()[1]
        shown = address if port < 0 else f"{address.rpartition(':')[0]}:{port}"
        log.info("%s: listening on %s", self._what, shown)
        return port

    async def _bind(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        found = await self._loop.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, target in dict.fromkeys(found):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError:
                if not self._sockets and target == found[-1][4]:
                    raise
                continue  # a machine without IPv6, or without IPv4
            self._sockets.append(one)
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(target)

    def close(self) -> None:
        """Take no more connections; those there are stay."""
        for timer in self._retries.values():
            timer.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one.fileno())
            one.close()
        self._sockets = []

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPTS_MAX):
            try:
                accepted, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as cause:  # no descriptor, or no memory, for one more
                self._trouble.failed(cause.strerror or cause, over=self._what)
                self._loop.remove_reader(listening.fileno())
                self._retries[listening] = self._loop.call_later(RETRY_S, self._retry, listening)
                return
            if not self._is_admitted(accepted.fileno(), len(self._connecting)):
                accepted.close()
                continue
            task = self._loop.create_task(self._connect(accepted))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _retry(self, listening: socket.socket) -> None:
        self._loop.add_reader(listening.fileno(), self._accept, listening)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._factory, accepted)
        except OSError as cause:  # it has gone already
            log.debug("%s: a connection ended at once error=%s", self._what, cause)
            accepted.close()


def _bound_path(address: str) -> socket.socket:
    """A socket on a path; that of a broker that is gone is in the way, and removed."""
    path = Path(address)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        path.unlink()
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
