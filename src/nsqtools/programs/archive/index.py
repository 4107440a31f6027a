"""`nsqtools archive index`: zstd with an index, of zstd files without one and of gzip files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.archive.ahead import ahead
from nsqtools.archive.examination import examine, open_reader
from nsqtools.archive.files import find_files, open_file, status_of
from nsqtools.archive.rewriting import new_file, write_whole
from nsqtools.archive.scan import NOT_SEALED
from nsqtools.errors import DamagedArchive
from nsqtools.options.shown import printable
from nsqtools.programs.archive import shown
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.repair import form_of, scan_of
from nsqtools.programs.archive.targets import (
    Names,
    check_one_output,
    named,
    put,
    real_path,
    target_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from nsqtools.archive.examination import Examined
    from nsqtools.archive.files import FoundFile
    from nsqtools.archive.rewriting import Rewritten
    from nsqtools.programs.archive.options import IndexOptions


def run(options: IndexOptions) -> int:
    """Index; 0, or the code of the gravest thing that was told: 4 a damaged file, which is left to
    `repair`, 5 a file that could not be read or written.

    Raises `OptionsError` for a name that is nothing. What a file holds is kept to the last byte.
    """
    links: list[Path] = []
    files = find_files(options.files, links=links)
    shown.warn_of_links("archive-index", links)
    check_one_output(options, files)
    each = Each("archive-index", files, options.progress)

    def index(file: FoundFile, _on_read: Callable[[int], None]) -> str:
        with open_file(file) as opened:
            reason = _why_not(opened, file)
            return reason or _index(opened, file, options)

    for file, line in each.results(index):
        shown.say(f"{printable(file.name)}: {line}")
    return each.exit_code


def _why_not(opened: BinaryIO, file: FoundFile) -> str:
    info = open_reader(opened, file.name).info
    if not file.is_finished:
        return "left alone: it is not finished"
    if info.compression == "none":
        return "left alone: it is not compressed"
    if info.records is not None:
        return "has an index"
    return ""


def _index(opened: BinaryIO, file: FoundFile, options: IndexOptions) -> str:
    path = real_path(file)
    was = status_of(opened, file.name)
    found = examine(opened, file.name, whole=False, quick=True)
    names = _names(path.name, found, named(path, "indexed", "zstd"), named(path, "", "zstd"))
    folder = target_of(options, path, names.beside).parent
    with new_file(folder) as (fd, new):
        form = form_of(found, "zstd", options.zstd_level)
        made = write_whole(ahead(iter(scan_of(opened, found))), form, fd, new, name=file.name)
        _refuse_losses(file, made)
        target = put(options, new, fd, path, was, names, compression="zstd")
    return (
        f"{shown.count(made.records, 'record')} in {printable(target.name)},"
        f" {shown.size(was.st_size)} before and {shown.size(made.size_bytes)} now"
    )


def _names(name: str, found: Examined, indexed: str, converted: str) -> Names:
    if found.compression == "zstd":
        return Names(beside=indexed, in_place=name)
    return Names(beside=converted, in_place=converted)


def _refuse_losses(file: FoundFile, made: Rewritten) -> None:
    for lost in made.losses:
        if lost.reason != NOT_SEALED:
            damage = DamagedArchive(file.name, lost.start, made.records, lost.reason)
            damage.hint = "Run nsqtools archive repair: it saves what is whole."
            raise damage
