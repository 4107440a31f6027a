"""Lines for standard output, whoever reads them, and however slowly: nothing waits for a reader."""

from __future__ import annotations

import io
import queue
import sys
import threading
from typing import TYPE_CHECKING, Self

from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from types import TracebackType

# Lines that wait for the reader; a line has some 200 bytes.
LINES_MAX = 10_000
# How long the end waits for a reader.
END_WAIT_S = 1.0


class Printer:
    """Prints from a thread of its own. What does not fit is left out, and counted; leaving the block says
    how much that was."""

    def __init__(self) -> None:
        self.left_out = 0
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX + 1)
        self._thread = threading.Thread(target=self._print, name="printer", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._lines.put(None)  # there is room for it: see LINES_MAX
            self._thread.join(END_WAIT_S)
        if self._thread.is_alive():
            self.left_out += self._lines.qsize()
            # It holds the lock of this stream, which Python would flush at its end.
            sys.stdout = io.StringIO()
        if self.left_out:
            get_log("http").warning(
                "lines of --print were not read, or not in time", lines=self.left_out
            )

    def __call__(self, line: str) -> None:
        """Print a line, soon. Never waits."""
        if self._thread.ident is None:
            self._thread.start()
        if self._lines.qsize() >= LINES_MAX:
            self.left_out += 1
        else:
            self._lines.put_nowait(line)

    def _print(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                # With its end in one write: stderr may go to the same place.
                print(f"{line}\n", end="", flush=True)
            except (OSError, ValueError):  # nobody reads them any more
                self.left_out += 1
