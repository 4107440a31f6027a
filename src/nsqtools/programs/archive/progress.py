"""Progress on standard error: one line that is written over, a few times a second; nothing in a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Self

from nsqtools.options.shown import printable
from nsqtools.programs.archive.shown import size

if TYPE_CHECKING:
    from types import TracebackType

INTERVAL_S = 0.1
_ERASE = "\r\x1b[K"


class ProgressLine:
    """`wanted`: `always`, `never`, or `auto` for when standard error is a terminal."""

    def __init__(self, wanted: str, files: int) -> None:
        self._is_shown = wanted == "always" or (wanted == "auto" and sys.stderr.isatty())
        self._files = files
        self._done = 0
        self._name = ""
        self._read_bytes = 0
        self._told_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def begin(self, name: str) -> None:
        """The next file."""
        self._name = name
        self._done += 1
        self.advanced(0)

    def advanced(self, offset_bytes: int) -> None:
        """This far in the file."""
        if not self._is_shown:
            return
        now_s = time.monotonic()
        if now_s - self._told_s < INTERVAL_S:
            return
        self._told_s = now_s
        text = f"{self._done}/{self._files}  {size(offset_bytes)}  {printable(self._name)}"
        width = shutil.get_terminal_size((80, 24)).columns
        print(f"{_ERASE}{text[: width - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Make room for lines of text."""
        if self._is_shown and self._told_s:
            print(_ERASE, end="", file=sys.stderr, flush=True)
