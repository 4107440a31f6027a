"""How long requests take: a line after so many of them, as NSQ's tool has it (spec: tools, part 2).

At 50,000 requests a second NSQ's 250 would be 200 lines a second: there is one a second at the most, and
it tells of all requests since the one before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERVAL_S = 1.0
# Beyond this a line tells of the first so many of its second.
LATENCIES_MAX = 100_000


class StatusLines:
    """Of a topic; `labels` are those of its endpoints."""

    def __init__(self, every: int, topic: str, labels: Sequence[str]) -> None:
        self._every = every
        self._topic = topic
        self._labels = labels
        self._taken_s: list[list[float]] = [[] for _ in labels]
        self._count = 0
        self._told_s = 0.0
        self._log = get_log("http")

    def note(self, endpoint: int, latency_s: float, now_s: float) -> None:
        """A request was answered."""
        if self._count < LATENCIES_MAX:
            self._taken_s[endpoint].append(latency_s)
        self._count += 1
        if self._count >= self._every and now_s - self._told_s >= INTERVAL_S:
            self._tell()
            self._told_s = now_s

    def _tell(self) -> None:
        everything = [taken_s for one in self._taken_s for taken_s in one]
        self._tell_one("aggregate", self._count, everything)
        if len(self._labels) > 1:
            for label, taken_s in zip(self._labels, self._taken_s, strict=True):
                if taken_s:
                    self._tell_one(label, len(taken_s), taken_s)
        self._taken_s = [[] for _ in self._labels]
        self._count = 0

    def _tell_one(self, label: str, finished: int, taken_s: list[float]) -> None:
        taken_s.sort()
        self._log.info(
            "requests",
            topic=self._topic,
            url=label,
            finished=finished,
            p99_ms=round(percentile(taken_s, 0.99) * 1000, 2),
            p95_ms=round(percentile(taken_s, 0.95) * 1000, 2),
            avg_ms=round(sum(taken_s) / len(taken_s) * 1000, 2),
        )


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that `part` of them do not exceed; there is at least one."""
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * part // 1) - 1))]
