"""The options that every archive has, in folders or in a store: formats, rotation, what goes with it."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.options import BOOL, SIZE, TEXT, Choice, Duration, Int, Kind, option
from nsqtools.options.system import COMMAND, SIZE_OR_PERCENT, Space

if TYPE_CHECKING:
    from collections.abc import Iterator

RecordFormat = Literal["lines", "jsonl", "framed"]
Compression = Literal["none", "gzip", "zstd"]
RECORD_FORMAT: Kind[RecordFormat] = Choice(("lines", "jsonl", "framed"))
COMPRESSION: Kind[Compression] = Choice(("none", "gzip", "zstd"))
PartitionBy = Literal["arrival", "publish-time"]
PARTITION_BY: Kind[PartitionBy] = Choice(("arrival", "publish-time"))
LATENESS_S = 300.0
OPEN_FILES_MAX = 16
POSITIVE = Duration(minimum="1ns")
_SHOULD_BE_POSITIVE = "{flag} should be positive"

FILES = "Where files go"
FORMAT = "What is in a file"
ROTATION = "When a file ends, and when it is synced"


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """What is written, and when a file ends. Times are in seconds, sizes in bytes."""

    host_identifier: str = option(
        TEXT,
        default="",
        help="value of <HOST>; may hold <SHORT_HOST> and <HOSTNAME>; default: the short host name",
        group=FILES,
    )

    min_free_space: Space | None = option(
        SIZE_OR_PERCENT,
        help="while less is free on the disk, write nothing and acknowledge nothing",
        group=FILES,
    )

    on_publish: tuple[str, ...] | None = option(
        COMMAND,
        help="run this for each finished file, with its path as last argument and NSQTOOLS_TOPIC,"
        " _RECORDS and others in its environment; no shell, no retry",
        group=FILES,
    )

    on_publish_timeout_s: float = option(
        POSITIVE,
        default="1m",
        help="longest time that --on-publish may take for a file",
        group=FILES,
        problem=_SHOULD_BE_POSITIVE,
    )

    record_format: RecordFormat = option(
        RECORD_FORMAT,
        default="lines",
        help="lines: body and newline; jsonl: an object a line; framed: exact, for any bytes",
        group=FORMAT,
        flag="format",
    )

    compress: Compression | None = option(
        COMPRESSION, help="compression (default none)", group=FORMAT
    )

    gzip: bool = option(BOOL, default="false", help="the same as --compress gzip", group=FORMAT)
    gzip_level: int = option(
        Int(minimum=1, maximum=9),
        default="6",
        help="1 (fast) to 9 (small)",
        group=FORMAT,
        problem="invalid {flag} value ({value}), should be 1-9",
    )

    zstd_level: int = option(
        Int(minimum=1, maximum=19),
        default="3",
        help="1 (fast) to 19 (small)",
        group=FORMAT,
        problem="invalid {flag} value ({value}), should be 1-19",
    )

    no_compact: bool = option(
        BOOL,
        default="false",
        help="publish files as they were written; by default one of many small syncs is rewritten"
        " before, and is then as small as if it had been written at once",
        group=FORMAT,
    )

    no_dedupe: bool = option(
        BOOL,
        default="false",
        help="write a message again that nsqd delivers again; by default the archive has each once",
        group=FORMAT,
    )

    manifest: bool = option(
        BOOL,
        default="false",
        help="put a small JSON beside each finished file: how many records, from when to when, sizes,"
        " SHA-256",
        group=FORMAT,
    )

    watermark: bool = option(
        BOOL,
        default="false",
        help="keep a small JSON for each topic that says up to which time its archive is complete",
        group=FILES,
    )

    partition_by: PartitionBy = option(
        PARTITION_BY,
        default="arrival",
        help="arrival: messages go into the file of now; publish-time: into that of the hour, or what"
        " else <DATETIME> names, in which nsqd got them",
        group=ROTATION,
    )

    lateness_s: float | None = option(
        Duration(),
        help="with publish-time: how long the file of a period stays open after it (default 5m); what"
        " comes later goes into another file of that period",
        group=ROTATION,
    )

    max_open_files: int | None = option(
        Int(minimum=1, maximum=1000),
        help="with publish-time: so many files of a topic are open at most (default 16)",
        group=ROTATION,
    )

    rotate_size_bytes: int = option(
        SIZE,
        default="0",
        help="begin a new file beyond this size on disk, 0: never",
        group=ROTATION,
    )

    rotate_interval_s: float = option(
        Duration(), default="0s", help="begin a new file after this time, 0: never", group=ROTATION
    )

    rotate_records: int = option(
        Int(minimum=0),
        default="0",
        help="begin a new file after so many messages, 0: never",
        group=ROTATION,
    )

    rotate_idle_s: float = option(
        Duration(),
        default="0s",
        help="finish a file that got no message for this time, 0: never",
        group=ROTATION,
    )

    sync_interval_s: float = option(
        POSITIVE,
        default="30s",
        help="longest time that a message waits to be made durable and acknowledged",
        group=ROTATION,
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
    def rotates(self) -> bool:
        """Whether a name may be used for more than one file."""
        return bool(
            self.rotate_size_bytes
            or self.rotate_interval_s
            or self.rotate_records
            or self.rotate_idle_s
            or self.partition_by == "publish-time"
        )

    def check_output(self) -> Iterator[str]:
        """The mistakes that concern several of these options."""
        if self.gzip and self.compress not in (None, "gzip"):
            yield f"--gzip contradicts --compress {self.compress}"

    def check_partition(self) -> Iterator[str]:
        """What has no meaning but with, or cannot be with, files by publish time."""
        if self.partition_by == "arrival":
            given = {"--lateness": self.lateness_s, "--max-open-files": self.max_open_files}
            for flag in (flag for flag, value in given.items() if value is not None):
                yield f"{flag} has no meaning without --partition-by=publish-time"
        elif self.watermark:
            yield (
                "--watermark cannot be with --partition-by=publish-time: a message of any time may"
                " still wait in nsqd"
            )
