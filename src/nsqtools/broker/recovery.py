"""What a topic's folder holds of its log, found at the start.

A torn tail is cut and kept aside, an error of the disk ends the opening: it says nothing about the
data. What a kill has left behind (temporary files, an index without a segment) is removed.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.broker.segment import (
    HEADER_SIZE_BYTES,
    INDEX_BYTES_MAX,
    INDEX_SUFFIX,
    SEGMENT_SUFFIX,
    Segment,
    parse_header,
    scan,
)
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from nsqtools.broker.block import BadBlock

log = logging.getLogger("nsqtools.broker.log")

_NAME = re.compile(rf"[0-9]{{20}}{re.escape(SEGMENT_SUFFIX)}", re.ASCII)


def recover(folder: Path) -> list[Segment]:
    """The segments of a folder, in order; a torn tail is cut, and that is said. Raises StorageError."""
    segments: list[Segment] = []
    # Empty ones behind another; before one that is not they say that a gap is no loss.
    cleared: list[Path] = []
    names = durable.names_in(folder)
    for name in names:
        path = folder / name
        if _NAME.fullmatch(name):
            segment = _open_segment(path)
            if segment is not None and segment.end > segment.first:
                if segments:
                    _close_gap(segments, segment, is_known=bool(cleared))
                segments.append(segment)
                cleared.clear()
            elif segment is not None and segments:
                cleared.append(path)
            elif segment is not None:
                remove(path)
        elif name.endswith(SEGMENT_SUFFIX):
            log.warning("a file is no segment of the log and is left alone path=%s", path)
        elif durable.is_temporary(name) or _is_orphan(name, names):
            durable.unlink(path)
    for path in cleared:
        remove(path)
    return segments


def remove(path: Path) -> None:
    """Remove a segment and its index. Raises StorageError; then the segment is there, or neither."""
    durable.unlink(path.with_suffix(INDEX_SUFFIX))
    durable.unlink(path)


def _close_gap(before: list[Segment], segment: Segment, *, is_known: bool) -> None:
    """Say so where somebody has taken segments away from between two; what was in them is not counted.

    It is those before the gap that count on: what is behind it goes by what its files say.
    """
    last = before[-1]
    missing = segment.ordinal - (last.ordinal + last.end - last.first)
    if missing > 0 and not is_known:
        log.error("messages are missing from a log before=%s messages=%d", segment.path, missing)
    if missing:
        for one in before:
            one.ordinal += missing


def _is_orphan(name: str, names: list[str]) -> bool:
    stem = name.removesuffix(INDEX_SUFFIX)
    return stem != name and f"{stem}{SEGMENT_SUFFIX}" not in names


def _open_segment(path: Path) -> Segment | None:
    with durable.storage("read", path):
        head = parse_header(durable.read_small(path, HEADER_SIZE_BYTES))
        found = path.stat()
    size_bytes = found.st_size
    index = path.with_suffix(INDEX_SUFFIX)
    try:
        raw_index = durable.read_small(index, INDEX_BYTES_MAX)
    except FileNotFoundError:
        raw_index = b""
    if head is None or head[0] != int(path.stem):
        _put_aside(path, size_bytes)
        return None
    segment = Segment(
        path=path,
        first=head[0],
        ordinal=head[1],
        end=head[0],
        size_bytes=size_bytes,
        written_ns=found.st_mtime_ns,
    )
    segment.is_sealed = segment.load_index(raw_index)
    if not segment.is_sealed:
        bad = scan(segment)
        if bad is not None:
            _cut_tail(segment, size_bytes, bad)
    return segment


def _put_aside(path: Path, size_bytes: int) -> None:
    """A file that does not begin as its segment: the torn creation of it, damaged, or a copy."""
    if size_bytes <= HEADER_SIZE_BYTES:
        remove(path)
        return
    aside = path.with_suffix(".bad")
    log.error(
        "a log segment has no header, or that of another, and is set aside path=%s as=%s",
        path,
        aside,
    )
    durable.put_in_place(path, aside)


def _cut_tail(segment: Segment, size_bytes: int, bad: BadBlock) -> None:
    """Keep the damaged part beside the log, then cut it off."""
    log.warning(
        "a log segment is cut to its last whole block path=%s offset=%d cut_bytes=%d reason=%r",
        segment.path,
        bad.position,
        size_bytes - segment.size_bytes,
        bad.reason,
    )
    with durable.storage("read", segment.path), segment.path.open("rb") as file:
        file.seek(segment.size_bytes)
        tail = file.read()
    try:
        durable.replace_file(Path(f"{segment.path}.bad"), tail)
    except StorageError as failure:
        if not failure.is_full:
            raise
        # It stays where it is, behind what the segment is said to hold, and the next start meets it.
        log.warning("no room to keep what is cut, it is left path=%s", segment.path)
        return
    with durable.storage("truncate", segment.path):
        os.truncate(segment.path, segment.size_bytes)
