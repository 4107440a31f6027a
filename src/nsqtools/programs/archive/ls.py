"""`nsqtools archive ls`: what there is, from when to when, how large, in which state, with which gaps."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsqtools.archive.examination import Examined, State, examine
from nsqtools.archive.files import find_files, open_file
from nsqtools.errors import ArchiveError
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.gaps import find_gaps
from nsqtools.stores.named import NamedObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from nsqtools.archive.files import FoundFile
    from nsqtools.programs.archive.options import LsOptions

HEADS = (
    "name",
    "topic",
    "format",
    "compression",
    "state",
    "records",
    "first",
    "last",
    "raw",
    "stored",
    "ratio",
    "gap",
)
_TEXT_COLUMNS = 5
# Columns that go first where the terminal is narrow.
# How far names are elided before a column goes, and when all have gone.
_NAME_WIDTH_MIN, _NAME_WIDTH_LEAST = 40, 16
_DISPENSABLE = ("ratio", "raw", "topic", "compression", "first", "gap")


def run(options: LsOptions) -> int:
    """List; 0, or the code of the gravest thing that was told: 4 damage, 5 a file or folder that could
    not be read. Raises `OptionsError` for a name that is nothing."""
    with NamedObjects(options) as remotes:
        links: list[Path] = []
        each = Each("archive-ls", find_files(options.files, remotes, links), options.progress)
        shown.warn_of_links("archive-ls", links)
        return _list(options, each)


def _list(options: LsOptions, each: Each) -> int:
    def look(file: FoundFile, on_read: Callable[[int], None]) -> Examined:
        with open_file(file) as opened:
            return examine(opened, file.name, whole=False, quick=options.quick, on_read=on_read)

    def damaged(file: FoundFile, error: Exception) -> Examined | None:
        if not isinstance(error, ArchiveError):
            return None
        return Examined(name=file.name, stored_bytes=_size_of(file), state=State.DAMAGED)

    files = [found for _, found in each.results(look, damaged)]
    if any(found.state is State.DAMAGED for found in files):
        each.fail(ArchiveError.exit_code)
    gaps = find_gaps(files, options.gap_s)
    if options.json:
        for found in files:
            shown.say_json(as_json(found, gaps.get(found.name)))
    elif sys.stdout.isatty():
        _show(files, gaps)
    else:
        shown.say(shown.plain(HEADS))
        for found in files:
            shown.say(shown.plain(_row(found, gaps.get(found.name))))
    return each.exit_code


def _size_of(file: FoundFile) -> int:
    """0 for what cannot be looked at any more."""
    if file.remote is not None:
        return file.remote.size_bytes
    with contextlib.suppress(OSError):
        return Path(file.name).stat().st_size
    return 0


def ratio(found: Examined) -> float | None:
    """Content to what is stored."""
    if not found.content_bytes or not found.stored_bytes:
        return None
    return found.content_bytes / found.stored_bytes


def as_json(found: Examined, gap_s: float | None) -> dict[str, Any]:
    """One file for a script: sizes in bytes, times in ns since the epoch, null for what is not known."""
    return {
        "name": found.name,
        "topic": found.topic,
        "channel": found.channel,
        "host": found.host,
        "format": found.record_format,
        "compression": found.compression,
        "state": found.state,
        "records": found.records,
        "first_ts_ns": found.first_ts_ns,
        "last_ts_ns": found.last_ts_ns,
        "raw_bytes": found.content_bytes,
        "stored_bytes": found.stored_bytes,
        "gap_before_s": gap_s,
    }


def _row(found: Examined, gap_s: float | None) -> list[str]:
    """For a program: whole numbers, times to the nanosecond."""
    compressed = ratio(found)
    return [
        printable(found.name),
        printable(found.topic) or shown.NOTHING,
        found.record_format or shown.NOTHING,
        found.compression or shown.NOTHING,
        found.state,
        shown.number(found.records),
        shown.time_ns(found.first_ts_ns),
        shown.time_ns(found.last_ts_ns),
        shown.number(found.content_bytes),
        str(found.stored_bytes),
        shown.NOTHING if compressed is None else f"{compressed:.2f}",
        shown.NOTHING if gap_s is None else f"{gap_s:.3f}",
    ]


def _show(files: Sequence[Examined], gaps: dict[str, float]) -> None:
    rows = []
    for found in files:
        row = _row(found, gaps.get(found.name))
        row[6:10] = [
            shown.time_s(found.first_ts_ns),
            shown.time_s(found.last_ts_ns),
            shown.size(found.content_bytes),
            shown.size(found.stored_bytes),
        ]
        row[11] = shown.span(gaps.get(found.name))
        rows.append(row)
    for line in _fitted(rows, {"gap"} if not gaps else set()):
        shown.say(line)
    shown.say(_summary(files, gaps))


def _fitted(rows: Sequence[Sequence[str]], dropped: set[str]) -> list[str]:
    """As many columns as the terminal has room for: what is too wide wraps, and is no table any more."""
    width = shutil.get_terminal_size().columns
    # Names may be elided, so that they do not take the place of all else.
    name_width = min(_NAME_WIDTH_MIN, max((shown.width_of(row[0]) for row in rows), default=0))
    for head in ("", *_DISPENSABLE):
        dropped.add(head)
        used = max(map(shown.width_of, _table(rows, dropped, name_width)))
        if used <= width:
            break
    return _table(rows, dropped, max(name_width + width - used, _NAME_WIDTH_LEAST))


def _table(rows: Sequence[Sequence[str]], dropped: Collection[str], name_width: int) -> list[str]:
    """With names of at most so many columns."""
    kept = [at for at, head in enumerate(HEADS) if head not in dropped]
    left = sum(at < _TEXT_COLUMNS for at in kept)
    cells = [[shown.elided(row[0], name_width), *(row[at] for at in kept[1:])] for row in rows]
    return shown.table([HEADS[at] for at in kept], cells, left)


def _summary(files: Sequence[Examined], gaps: dict[str, float]) -> str:
    records = sum(found.records or 0 for found in files)
    stored = sum(found.stored_bytes for found in files)
    raw = sum(found.content_bytes or 0 for found in files)
    counts = f"{shown.count(len(files), 'file')}, {shown.count(records, 'record')}"
    parts = [f"{counts}, {shown.size(raw)} in {shown.size(stored)}"]
    for state in (State.OPEN, State.SEALED, State.DAMAGED, State.FOREIGN):
        count = sum(found.state is state for found in files)
        if count:
            parts.append(f"{count} {state}")
    if gaps:
        parts.append(shown.count(len(gaps), "gap"))
    return ", ".join(parts)
