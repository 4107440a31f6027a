"""One line on a terminal that says how a run is; log lines scroll by above it. Nothing in a pipe."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Self, TextIO, cast

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.live import Live

    from nsqtools.observe.options import Progress


class AboveLine(io.TextIOBase):
    """A stream for log lines while something is drawn on the console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        self._console.print(
            text, end="", soft_wrap=True, markup=False, highlight=False, emoji=False
        )
        return len(text)


class LiveLine:
    """See the module. `wanted` is `always`, `never`, or `auto`: where standard error is a terminal.

    Leaving it takes the line away.
    """

    def __init__(self, wanted: Progress) -> None:
        self.log_stream: TextIO | None = None
        """Where log lines go meanwhile; None: standard error."""
        self._live: Live | None = None
        if wanted == "always" or (wanted == "auto" and sys.stderr.isatty()):
            self._set_up(forced=wanted == "always")

    def _set_up(self, *, forced: bool) -> None:
        from rich.console import Console  # is not needed without a terminal, and loads slowly
        from rich.live import Live

        console = Console(stderr=True, force_terminal=forced or None)
        self.log_stream = cast("TextIO", AboveLine(console))
        self._live = Live(
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @property
    def is_shown(self) -> bool:
        return self._live is not None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, text: str) -> None:
        """Draw the line anew; what does not fit is cut. `text` is shown as it is."""
        if self._live is not None:
            from rich.text import Text

            text = without_middle(text, self._live.console.width)
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def without_middle(text: str, width: int) -> str:
    """At most `width` characters: of a failure the end says most, and a path or a key stands before."""
    if len(text) <= width:
        return text
    begin = width // 2
    return text[:begin] + "…" + text[len(text) - (width - begin - 1) :]
