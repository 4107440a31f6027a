"""Joining messages that wait again to runs, as a consumer gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nsqtools.broker.block import ATTEMPTS_MAX, with_attempts
from nsqtools.broker.reading import NotAtHand
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from nsqtools.broker.cursor import Cursor
    from nsqtools.broker.waiting import Carried, Waiting

# A run is no larger than this, or one message.
RUN_BYTES_MAX = 1 << 20


class Run(NamedTuple):
    """Messages that were handed out equally often, counting this time; and what was looked for and
    is not in the log any more."""

    numbers: list[int]
    frames: list[bytes]
    attempts: int
    lost: list[int]


class Redelivery:
    """Takes messages out of those that wait."""

    def __init__(self, cursor: Cursor, waiting: Waiting, carried: Carried) -> None:
        self._cursor = cursor
        self._waiting = waiting
        self._carried = carried

    def run(self, count_max: int, cursor: int) -> Run:
        """Those whose turn it is when the cursor is there.

        Raises StorageError or NotAtHand when the first of them cannot be read; at another one the run
        ends.
        """
        numbers: list[int] = []
        frames: list[bytes] = []
        lost: list[int] = []
        tried, room_bytes = 0, RUN_BYTES_MAX
        while len(numbers) < count_max and (head := self._waiting.head(cursor)) is not None:
            number, attempts = head
            if numbers and attempts != tried:
                break
            frame = self._frame(number, must_read=not numbers and not lost)
            if frame is None or (numbers and len(frame) > room_bytes):
                break
            self._waiting.take()
            if not frame:
                lost.append(number)
                continue
            tried = attempts
            numbers.append(number)
            frames.append(frame)
            room_bytes -= len(frame)
        if not self._waiting.again:
            self._cursor.found_all()
        attempts = min(tried + 1, ATTEMPTS_MAX)
        return Run(numbers, [with_attempts(one, attempts) for one in frames], attempts, lost)

    def _frame(self, number: int, *, must_read: bool) -> bytes | None:
        """Its frame, empty when it is gone; None when it cannot be read and need not be."""
        frame = self._carried.get(number)
        if frame is not None:
            return frame
        try:
            block = self._cursor.find(number)
        except (StorageError, NotAtHand):
            if must_read:
                raise
            return None
        return b"" if block is None else block.slice(number, number + 1)
