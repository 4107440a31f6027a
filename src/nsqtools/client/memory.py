"""What the consumers of a process share: a buffer for reading, and how much they may hold.

max-in-flight counts messages, and 2,500 of a MiB each would be too many: each consumer asks (RDY) for
no more than fits its share. Sizes are only known when messages have come, so that more than was meant
can be on its way: a consumer that holds FULL_AT times its share asks for nothing until some of that is
settled, and goes on reading, for what an nsqd sends after RDY 0 is no more than what the sockets hold.
An nsqd that was not read for a heartbeat interval would send nothing more on that connection (spec:
client-behaviour, part 7). Only when all consumers together hold OVERFULL_AT times what they should do
those that are full stop reading: the sizes of many topics changed at once, or an nsqd sends what
nobody asked for. Each consumer is bounded by itself: one whose output stands still takes nothing from
others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.client.rdy import CHANGE_MIN

if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVE_BUFFER_BYTES = 1 << 20
# Messages held at a time. Encoding and compressing a batch takes several times its size for a moment.
HELD_BYTES_MAX = 8 << 20
# The share of one of a thousand consumers: enough for NSQ's default of 200 small messages.
SHARE_BYTES_MIN = 64 << 10
# How many times its share a consumer may hold before it asks for nothing.
FULL_AT = 2
# How many times what they should all of them may hold before those that are full stop reading.
OVERFULL_AT = 4
# What a message takes beside its bytes: the objects of its columns.
MESSAGE_COST_BYTES = 120
# What a message is taken to cost before one has come: the first batch shows it, and few are asked for
# until then.
MESSAGE_ASSUMED_BYTES = float(256 << 10)
# The part that the newest batch has in what a message is taken to cost.
_COST_WEIGHT = 0.1


class MessageCost:
    """What a message of a topic takes: learnt at once from the first, and when it is more than was
    thought, else little by little."""

    def __init__(self) -> None:
        self.size_bytes = MESSAGE_ASSUMED_BYTES
        self._is_known = False

    def learn(self, cost_bytes: float) -> None:
        if not self._is_known or cost_bytes > self.size_bytes * CHANGE_MIN:
            self.size_bytes = cost_bytes
        else:
            self.size_bytes += (cost_bytes - self.size_bytes) * _COST_WEIGHT
        self._is_known = True


class ConsumerMemory:
    """Shared out evenly among the consumers that have entered. One loop only."""

    def __init__(self, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self.buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.held_bytes = 0
        """What all consumers hold, roughly."""
        self._held_bytes_max = held_bytes_max
        self._consumers = 0
        self._waiting: set[Callable[[], None]] = set()

    def enter(self) -> None:
        self._consumers += 1

    def leave(self, held_bytes: int) -> None:
        """A consumer ends, and what it still holds is not counted any more."""
        self._consumers -= 1
        self.release(held_bytes)

    @property
    def share_bytes(self) -> int:
        """How many bytes one consumer should ask for."""
        share_bytes = self._held_bytes_max // max(1, self._consumers)
        return max(share_bytes, min(SHARE_BYTES_MIN, self._held_bytes_max))

    def is_overfull(self, *, at_the_end: bool = False) -> bool:
        """Whether those that are full must not read more; one that is ending reads further, because the
        answer to its CLS stands behind what is on its way."""
        factor = 2 * OVERFULL_AT if at_the_end else OVERFULL_AT
        return self.held_bytes > factor * self._held_bytes_max

    def hold(self, size_bytes: int) -> None:
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        if self._waiting and not self.is_overfull():
            waiting, self._waiting = self._waiting, set()
            for look_again in waiting:
                look_again()

    def when_less(self, look_again: Callable[[], None]) -> None:
        """Call this once when it is overfull no more."""
        self._waiting.add(look_again)
