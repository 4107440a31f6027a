"""What is in flight on a channel: which message is held by whom, and until when. Pure bookkeeping.

A run of messages handed out together shares one `Lease`; settling a run of ids is a few C calls over
the whole run. Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

import heapq
import struct
from binascii import Error as BadHex
from binascii import hexlify, unhexlify
from collections import Counter
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

from nsqtools.wire.messages import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

NOT_IN_FLIGHT = "ID not in flight"
NOT_OWNED = "client does not own message"
# A heap of leases is made anew when this many, and more than half, are settled.
_STALE_MIN = 1024


class Holder(Protocol):
    """A consumer, as far as a lease needs it."""

    in_flight: int


class Lease:
    """A run of messages that one consumer holds."""

    __slots__ = ("attempts", "deadline_s", "delivered_s", "holder", "numbers", "remaining")

    def __init__(
        self, holder: Holder, numbers: Sequence[int], attempts: int, now_s: float, timeout_s: float
    ) -> None:
        self.holder = holder
        self.numbers = numbers
        self.attempts = attempts
        self.remaining = len(numbers)
        self.delivered_s = now_s
        self.deadline_s = now_s + timeout_s

    def __lt__(self, other: Lease) -> bool:
        return self.deadline_s < other.deadline_s


def numbers_of(ids: bytes) -> Sequence[int] | None:
    """The sequence numbers that ids (16 bytes each) stand for; None when one is not an id of ours."""
    try:
        raw = unhexlify(ids)
    except BadHex:
        return None
    if hexlify(raw) != ids:  # upper case is not how we wrote it
        return None
    return struct.unpack(f">{len(raw) // 8}Q", raw)


class Flight:
    """The messages in flight on one channel."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._heap: list[Lease] = []

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, number: int) -> bool:
        return number in self._leases

    def lowest(self) -> int | None:
        return min(self._leases, default=None)

    def numbers(self) -> list[int]:
        return list(self._leases)

    def attempts(self, number: int) -> int:
        return self._leases[number].attempts

    def take(self, lease: Lease) -> None:
        """Begin a lease; its holder has that many more in flight."""
        self._leases.update(dict.fromkeys(lease.numbers, lease))
        lease.holder.in_flight += len(lease.numbers)
        heapq.heappush(self._heap, lease)

    def settle(self, holder: Holder, ids: bytes) -> tuple[Sequence[int], list[tuple[bytes, str]]]:
        """End the leases of `ids`: the numbers that were settled, and (id, reason) of the others."""
        numbers = numbers_of(ids)
        if numbers is not None:
            leases = list(map(self._leases.pop, numbers, repeat(None)))
            counts = Counter(leases)
            if all(lease is not None and lease.holder is holder for lease in counts):
                for lease, count in counts.items():
                    lease.remaining -= count  # type: ignore[union-attr]  # None was ruled out
                holder.in_flight -= len(leases)
                return numbers, []
            for number, lease in zip(numbers, leases, strict=True):
                if lease is not None and number not in self._leases:
                    self._leases[number] = lease
        settled: list[int] = []
        refused: list[tuple[bytes, str]] = []
        for at in range(0, len(ids), ID_BYTES):
            message_id = ids[at : at + ID_BYTES]
            found = self.find(holder, message_id)
            if isinstance(found, str):
                refused.append((message_id, found))
            else:
                self.end(found)
                settled.append(found)
        return settled, refused

    def find(self, holder: Holder, message_id: bytes) -> int | str:
        """The number of a message that `holder` holds, or why it does not."""
        numbers = numbers_of(message_id)
        lease = self._leases.get(numbers[0]) if numbers else None
        if not numbers or lease is None:
            return NOT_IN_FLIGHT
        return numbers[0] if lease.holder is holder else NOT_OWNED

    def end(self, number: int) -> Lease:
        """End the lease of one message that is in flight."""
        lease = self._leases.pop(number)
        lease.remaining -= 1
        lease.holder.in_flight -= 1
        return lease

    def touch(self, number: int, now_s: float, timeout_s: float, max_timeout_s: float) -> None:
        """Give one message more time, but no more than `max_timeout_s` since it was delivered."""
        old = self.end(number)
        lease = Lease(old.holder, (number,), old.attempts, now_s, timeout_s)
        lease.delivered_s = old.delivered_s
        lease.deadline_s = min(now_s + timeout_s, old.delivered_s + max_timeout_s)
        self.take(lease)

    def expired(self, now_s: float) -> list[Lease]:
        """Leases whose time is over, with `numbers` narrowed to what is still held, and ended."""
        over = []
        while self._heap and (self._heap[0].deadline_s <= now_s or not self._heap[0].remaining):
            lease = heapq.heappop(self._heap)
            if lease.remaining:
                over.append(self._end_all(lease))
        if len(self._heap) > _STALE_MIN:
            live = [lease for lease in self._heap if lease.remaining]
            if len(live) * 2 < len(self._heap):
                self._heap = live
                heapq.heapify(self._heap)
        return over

    def release(self, holder: Holder) -> list[Lease]:
        """End every lease of a consumer that is gone."""
        theirs = [lease for lease in self._heap if lease.holder is holder and lease.remaining]
        return [self._end_all(lease) for lease in theirs]

    def clear(self) -> None:
        for lease in self._heap:
            lease.holder.in_flight -= lease.remaining
            lease.remaining = 0
        self._leases.clear()
        self._heap.clear()

    def _end_all(self, lease: Lease) -> Lease:
        lease.numbers = [n for n in lease.numbers if self._leases.get(n) is lease]
        for number in lease.numbers:
            del self._leases[number]
        lease.holder.in_flight -= len(lease.numbers)
        lease.remaining = 0
        return lease
