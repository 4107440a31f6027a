"""A line on a terminal, and log lines above it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from nsqtools.observe.live import LiveLine, without_middle

if TYPE_CHECKING:
    from nsqtools.observe.options import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("wanted", "stream", "shown"),
    [
        ("auto", Terminal(), True),
        ("auto", io.StringIO(), False),
        ("never", Terminal(), False),
        ("always", io.StringIO(), True),
    ],
)
def test_where_it_is_shown(
    wanted: Progress, stream: io.StringIO, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with LiveLine(wanted) as line:
        assert line.is_shown == shown
        assert (line.log_stream is not None) == shown
        line.show("[bold]12 delivered[/bold]")
    assert ("[bold]12 delivered[/bold]" in stream.getvalue()) == shown, "as it is"


def test_log_lines_are_whole_and_the_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "20")
    with LiveLine("auto") as line:
        line.show("x" * 100)
        assert line.log_stream is not None
        line.log_stream.write("y" * 100 + "\n")
    written = stream.getvalue()
    assert "y" * 100 in written
    assert "x" * 21 not in written
    assert "x" * 10 in written


def test_of_a_long_line_the_end_is_seen() -> None:
    """It is where a failure says why."""
    text = f"5,000 archived · 0/s · look at s3://archive/{'k' * 100}: connection refused"
    shown = without_middle(text, 80)
    assert len(shown) == 80
    assert shown.startswith("5,000 archived · 0/s · look at s3://")
    assert shown.endswith(": connection refused")
    assert without_middle(text, len(text)) == text
