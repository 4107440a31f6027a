"""Who sees a bar, who sees log lines."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from nsqtools.observe.log import configure
from nsqtools.replay import progress
from nsqtools.replay.inputs import Input
from nsqtools.replay.progress import LOG_INTERVAL_S, BarProgress, LogProgress, progress_for

FILE = Input(path=Path("a.log"), size_bytes=1000)
TYPED = Input(path=None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "stderr", "stdin", "source", "has_bar"),
    [
        ("auto", Terminal, Terminal, FILE, True),
        ("auto", Terminal, io.StringIO, TYPED, True),
        ("auto", Terminal, Terminal, TYPED, False),
        ("auto", io.StringIO, Terminal, FILE, False),
        ("always", io.StringIO, io.StringIO, FILE, True),
        ("never", Terminal, Terminal, FILE, False),
    ],
)
def test_a_bar_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    stderr: type[io.StringIO],
    stdin: type[io.StringIO],
    source: Input,
    has_bar: bool,
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(sys, "stdin", stdin())
    made = progress_for(wanted, [source])
    made.close()
    assert isinstance(made, BarProgress) == has_bar


def test_a_log_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s)  # type: ignore[attr-defined]
    caplog.set_level(logging.INFO, "nsqtools")
    made = LogProgress([FILE, FILE])
    made.advanced(FILE, 10, 1)
    made.finished(FILE)
    assert caplog.messages == []
    now_s += LOG_INTERVAL_S
    made.advanced(FILE, 500, 70)
    made.advanced(FILE, 600, 80)
    assert caplog.messages == ["replaying file=a.log byte=500 of=1000 files_done=1/2 messages=70"]


def test_log_lines_scroll_by_above_the_bar_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    made = BarProgress([FILE, FILE], forced=False)
    configure("info", "[x] ", stream=made.log_stream)
    logging.getLogger("nsqtools.replay").info("a [bold]line[/bold] longer than %s", "y" * 80)
    made.advanced(FILE, 500, 12_345)
    made.finished(FILE)
    made.close()
    shown = terminal.getvalue()
    assert f"INFO: a [bold]line[/bold] longer than {'y' * 80}\n" in shown
    assert "1.0/2.0 kB" in shown
    assert "12,345 messages" in shown
