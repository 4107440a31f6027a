"""Progress of a replay: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol, TextIO, cast

from nsqtools.observe.live import AboveLine
from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.replay.inputs import Input

LOG_INTERVAL_S = 10.0


class Progress(Protocol):
    """Told after each MPUB; cheap."""

    log_stream: TextIO | None
    """Where log lines go meanwhile; None: standard error."""

    def advanced(self, source: Input, offset_bytes: int, messages: int) -> None:
        """Reading `source` has come to this byte; `messages` were answered so far."""

    def finished(self, source: Input) -> None:
        """`source` was read to its end."""

    def close(self) -> None:
        """Nothing more will be told."""


class LogProgress:
    """A line every LOG_INTERVAL_S."""

    log_stream: TextIO | None = None

    def __init__(self, sources: Sequence[Input]) -> None:
        self._log = get_log("replay")
        self._files = len(sources)
        self._done = 0
        self._told_s = time.monotonic()

    def advanced(self, source: Input, offset_bytes: int, messages: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= LOG_INTERVAL_S:
            self._told_s = now_s
            self._log.info(
                "replaying",
                file=source.name,
                byte=offset_bytes,
                of=source.size_bytes,
                files_done=f"{self._done}/{self._files}",
                messages=messages,
            )

    def finished(self, source: Input) -> None:
        self._done += 1

    def close(self) -> None:
        pass


class BarProgress:
    """A bar on standard error, over the bytes of all files.

    `forced` draws it into a pipe, too.
    """

    def __init__(self, sources: Sequence[Input], *, forced: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        total = sum(source.size_bytes for source in sources) or None
        console = Console(stderr=True, force_terminal=forced or None)
        self.log_stream: TextIO | None = cast("TextIO", AboveLine(console))
        self._before = 0
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[messages]:,} messages"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("replaying", total=total, messages=0)
        self._bar.start()

    def advanced(self, source: Input, offset_bytes: int, messages: int) -> None:
        self._bar.update(self._task, completed=self._before + offset_bytes, messages=messages)

    def finished(self, source: Input) -> None:
        self._before += source.size_bytes
        self._bar.update(self._task, completed=self._before)

    def close(self) -> None:
        self._bar.stop()


def progress_for(wanted: str, sources: Sequence[Input]) -> Progress:
    """`always`, `never` (log lines), or `auto`: a bar when standard error is a terminal.

    Not below lines that somebody is typing.
    """
    typed = any(source.is_stdin for source in sources) and sys.stdin.isatty()
    if wanted == "always" or (wanted == "auto" and sys.stderr.isatty() and not typed):
        return BarProgress(sources, forced=wanted == "always")
    return LogProgress(sources)
