"""Samples to rows, rows to a table; nothing here measures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.benchmarks.processes import Usage

RSS_TARGET_BYTES = 150_000_000
HEADS = (
    "figure",
    "median/s",
    "min..max",
    "floor/s",
    "ratio",
    "start s",
    "CPU s",
    "peak MB",
    "on disk",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one figure. `floor_per_s` is what this machine could do without any work; `start_s`
    went by before the clock was started."""

    messages: int
    seconds: float
    start_s: float | None = None
    floor_per_s: float | None = None
    usages: tuple[Usage, ...] = ()
    body_bytes: int = 0
    disk_bytes: int = 0

    @property
    def rate(self) -> float:
        return self.messages / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Every run of one figure."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def rate(self) -> float:
        return statistics.median(sample.rate for sample in self.samples)

    @property
    def floor(self) -> float | None:
        floors = [s.floor_per_s for s in self.samples if s.floor_per_s is not None]
        return statistics.median(floors) if floors else None

    @property
    def ratio(self) -> float | None:
        ratios = [s.rate / s.floor_per_s for s in self.samples if s.floor_per_s is not None]
        return statistics.median(ratios) if ratios else None

    @property
    def start_s(self) -> float | None:
        starts = [s.start_s for s in self.samples if s.start_s is not None]
        return statistics.median(starts) if starts else None

    @property
    def cpu_s(self) -> dict[str, float]:
        """The median for each process."""
        return {
            name: statistics.median(u.cpu_s for u in self._usages(name)) for name in self._names()
        }

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The largest of all runs for each process."""
        return {name: max(u.peak_bytes for u in self._usages(name)) for name in self._names()}

    @property
    def disk_bytes(self) -> int:
        return round(statistics.median(sample.disk_bytes for sample in self.samples))

    @property
    def compression(self) -> float | None:
        return self.samples[0].body_bytes / self.disk_bytes if self.disk_bytes else None

    def _names(self) -> list[str]:
        return [usage.name for usage in self.samples[0].usages]

    def _usages(self, name: str) -> list[Usage]:
        return [u for sample in self.samples for u in sample.usages if u.name == name]

    def cells(self) -> tuple[str, ...]:
        rates = [sample.rate for sample in self.samples]
        return (
            self.name,
            f"{self.rate:,.0f}",
            f"{min(rates):,.0f}..{max(rates):,.0f}",
            "-" if self.floor is None else f"{self.floor:,.0f}",
            "-" if self.ratio is None else f"{self.ratio:.3f}",
            "-" if self.start_s is None else f"{self.start_s:.2f}",
            _each(self.cpu_s, lambda value: f"{value:.2f}"),
            _each(self.peak_bytes, _peak),
            self._disk(),
        )

    def _disk(self) -> str:
        if self.compression is None:
            return "-"
        return f"{self.disk_bytes / 1e6:.1f} MB {self.compression:.2f}x"

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "median_per_s": self.rate,
            "runs": [
                {"messages": s.messages, "seconds": s.seconds, "per_s": s.rate}
                for s in self.samples
            ],
            "floor_per_s": self.floor,
            "ratio": self.ratio,
            "start_s": self.start_s,
            "cpu_s": self.cpu_s,
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "compression": self.compression,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the project set itself, beside what was measured (None: not measured)."""

    what: str
    wanted: str
    measured: str | None
    met: bool

    def cells(self) -> tuple[str, ...]:
        verdict = "not measured" if self.measured is None else "met" if self.met else "MISSED"
        return self.what, self.wanted, self.measured or "-", verdict


def at_least(what: str, wanted: float, row: Row | None) -> Target:
    return Target(
        what=what,
        wanted=f">= {wanted:,.0f}/s",
        measured=None if row is None else f"{row.rate:,.0f}/s",
        met=row is not None and row.rate >= wanted,
    )


def rss_targets(rows: Iterable[Row], processes: Sequence[str]) -> list[Target]:
    """The largest resident size of each of our processes over all figures."""
    peaks: dict[str, int] = {}
    for row in rows:
        for name, peak in row.peak_bytes.items():
            peaks[name] = max(peaks.get(name, 0), peak)
    return [
        Target(
            what=f"resident size of {name}",
            wanted=f"< {RSS_TARGET_BYTES / 1e6:.0f} MB",
            measured=f"{peaks[name] / 1e6:.0f} MB" if name in peaks else None,
            met=peaks.get(name, RSS_TARGET_BYTES) < RSS_TARGET_BYTES,
        )
        for name in processes
    ]


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns that line up: the first to the left, the others to the right."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _each(values: Mapping[str, float], show: Callable[[float], str]) -> str:
    return " ".join(f"{name} {show(value)}" for name, value in values.items()) or "-"


def _peak(size_bytes: float) -> str:
    mark = "!" if size_bytes >= RSS_TARGET_BYTES else ""
    return f"{size_bytes / 1e6:.0f}{mark}"
