"""Signals and the bounded drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import pytest

from nsqtools import ending
from nsqtools.clock import ManualClock
from nsqtools.lifecycle import (
    CANCEL_GRACE_S,
    EXTEND_INTERVAL_S,
    EXTEND_S,
    HARD_END_S,
    Lifecycle,
)
from nsqtools.observe.notify import Notifier

TIMEOUT_S = 30.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def life(clock: ManualClock) -> Lifecycle:
    return Lifecycle(TIMEOUT_S, clock=clock, notifier=Notifier({}), handle_signals=False)


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await event.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_then_force(number: signal.Signals) -> None:
    async with Lifecycle(TIMEOUT_S, notifier=Notifier({})) as life:
        os.kill(os.getpid(), number)
        await within(life.stopping)
        assert not life.forced.is_set()
        os.kill(os.getpid(), number)
        await within(life.forced)


async def test_hangup_reloads_all_and_survives_one_that_fails() -> None:
    called = asyncio.Event()

    def fail() -> None:
        raise ZeroDivisionError

    async with Lifecycle(TIMEOUT_S, notifier=Notifier({})) as life:
        life.on_reload(fail)
        life.on_reload(called.set)
        os.kill(os.getpid(), signal.SIGHUP)
        await within(called)
        assert not life.stopping.is_set()


async def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with Lifecycle(TIMEOUT_S, notifier=Notifier({})):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_drain_that_ends_in_time(life: Lifecycle, clock: ManualClock) -> None:
    async def work() -> None:
        await clock.sleep(TIMEOUT_S - 1)

    drain = asyncio.create_task(life.drain(work()))
    await clock.advance(TIMEOUT_S - 1)
    assert await drain is True
    assert clock.sleepers == 0


async def test_a_drain_is_cut_at_the_deadline(
    life: Lifecycle, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await clock.sleep(3600)
        finally:
            cleaned = True

    drain = asyncio.create_task(life.drain(work(), what="archive"))
    await clock.advance(TIMEOUT_S)
    assert await drain is False
    assert cleaned
    assert "cut short what=archive reason=timeout" in caplog.messages
    assert clock.sleepers == 0


async def test_a_second_signal_cuts_the_drain(
    life: Lifecycle, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    life.stop("SIGTERM")
    drain = asyncio.create_task(life.drain(clock.sleep(3600)))
    await clock.advance(1)
    life.stop("SIGTERM")
    life.stop("SIGTERM")
    assert await drain is False
    assert "cut short what=drain reason=forced" in caplog.messages


async def test_work_that_does_not_end_is_left_behind(
    life: Lifecycle, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def work() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    drain = asyncio.create_task(life.drain(work()))
    await clock.advance(TIMEOUT_S)
    assert not drain.done()
    await clock.advance(CANCEL_GRACE_S)
    assert await drain is False
    assert any("does not end" in message for message in caplog.messages)
    release.set()
    await asyncio.sleep(0)


async def test_what_the_work_raises_is_raised(life: Lifecycle, clock: ManualClock) -> None:
    async def work() -> None:
        await clock.sleep(1)
        raise ZeroDivisionError

    drain = asyncio.create_task(life.drain(work()))
    await clock.advance(1)
    with pytest.raises(ZeroDivisionError):
        await drain


async def test_work_that_ends_while_it_is_cut_counts_as_done(
    life: Lifecycle, clock: ManualClock
) -> None:
    async def work() -> str:
        try:
            await clock.sleep(3600)
        except asyncio.CancelledError:
            return "saved in the last moment"
        return "never"

    drain = asyncio.create_task(life.drain(work()))
    await clock.advance(TIMEOUT_S)
    assert await drain is True


async def test_cancelling_the_drain_cancels_the_work(life: Lifecycle, clock: ManualClock) -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await clock.sleep(3600)
        finally:
            cleaned = True

    drain = asyncio.create_task(life.drain(work()))
    await clock.advance(1)
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    assert cleaned
    assert clock.sleepers == 0


async def test_stopping_is_told_once(life: Lifecycle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nsqtools")
    async with life:
        for _ in range(4):
            life.stop("test")
    assert caplog.messages == [
        "stopping reason=test timeout_s=30",
        "stopping at once, without waiting for the rest reason=test",
    ]


async def test_signals_from_before_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_remembered", [signal.SIGTERM])
    async with Lifecycle(TIMEOUT_S, notifier=Notifier({})) as life:
        assert life.stopping.is_set()
        assert not life.forced.is_set()
    assert ending.take_signals() == []


async def test_handlers_from_before_are_given_back() -> None:
    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        async with Lifecycle(TIMEOUT_S, notifier=Notifier({})):
            assert signal.getsignal(signal.SIGTERM) is not handler
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_every_end_is_bounded(
    life: Lifecycle, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []
    monkeypatch.setattr(ending, "end_within", bounds.append)
    life.stop("test")
    drain = asyncio.create_task(life.drain(clock.sleep(3600)))
    await clock.advance(TIMEOUT_S)
    assert await drain is False
    life.stop("test")
    life.stop("test")
    assert bounds == [TIMEOUT_S + HARD_END_S, HARD_END_S, HARD_END_S]


class Manager(Notifier):
    """A service manager that keeps what it is told."""

    is_active = True

    def __init__(self) -> None:
        super().__init__({})
        self.told: list[str] = []

    def _send(self, state: str, status: str) -> None:
        self.told.append(f"{state}|{status}")


async def test_ready_is_told_when_nothing_is_waited_for() -> None:
    manager = Manager()
    life = Lifecycle(TIMEOUT_S, notifier=manager, handle_signals=False)
    life.health.waiting("topic a", "nsqd")
    life.ready("archiving 1 topic")
    assert not any("READY" in told for told in manager.told)
    life.health.ready("topic a")
    life.health.failing("disk", "full")
    life.health.ok("disk")
    life.ready("archiving 2 topics")
    assert manager.told[1:] == [
        "|topic a waits for nsqd",
        "READY=1|archiving 1 topic",
        "|disk fails: full",
        "|archiving 1 topic",
        "|archiving 2 topics",
    ]


async def test_a_run_that_ends_already_is_not_ready() -> None:
    manager = Manager()
    life = Lifecycle(TIMEOUT_S, notifier=manager, handle_signals=False)
    life.stop("SIGTERM")
    life.ready("late")
    assert manager.told == ["STOPPING=1|", "|late"]


async def test_time_is_asked_for_while_it_starts_and_while_it_ends(clock: ManualClock) -> None:
    manager = Manager()
    asked = f"EXTEND_TIMEOUT_USEC={round(EXTEND_S * 1e6)}|"
    async with Lifecycle(TIMEOUT_S, clock=clock, notifier=manager, handle_signals=False) as life:
        await clock.advance(2 * EXTEND_INTERVAL_S)
        assert manager.told == [asked] * 3
        life.ready()
        manager.told.clear()
        await clock.advance(5 * EXTEND_INTERVAL_S)
        assert manager.told == []
        life.stop("test")
        await clock.advance(100 * EXTEND_INTERVAL_S)
    # Not for ever: an end that hangs is for the service manager.
    assert manager.told == ["STOPPING=1|", *[asked] * 4]


async def test_the_service_manager_is_told(tmp_path: os.PathLike[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"{tmp_path}/notify")
        receiver.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        life = Lifecycle(TIMEOUT_S, notifier=notifier, handle_signals=False)
        life.ready("up")
        life.status("busy")
        life.stop("test")
        received = [receiver.recv(1000) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=up", b"STATUS=busy", b"STOPPING=1"]
