"""The options of an archive in an object store: keys, the spool, and what is acknowledged when."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.errors import ArchiveError
from nsqtools.options import FOLDER, SIZE, STRFTIME, Choice, Kind, Size, option
from nsqtools.outputs.archive_options import (
    COMPRESSION,
    FILES,
    FORMAT,
    ROTATION,
    ArchiveOptions,
    Compression,
)
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.archive.object_names import ObjectNaming

SPOOL_SIZE = Size(minimum=1 << 20)
MAX_SPOOL_BYTES = "10GiB"
Ack = Literal["spool", "upload"]
ACK: Kind[Ack] = Choice(("spool", "upload"))


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """What objects are called, and where they are before."""

    ack: Ack = option(
        ACK,
        default="spool",
        help="when a message is acknowledged: spool: it is fsynced in --spool-dir, which is uploaded;"
        " upload: the store has confirmed the object that it is in, for hosts without a disk to trust",
        group=FILES,
    )
    key_format: str = option(
        STRFTIME,
        default="<TOPIC>/dt=%Y-%m-%d/hour=%H/<TOPIC>.<HOST>.<FIRST>-<LAST>.<REV>.<EXT>",
        help="key of an object; strftime's directives are UTC; <FIRST> and <LAST> are publish times;"
        " also knows <CHANNEL> and <PID>",
        group=FILES,
    )
    spool_dir: Path | None = option(
        FOLDER,
        help="where files are until the store has them; on a disk that survives the machine's restart",
        group=FILES,
    )
    max_spool_bytes: int = option(
        SPOOL_SIZE,
        default=MAX_SPOOL_BYTES,
        help="when so much waits in the spool, consume nothing until there is room",
        group=FILES,
        flag="max-spool-bytes",
    )


@dataclass(frozen=True, kw_only=True)
class S3Options(ArchiveOptions, _Keys, StoreOptions):
    """How topics are archived in a bucket. Times are in seconds, sizes in bytes."""

    compress: Compression | None = option(
        COMPRESSION, help="compression (default zstd)", group=FORMAT
    )
    rotate_size_bytes: int = option(
        SIZE,
        default="64M",
        help="begin a new object beyond this size, 0: never",
        group=ROTATION,
    )

    @property
    def compression(self) -> Compression:
        """What `--compress` and `--gzip` mean together."""
        if self.compress is not None:
            return self.compress
        return "gzip" if self.gzip else "zstd"

    def naming(self) -> ObjectNaming:
        """What the keys of this run are made from."""
        from nsqtools.archive.naming import host_identifier  # compressors load slowly
        from nsqtools.archive.object_names import ObjectNaming

        return ObjectNaming(
            host=host_identifier(self.host_identifier),
            record_format=self.record_format,
            key_format=self.key_format,
        )

    def check_output(self) -> Iterator[str]:
        """The mistakes that concern several of these options."""
        yield from super().check_output()
        yield from self.check_store()
        yield from self.check_partition()
        yield from self._check_keys()
        if self.ack == "spool" and self.spool_dir is None:
            yield "--spool-dir is required with --ack=spool"
        if self.ack == "upload":
            yield from self._check_direct()

    def _check_keys(self) -> Iterator[str]:
        try:
            keys = self.naming().format_for(
                "topic", self.compression, revision_needed=True, channel="channel"
            )
            keys.stem(time.time())
        except ArchiveError as error:
            problem = str(error)
            named = "--key-format" in problem or "--host-identifier" in problem
            yield problem if named else f"--key-format: {problem}"
            return
        if self.partition_by == "publish-time" and keys.step_s is None:
            yield "--partition-by=publish-time needs strftime's directives in --key-format"

    def _check_direct(self) -> Iterator[str]:
        given = {
            "--partition-by": self.partition_by != "arrival",
            "--watermark": self.watermark,
            "--min-free-space": self.min_free_space,
            "--max-spool-bytes": self.max_spool_bytes != SPOOL_SIZE.parse(MAX_SPOOL_BYTES),
        }
        for flag in (flag for flag, value in given.items() if value):
            yield f"{flag} has no meaning with --ack=upload"
