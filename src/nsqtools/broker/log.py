"""A topic's log: append-only, shared by all channels of the topic.

Theory of operation. Messages are numbered; a number is never used twice, because every opening starts
a new segment at `max(last + 1, unix_ms << 20)`: a number grows by less than 2^20 a millisecond, so
the clock is always ahead of it. The newest messages stay in memory as a chain of blocks
(`broker/memory.py`); a reader that is behind gets chains read from disk instead.

`append` writes before it returns. What reaches the platter, and when, is `sync`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nsqtools import durable
from nsqtools.broker.block import BadBlock, Block
from nsqtools.broker.memory import Memory, MemoryBudget
from nsqtools.broker.segment import (
    HEADER_SIZE_BYTES,
    READ_BYTES,
    Segment,
    parse_header,
    read_blocks,
    scan,
)
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("nsqtools.broker.log")

SEGMENT_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
NUMBERS_PER_MS_BITS = 20
_NO_BOUND = 1 << 62


class TopicLog(Protocol):
    """What a topic and its channels need of a log; numbers are message sequence numbers."""

    @property
    def start(self) -> int:
        """The first message that is kept."""

    @property
    def end(self) -> int:
        """The number that the next message gets."""

    @property
    def memory_start(self) -> int:
        """The first message that is in memory."""

    def append(self, block: Block) -> None:
        """Take the block, or raise StorageError and be as before."""

    def in_memory(self, number: int) -> Block | None:
        """The block in memory that holds `number`."""

    def read(self, number: int, size_bytes: int = READ_BYTES) -> Block | None:
        """From disk: the block that holds `number`, or the first one behind it, and its followers.

        About `size_bytes` are read at a time.
        """

    def following(self, number: int) -> int:
        """`number`, or the first number behind it that a message has or will have."""

    def count(self, first: int, end: int) -> int:
        """How many messages lie in `first` to `end` (exclusive)."""

    def trim(self, floor: int) -> None:
        """Forget what lies before `floor`."""


class MemoryLog:
    """The log of an ephemeral topic: nothing on disk; its channels bound what is kept."""

    def __init__(self, now_ms: int) -> None:
        self._memory = Memory(_NO_BOUND, MemoryBudget(_NO_BOUND))
        self._end = now_ms << NUMBERS_PER_MS_BITS
        self._start = self._end

    @property
    def start(self) -> int:
        return self._start

    @property
    def end(self) -> int:
        return self._end

    @property
    def memory_start(self) -> int:
        return self._start

    def append(self, block: Block) -> None:
        self._memory.append(block)
        self._end = block.end

    def in_memory(self, number: int) -> Block | None:
        return self._memory.find(number)

    def read(self, number: int, size_bytes: int = READ_BYTES) -> Block | None:
        return self._memory.find(number)

    def following(self, number: int) -> int:
        return number

    def count(self, first: int, end: int) -> int:
        return end - first

    def trim(self, floor: int) -> None:
        self._memory.drop_before(floor)
        self._start = max(self._start, floor)


class DiskLog:
    """The log of a topic in its folder.

    `defer` runs a function in the one thread that syncs and closes files, in order.
    """

    def __init__(
        self,
        folder: Path,
        *,
        memory: Memory,
        segment_size_max_bytes: int,
        now_ms: int,
        defer: Callable[[Callable[[], None]], object],
    ) -> None:
        self._folder = folder
        self._memory = memory
        self._segment_size_max = segment_size_max_bytes
        self._defer = defer
        self._segments = _recover(folder)
        last = self._segments[-1] if self._segments else None
        first = now_ms << NUMBERS_PER_MS_BITS
        self._ordinal = 0
        if last is not None:
            first = max(first, last.end)
            self._ordinal = last.ordinal + last.end - last.first
        self._fd = -1
        self._new_segment(first)

    @property
    def start(self) -> int:
        return self._segments[0].first

    @property
    def end(self) -> int:
        return self._segments[-1].end

    @property
    def memory_start(self) -> int:
        first = self._memory.first
        return self.end if first is None else first

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def first_segment_end(self) -> int | None:
        """Where the oldest sealed segment ends; None when only the written one is left."""
        return self._segments[0].end if len(self._segments) > 1 else None

    def append(self, block: Block) -> None:
        segment = self._segments[-1]
        if segment.size_bytes >= self._segment_size_max:
            self._roll()
            segment = self._segments[-1]
        if self._fd < 0:
            self._fd = self._reopen(segment)
        header = block.header()
        self._write(segment, [header, block.frames])
        segment.note(block.first, segment.size_bytes)
        segment.size_bytes += len(header) + len(block.frames)
        segment.end = block.end
        self._memory.append(block)

    def in_memory(self, number: int) -> Block | None:
        return self._memory.find(number)

    def read(self, number: int, size_bytes: int = READ_BYTES) -> Block | None:
        segment = self._segment_of(number)
        if segment is None:
            return None
        position = segment.position_before(number)
        while position < segment.size_bytes:
            found = read_blocks(segment.path, position, segment.size_bytes, size_bytes)
            if isinstance(found, BadBlock):
                _give_up(segment, found, segment.end - number)
                return self.read(segment.end, size_bytes)
            chain = [block for block, _, _ in found if block.end > number]
            for block, follower in pairwise(chain):
                block.next = follower
            if chain:
                return chain[0]
            position = found[-1][2]
        return self.read(segment.end, size_bytes) if segment is not self._segments[-1] else None

    def following(self, number: int) -> int:
        segment = self._segment_of(number)
        return self.end if segment is None else max(number, segment.first)

    def count(self, first: int, end: int) -> int:
        return self._ordinal_of(end) - self._ordinal_of(first)

    def trim(self, floor: int) -> None:
        while len(self._segments) > 1 and self._segments[0].end <= floor:
            segment = self._segments.pop(0)
            self._defer(lambda path=segment.path: _remove(path))  # type: ignore[misc]

    def sync(self) -> None:
        """Bring what was appended to the platter; called in the syncing thread."""
        fd = self._fd
        if fd >= 0:
            try:
                os.fdatasync(fd)
            except OSError as cause:
                raise StorageError("fsync", self._segments[-1].path, cause) from cause

    def close(self) -> None:
        """Hand the open file to the syncing thread to be synced and closed."""
        self._seal()

    def discard(self) -> None:
        """Close the open file and forget everything: the folder is about to be removed."""
        self._memory.drop_before(self.end)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._defer(lambda: os.close(fd))

    def _segment_of(self, number: int) -> Segment | None:
        """The segment that holds `number`, or the first one behind it that holds anything."""
        at = max(0, bisect_right(self._segments, number, key=lambda segment: segment.first) - 1)
        for segment in self._segments[at:]:
            if number < segment.end and segment.first < segment.end:
                return segment
        return None

    def _ordinal_of(self, number: int) -> int:
        at = bisect_right(self._segments, number, key=lambda segment: segment.first) - 1
        if at < 0:
            return self._segments[0].ordinal
        segment = self._segments[at]
        return segment.ordinal + min(number, segment.end) - segment.first

    def _roll(self) -> None:
        last = self._segments[-1]
        self._ordinal = last.ordinal + last.end - last.first
        old_fd = self._fd
        self._new_segment(last.end)
        self._defer(lambda: _seal(last, old_fd))

    def _seal(self) -> None:
        fd, self._fd = self._fd, -1
        segment = self._segments[-1]
        if fd >= 0:
            self._defer(lambda: _seal(segment, fd))

    def _new_segment(self, first: int) -> None:
        path = self._folder / f"{first:020d}{SEGMENT_SUFFIX}"
        segment = Segment(path=path, first=first, ordinal=self._ordinal, end=first)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError as cause:
            raise StorageError("create", path, cause) from cause
        try:
            _write_all(fd, [segment.header()])
        except OSError as cause:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise StorageError("write", path, cause) from cause
        self._fd = fd
        self._segments.append(segment)
        self._defer(lambda: durable.fsync_directory(self._folder))

    def _write(self, segment: Segment, parts: list[bytes]) -> None:
        try:
            _write_all(self._fd, parts)
        except OSError as cause:
            self._cut(segment)
            raise StorageError("write", segment.path, cause) from cause

    def _cut(self, segment: Segment) -> None:
        """Take back half a write; when even that fails, the file is reopened before the next one."""
        try:
            os.ftruncate(self._fd, segment.size_bytes)
        except OSError as cause:
            log.error("cannot take back a failed write path=%s error=%s", segment.path, cause)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _reopen(self, segment: Segment) -> int:
        try:
            fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND)
            os.ftruncate(fd, segment.size_bytes)
        except OSError as cause:
            raise StorageError("reopen", segment.path, cause) from cause
        return fd


def _give_up(segment: Segment, bad: BadBlock, messages: int) -> None:
    """Say what a damaged segment costs: what is behind the damage cannot be delivered."""
    log.error(
        "the rest of a damaged log segment is given up path=%s offset=%d reason=%r messages=%d",
        segment.path,
        bad.position,
        bad.reason,
        messages,
    )


def _write_all(fd: int, parts: list[bytes]) -> None:
    """Write everything; a short write is gone on with, so that its reason comes out."""
    total = sum(map(len, parts))
    written = os.writev(fd, parts)
    if written < total:
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            count = os.write(fd, rest)
            if count == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            rest = rest[count:]


def _seal(segment: Segment, fd: int) -> None:
    try:
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        durable.replace_file(segment.path.with_suffix(INDEX_SUFFIX), segment.index_bytes())
    except (OSError, StorageError) as cause:
        log.error("sealing a log segment failed path=%s error=%s", segment.path, cause)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        path.with_suffix(INDEX_SUFFIX).unlink(missing_ok=True)
    except OSError as cause:
        log.error("cannot remove a log segment path=%s error=%s", path, cause)


def _recover(folder: Path) -> list[Segment]:
    """The segments of a folder, in order; a torn tail is cut, and that is said."""
    segments: list[Segment] = []
    for path in sorted(folder.glob(f"*{SEGMENT_SUFFIX}")):
        segment = _open_segment(path)
        if segment is not None and segment.end > segment.first:
            segments.append(segment)
        elif segment is not None:
            _remove(path)
    return segments


def _open_segment(path: Path) -> Segment | None:
    try:
        with path.open("rb") as file:
            head = parse_header(file.read(HEADER_SIZE_BYTES))
        size_bytes = path.stat().st_size
        index = path.with_suffix(INDEX_SUFFIX)
        raw_index = index.read_bytes() if index.exists() else b""
    except OSError as cause:
        raise StorageError("read", path, cause) from cause
    if head is None:
        _put_aside(path, size_bytes)
        return None
    segment = Segment(path=path, first=head[0], ordinal=head[1], end=head[0], size_bytes=size_bytes)
    if not segment.load_index(raw_index):
        bad = scan(segment)
        if bad is not None:
            _cut_tail(segment, size_bytes, bad)
    return segment


def _put_aside(path: Path, size_bytes: int) -> None:
    """A file that does not begin as a segment: the torn creation of one, or damaged."""
    if size_bytes <= HEADER_SIZE_BYTES:
        _remove(path)
        return
    aside = path.with_suffix(".bad")
    log.error("a log segment has no header and is set aside path=%s as=%s", path, aside)
    path.rename(aside)


def _cut_tail(segment: Segment, size_bytes: int, bad: BadBlock) -> None:
    """Keep the damaged part beside the log, then cut it off."""
    log.warning(
        "a log segment is cut to its last whole block path=%s offset=%d cut_bytes=%d reason=%r",
        segment.path,
        bad.position,
        size_bytes - segment.size_bytes,
        bad.reason,
    )
    try:
        with segment.path.open("rb") as file:
            file.seek(segment.size_bytes)
            durable.replace_file(Path(f"{segment.path}.bad"), file.read())
        os.truncate(segment.path, segment.size_bytes)
    except OSError as cause:
        raise StorageError("truncate", segment.path, cause) from cause
