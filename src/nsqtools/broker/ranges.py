"""A set of numbers, kept as ranges that neither overlap nor touch. Pure.

It costs what its ranges cost, however many numbers they hold. Adding at the end and dropping at the
beginning, which is what a channel does, take no longer when there are many ranges.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The places of dropped ranges are given back when there are this many, and more than the others.
_DROPPED_MIN = 64


class Ranges:
    """Ranges (first, end), `end` exclusive, in ascending order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        self._head = 0
        for first, end in ranges:
            self.add(first, end)

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._firsts) - self._head

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for at in range(self._head, len(self._firsts)):
            yield self._firsts[at], self._ends[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number, lo=self._head) - 1
        return at >= self._head and number < self._ends[at]

    @property
    def lowest(self) -> tuple[int, int]:
        """The first range; there must be one."""
        return self._firsts[self._head], self._ends[self._head]

    def add(self, first: int, end: int) -> list[tuple[int, int]]:
        """Add a range; gives what of it is new."""
        if first >= end:
            return []
        new = list(self.gaps(first, end))
        # All that the range overlaps or touches becomes one with it.
        start = bisect_left(self._ends, first, lo=self._head)
        stop = bisect_right(self._firsts, end, lo=start)
        if start < stop:
            first, end = min(first, self._firsts[start]), max(end, self._ends[stop - 1])
        self._firsts[start:stop] = [first]
        self._ends[start:stop] = [end]
        return new

    def gaps(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """What of `first` to `end` is not in the set."""
        at = bisect_right(self._ends, first, lo=self._head)
        while first < end:
            is_last = at == len(self._firsts) or self._firsts[at] >= end
            gap_end = end if is_last else self._firsts[at]
            if first < gap_end:
                yield first, gap_end
            first = end if is_last else self._ends[at]
            at += 1

    def remove(self, first: int, end: int) -> None:
        """Take out what of the set is in a range."""
        start = bisect_right(self._ends, first, lo=self._head)
        stop = bisect_left(self._firsts, end, lo=start)
        if start >= stop:
            return
        left = (self._firsts[start], min(first, self._ends[start]))
        right = (max(end, self._firsts[stop - 1]), self._ends[stop - 1])
        kept = [one for one in (left, right) if one[0] < one[1]]
        self._firsts[start:stop] = [one[0] for one in kept]
        self._ends[start:stop] = [one[1] for one in kept]

    def drop_before(self, number: int) -> list[tuple[int, int]]:
        """Forget what lies before `number`; gives it."""
        dropped = []
        while len(self) and self._firsts[self._head] < number:
            first, end = self.lowest
            dropped.append((first, min(end, number)))
            if end > number:
                self._firsts[self._head] = number
                break
            self._head += 1
        if self._head > _DROPPED_MIN and self._head * 2 > len(self._firsts):
            del self._firsts[: self._head]
            del self._ends[: self._head]
            self._head = 0
        return dropped

    def clear(self) -> None:
        self._firsts.clear()
        self._ends.clear()
        self._head = 0
