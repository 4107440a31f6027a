"""Lines of --print: nothing waits for their reader."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING

from nsqtools.outputs.http.printer import LINES_MAX, Printer

if TYPE_CHECKING:
    import pytest

COUNT = LINES_MAX + 50_000


def test_lines_come_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with Printer() as printer:
        for at in range(100):
            printer(f"{at}")
    assert capsys.readouterr().out.split() == [f"{at}" for at in range(100)]
    assert printer.left_out == 0


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a buffer (PYTHONUNBUFFERED) a log line could come between it and its end."""
    written: list[str] = []
    stream = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", stream)
    with Printer() as printer:
        printer("200 1.0ms t")
    assert [text for text in written if text] == ["200 1.0ms t\n"]


def test_a_reader_that_stands_still_holds_nothing() -> None:
    """Not even the end of the process."""
    script = textwrap.dedent(f"""
        import sys
        from nsqtools.outputs.http.printer import Printer
        with Printer() as printer:
            for at in range({COUNT}):
                printer("x" * 50)
        print(printer.left_out > 0, file=sys.stderr)
    """)
    reads, writes = os.pipe()
    try:
        found = subprocess.run(
            [sys.executable, "-c", script],
            stdout=writes,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(reads)
        os.close(writes)
    assert found.returncode == 0, found.stderr
    assert found.stderr.endswith(b"True\n")
