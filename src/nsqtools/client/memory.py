"""What the consumers of a process share: a buffer for reading, and how much they may hold.

max-in-flight counts messages, and 2,500 of a MiB each would be too many: each consumer asks (RDY) for
no more than fits its share. Sizes are only known when messages have come, so that more than was meant
can be on its way; a consumer that holds READ_AHEAD times its share reads no more until some of that is
settled. Each consumer is bounded by itself: one whose output stands still takes nothing from others.
"""

from __future__ import annotations

RECEIVE_BUFFER_BYTES = 1 << 20
# Messages held at a time. Encoding and compressing a batch takes several times its size for a moment.
HELD_BYTES_MAX = 8 << 20
# The share of one of a thousand consumers: enough for NSQ's default of 200 small messages.
SHARE_BYTES_MIN = 64 << 10
# How many times its share a consumer may hold before it stops reading.
READ_AHEAD = 2
# What a message takes beside its bytes: the objects of its columns.
MESSAGE_COST_BYTES = 120


class ConsumerMemory:
    """Shared out evenly among the consumers that have entered. One loop only."""

    def __init__(self, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self.buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._held_bytes_max = held_bytes_max
        self._consumers = 0

    def enter(self) -> None:
        self._consumers += 1

    def leave(self) -> None:
        self._consumers -= 1

    @property
    def share_bytes(self) -> int:
        """How many bytes one consumer should ask for."""
        share_bytes = self._held_bytes_max // max(1, self._consumers)
        return max(share_bytes, min(SHARE_BYTES_MIN, self._held_bytes_max))
