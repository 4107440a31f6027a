"""Where a channel is in its topic's log: what it passes over, and reading at the cursor and behind it.

*Voids* are ranges ahead of the cursor that are not the cursor's to deliver: dropped, emptied, or
waiting elsewhere. They are counted when they come and go, never when they are asked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Protocol

from nsqtools.broker.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nsqtools.broker.alarms import Alarms
    from nsqtools.broker.block import Block
    from nsqtools.broker.log import TopicLog
    from nsqtools.broker.memory import Room
    from nsqtools.broker.reading import Reader

# Messages that wait again may be anywhere: for one of them little is read.
LOOK_UP_BYTES = 64 << 10


class Feed(Protocol):
    """What a channel needs of its topic."""

    name: str
    alarms: Alarms
    copies: Room

    @property
    def log(self) -> TopicLog:
        """Where the messages are."""

    @property
    def pumped(self) -> int:
        """Messages before this number are the channels' to deliver."""

    def now_s(self) -> float:
        """Monotonic time."""

    def reader(
        self, told: Callable[[], None], *, size_max_bytes: int = ..., ahead: bool = ...
    ) -> Reader:
        """What reads the log from disk for a channel."""


class Cursor:
    """A position in a log; messages before it are somebody else's.

    What reads raises StorageError, or NotAtHand: then `told` is called when it is worth another try.
    """

    def __init__(
        self,
        feed: Feed,
        position: int,
        voids: Iterable[tuple[int, int]],
        told: Callable[[], None],
    ) -> None:
        self.position = feed.log.following(position)
        self.voids = Ranges()
        self._feed = feed
        self._void_count = 0
        self._block: Block | None = None
        self._forward = feed.reader(told)
        self._here_and_there = feed.reader(told, size_max_bytes=LOOK_UP_BYTES, ahead=False)
        for first, end in voids:
            self.void(first, end)

    # The position

    @property
    def ahead_count(self) -> int:
        """How many messages were handed over and are the cursor's to deliver."""
        return self._count(self.position, self._feed.pumped) - self._void_count

    @property
    def bound(self) -> int:
        """The first message behind the position that is not, or not yet, the cursor's to deliver."""
        pumped = self._feed.pumped
        return min(pumped, self.voids.lowest[0]) if self.voids else pumped

    @property
    def on_disk_count(self) -> int:
        """How many of those ahead are on disk only."""
        return self._count(self.position, min(self._feed.log.memory_start, self._feed.pumped))

    def void(self, first: int, end: int) -> None:
        """Messages `first` to `end` are to be passed over."""
        for new_first, new_end in self.voids.add(max(first, self.position), end):
            self._void_count += self._count(new_first, new_end)
        self._pass_voids()

    def move_to(self, end: int) -> None:
        """Everything before `end` is somebody else's now."""
        self.position = end
        if self.voids:
            for first, stop in self.voids.drop_before(end):
                self._void_count -= self._count(first, stop)
        while self._block is not None and self._block.end <= end:
            self._block = self._block.next

    def seek(self, number: int) -> None:
        """Go anywhere; everything from there on is the cursor's."""
        self.voids.clear()
        self._void_count = 0
        self._block = None
        self._forward.drop()
        self._here_and_there.drop()
        self.position = min(self._feed.log.following(number), self._feed.pumped)

    def ahead(self, end: int, count_max: int) -> list[int] | None:
        """The messages before `end` that are the cursor's to deliver; None when they are too many."""
        found: list[int] = []
        for first, stop in self.voids.gaps(self.position, min(end, self._feed.pumped)):
            if len(found) + self._count(first, stop) > count_max:
                return None
            for run in self._runs(first, stop):
                found += run
        return found

    def newest(self, first: int, end: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Ranges that hold the last `count` of those from `first` to `end` that are the cursor's to
        deliver, each with how many it holds; the last of them first."""
        for start, stop in reversed(list(self.voids.gaps(max(first, self.position), end))):
            if count <= 0:
                return
            # The lowest number from which there are no more than that.
            cut = start + bisect_left(
                range(start, stop), -count, key=lambda number: -self._count(number, stop)
            )
            found = self._count(cut, stop)
            yield cut, stop, found
            count -= found

    # Reading

    def block(self) -> Block | None:
        """The block that the cursor is in, from memory, else from disk; None when there is none."""
        self._pass_voids()
        if self.position >= self._feed.pumped:
            return None
        block = self._block
        if block is None or not block.first <= self.position < block.end:
            block = self._feed.log.in_memory(self.position)
            if block is None:
                block = self._forward.get(self.position)
            else:
                self._forward.drop()
            self._block = block
            if block is not None and self.position < block.first:
                self.move_to(block.first)  # a gap between two runs of the broker
                return self.block()
        return block

    def find(self, number: int) -> Block | None:
        """The block that holds a message, wherever it is."""
        block = self._feed.log.in_memory(number) or self._here_and_there.get(number)
        return block if block is not None and block.first <= number < block.end else None

    def found_all(self) -> None:
        """Nothing more is to be found for now: let go of what was read for that."""
        self._here_and_there.drop()

    # Inside

    def _count(self, first: int, end: int) -> int:
        return self._feed.log.count(first, end) if first < end else 0

    def _pass_voids(self) -> None:
        while self.voids and self.voids.lowest[0] <= self.position:
            self.move_to(self.voids.lowest[1])

    def _runs(self, first: int, end: int) -> Iterator[range]:
        """The messages from `first` to `end`; numbers have gaps, between two runs of the broker."""
        log = self._feed.log
        left = self._count(first, end)
        while left:
            start = first = log.following(first)
            length = bisect_right(
                range(1, left + 1), 0, key=lambda count: count - log.count(start, start + count)
            )
            if not length:
                return
            first += length
            left -= length
            yield range(start, first)
