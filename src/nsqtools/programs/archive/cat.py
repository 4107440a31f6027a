"""`nsqtools archive cat`: messages to standard output, all or those of a range of time or a pattern."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nsqtools.archive.files import find_files, is_unfinished, open_file
from nsqtools.archive.reader import LOOK_BYTES, open_archive
from nsqtools.archive.stream import Damage
from nsqtools.errors import DamagedArchive
from nsqtools.programs.archive.convert import FRAMED, JSONL, Wanted, converted
from nsqtools.programs.archive.each import Each
from nsqtools.programs.archive.shown import count, warn, warn_of_links, write
from nsqtools.stores.named import NamedObjects
from nsqtools.transform.search import Search

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nsqtools.archive.files import FoundFile
    from nsqtools.archive.reader import ArchiveReader
    from nsqtools.programs.archive.options import CatOptions

PROGRAM = "archive-cat"


def run(options: CatOptions) -> int:
    """Print; 0, or the code of the gravest thing that was told: 4 damage, 5 a file that could not be
    read. Everything whole in front of damage is printed.

    Raises `OptionsError` for a name that is nothing, `BrokenPipeError` when nobody reads any more, and
    `StorageError` when standard output takes no more.
    """
    with NamedObjects(options) as remotes:
        links: list[Path] = []
        files = find_files(options.files, remotes, links)
        warn_of_links(PROGRAM, links)
        return _print(options, files)


def _print(options: CatOptions, files: list[FoundFile]) -> int:
    kept = [file for file in files if file.is_named or file.is_finished or options.with_open]
    if len(kept) < len(files):
        left_out = len(files) - len(kept)
        warn(
            f"{PROGRAM}: left out: {count(left_out, 'file')} not finished (--with-open prints them)"
        )
    each = Each(PROGRAM, kept, "never")
    cat = _Cat(options)
    for _ in each.results(cat.print_file):
        pass
    cat.tell()
    return each.exit_code


class _Cat:
    """What one run has in common, and what is to be said once for all files."""

    def __init__(self, options: CatOptions) -> None:
        self._options = options
        self._grep = None if options.grep is None else Search(options.grep)
        self._ambiguous = 0
        self._is_told = False

    def print_file(self, file: FoundFile, _on_read: Callable[[int], None]) -> None:
        is_open = is_unfinished(file.name)
        with open_file(file, may_be_pipe=file.is_named) as opened:
            look_bytes = LOOK_BYTES if file.remote is not None else None
            try:
                reader = open_archive(opened, name=file.name, look_bytes=look_bytes)
                self._print(reader, file, opened.seekable(), is_open)
            except DamagedArchive as damage:
                cause = damage.__cause__
                if not (is_open and isinstance(cause, Damage) and cause.torn):
                    raise  # the end of a file that is being written looks torn

    def _print(self, reader: ArchiveReader, file: FoundFile, can_seek: bool, is_open: bool) -> None:
        options = self._options
        wanted = Wanted(
            record_format=self._format(reader),
            since_ns=options.since_ns,
            until_ns=options.until_ns,
            grep=self._grep,
            is_open=is_open,
            reads_ahead=can_seek,
        )
        pieces = converted(reader, wanted, file.name)
        self._tell_of_commits(reader)
        for data in pieces:
            write(data)
        self._ambiguous += wanted.ambiguous

    def _format(self, reader: ArchiveReader) -> str:
        wanted, found = self._options.record_format, reader.info.record_format
        if wanted != "auto":
            return wanted
        return JSONL if found == FRAMED and sys.stdout.isatty() else found

    def _tell_of_commits(self, reader: ArchiveReader) -> None:
        options = self._options
        has_range = options.since_ns is not None or options.until_ns is not None
        if has_range and not reader.selects_exactly and not self._is_told:
            self._is_told = True
            warn(
                f"{PROGRAM}: lines keep no time: whole commits are printed, with messages from before"
                " --since or after --until"
            )

    def tell(self) -> None:
        """What is known at the end."""
        if self._ambiguous:
            warn(
                f"{PROGRAM}: with a newline within, so that they look like several lines:"
                f" {self._ambiguous} of the bodies;"
                " --format=jsonl keeps them apart"
            )
