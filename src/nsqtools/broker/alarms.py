"""When a channel is to be looked at although nobody asks for anything. Pure.

What times out does so by monotonic time, what is deferred is due by the wall's. A channel says what its
next time is when that comes nearer; so those for which nothing is due cost no work, however many.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

# Entries that do not count any more are cleared away when there are so many, and more than others.
_STALE_MIN = 64


class Times(Generic[T]):
    """The next time of each, of one clock."""

    def __init__(self) -> None:
        # When, a number that no other entry has, and who; None where that does not count any more.
        self._heap: list[tuple[float, int, list[T]]] = []
        self._next: dict[T, tuple[float, list[T]]] = {}
        self._number = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, who: T, when: float) -> None:
        """Not later than `when`."""
        known = self._next.get(who)
        if known is not None and known[0] <= when:
            return
        self.forget(who)
        entry = [who]
        self._next[who] = (when, entry)
        heapq.heappush(self._heap, (when, next(self._number), entry))

    def forget(self, who: T) -> None:
        known = self._next.pop(who, None)
        if known is not None:
            known[1].clear()
            if len(self._heap) > _STALE_MIN + 2 * len(self._next):
                self._heap = [entry for entry in self._heap if entry[2]]
                heapq.heapify(self._heap)

    def due(self, now: float) -> list[T]:
        """Those whose time has come; they have none any more."""
        found: list[T] = []
        while self._heap and (not self._heap[0][2] or self._heap[0][0] <= now):
            for who in heapq.heappop(self._heap)[2]:
                del self._next[who]
                found.append(who)
        return found


class Scanned(Protocol):
    """A channel, as far as it is looked at."""

    name: str

    @property
    def topic_name(self) -> str:
        """Whose it is."""

    def scan(self, now_s: float, now_ns: int) -> None:
        """Do what is due."""


class Alarms:
    """Both clocks: seconds of monotonic time, nanoseconds of the wall's."""

    def __init__(self) -> None:
        self.deadlines: Times[Scanned] = Times()
        self.dues: Times[Scanned] = Times()

    def forget(self, who: Scanned) -> None:
        """It is gone."""
        self.deadlines.forget(who)
        self.dues.forget(who)

    def due(self, now_s: float, now_ns: int) -> list[Scanned]:
        """Those to look at now, each once."""
        return list(dict.fromkeys([*self.deadlines.due(now_s), *self.dues.due(now_ns)]))


class Alarm:
    """What one channel says of its next times. Once it is off, nobody looks at the channel any more,
    whatever still happens to it.

    `next_s` is when it was asked for, at the latest.
    """

    __slots__ = ("_alarms", "_who", "is_off", "next_s")

    def __init__(self, alarms: Alarms, who: Scanned) -> None:
        self._alarms = alarms
        self._who = who
        self.is_off = False
        self.next_s = math.inf

    def set(self, deadline_s: float, due_ns: float) -> None:
        """Not later than either of them; infinity for never."""
        if self.is_off:
            return
        if deadline_s < self.next_s:
            self.next_s = deadline_s
            self._alarms.deadlines.set(self._who, deadline_s)
        if due_ns < math.inf:
            self._alarms.dues.set(self._who, due_ns)

    def rang(self) -> None:
        """It is being looked at."""
        self.next_s = math.inf

    def turn_off(self) -> None:
        self.is_off = True
        self._alarms.forget(self._who)
