"""Now and sleep, handed in, so that what waits can be tested without waiting."""

from __future__ import annotations

import heapq
import itertools
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

# How often the loop turns after each wake-up, so that what was woken can go on and sleep again.
TURNS_PER_WAKE = 10


class Clock(Protocol):
    """Where time comes from. Durations are measured with `monotonic`, never with `time`."""

    def time(self) -> float:
        """Seconds since the epoch; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds from some start; never goes back."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Returns after `delay_s` seconds, at once for 0 or less. Cancelling leaves nothing."""
        ...


class SystemClock:
    """The machine's clock and the event loop's timers."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        import asyncio  # here, so that parts which only read the clock load no event loop

        await asyncio.sleep(max(0.0, delay_s))


class ManualClock:
    """A clock for tests: stands still until it is advanced, then wakes sleepers in their order."""

    def __init__(self, *, time_s: float = 1_700_000_000.0, monotonic_s: float = 1000.0) -> None:
        self._time_s = time_s
        self._monotonic_s = monotonic_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._time_s

    def monotonic(self) -> float:
        return self._monotonic_s

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` are waiting."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, delay_s: float) -> None:
        import asyncio

        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        wake_at = self._monotonic_s + delay_s
        heapq.heappush(self._sleepers, (wake_at, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Lets `seconds` pass; who is woken may sleep again and be woken within them."""
        end = self._monotonic_s + seconds
        await self._turn()
        while self._sleepers and self._sleepers[0][0] <= end:
            wake_at, _, future = heapq.heappop(self._sleepers)
            self.jump(wake_at - self._monotonic_s)
            if not future.done():
                future.set_result(None)
            await self._turn()
        self.jump(end - self._monotonic_s)

    def jump(self, seconds: float) -> None:
        """Lets time pass without waking anybody, for parts that only read the clock."""
        self._time_s += seconds
        self._monotonic_s += seconds

    def set_time(self, time_s: float) -> None:
        """Sets the wall clock, as an operator or NTP does; `monotonic` does not move."""
        self._time_s = time_s

    async def _turn(self) -> None:
        import asyncio

        for _ in range(TURNS_PER_WAKE):
            await asyncio.sleep(0)
