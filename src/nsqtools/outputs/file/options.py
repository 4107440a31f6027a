"""The options of an archive of files: NSQ's flags, defaults and words, and ours beside them."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import os.path
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.errors import ArchiveError
from nsqtools.options import (
    BOOL,
    FOLDER,
    SIZE,
    STRFTIME,
    TEXT,
    Choice,
    Duration,
    Int,
    Kind,
    option,
)
from nsqtools.options.system import COMMAND, SIZE_OR_PERCENT, Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RecordFormat = Literal["lines", "jsonl", "framed"]
Compression = Literal["none", "gzip", "zstd"]
RECORD_FORMAT: Kind[RecordFormat] = Choice(("lines", "jsonl", "framed"))
COMPRESSION: Kind[Compression] = Choice(("none", "gzip", "zstd"))
_STREAM: Kind[Literal["-"]] = Choice(("-",))
_POSITIVE = Duration(minimum="1ns")
_SHOULD_BE_POSITIVE = "{flag} should be positive"

_FILES = "Where files go"
_FORMAT = "What is in a file"
_ROTATION = "When a file ends, and when it is synced"


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How topics are archived in files. Times are in seconds, sizes in bytes."""

    output_dir: Path = option(FOLDER, default="/tmp", help="where finished files go", group=_FILES)  # noqa: S108
    output: Literal["-"] | None = option(
        _STREAM,
        help="write one topic to standard output instead of files",
        group=_FILES,
    )
    work_dir: Path | None = option(
        FOLDER, help="where unfinished files are; default: the output folder", group=_FILES
    )
    filename_format: str = option(
        TEXT,
        default="<TOPIC>.<HOST><REV>.<DATETIME>.log",
        help="file name; also knows <CHANNEL> and <PID>; a slash makes folders",
        group=_FILES,
    )
    datetime_format: str = option(
        STRFTIME, default="%Y-%m-%d_%H", help="strftime format of <DATETIME>", group=_FILES
    )
    utc: bool = option(
        BOOL, default="false", help="<DATETIME> in UTC instead of local time", group=_FILES
    )
    host_identifier: str = option(
        TEXT,
        default="",
        help="value of <HOST>; may hold <SHORT_HOST> and <HOSTNAME>; default: the short host name",
        group=_FILES,
    )
    skip_empty_files: bool = option(
        BOOL,
        default="false",
        help="no effect: a file is created with its first message, so none is ever empty",
        group=_FILES,
    )

    min_free_space: Space | None = option(
        SIZE_OR_PERCENT,
        help="while less is free on the disk, write nothing and acknowledge nothing",
        group=_FILES,
    )
    on_publish: tuple[str, ...] | None = option(
        COMMAND,
        help="run this for each finished file, with its path as last argument and NSQTOOLS_TOPIC,"
        " _RECORDS and others in its environment; no shell, no retry",
        group=_FILES,
    )
    on_publish_timeout_s: float = option(
        _POSITIVE,
        default="1m",
        help="longest time that --on-publish may take for a file",
        group=_FILES,
        problem=_SHOULD_BE_POSITIVE,
    )

    record_format: RecordFormat = option(
        RECORD_FORMAT,
        default="lines",
        help="lines: body and newline; jsonl: an object a line; framed: exact, for any bytes",
        group=_FORMAT,
        flag="format",
    )
    compress: Compression | None = option(
        COMPRESSION, help="compression (default none)", group=_FORMAT
    )
    gzip: bool = option(BOOL, default="false", help="the same as --compress gzip", group=_FORMAT)
    gzip_level: int = option(
        Int(minimum=1, maximum=9),
        default="6",
        help="1 (fast) to 9 (small)",
        group=_FORMAT,
        problem="invalid {flag} value ({value}), should be 1-9",
    )
    zstd_level: int = option(
        Int(minimum=1, maximum=19),
        default="3",
        help="1 (fast) to 19 (small)",
        group=_FORMAT,
        problem="invalid {flag} value ({value}), should be 1-19",
    )

    no_compact: bool = option(
        BOOL,
        default="false",
        help="publish files as they were written; by default one of many small syncs is rewritten"
        " before, and is then as small as if it had been written at once",
        group=_FORMAT,
    )

    no_dedupe: bool = option(
        BOOL,
        default="false",
        help="write a message again that nsqd delivers again; by default the archive has each once",
        group=_FORMAT,
    )

    manifest: bool = option(
        BOOL,
        default="false",
        help="put a small JSON beside each finished file: how many records, from when to when, sizes,"
        " SHA-256",
        group=_FORMAT,
    )

    watermark: bool = option(
        BOOL,
        default="false",
        help="keep a small JSON for each topic that says up to which time its archive is complete",
        group=_FILES,
    )

    rotate_size_bytes: int = option(
        SIZE,
        default="0",
        help="begin a new file beyond this size on disk, 0: never",
        group=_ROTATION,
    )
    rotate_interval_s: float = option(
        Duration(), default="0s", help="begin a new file after this time, 0: never", group=_ROTATION
    )
    rotate_records: int = option(
        Int(minimum=0),
        default="0",
        help="begin a new file after so many messages, 0: never",
        group=_ROTATION,
    )
    rotate_idle_s: float = option(
        Duration(),
        default="0s",
        help="finish a file that got no message for this time, 0: never",
        group=_ROTATION,
    )
    sync_interval_s: float = option(
        _POSITIVE,
        default="30s",
        help="longest time that a message waits to be made durable and acknowledged",
        group=_ROTATION,
        problem=_SHOULD_BE_POSITIVE,
    )

    @property
    def compression(self) -> Compression:
        """What `--compress` and `--gzip` mean together."""
        if self.compress is not None:
            return self.compress
        return "gzip" if self.gzip else "none"

    @property
    def compression_level(self) -> int:
        return self.zstd_level if self.compression == "zstd" else self.gzip_level

    @property
    def effective_work_dir(self) -> Path:
        """The folder of unfinished files: the output folder where no other is named."""
        return self.work_dir if self.has_work_dir and self.work_dir else self.output_dir

    @property
    def has_work_dir(self) -> bool:
        """Whether the work folder is another one. Paths are compared, not their spelling: `/d` and
        `/d/` are one folder (spec: tools, 7.3 D4)."""
        if self.work_dir is None:
            return False
        return os.path.abspath(self.work_dir) != os.path.abspath(self.output_dir)  # noqa: PTH100 - no links followed

    def check_output(self) -> Iterator[str]:
        """The mistakes that concern several of these options, in NSQ's words."""
        if self.gzip and self.compress not in (None, "gzip"):
            yield f"--gzip contradicts --compress {self.compress}"
        if self.output is not None:
            yield from self._check_stream()
            return
        rotates = (
            self.rotate_size_bytes
            or self.rotate_interval_s
            or self.rotate_records
            or self.rotate_idle_s
        )
        needs_rev = self.compression != "none" or bool(rotates) or self.has_work_dir
        yield from self._check_names(needs_rev=needs_rev)

    def _check_stream(self) -> Iterator[str]:
        """What has no meaning without files."""
        given = {
            "--work-dir": self.work_dir,
            "--manifest": self.manifest,
            "--watermark": self.watermark,
            "--on-publish": self.on_publish,
            "--min-free-space": self.min_free_space,
            "--rotate-size": self.rotate_size_bytes,
            "--rotate-interval": self.rotate_interval_s,
            "--rotate-records": self.rotate_records,
            "--rotate-idle": self.rotate_idle_s,
        }
        if wrong := [flag for flag, value in given.items() if value]:
            yield f"--output=- makes no files: it cannot be with {', '.join(wrong)}"

    def _check_names(self, *, needs_rev: bool) -> Iterator[str]:
        """What is wrong with every name, whatever the topic."""
        from nsqtools.archive.naming import FileNaming, host_identifier  # compressors load slowly

        naming = FileNaming(
            host=host_identifier(self.host_identifier),
            filename_format=self.filename_format,
            datetime_format=self.datetime_format,
            utc=self.utc,
        )
        try:
            names = naming.format_for(
                "topic", self.compression, revision_needed=needs_rev, channel="channel"
            )
            names.stem(time.time())
        except ArchiveError as error:
            problem = str(error)
            yield problem if "--filename-format" in problem else f"--filename-format: {problem}"
        if self.watermark and "/" in naming.host:
            yield f"--watermark: a --host-identifier of {naming.host!r} cannot be in its name"
