"""What all topics of a process share when nsqlookupd is asked for their nsqds: one HTTP session, few
questions at once to each nsqlookupd, and so many nsqds in all.

A thousand topics ask when they begin, and whenever an nsqd has gone: without a bound an nsqlookupd that
takes questions and does not answer would take a descriptor for each of them, and one that names
thousands of nsqds for each topic ten kilobytes for each of those.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from nsqtools.ask import new_session
from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

QUESTIONS_AT_ONCE = 8
# Of all topics together: a thousand topics on sixteen nsqds each.
CALLED_MAX = 16_384
# What several nsqlookupds list, who name the same nsqds mostly.
LISTED_MAX = 4 * CALLED_MAX


class Discovery:
    """See the module. Whoever asks is within its block; with the last one that leaves the session ends.
    One loop only."""

    def __init__(self, *, called_max: int = CALLED_MAX, listed_max: int = LISTED_MAX) -> None:
        self._called_max = called_max
        self._listed_max = listed_max
        self._called = self._listed = self._askers = 0
        self._session: aiohttp.ClientSession | None = None
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, QUESTIONS_AT_ONCE)
        )
        self._too_many = Repeated(
            get_log("client"),
            "nsqds beyond the limit of a process wait: share the topics among several processes",
            clock=SystemClock(),
        )

    async def __aenter__(self) -> Self:
        self._askers += 1
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._askers -= 1
        if not self._askers and self._session is not None:
            session, self._session = self._session, None
            await session.close()

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[aiohttp.ClientSession]:
        """One question to this nsqlookupd, when it is its turn."""
        async with self._turns[address]:
            if self._session is None:
                self._session = new_session()
            yield self._session

    def listed(self, before: frozenset[str], now: frozenset[str]) -> frozenset[str]:
        """What is held of a new answer, in the place of an older one: all that there is room for."""
        room = self._listed_max - self._listed + len(before)
        if len(now) > room:
            self._too_many.failed(f"more than {self._listed_max} are listed by nsqlookupds")
            now = frozenset([*sorted(now & before), *sorted(now - before)][:room])
        self._listed += len(now) - len(before)
        return now

    def may_call(self) -> bool:
        """Whether another nsqd that nsqlookupd named may be called; the others wait until some go."""
        if self._called < self._called_max:
            return True
        self._too_many.failed(f"{self._called_max} are being called")
        return False

    def calls(self, task: asyncio.Task[None]) -> None:
        """A task that calls an nsqd, until it ends."""
        self._called += 1
        task.add_done_callback(self._calls_no_more)

    def _calls_no_more(self, _: asyncio.Task[None]) -> None:
        self._called -= 1
