"""Signals, and the ordered, bounded end of a run.

    async with Lifecycle(options.shutdown_timeout_s) as life:
        life.on_reload(archive.rotate)
        life.ready("archiving 3 topics")
        await life.stopping.wait()
        await life.drain(pipeline.drain())

The first SIGTERM or SIGINT sets `stopping`; a second one sets `forced`, which cuts a drain short.
SIGHUP calls what was registered with `on_reload`. Leaving the block gives the signals back. A signal
that came before the block counts (`nsqtools.ending`), so enter it before anything slow.

A run that is asked to end does so: HARD_END_S after it was cut, or should have been, the process is
ended for it, if it is one of our programs.

The service manager hears READY when `ready` was called and `health` waits for nothing, and afterwards
what changes of it. While it starts or ends it is asked for more time again and again, so that a long
recovery or a long drain is not killed, and a hung process is.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, Self

from nsqtools import ending
from nsqtools.clock import SystemClock
from nsqtools.observe.health import Health
from nsqtools.observe.log import get_log
from nsqtools.observe.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nsqtools.clock import Clock

# What is cancelled gets this long to clean up, whatever the deadline was.
CANCEL_GRACE_S = 5.0
# And the whole rest of a run that was cut or forced gets this long.
HARD_END_S = CANCEL_GRACE_S + 2.0
# How much time is asked for, and how often: TimeoutStartSec and TimeoutStopSec should be longer than
# the interval.
EXTEND_S = 30.0
EXTEND_INTERVAL_S = 10.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP)


class Lifecycle:
    """The one place that knows whether a run is to end; used as an async context manager."""

    def __init__(
        self,
        shutdown_timeout_s: float,
        *,
        health: Health | None = None,
        clock: Clock | None = None,
        notifier: Notifier | None = None,
        handle_signals: bool = True,
    ) -> None:
        self.shutdown_timeout_s = shutdown_timeout_s
        self.stopping = asyncio.Event()
        self.forced = asyncio.Event()
        self.health = health or Health()
        self._clock: Clock = clock or SystemClock()
        self._notifier = notifier or Notifier(os.environ)
        self._handle_signals = handle_signals
        self._reloads: list[Callable[[], object]] = []
        self._before: dict[signal.Signals, Any] = {}
        self._status = ""
        self._is_ready_told = False
        self._extending: asyncio.Task[None] | None = None
        self._log = get_log("lifecycle")
        self.health.on_change(self._tell)

    async def __aenter__(self) -> Self:
        if self._handle_signals:
            loop = asyncio.get_running_loop()
            self._before = {number: signal.getsignal(number) for number in _SIGNALS}
            for number in _STOP_SIGNALS:
                loop.add_signal_handler(number, self.stop, number.name)
            loop.add_signal_handler(signal.SIGHUP, self.reload)
            for number in ending.take_signals():
                self.stop(number.name)
        if self._notifier.is_active:
            self._extending = asyncio.create_task(self._extend())
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self._extending is not None:
            self._extending.cancel()
            await asyncio.gather(self._extending, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for number, handler in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def ready(self, status: str = "") -> None:
        """The run has begun, and `health` knows of everything that it waits for."""
        self._status = status
        if self.health.is_started:
            self._tell()
        self.health.started()

    def status(self, status: str) -> None:
        """Tells the service manager how things are, in one line."""
        self._notifier.status(status)

    def _tell(self) -> None:
        """What changed of the health, to the service manager."""
        if not self._notifier.is_active:
            return
        healthy = self.health.is_ok and self.health.is_ready
        status = self._status if healthy and self._status else self.health.summary()
        is_new = not self._is_ready_told and not self.stopping.is_set()
        if self.health.is_ready and is_new:
            self._is_ready_told = True
            self._notifier.ready(status)
        else:
            self._notifier.status(status)

    async def _extend(self) -> None:
        """Without an end before it is ready; then for as long as an end may take."""
        while not self._is_ready_told and not self.stopping.is_set():
            self._notifier.extend(EXTEND_S)
            await self._clock.sleep(EXTEND_INTERVAL_S)
        await self.stopping.wait()
        until = self._clock.monotonic() + self.shutdown_timeout_s + HARD_END_S
        while self._clock.monotonic() < until:
            self._notifier.extend(EXTEND_S)
            await self._clock.sleep(EXTEND_INTERVAL_S)

    def stop(self, reason: str) -> None:
        """Asks the run to end; asking again forces it. Also what SIGTERM and SIGINT do."""
        if not self.stopping.is_set():
            ending.end_within(self.shutdown_timeout_s + HARD_END_S)
            self._log.info("stopping", reason=reason, timeout_s=self.shutdown_timeout_s)
            self._notifier.stopping()
            self.stopping.set()
        elif not self.forced.is_set():
            ending.end_within(HARD_END_S)
            self._log.warning("stopping at once, without waiting for the rest", reason=reason)
            self.forced.set()

    def end(self, reason: str) -> None:
        """The run has come to its end by itself; nothing when it ends already."""
        if not self.stopping.is_set():
            self.stop(reason)

    def on_reload(self, handler: Callable[[], object]) -> None:
        """Calls `handler` on each SIGHUP; it must not block. One that raises stops no other."""
        self._reloads.append(handler)

    def reload(self) -> None:
        """What SIGHUP does."""
        self._log.info("reloading", handlers=len(self._reloads))
        for handler in self._reloads:
            try:
                handler()
            except Exception as error:  # noqa: BLE001 - a signal has nobody to raise to
                self._log.error("reload failed", error=error)

    async def drain(self, work: Coroutine[Any, Any, object], *, what: str = "drain") -> bool:
        """Runs `work` until it is done, the deadline passes or `forced` is set.

        Returns whether it was done. When it was cut, it has been cancelled and has had
        CANCEL_GRACE_S to clean up; a WARNING says so. What `work` raises is raised. Cancelling
        `drain` cancels `work` and waits for it.
        """
        task = asyncio.ensure_future(work)
        deadline = asyncio.ensure_future(self._clock.sleep(self.shutdown_timeout_s))
        forced = asyncio.ensure_future(self.forced.wait())
        try:
            await asyncio.wait((task, deadline, forced), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            try:
                await self._cut(task, what, "cancelled")
            except Exception as error:  # noqa: BLE001 - the cancellation must not be lost
                self._log.error("failed while being cut short", what=what, error=error)
            raise
        else:
            if task.done():
                task.result()
                return True
            reason = "forced" if self.forced.is_set() else "timeout"
            ending.end_within(HARD_END_S)
            return await self._cut(task, what, reason)
        finally:
            for waiter in (deadline, forced):
                waiter.cancel()
            await asyncio.gather(deadline, forced, return_exceptions=True)

    async def _cut(self, task: asyncio.Future[object], what: str, reason: str) -> bool:
        """Cancels `task`; True when it was done all the same, between the deadline and now."""
        task.cancel()
        grace = asyncio.ensure_future(self._clock.sleep(CANCEL_GRACE_S))
        try:
            await asyncio.wait((task, grace), return_when=asyncio.FIRST_COMPLETED)
        finally:
            grace.cancel()
            await asyncio.gather(grace, return_exceptions=True)
        if task.done() and not task.cancelled():
            task.result()
            return True
        ended = "" if task.done() else ", and it does not end"
        self._log.warning(f"cut short{ended}", what=what, reason=reason)
        return False
