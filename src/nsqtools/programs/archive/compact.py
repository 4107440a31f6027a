"""`nsqtools archive compact`: published files of many small commits, rewritten into large pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.claims import ClaimFacts
from nsqtools.archive.compaction import NotCompacted, compact, is_worth_it
from nsqtools.archive.examination import State, examine
from nsqtools.archive.files import find_files, open_file, status_of
from nsqtools.errors import ArchiveError, DamagedArchive, StorageError
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.targets import (
    Names,
    check_one_output,
    named,
    put,
    real_path,
    target_of,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from nsqtools.archive.examination import Examined
    from nsqtools.archive.files import FoundFile
    from nsqtools.programs.archive.options import CompactOptions


def run(options: CompactOptions) -> int:
    """Compact; 0, or the code of the gravest thing that was told: 4 a damaged file, which is left to
    `repair`, 5 a file that could not be read or written.

    Raises `OptionsError` for a name that is nothing. What a file holds is kept to the last byte.
    """
    links: list[Path] = []
    files = find_files(options.files, links=links)
    shown.warn_of_links("archive-compact", links)
    check_one_output(options, files)
    each = Each("archive-compact", files, options.progress)

    def work(file: FoundFile, on_read: Callable[[int], None]) -> str:
        with open_file(file) as opened:
            if not file.is_finished:
                return "left alone: it is not finished"
            was = status_of(opened, file.name)
            found = examine(opened, file.name, whole=True, on_read=on_read)
            return _why_not(found) or _compact(opened, file, found, was, options)

    for file, line in each.results(work):
        shown.say(f"{printable(file.name)}: {line}")
    return each.exit_code


def _why_not(found: Examined) -> str:
    if found.state is State.DAMAGED:
        lost = found.losses[0]
        damage = DamagedArchive(found.name, lost.start, found.records or 0, lost.reason)
        damage.hint = "Run nsqtools archive repair: it saves what is whole."
        raise damage
    if found.state is State.FOREIGN:
        return "left alone: not written by nsqtools (archive index makes one that is)"
    if not is_worth_it(found.compression, found.groups, found.content_bytes or 0):
        return "left alone: its commits are large, or it is not compressed"
    return ""


def _compact(
    opened: BinaryIO, file: FoundFile, found: Examined, was: os.stat_result, options: CompactOptions
) -> str:
    path = real_path(file)
    names = Names(beside=named(path, "compact", found.compression), in_place=path.name)
    new = durable.temporary_name(target_of(options, path, names.beside).parent)
    try:
        size_bytes = compact(
            opened.fileno(), path, new, _facts(found, path, options), records=found.records or 0
        )
        if size_bytes >= was.st_size:
            return f"left alone: it would have {shown.size(size_bytes)} instead of"
        fd = durable.open_existing(new)
        try:
            target = put(options, new, fd, path, was, names, compression=found.compression)
        finally:
            durable.close(fd)
    except NotCompacted as reason:
        raise ArchiveError(f"{file.name}: not compacted: {reason}") from reason
    finally:
        _remove(new)
    return (
        f"{shown.size(was.st_size)} before and {shown.size(size_bytes)} now, in"
        f" {printable(target.name)}"
    )


def _remove(new: Path) -> None:
    try:
        durable.unlink(new)
    except StorageError:
        return  # whoever recovers removes what is old


def _facts(found: Examined, path: Path, options: CompactOptions) -> ClaimFacts:
    """What the rewrite is to be, in the words of a claim; nothing is claimed."""
    level = options.zstd_level if found.compression == "zstd" else options.gzip_level
    return ClaimFacts(
        working=path.name,
        destination="",
        name=path.name,
        record_format=found.record_format,
        compression=found.compression,
        level=level,
        compact=True,
        topic=found.topic,
        channel=found.channel,
        host=found.host,
        created_at=0.0,
    )
