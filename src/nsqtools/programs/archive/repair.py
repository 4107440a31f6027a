"""`nsqtools archive repair`: what is whole of a damaged file, in a new file beside it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from nsqtools.archive.ahead import ahead
from nsqtools.archive.examination import Examined, State, examine
from nsqtools.archive.files import find_files, open_file, status_of
from nsqtools.archive.formats import COMPRESSIONS, RECORD_FORMATS
from nsqtools.archive.rewriting import Form, Rewritten, new_file, place, write_whole
from nsqtools.archive.scan import Scan
from nsqtools.archive.stream import Source, seek
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.targets import check_one_output, named, real_path, target_of
from nsqtools.programs.archive.verify import describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from nsqtools.archive.files import FoundFile
    from nsqtools.programs.archive.options import RepairOptions


def run(options: RepairOptions) -> int:
    """Repair; 0 when what was whole of every damaged file is in a new one, or the code of the gravest
    thing that was told: 4 nothing was whole, 5 a file could not be read or written.

    Raises `OptionsError` for a name that is nothing. The old files are never changed.
    """
    links: list[Path] = []
    files = find_files(options.files, links=links)
    shown.warn_of_links("archive-repair", links)
    check_one_output(options, files)
    each = Each("archive-repair", files, options.progress)

    def repair(file: FoundFile, on_read: Callable[[int], None]) -> list[str]:
        with open_file(file) as opened:
            found = examine(opened, file.name, whole=True, on_read=on_read)
            if found.state is not State.DAMAGED:
                return [_nothing_to_do(found)]
            return _repair(opened, file, found, options)

    for _, lines in each.results(repair):
        for line in lines:
            shown.say(line)
    return each.exit_code


def _nothing_to_do(found: Examined) -> str:
    if found.state is State.OPEN:
        return f"{printable(found.name)}: is not finished, and whole as far as it goes"
    return f"{printable(found.name)}: is whole: nothing to repair"


def _repair(
    opened: BinaryIO, file: FoundFile, found: Examined, options: RepairOptions
) -> list[str]:
    path = real_path(file)
    target = target_of(options, path, named(path, "repaired", found.compression))
    if not found.records:
        raise ArchiveError(f"{file.name}: nothing in it is whole: no file was written")
    with new_file(target.parent) as (fd, new):
        made = write_whole(
            ahead(iter(scan_of(opened, found))), form_of(found), fd, new, name=file.name
        )
        if status_of(opened, path).st_size < found.stored_bytes:
            shorter = OSError(errno.EBUSY, "the file became shorter while it was read")
            raise StorageError("repair", path, shorter)
        place(new, target)
    return [*_losses(file, made), _result(file, target.name, made)]


def scan_of(opened: BinaryIO, found: Examined) -> Scan:
    """A second pass over a file that was examined."""
    seek(opened, found.name, 0)
    return Scan(
        Source(opened, found.name),
        RECORD_FORMATS[found.record_format],
        COMPRESSIONS[found.compression],
        is_open=found.is_unfinished,
    )


def form_of(found: Examined, compression: str = "", level: int | None = None) -> Form:
    """The form of a new file with what this one holds; in another compression, where one is named."""
    wanted = COMPRESSIONS[compression or found.compression]
    return Form(
        record_format=found.record_format,
        compression=wanted.name,
        level=wanted.default_level if level is None else level,
        topic=found.topic,
        channel=found.channel,
        host=found.host,
    )


def _losses(file: FoundFile, made: Rewritten) -> list[str]:
    name = printable(file.name)
    return [
        f"{name}: {describe(lost.start, lost.end, lost.reason, lost.records)}"
        for lost in made.losses
    ]


def _result(file: FoundFile, target: str, made: Rewritten) -> str:
    lost = shown.count(sum(one.size_bytes for one in made.losses), "byte")
    if records := sum(one.records or 0 for one in made.losses):
        lost += f", {shown.count(records, 'record')}"  # compressed lines take no bytes of their own
    return (
        f"{printable(file.name)}: whole, and now in {printable(target)}, are"
        f" {shown.count(made.records, 'record')}; lost are {lost}"
    )
