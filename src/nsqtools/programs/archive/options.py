"""The options of the commands of `nsqtools archive`."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.options import (
    BOOL,
    FOLDER,
    PATH,
    REGEX,
    TEXT,
    TIMESTAMP,
    Choice,
    Duration,
    Int,
    Kind,
    option,
    printable,
    repeated,
)
from nsqtools.stores.location import is_location
from nsqtools.stores.options import StoreAccess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.options import Pattern

CatFormat = Literal["auto", "lines", "jsonl", "framed", "raw"]
Progress = Literal["auto", "always", "never"]
CAT_FORMAT: Kind[CatFormat] = Choice(("auto", "lines", "jsonl", "framed", "raw"))
PROGRESS: Kind[Progress] = Choice(("auto", "always", "never"))
STDIN = "-"
_WHAT = "What"
_HOW = "How it is shown"
_WHERE = "Where it goes"
_FILES = "archive; a folder (every file below it) or a glob in quotes"
_STORED = f"{_FILES}; s3://bucket/key, or s3://bucket/prefix for every archive whose key begins so"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesOptions:
    """What every command takes: the files, and how its progress is shown."""

    files: tuple[str, ...] = repeated(TEXT, help=_FILES, flag="file", positional=True)
    progress: Progress = option(
        PROGRESS, default="auto", help="on standard error; auto: when that is a terminal"
    )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        if not self.files:
            yield "name at least one file, folder or glob"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing(FilesOptions):
    """What is listed; these flags stand in front of the store's, here and below."""

    files: tuple[str, ...] = repeated(TEXT, help=_STORED, flag="file", positional=True)
    json: bool = option(BOOL, default="false", help="one JSON object a line", group=_HOW)
    quick: bool = option(
        BOOL,
        default="false",
        help="do not read files that have no index: their records and times are not shown",
        group=_WHAT,
    )
    gap_s: float | None = option(
        Duration(minimum="1ns"),
        help="tell of times without messages, between two files of a topic, that are longer;"
        " default: those unusual for the topic, of a minute or more",
        group=_WHAT,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LsOptions(StoreAccess, _Listing):
    """One listing. Times are in seconds."""

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        yield from FilesOptions.check(self)
        yield from self.check_locations(self.files)
        if STDIN in self.files:
            yield "standard input (-) cannot be listed: archive verify - reads it"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Printing:
    """What is printed, and how."""

    files: tuple[str, ...] = repeated(
        TEXT, help=f"{_STORED}; - for standard input", flag="file", positional=True
    )
    since_ns: int | None = option(
        TIMESTAMP, help="only messages published at this time or later", group=_WHAT
    )
    until_ns: int | None = option(
        TIMESTAMP, help="only messages published before this time", group=_WHAT
    )
    grep: Pattern | None = option(
        REGEX, help="only messages whose body this is found in", group=_WHAT
    )
    with_open: bool = option(
        BOOL,
        default="false",
        help="of a folder or glob also what is still being written, as far as it is whole",
        group=_WHAT,
    )
    record_format: CatFormat = option(
        CAT_FORMAT,
        default="auto",
        help="auto: as it is in the file (on a terminal framed is shown as jsonl); lines: the body and"
        " a newline; raw: the bodies with nothing between them; jsonl and framed keep all",
        group=_HOW,
        flag="format",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CatOptions(StoreAccess, _Printing):
    """One run of cat. Points in time are in ns, times in seconds."""

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        if not self.files:
            yield "name at least one file, folder or glob, or - for standard input"
        yield from self.check_locations(self.files)
        since, until = self.since_ns, self.until_ns
        if since is not None and until is not None and since >= until:
            yield "--since should be before --until"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checking(FilesOptions):
    """What is checked."""

    files: tuple[str, ...] = repeated(TEXT, help=_STORED, flag="file", positional=True)
    json: bool = option(BOOL, default="false", help="one JSON object a line", group=_HOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions(StoreAccess, _Checking):
    """One check. Times are in seconds."""

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        yield from FilesOptions.check(self)
        yield from self.check_locations(self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteOptions(FilesOptions):
    """What the commands share that write files."""

    output: Path | None = option(
        PATH, help="name of the new file, which must be free; of one file only", group=_WHERE
    )
    output_dir: Path | None = option(
        FOLDER, help="folder for the new files; default: each beside the old one", group=_WHERE
    )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        yield from FilesOptions.check(self)
        if self.output is not None and self.output_dir is not None:
            yield "--output and --output-dir exclude each other"
        if STDIN in self.files:
            yield "standard input (-) cannot be read twice: save it as a file first"
        for name in filter(is_location, self.files):
            yield f"{printable(name)}: an object stays as it is: download it, and name the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions(RewriteOptions):
    """One repair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceOptions(RewriteOptions):
    """What may take the place of the file that it was made from."""

    replace: bool = option(
        BOOL,
        default="false",
        help="let the new file take the place of the old one, when it is durable and was read back",
        group=_WHERE,
    )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        yield from RewriteOptions.check(self)
        if self.replace and (self.output is not None or self.output_dir is not None):
            yield "--replace and --output or --output-dir exclude each other"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions(ReplaceOptions):
    """One run of index."""

    zstd_level: int = option(
        Int(minimum=1, maximum=22), default="3", help="level of the new file", group=_WHERE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactOptions(ReplaceOptions):
    """One run of compact."""

    zstd_level: int = option(
        Int(minimum=1, maximum=22), default="3", help="level of new .zst files", group=_WHERE
    )
    gzip_level: int = option(
        Int(minimum=1, maximum=9), default="6", help="level of new .gz files", group=_WHERE
    )
