"""The clocks: the machine's, and the one that stands still."""

from __future__ import annotations

import asyncio
import time

import pytest

from nsqtools.clock import Clock, ManualClock, SystemClock


async def test_the_system_clock_is_the_machines() -> None:
    clock: Clock = SystemClock()
    assert abs(clock.time() - time.time()) < 60
    before = clock.monotonic()
    await clock.sleep(-1)
    await clock.sleep(0.001)
    assert clock.monotonic() > before


async def test_sleepers_wake_in_their_order_and_not_before() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append((name, clock.monotonic() - 1000))

    async with asyncio.TaskGroup() as group:
        for name, delay_s in (("c", 3.0), ("a", 1.0), ("b", 1.0)):
            group.create_task(sleeper(name, delay_s))
        await clock.advance(0.5)
        assert (woken, clock.sleepers) == ([], 3)
        await clock.advance(1)
        assert woken == [("a", 1.0), ("b", 1.0)]
        await clock.advance(10)
    assert woken[-1] == ("c", 3.0)
    assert clock.monotonic() == 1011.5
    assert clock.time() == 1_700_000_011.5


async def test_who_is_woken_can_sleep_again_within_one_advance() -> None:
    clock = ManualClock()
    ticks = 0

    async def ticker() -> None:
        nonlocal ticks
        while True:
            await clock.sleep(1)
            ticks += 1

    task = asyncio.create_task(ticker())
    await clock.advance(5)
    assert ticks == 5
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    await clock.advance(5)
    assert ticks == 5


def test_the_wall_clock_can_be_set_apart() -> None:
    clock = ManualClock(time_s=100, monotonic_s=5)
    clock.jump(2)
    clock.set_time(50)
    assert (clock.time(), clock.monotonic()) == (50, 7)
