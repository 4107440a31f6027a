"""The status endpoint: how a running program is, over HTTP, for Prometheus and for service managers.

| path | answer |
|---|---|
| `/metrics` | every counter and gauge, as Prometheus reads them |
| `/health` | 200, or 503 with a line for each part that fails; then lines `note: ...` to know of |
| `/ready` | 200, or 503 with a line for each part that has not begun its work |
| `/status` | all of that, and what the program adds, as JSON |

Nothing can be changed here and nothing secret is shown; still it tells names of topics and addresses, so
it is off unless an address is named, and 127.0.0.1 is the one to name. `page_server` bounds requests,
connections and their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nsqtools.errors import ConnectionFailed
from nsqtools.observe import process
from nsqtools.observe.counters import EXPOSITION_TYPE, exposition
from nsqtools.observe.health import shown
from nsqtools.observe.log import get_log
from nsqtools.observe.page import JSON, METHODS, PLAIN, Page
from nsqtools.options import join_address, printable, split_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsqtools.observe.counters import Registry
    from nsqtools.observe.health import Health
    from nsqtools.observe.page_server import PageServer

log = get_log("status")

# An answer under way gets this long when the run ends.
STOP_TIMEOUT_S = 1.0


class StatusServer:
    """Serves the status of one run while its block is entered; does nothing for an empty address.

    Raises ConnectionFailed when it cannot listen. `status` gives what /status shows beside the health;
    it is called for each request, and must not block or give secrets. `refresh` is called before each
    page, for a program that does not tell its health by itself.
    """

    def __init__(
        self,
        address: str,
        registry: Registry,
        health: Health,
        *,
        status: Callable[[], Mapping[str, Any]] = dict,
        refresh: Callable[[], None] | None = None,
    ) -> None:
        self.port = 0
        self._address = address
        self._registry = registry
        self._health = health
        self._status = status
        self._refresh = refresh
        self._listener: asyncio.AbstractServer | None = None
        self._server: PageServer | None = None
        self._file = -1
        self._add_gauges()
        process.register(registry)

    async def __aenter__(self) -> Self:
        if self._address:
            try:
                self._listener = await self._listen()
            except OSError as cause:
                text = f"cannot listen: {cause.strerror or cause}"
                raise ConnectionFailed(self._address, text) from cause
            log.info("status is served", address=self._shown_address())
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._listener is None:
            return
        self._listener.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(STOP_TIMEOUT_S)
        if self._is_path:
            with contextlib.suppress(OSError):
                if Path(self._address).lstat().st_ino == self._file:  # not that of a later run
                    Path(self._address).unlink()

    @property
    def _is_path(self) -> bool:
        return self._address.startswith("/")

    def _shown_address(self) -> str:
        if self._is_path:
            return self._address
        return join_address(split_address(self._address)[0], self.port)

    async def _listen(self) -> asyncio.AbstractServer:
        from nsqtools.observe.page_server import PageServer  # aiohttp, for whoever serves status

        loop = asyncio.get_running_loop()
        self._server = PageServer(self._answer)
        if self._is_path:
            await self._check_unused()
            listener = await loop.create_unix_server(self._server, self._address)
            self._file = Path(self._address).lstat().st_ino
            return listener
        host, port = split_address(self._address)
        listener = await loop.create_server(self._server, host or None, port)
        self.port = listener.sockets[0].getsockname()[1]
        return listener

    async def _check_unused(self) -> None:
        """Raises OSError when somebody answers at the path of our socket: another run."""
        try:
            _, writer = await asyncio.open_unix_connection(self._address)
        except OSError:
            return  # nobody, or the socket of a run that was killed
        writer.close()
        raise OSError(errno.EADDRINUSE, "another program serves its status there")

    def _answer(self, method: str, path: str) -> Page:
        """The page for a request; what fails while it is made is logged and not told."""
        make = {
            "/metrics": self._metrics,
            "/health": self._health_page,
            "/ready": self._ready_page,
            "/status": self._status_page,
        }.get(path)
        if make is None:
            return Page(404, PLAIN, "there are /metrics, /health, /ready and /status\n")
        if method not in METHODS:
            return Page(405, PLAIN, f"only {' and '.join(METHODS)}\n")
        try:
            if self._refresh is not None:
                self._refresh()
            return make()
        except Exception as error:  # noqa: BLE001 - a page that fails must not end the run
            log.error("status page failed", path=path, error=error)
            return Page(500, PLAIN, "failed, the log says why\n")

    def _metrics(self) -> Page:
        return Page(200, EXPOSITION_TYPE, exposition(self._registry.snapshot()))

    def _health_page(self) -> Page:
        return _lines(self._health.failures, self._health.notes)

    def _ready_page(self) -> Page:
        return _lines(self._health.waits)

    def _status_page(self) -> Page:
        health = self._health
        own = {
            "healthy": health.is_ok,
            "failing": health.failures,
            "ready": health.is_ready,
            "waiting": health.waits,
            "notes": health.notes,
        }
        return Page(200, JSON, json.dumps({**self._status(), **own}, indent=2, default=str) + "\n")

    def _add_gauges(self) -> None:
        failing = self._registry.gauge("nsqtools_health_failing_parts", "parts that fail").labels()
        waiting = self._registry.gauge(
            "nsqtools_health_waiting_parts", "parts that have not begun their work"
        ).labels()

        def refresh() -> None:
            failing.set(len(self._health.failures))
            waiting.set(len(self._health.waits))

        self._registry.before_snapshot(refresh)


def _lines(parts: Mapping[str, str], notes: Mapping[str, str] | None = None) -> Page:
    text = _told(parts) if parts else "ok\n"
    return Page(503 if parts else 200, PLAIN, text + _told(notes or {}, "note: "))


def _told(parts: Mapping[str, str], before: str = "") -> str:
    # Reasons come from other machines: a newline in one would look like another part, and an escape is
    # not for the terminal of whoever asks.
    told = (printable(" ".join(f"{before}{what}: {why}".split())) for what, why in parts.items())
    return "".join(f"{line}\n" for line in shown(told, len(parts)))
