"""The replies to one connection's publishes: each has its own slot, and slots are sent in order.

Topics commit in whatever order, and one of them may fail: so a publish hands over the `answer` of its
slot, and what is said goes out when everything before it has been.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Publishes of one connection that may wait for their write.
UNANSWERED_MAX = 1024
UNANSWERED_BYTES_MAX = 8 << 20


class Slot:
    """The place of one publish in the order of replies."""

    __slots__ = ("_answered", "is_answered", "name", "reason", "size_bytes")

    def __init__(self, answered: Callable[[Slot], None], name: str, size_bytes: int) -> None:
        self._answered = answered
        self.name = name
        self.size_bytes = size_bytes
        self.is_answered = False
        self.reason: str | None = None

    def answer(self, reason: str | None) -> None:
        """Written, or why not; to be called once."""
        self.reason = reason
        self.is_answered = True
        self._answered(self)


class Replies:
    """The slots of a connection, oldest first.

    `send` gets the name of a command and why it failed, or None; `drained` is called when no publish
    waits any more.
    """

    def __init__(
        self, send: Callable[[str, str | None], None], drained: Callable[[], None]
    ) -> None:
        self._send = send
        self._drained = drained
        self._slots: deque[Slot] = deque()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def is_full(self) -> bool:
        return len(self._slots) >= UNANSWERED_MAX or self.size_bytes > UNANSWERED_BYTES_MAX

    def slot(self, name: str, size_bytes: int) -> Slot:
        """The next place, for a publish of that many bytes."""
        slot = Slot(self._settle, name, size_bytes)
        self._slots.append(slot)
        self.size_bytes += size_bytes
        return slot

    def _settle(self, slot: Slot) -> None:
        """Send what is due now."""
        slots = self._slots
        if not slots or slots[0] is not slot:
            return
        while slots and slots[0].is_answered:
            first = slots.popleft()
            self.size_bytes -= first.size_bytes
            self._send(first.name, first.reason)
        if not slots:
            self._drained()

    def forget(self) -> None:
        """The connection has ended: nobody reads what is still to come."""
        self._slots.clear()
        self.size_bytes = 0
