"""Messages before a channel's cursor that wait: at once or for their time. Pure bookkeeping.

What waits at once waits in one of two lines. What was taken back, from a restart or a lost connection,
comes `first`, before all that is new. What was requeued or has timed out goes to the `tail`: it
remembers a position in the log, and its turn comes when the channel's cursor has reached that. So it
waits for what was there before it, and for nothing that came later.

Nothing here visits all that waits, but for `pending`: the lowest number is the top of a heap, from
which what has gone is cleared when it gets there.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import TYPE_CHECKING

from nsqtools.broker.memory import NO_BOUND

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from nsqtools.broker.flight import Settled
    from nsqtools.broker.memory import Room

# A heap of numbers is made anew when it has this many, and more than twice as many as wait.
_STALE_MIN = 1024


class Waiting:
    """Messages that wait, each with how often it was handed out.

    `kept` holds the messages of which there are copies: the log need not keep those.
    """

    def __init__(self, kept: Container[int]) -> None:
        self._kept = kept
        self._first: deque[int] = deque()
        self._tail: deque[tuple[int, int]] = deque()
        self._deferred: list[tuple[int, int]] = []
        self._attempts: dict[int, int] = {}
        self._lowest: list[int] = []
        # The time of the deferred message that is due first.
        self.next_due_ns: float = math.inf

    @property
    def again(self) -> int:
        """How many wait to be handed out at once."""
        return len(self._first) + len(self._tail)

    @property
    def deferred(self) -> int:
        """How many wait for their time."""
        return len(self._deferred)

    def put(self, number: int, attempts: int, due_ns: int = 0) -> None:
        """Until its time; without one before all that is new."""
        if due_ns:
            heapq.heappush(self._deferred, (due_ns, number))
            self.next_due_ns = self._deferred[0][0]
        else:
            self._first.append(number)
        self._put(number, attempts)

    def put_last(self, number: int, attempts: int, position: int) -> None:
        """Behind what the log holds before `position`, which never goes back."""
        self._tail.append((number, position))
        self._put(number, attempts)

    def head(self, cursor: int) -> tuple[int, int] | None:
        """The message whose turn it is when the cursor is there, and its attempts so far."""
        if self._first:
            number = self._first[0]
        elif self._tail and self._tail[0][1] <= cursor:
            number = self._tail[0][0]
        else:
            return None
        return number, self._attempts[number]

    @property
    def next_turn(self) -> int:
        """Where the cursor is when the turn of the tail comes."""
        return self._tail[0][1] if self._tail else NO_BOUND

    def take(self) -> None:
        """Take out what `head` gave."""
        number = self._first.popleft() if self._first else self._tail.popleft()[0]
        del self._attempts[number]

    def due(self, now_ns: int) -> list[tuple[int, int]]:
        """Take out the deferred messages whose time has come, with their attempts."""
        found = []
        while self._deferred and self._deferred[0][0] <= now_ns:
            number = heapq.heappop(self._deferred)[1]
            found.append((number, self._attempts.pop(number)))
        self.next_due_ns = self._deferred[0][0] if self._deferred else math.inf
        return found

    def pending(self) -> Iterator[tuple[int, int, int]]:
        """All of them: number, attempts, and the time in nanoseconds or 0."""
        for number in self._first:
            yield number, self._attempts[number], 0
        for number, _ in self._tail:
            yield number, self._attempts[number], 0
        for due_ns, number in self._deferred:
            yield number, self._attempts[number], due_ns

    def copy(self) -> Waiting:
        """The same, to be read in another thread; it costs no work for each message but a copy."""
        made = Waiting(())
        made._first, made._tail = self._first.copy(), self._tail.copy()
        made._deferred, made._attempts = self._deferred.copy(), self._attempts.copy()
        return made

    def lowest(self) -> int | None:
        """The lowest of which there is no copy."""
        while self._lowest and not self._needs(self._lowest[0]):
            heapq.heappop(self._lowest)
        return self._lowest[0] if self._lowest else None

    def below(self, end: int, count_max: int) -> list[int] | None:
        """Those before `end` of which there is no copy, in order; None when they are too many."""
        found: list[int] = []
        while (number := self.lowest()) is not None and number < end and len(found) <= count_max:
            heapq.heappop(self._lowest)
            if not found or number != found[-1]:
                found.append(number)
        for number in found:
            heapq.heappush(self._lowest, number)
        return None if len(found) > count_max else found

    def clear(self) -> None:
        self._first.clear()
        self._tail.clear()
        self._deferred.clear()
        self._attempts.clear()
        self._lowest.clear()
        self.next_due_ns = math.inf

    def _put(self, number: int, attempts: int) -> None:
        self._attempts[number] = attempts
        heapq.heappush(self._lowest, number)
        # One that comes and goes leaves its number each time.
        if len(self._lowest) > _STALE_MIN + 2 * len(self._attempts):
            self._lowest = [one for one in self._attempts if one not in self._kept]
            heapq.heapify(self._lowest)

    def _needs(self, number: int) -> bool:
        return number in self._attempts and number not in self._kept


class Carried:
    """Copies of messages that wait or are in flight, so that the log can let go of them.

    An empty copy says that the log does not have the message any more. What they take is counted in
    `room`, too.
    """

    def __init__(self, frames: Mapping[int, bytes], room: Room) -> None:
        self._frames = dict(frames)
        self._room = room
        self.size_bytes = 0
        self._grow(sum(map(len, self._frames.values())))

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, number: object) -> bool:
        return number in self._frames

    def get(self, number: int) -> bytes | None:
        return self._frames.get(number)

    def add(self, number: int, frame: bytes) -> None:
        self.forget(number)
        self._frames[number] = frame
        self._grow(len(frame))

    def forget(self, number: int) -> None:
        frame = self._frames.pop(number, None)
        if frame is not None:
            self._grow(-len(frame))

    def settle(self, settled: Settled) -> None:
        """Forget what was acknowledged; looks at the fewer, copies or acknowledged."""
        if not self._frames:
            return
        for first, end in settled.runs:
            if len(self._frames) < end - first:
                for number in [one for one in self._frames if first <= one < end]:
                    self.forget(number)
            else:
                for number in range(first, end):
                    self.forget(number)
        for number in settled.numbers:
            self.forget(number)

    def frames(self) -> dict[int, bytes]:
        """All of them, for a snapshot."""
        return dict(self._frames)

    def clear(self) -> None:
        self._frames.clear()
        self._grow(-self.size_bytes)

    def _grow(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self._room.held_bytes += size_bytes
