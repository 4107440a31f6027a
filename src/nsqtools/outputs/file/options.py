"""The options of an archive in folders: NSQ's flags, defaults and words, and ours beside them."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import os.path
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.errors import ArchiveError
from nsqtools.options import BOOL, FOLDER, STRFTIME, TEXT, Choice, Kind, option
from nsqtools.outputs.archive_options import FILES, ArchiveOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OUTPUT_DIR = "/tmp"  # noqa: S108 - NSQ's own
_STREAM: Kind[Literal["-"]] = Choice(("-",))


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where files are, and how they are named."""

    output_dir: Path = option(
        FOLDER, default=OUTPUT_DIR, help="where finished files go", group=FILES
    )
    output: Literal["-"] | None = option(
        _STREAM,
        help="write one topic to standard output instead of files",
        group=FILES,
    )
    work_dir: Path | None = option(
        FOLDER, help="where unfinished files are; default: the output folder", group=FILES
    )
    filename_format: str = option(
        TEXT,
        default="<TOPIC>.<HOST><REV>.<DATETIME>.log",
        help="file name; also knows <CHANNEL> and <PID>; a slash makes folders",
        group=FILES,
    )
    datetime_format: str = option(
        STRFTIME, default="%Y-%m-%d_%H", help="strftime format of <DATETIME>", group=FILES
    )
    utc: bool = option(
        BOOL, default="false", help="<DATETIME> in UTC instead of local time", group=FILES
    )
    skip_empty_files: bool = option(
        BOOL,
        default="false",
        help="no effect: a file is created with its first message, so none is ever empty",
        group=FILES,
    )

    live_name: bool = option(
        BOOL,
        default="false",
        help="show the open file under its finished name, too, for `tail -F`; it is then not compacted",
        group=FILES,
    )


@dataclass(frozen=True, kw_only=True)
class FileOptions(ArchiveOptions, _Places):
    """How topics are archived in files. Times are in seconds, sizes in bytes."""

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
        yield from super().check_output()
        if self.output is not None:
            yield from self._check_stream()
            return
        needs_rev = self.compression != "none" or self.rotates or self.has_work_dir
        yield from self._check_names(needs_rev=needs_rev)
        yield from self.check_partition()
        if self.partition_by == "publish-time" and "<DATETIME>" not in self.filename_format:
            yield "--partition-by=publish-time needs <DATETIME> in --filename-format"
        elif self.partition_by == "publish-time" and not self._has_periods():
            yield "--partition-by=publish-time needs strftime's directives in --datetime-format"
        if self.live_name and self.has_work_dir:
            yield "--live-name shows the open file where it is written: it cannot be with --work-dir"

    def _has_periods(self) -> bool:
        """Whether `<DATETIME>` is not always the same."""
        from nsqtools.archive.naming import step_of  # compressors load slowly

        return step_of(self.datetime_format) is not None

    def _check_stream(self) -> Iterator[str]:
        """What has no meaning without files."""
        given = {
            "--output-dir": self.output_dir != FOLDER.parse(OUTPUT_DIR),
            "--work-dir": self.work_dir,
            "--manifest": self.manifest,
            "--watermark": self.watermark,
            "--live-name": self.live_name,
            "--partition-by": self.partition_by != "arrival",
            "--lateness": self.lateness_s is not None,
            "--max-open-files": self.max_open_files,
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
