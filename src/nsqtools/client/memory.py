"""What the consumers of a process share: a buffer for reading, and how much they may hold.

max-in-flight counts messages, and 2,500 of a MiB each would be too many: a consumer that holds more
bytes than its share reads no more until half of them is settled. What is not read waits in the
sockets, and in nsqd.
"""

from __future__ import annotations

RECEIVE_BUFFER_BYTES = 1 << 20
# Bodies held at a time. Encoding and compressing a batch takes several times its size for a moment.
HELD_BYTES_MAX = 8 << 20


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
        """How many bytes of bodies one consumer may hold before it stops reading."""
        return self._held_bytes_max // max(1, self._consumers)
