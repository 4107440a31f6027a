"""What is in flight on a channel: which message is held by whom, and until when. Pure bookkeeping.

Theory of operation. A run of messages handed out together is one `Lease`, and most consumers answer in
the order in which they were served. So nothing is kept for a single message: the lines of a FIN run
are compared with those of the consumer's oldest leases, a memcmp for a whole run. An answer out of order
*scatters* the lease that it is for into a dictionary by message, and is looked up there.

Which lease that is, is found by bisection: runs of the log are handed out in its order. The others,
of messages that come again, are scattered when one is looked for; each once. Leases that are over stay
in the heaps until they come to the top, or are more than the living.

Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

import heapq
import math
from binascii import Error as BadHex
from binascii import unhexlify
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nsqtools.wire.commands import FIN_LINE_BYTES, fin, fin_ids
from nsqtools.wire.decoder import is_id

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

NOT_IN_FLIGHT = "ID not in flight"
NOT_OWNED = "client does not own message"
NO_ID = "invalid message ID"
# Leases that are over are cleared away when so many, and twice the living, were taken since.
_STALE_MIN = 1024


class Holder(Protocol):
    """A consumer, as far as a lease needs it."""

    in_flight: int


class Lease:
    """A run of messages that one consumer holds; `fins` are the lines that end them, in order.

    While it is in order, the first `done` of `numbers` are settled and the others are held. Once it is
    scattered, `held` says which are.
    """

    __slots__ = (
        "attempts",
        "deadline_s",
        "delivered_s",
        "done",
        "fins",
        "first",
        "held",
        "holder",
        "numbers",
    )

    def __init__(
        self,
        holder: Holder,
        numbers: Sequence[int],
        fins: bytes,
        *,
        attempts: int,
        now_s: float,
        timeout_s: float,
    ) -> None:
        self.holder = holder
        self.numbers = numbers
        self.first = numbers[0]
        self.fins = fins
        self.attempts = attempts
        self.delivered_s = now_s
        self.deadline_s = now_s + timeout_s
        self.done = 0
        self.held: set[int] | None = None

    def __lt__(self, other: Lease) -> bool:
        return self.deadline_s < other.deadline_s

    @property
    def remaining(self) -> int:
        return len(self.numbers) - self.done if self.held is None else len(self.held)

    def holds(self, number: int) -> bool:
        if self.held is not None:
            return number in self.held
        # Nearly always a range, in which looking for a number costs nothing.
        return self.remaining > 0 and number in self.numbers[self.done :]

    def lowest(self, kept: Container[int]) -> int | None:
        """The lowest message that is still held and not among `kept`."""
        held = (number for number in self.open_numbers() if number not in kept)
        # Of a run of the log nearly always the first.
        return next(held, None) if self.is_run and self.held is None else min(held, default=None)

    @property
    def is_run(self) -> bool:
        """Whether it was handed out as a run of the log, in its order."""
        return isinstance(self.numbers, range)

    def open_numbers(self) -> Sequence[int]:
        """The messages that are still held, in order."""
        return self.numbers[self.done :] if self.held is None else sorted(self.held)


@dataclass(slots=True)
class Settled:
    """What a run of answers settled: whole runs (first, end), single numbers, and what it did not
    settle, with the reason."""

    runs: list[tuple[int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[int]:
        for first, end in self.runs:
            yield from range(first, end)
        yield from self.numbers


def fins_of(numbers: Sequence[int]) -> bytes:
    """The FIN lines of messages; an id is 16 hex digits."""
    return fin([b"%016x" % number for number in numbers])


def number_of(message_id: bytes) -> int | None:
    """The number that an id stands for; None when it is not an id of ours."""
    try:
        number = int.from_bytes(unhexlify(message_id), "big")
    except BadHex:
        return None
    return number if message_id == b"%016x" % number else None  # upper case is not ours


class Flight:
    """The messages in flight on one channel."""

    def __init__(self) -> None:
        # The leases of each consumer that are in order, and those that are scattered.
        self._in_order: dict[Holder, OrderedDict[Lease, None]] = {}
        self._out_of_order: dict[Holder, set[Lease]] = {}
        self._scattered: dict[int, Lease] = {}
        self._by_deadline: list[Lease] = []
        self._by_number: list[tuple[int, Lease]] = []
        self._runs: list[Lease] = []
        self._others: list[Lease] = []
        # No lease ends before this.
        self.next_deadline_s = math.inf
        self._living = 0
        self._taken = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def numbers(self) -> Iterator[int]:
        """Every message in flight."""
        for lease in self._by_deadline:
            yield from lease.open_numbers()

    def attempts(self) -> Iterator[tuple[int, int]]:
        """Every message in flight, with its attempts."""
        for lease in self._by_deadline:
            for number in lease.open_numbers():
                yield number, lease.attempts

    def copy(self) -> list[tuple[Sequence[int], int]]:
        """What is in flight, with its attempts; to be read in another thread."""
        leases = [lease for lease in self._by_deadline if lease.remaining]
        return [(lease.open_numbers(), lease.attempts) for lease in leases]

    def lowest(self, kept: Container[int]) -> int | None:
        """The lowest message in flight that is not among `kept`, which it stays in once it is."""
        while self._by_number:
            number, lease = self._by_number[0]
            lowest = lease.lowest(kept)
            if lowest is None:
                heapq.heappop(self._by_number)
            elif lowest != number:
                heapq.heapreplace(self._by_number, (lowest, lease))
            else:
                return number
        return None

    def below(self, end: int, kept: Container[int], count_max: int) -> list[int] | None:
        """Those before `end` that are not among `kept`; None when they are too many."""
        found: list[int] = []
        seen: list[tuple[int, Lease]] = []
        while (lowest := self.lowest(kept)) is not None and lowest < end:
            if len(found) > count_max:
                break
            seen.append(heapq.heappop(self._by_number))
            numbers = seen[-1][1].open_numbers()
            found += [number for number in numbers if number < end and number not in kept]
        for entry in seen:
            heapq.heappush(self._by_number, entry)
        return None if len(found) > count_max else found

    def take(self, lease: Lease) -> None:
        """Begin a lease; its holder has that many more in flight."""
        theirs = self._in_order.get(lease.holder)
        if theirs is None:
            theirs = self._in_order[lease.holder] = OrderedDict()
        theirs[lease] = None
        self._add(lease.holder, len(lease.numbers))
        self._living += 1
        lowest = lease.first
        if lease.is_run and (not self._runs or self._runs[-1].first < lowest):
            self._runs.append(lease)
        else:
            self._others.append(lease)
            lowest = min(lease.numbers)
        heapq.heappush(self._by_number, (lowest, lease))
        heapq.heappush(self._by_deadline, lease)
        if lease.deadline_s < self.next_deadline_s:
            self.next_deadline_s = lease.deadline_s
        self._taken += 1
        if self._taken > _STALE_MIN + 2 * self._living:
            self._clear_away()

    def settle(self, holder: Holder, fins: bytes) -> Settled:
        """End the leases of a run of FIN lines, up to one that cannot be one: it is the last refused."""
        settled = Settled()
        position = self._settle_in_order(holder, fins, settled)
        if position == len(fins):
            return settled
        for message_id in fin_ids(fins[position:]):
            found = self.find(holder, message_id)
            if not isinstance(found, str):
                self.end(found)
                settled.numbers.append(found)
            elif is_id(message_id):
                settled.refused.append((message_id, found))
            else:
                settled.refused.append((message_id, NO_ID))
                break
        return settled

    def find(self, holder: Holder, message_id: bytes) -> int | str:
        """The number of a message that `holder` holds, or why it does not."""
        number = number_of(message_id)
        lease = None if number is None else self._lease_of(number)
        if number is None or lease is None:
            return NOT_IN_FLIGHT
        if lease.holder is not holder:
            return NOT_OWNED
        if lease.held is None:
            self._scatter(lease)
        return number

    def end(self, number: int) -> Lease:
        """End the lease of one message that `find` has found."""
        lease = self._scattered.pop(number)
        if lease.held is not None:
            lease.held.discard(number)
            if not lease.held:
                self._over(lease)
        self._add(lease.holder, -1)
        return lease

    def touch(self, number: int, now_s: float, timeout_s: float, max_timeout_s: float) -> None:
        """Give one message more time, but no more than `max_timeout_s` since it was delivered."""
        old = self.end(number)
        lease = Lease(
            old.holder,
            (number,),
            fins_of((number,)),
            attempts=old.attempts,
            now_s=now_s,
            timeout_s=timeout_s,
        )
        lease.delivered_s = old.delivered_s
        lease.deadline_s = min(now_s + timeout_s, old.delivered_s + max_timeout_s)
        self.take(lease)

    def expired(self, now_s: float) -> list[Lease]:
        """Leases whose time is over, ended; `numbers` is narrowed to what was still held."""
        over = []
        heap = self._by_deadline
        while heap and (heap[0].deadline_s <= now_s or not heap[0].remaining):
            lease = heapq.heappop(heap)
            if lease.remaining:
                over.append(self._end_all(lease))
        self.next_deadline_s = heap[0].deadline_s if heap else math.inf
        return over

    def release(self, holder: Holder) -> list[Lease]:
        """End every lease of a consumer that is gone."""
        theirs = [*self._in_order.get(holder, ()), *self._out_of_order.get(holder, ())]
        ended = [self._end_all(lease) for lease in theirs]
        self._in_order.pop(holder, None)
        self._out_of_order.pop(holder, None)
        return ended

    def clear(self) -> None:
        for lease in self._by_deadline:
            if lease.remaining:
                self._end_all(lease)
        self._in_order.clear()
        self._out_of_order.clear()
        self._clear_away()

    def _settle_in_order(self, holder: Holder, fins: bytes, settled: Settled) -> int:
        """Settle what is answered in the order of delivery; gives where that ends."""
        theirs = self._in_order.get(holder)
        position = 0
        while theirs and position < len(fins):
            lease = next(iter(theirs))
            start = lease.done * FIN_LINE_BYTES
            answered = fins[position : position + len(lease.fins) - start]
            if not lease.fins.startswith(answered, start):
                break
            count = len(answered) // FIN_LINE_BYTES
            _add_run(settled, lease.numbers[lease.done : lease.done + count])
            lease.done += count
            if lease.done == len(lease.numbers):
                self._over(lease)
            position += len(answered)
        self._add(holder, -(position // FIN_LINE_BYTES))
        return position

    def _lease_of(self, number: int) -> Lease | None:
        lease = self._scattered.get(number)
        if lease is not None:
            return lease
        at = bisect_right(self._runs, number, key=lambda run: run.first) - 1
        if at >= 0 and self._runs[at].holds(number):
            return self._runs[at]
        others, self._others = self._others, []
        for other in others:
            if other.held is None and other.remaining:
                self._scatter(other)
        return self._scattered.get(number)

    def _scatter(self, lease: Lease) -> None:
        """Its messages are looked up one by one from now on."""
        del self._in_order[lease.holder][lease]
        self._out_of_order.setdefault(lease.holder, set()).add(lease)
        lease.held = set(lease.open_numbers())
        self._scattered.update(dict.fromkeys(lease.held, lease))

    def _end_all(self, lease: Lease) -> Lease:
        lease.numbers = lease.open_numbers()
        for number in lease.held or ():
            del self._scattered[number]
        self._add(lease.holder, -len(lease.numbers))
        self._over(lease)
        return lease

    def _over(self, lease: Lease) -> None:
        """Nothing of it is held any more; what it is found by goes later."""
        if lease.held is None:
            del self._in_order[lease.holder][lease]
        else:
            theirs = self._out_of_order[lease.holder]
            theirs.discard(lease)
            if not theirs:
                del self._out_of_order[lease.holder]
        lease.done, lease.held, lease.fins = len(lease.numbers), None, b""
        self._living -= 1

    def _add(self, holder: Holder, count: int) -> None:
        holder.in_flight += count
        self._count += count

    def _clear_away(self) -> None:
        """Forget the leases that are over."""
        self._taken = 0
        self._by_deadline = [lease for lease in self._by_deadline if lease.remaining]
        self._by_number = [entry for entry in self._by_number if entry[1].remaining]
        self._runs = [lease for lease in self._runs if lease.remaining]
        self._others = [lease for lease in self._others if lease.remaining]
        heapq.heapify(self._by_deadline)
        heapq.heapify(self._by_number)


def _add_run(settled: Settled, numbers: Sequence[int]) -> None:
    if isinstance(numbers, range):
        runs = settled.runs
        if runs and runs[-1][1] == numbers.start:
            runs[-1] = (runs[-1][0], numbers.stop)
        else:
            runs.append((numbers.start, numbers.stop))
    else:
        settled.numbers += numbers
