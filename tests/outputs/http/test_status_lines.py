"""Lines of how long requests take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.outputs.http import status_lines
from nsqtools.outputs.http.latencies import Latencies
from nsqtools.outputs.http.status_lines import StatusLines, percentile

if TYPE_CHECKING:
    import pytest


def test_percentiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 0.99), percentile(values, 0.95)) == (99.0, 95.0)
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([1.0, 2.0], 0.5) == 1.0


def test_a_line_after_so_many_and_at_most_one_a_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lines = StatusLines(10, "t", ["http://a/"])
    for at in range(100):
        lines.note(0, 0.002, 1000.0 + at * 0.001)
    assert [one.getMessage() for one in caplog.records] == [
        "requests topic=t url=aggregate finished=10 p99_ms=2 p95_ms=2 avg_ms=2"
    ]
    lines.note(0, 0.092, 1001.5)
    assert caplog.records[-1].getMessage().startswith("requests topic=t url=aggregate finished=91 ")
    assert "avg_ms=2.99" in caplog.records[-1].getMessage()


def test_each_endpoint_of_several_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    lines = StatusLines(2, "t", ["http://a/", "http://b/", "http://c/"])
    lines.note(0, 0.001, 1000.0)
    lines.note(1, 0.003, 1000.0)
    told = [one.getMessage() for one in caplog.records]
    assert [line.split()[2] for line in told] == ["url=aggregate", "url=http://a/", "url=http://b/"]


def test_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(status_lines, "LATENCIES_MAX", 5)
    caplog.set_level("INFO")
    lines = StatusLines(1000, "t", ["http://a/"])
    for at in range(1000):
        lines.note(0, float(at), 1000.0)
    assert "finished=1000" in caplog.text
    assert "p99_ms=4000" in caplog.text


def test_latencies_are_those_since_the_last_look() -> None:
    latencies = Latencies()
    assert latencies.take(0.5) == []
    for taken_ms in range(100, 0, -1):
        latencies.note(taken_ms / 1000)
    assert latencies.take(0.5, 0.99) == [0.05, 0.099]
    assert latencies.take(0.5, 0.99) == []
