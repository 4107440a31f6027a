"""What is in flight on a channel: which message is held by whom, and until when. Pure bookkeeping.

Theory of operation. A run of messages handed out together is one `Lease`, and most consumers answer in
the order in which they were served. So nothing is kept for a single message: the ids of a FIN run are
compared with the ids of the consumer's oldest leases, a memcmp for a whole run. When answers come out
of order, the consumer's leases are *scattered* into a dictionary by message, and looked up there.

Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

import heapq
import struct
from binascii import Error as BadHex
from binascii import hexlify, unhexlify
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nsqtools.wire.messages import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOT_IN_FLIGHT = "ID not in flight"
NOT_OWNED = "client does not own message"
# A heap of leases is made anew when this many, and more than half, are settled.
_STALE_MIN = 1024


class Holder(Protocol):
    """A consumer, as far as a lease needs it."""

    in_flight: int


class Lease:
    """A run of messages that one consumer holds; `ids` are theirs, one after the other.

    While it is in order, the first `done` of `numbers` are settled and the others are held. Once it is
    scattered, `held` says which are.
    """

    __slots__ = (
        "attempts",
        "deadline_s",
        "delivered_s",
        "done",
        "held",
        "holder",
        "ids",
        "numbers",
    )

    def __init__(
        self,
        holder: Holder,
        numbers: Sequence[int],
        ids: bytes,
        *,
        attempts: int,
        now_s: float,
        timeout_s: float,
    ) -> None:
        self.holder = holder
        self.numbers = numbers
        self.ids = ids
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


def ids_of(numbers: Sequence[int]) -> bytes:
    """The ids of messages, 16 hex digits each."""
    return hexlify(struct.pack(f">{len(numbers)}Q", *numbers))


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
        self._in_order: dict[Holder, deque[Lease]] = {}
        self._scattered: dict[int, Lease] = {}
        self._heap: list[Lease] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def numbers(self) -> Iterator[int]:
        """Every message in flight."""
        for lease in self._heap:
            yield from lease.open_numbers()

    def attempts(self) -> Iterator[tuple[int, int]]:
        """Every message in flight, with its attempts."""
        for lease in self._heap:
            for number in lease.open_numbers():
                yield number, lease.attempts

    def take(self, lease: Lease) -> None:
        """Begin a lease; its holder has that many more in flight."""
        queue = self._in_order.get(lease.holder)
        if queue is None:
            queue = self._in_order[lease.holder] = deque()
        queue.append(lease)
        self._add(lease.holder, len(lease.numbers))
        heapq.heappush(self._heap, lease)

    def settle(self, holder: Holder, ids: bytes) -> Settled:
        """End the leases of a run of ids (16 bytes each)."""
        settled = Settled()
        position = self._settle_in_order(holder, ids, settled)
        for at in range(position, len(ids), ID_BYTES):
            message_id = ids[at : at + ID_BYTES]
            found = self.find(holder, message_id)
            if isinstance(found, str):
                settled.refused.append((message_id, found))
            else:
                self.end(found)
                settled.numbers.append(found)
        return settled

    def find(self, holder: Holder, message_id: bytes) -> int | str:
        """The number of a message that `holder` holds, or why it does not."""
        number = number_of(message_id)
        if number is None:
            return NOT_IN_FLIGHT
        if number not in self._scattered:
            self._scatter(holder)
        lease = self._scattered.get(number)
        if lease is None:
            held = any(lease.holds(number) for lease in self._heap)
            return NOT_OWNED if held else NOT_IN_FLIGHT
        return number if lease.holder is holder else NOT_OWNED

    def end(self, number: int) -> Lease:
        """End the lease of one message that `find` has found."""
        lease = self._scattered.pop(number)
        if lease.held is not None:
            lease.held.discard(number)
        self._add(lease.holder, -1)
        return lease

    def touch(self, number: int, now_s: float, timeout_s: float, max_timeout_s: float) -> None:
        """Give one message more time, but no more than `max_timeout_s` since it was delivered."""
        old = self.end(number)
        lease = Lease(
            old.holder,
            (number,),
            ids_of((number,)),
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
        while self._heap and (self._heap[0].deadline_s <= now_s or not self._heap[0].remaining):
            lease = heapq.heappop(self._heap)
            if lease.remaining:
                over.append(self._end_all(lease))
        self._drop_stale()
        return over

    def release(self, holder: Holder) -> list[Lease]:
        """End every lease of a consumer that is gone."""
        theirs = [lease for lease in self._heap if lease.holder is holder and lease.remaining]
        self._in_order.pop(holder, None)
        return [self._end_all(lease) for lease in theirs]

    def clear(self) -> None:
        for lease in self._heap:
            self._end_all(lease)
        self._in_order.clear()
        self._scattered.clear()
        self._heap.clear()

    def _settle_in_order(self, holder: Holder, ids: bytes, settled: Settled) -> int:
        """Settle what is answered in the order of delivery; gives where that ends."""
        queue = self._in_order.get(holder)
        position = 0
        while queue and position < len(ids):
            lease = queue[0]
            start = lease.done * ID_BYTES
            answered = ids[position : position + len(lease.ids) - start]
            if lease.held is not None or not lease.remaining:
                queue.popleft()
                continue
            if not lease.ids.startswith(answered, start):
                break
            count = len(answered) // ID_BYTES
            _add_run(settled, lease.numbers[lease.done : lease.done + count])
            lease.done += count
            if lease.done == len(lease.numbers):
                queue.popleft()
            position += len(answered)
        self._add(holder, -(position // ID_BYTES))
        return position

    def _scatter(self, holder: Holder) -> None:
        """Answers come out of order: what this consumer holds is looked up by message now."""
        queue = self._in_order.pop(holder, None)
        for lease in queue or ():
            if lease.held is None:
                lease.held = set(lease.open_numbers())
                self._scattered.update(dict.fromkeys(lease.held, lease))

    def _end_all(self, lease: Lease) -> Lease:
        lease.numbers = lease.open_numbers()
        if lease.held is not None:
            for number in lease.held:
                del self._scattered[number]
        self._add(lease.holder, -len(lease.numbers))
        lease.done, lease.held = len(lease.numbers), None
        # A consumer that never answers must not gather leases that are over.
        queue = self._in_order.get(lease.holder)
        while queue and not queue[0].remaining:
            queue.popleft()
        return lease

    def _add(self, holder: Holder, count: int) -> None:
        holder.in_flight += count
        self._count += count

    def _drop_stale(self) -> None:
        if len(self._heap) > _STALE_MIN:
            live = [lease for lease in self._heap if lease.remaining]
            if len(live) * 2 < len(self._heap):
                self._heap = live
                heapq.heapify(self._heap)


def _add_run(settled: Settled, numbers: Sequence[int]) -> None:
    if isinstance(numbers, range):
        runs = settled.runs
        if runs and runs[-1][1] == numbers.start:
            runs[-1] = (runs[-1][0], numbers.stop)
        else:
            runs.append((numbers.start, numbers.stop))
    else:
        settled.numbers += numbers
