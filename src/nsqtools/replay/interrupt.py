"""Reading what may never end: a pipe or a terminal, from a thread that can be woken.

A thread that waits for a pipe cannot be cancelled, and Python waits for its threads before it exits:
without this, `file_to_nsq -` would hang after SIGTERM until somebody writes another line.
"""

from __future__ import annotations

import io
import os
import select
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer


class Interrupt:
    """Ends the reads of every `InterruptibleInput` made with it, those to come included."""

    def __init__(self) -> None:
        self._wakes, self._wake = os.pipe()
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """No input made with it may be read any more."""
        self._is_open = False
        os.close(self._wakes)
        os.close(self._wake)

    def fileno(self) -> int:
        """What becomes readable when it is fired, and stays so."""
        return self._wakes

    def fire(self) -> None:
        """From here on, reads say that the input has ended."""
        if self._is_open:
            os.write(self._wake, b"!")


class InterruptibleInput(io.RawIOBase):
    """A file descriptor that cannot seek, read until it ends or `interrupt` is fired."""

    def __init__(self, fd: int, interrupt: Interrupt) -> None:
        super().__init__()
        self._fd = fd
        self._interrupt = interrupt
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(interrupt, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        ready = {fd for fd, _ in self._poll.poll()}
        if self._interrupt.fileno() in ready:
            return 0
        data = os.read(self._fd, len(view))
        view[: len(data)] = data
        return len(data)
