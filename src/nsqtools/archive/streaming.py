"""An archive as one stream, to a descriptor that is open: a pipe, a terminal, a file of somebody else.

A commit is in the kernel's hands when `commit` returns, and on the disk where the stream is a file. What
was written cannot be taken back: after a write that failed nothing more can be appended that a reader
would understand, so the stream is over.
"""

from __future__ import annotations

import os
import select
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.formats import COMPRESSIONS, new_encoding
from nsqtools.archive.groups import encode_groups
from nsqtools.archive.zstd_frames import FRAMES_PER_FILE
from nsqtools.errors import StorageError
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.wire.messages import Messages

NAME = "standard output"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """What to write."""

    topic: str
    channel: str
    host: str
    record_format: str
    compression: str
    level: int | None = None


class StreamWriter:
    """Blocking, for one thread. Raises `StorageError`; after that always the same."""

    def __init__(self, spec: StreamSpec, fd: int, name: str = NAME) -> None:
        default_level = COMPRESSIONS[spec.compression].default_level
        self._encoder, self._new_container = new_encoding(
            record_format=spec.record_format,
            compression=spec.compression,
            level=default_level if spec.level is None else spec.level,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
        )
        self._container = self._new_container()
        self._is_first = True
        self._fd = fd
        self._name = name
        with durable.storage("open", name):
            self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self.broken: StorageError | None = None
        self.content_bytes = 0
        """What was written, without compression."""

    def commit(self, batches: Sequence[Messages]) -> tuple[int, int]:
        """Append messages; gives the bytes that were written, and how many messages hold a newline in
        `lines`."""
        if not count_messages(batches):
            return 0, 0
        self._end_if_large()
        groups, ambiguous = encode_groups(self._encoder, batches, is_first=self._is_first)
        data = self._container.encode(groups)
        if self._is_first:
            data = self._container.file_header + data
        self._write(data)
        self._container.keep()
        self.content_bytes += sum(len(group.content) for group in groups)
        self._is_first = False
        return len(data), ambiguous

    def close(self) -> None:
        """Complete the stream, if anything is in it. The descriptor stays open."""
        if not self._is_first:
            self._write(self._container.trailer())
            self._is_first = True

    def _end_if_large(self) -> None:
        """What an index keeps has a bound: then another archive follows in the same stream."""
        if self._container.frames >= FRAMES_PER_FILE:
            self.close()
            self._container = self._new_container()

    def _write(self, data: bytes | bytearray) -> None:
        if self.broken is not None:
            raise self.broken
        try:
            left = memoryview(data)
            while left:
                left = left[self._write_some(left) :]
            if self._is_file:
                os.fdatasync(self._fd)
        except OSError as error:
            self.broken = StorageError("write", self._name, error)
            raise self.broken from error

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # whoever shares it wants it so
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll()
            return 0
