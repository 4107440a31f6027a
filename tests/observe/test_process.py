"""What a process takes of its machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psutil
import pytest

from nsqtools.observe import process
from nsqtools.observe.counters import Registry

if TYPE_CHECKING:
    from pathlib import Path


def values(registry: Registry) -> dict[str, float]:
    return {sample.name: sample.value for sample in registry.snapshot()}


def test_it_is_read_anew_each_time() -> None:
    registry = Registry()
    process.register(registry)
    before = values(registry)
    assert before["nsqtools_process_resident_bytes"] == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.2
    )
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    ballast = sum(number * number for number in range(200_000))
    after = values(registry)
    for fd in held:
        os.close(fd)
    assert ballast
    assert after["nsqtools_process_open_files"] == before["nsqtools_process_open_files"] + 5
    assert (
        after["nsqtools_process_cpu_seconds_total"] > before["nsqtools_process_cpu_seconds_total"]
    )


def test_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "_STATM", tmp_path / "none")
    monkeypatch.setattr(process, "_FILES", tmp_path / "none")
    assert process.open_files() == 0
    assert process.resident_bytes() > 1 << 20
