"""Times without messages between the files of a topic. Pure.

A file holds what was published between its first and its last time. Where the next of its topic begins
much later than usual, something may be missing: an archiver that was down, a file that was moved.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsqtools.archive.examination import Examined

# What is told without being asked for is a minute at least, ten times the usual time between two
# messages of the files beside it, and three times the usual gap of the topic.
SHORTEST_S = 60.0
TIMES_SPACING = 10.0
TIMES_USUAL = 3.0
# Gaps of a topic from which on there is a usual one.
USUAL_OF = 4


def find_gaps(files: Iterable[Examined], longer_s: float | None) -> dict[str, float]:
    """By the name of a file: the seconds without a message before it, where they are worth telling.

    `longer_s`: tell of those that are longer; None: of those that are unusual.
    """
    topics: dict[str, list[Examined]] = defaultdict(list)
    for file in files:
        if file.first_ts_ns is not None and file.last_ts_ns is not None:
            topics[file.topic].append(file)
    found: dict[str, float] = {}
    for members in topics.values():
        found.update(_of_topic(members, longer_s))
    return found


def _of_topic(files: list[Examined], longer_s: float | None) -> Iterable[tuple[str, float]]:
    files.sort(key=lambda file: (file.first_ts_ns or 0, file.name))
    gaps: list[tuple[str, float, float]] = []
    end_ns = files[0].last_ts_ns or 0
    for before, file in itertools.pairwise(files):
        gap_s = ((file.first_ts_ns or 0) - end_ns) / 1e9
        gaps.append((file.name, gap_s, max(_spacing_s(before), _spacing_s(file))))
        end_ns = max(end_ns, file.last_ts_ns or 0)
    # Several archivers at once, or partitions, overlap: those are no gaps.
    usual_s = 0.0
    if len(gaps) >= USUAL_OF:
        usual_s = statistics.median(max(gap_s, 0.0) for _, gap_s, _ in gaps)
    for name, gap_s, spacing_s in gaps:
        least_s = max(SHORTEST_S, TIMES_SPACING * spacing_s, TIMES_USUAL * usual_s)
        if gap_s > (least_s if longer_s is None else longer_s):
            yield name, gap_s


def _spacing_s(file: Examined) -> float:
    """The mean time between two messages of a file."""
    if file.first_ts_ns is None or file.last_ts_ns is None or (file.records or 0) < 2:
        return 0.0
    return (file.last_ts_ns - file.first_ts_ns) / 1e9 / ((file.records or 0) - 1)
