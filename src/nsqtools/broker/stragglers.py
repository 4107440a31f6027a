"""What a channel needs of its topic's log, and copies that it keeps so that the log can go.

Few messages can hold much of a log: one that is deferred for an hour, those that a consumer is slow
with, those that a channel without a consumer has. They are looked up, and copied (*carried*).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.broker.log import Found

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsqtools.broker.cursor import Cursor
    from nsqtools.broker.flight import Flight
    from nsqtools.broker.waiting import Carried, Waiting


class Stragglers:
    """Looks at the parts of a channel; changes none of them."""

    def __init__(self, cursor: Cursor, flight: Flight, waiting: Waiting, carried: Carried) -> None:
        self._cursor = cursor
        self._flight = flight
        self._waiting = waiting
        self._carried = carried

    def floor(self) -> int:
        """The lowest message that the log must keep."""
        held = (self._flight.lowest(self._carried), self._waiting.lowest())
        return min([self._cursor.position, *(number for number in held if number is not None)])

    def before(self, end: int, messages_max: int) -> list[int] | None:
        """The messages before `end` that the log must keep, in order; None when they and the copies
        that there are already are more than `messages_max`."""
        room = messages_max - len(self._carried)
        waiting = self._waiting.below(end, room)
        held = self._flight.below(end, self._carried, room)
        ahead = self._cursor.ahead(end, room)
        if waiting is None or held is None or ahead is None:
            return None
        found = sorted(waiting + held + ahead)
        return found if len(found) <= room else None

    def copies(
        self, frames: Mapping[int, bytes | None], end: int, bytes_max: int
    ) -> dict[int, bytes] | None:
        """What is to be kept of `frames`, so that nothing before `end` is needed any more; empty for
        what the log does not have. None when one is missing, or they are too large."""
        numbers = self.before(end, len(frames) + len(self._carried))
        if numbers is None or not frames.keys() >= set(numbers):
            return None
        copies = {number: frames[number] or b"" for number in numbers}
        size_bytes = self._carried.size_bytes + sum(map(len, copies.values()))
        return None if size_bytes > bytes_max else copies

    def find(self, numbers: list[int], bytes_max: int) -> Found | None:
        """Read messages; None when they are too large. Raises StorageError."""
        found = Found({}, {})
        room = bytes_max - self._carried.size_bytes
        for number in numbers:
            block = self._cursor.find(number)
            frame = None if block is None else block.slice(number, number + 1)
            found.frames[number] = frame
            if block is not None and block.due_ns:
                found.due_ns[number] = block.due_ns
            room -= len(frame or b"")
            if room < 0:
                return None
        return found
