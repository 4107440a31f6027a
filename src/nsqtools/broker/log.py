"""A topic's log: append-only, shared by all channels of the topic.

Theory of operation. Messages are numbered; a number is never used twice, because every opening starts
a new segment at `max(last + 1, unix_ms << 20)`: a number grows by less than 2^20 a millisecond, so
the clock is always ahead of it. The newest messages stay in memory as a chain of blocks
(`broker/memory.py`); a reader that is behind gets chains read from disk instead.

`append` writes before it returns; `sync` brings that to the platter, and `confirm` says that it is so.
What a sync failed for is never relied on: `roll_back` forgets it, or a new segment is begun and the old
one is written anew (`segment.renew`), before the next sync is good again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsqtools import durable
from nsqtools.broker import recovery
from nsqtools.broker.block import BadBlock, Block
from nsqtools.broker.files import AppendFile
from nsqtools.broker.memory import NO_BOUND, NUMBERS_PER_MS_BITS
from nsqtools.broker.segment import (
    HEADER_SIZE_BYTES,
    INDEX_SUFFIX,
    READ_BYTES,
    SEGMENT_SUFFIX,
    Segment,
    read_blocks,
    renew,
)
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.broker.files import OpenFiles
    from nsqtools.broker.memory import Memory

log = logging.getLogger("nsqtools.broker.log")

# For single messages, which may be anywhere, little is read at a time.
LOOK_UP_BYTES = 64 << 10


class Found(NamedTuple):
    """Frames of messages, None for what is not there any more; the times of those that are deferred."""

    frames: dict[int, bytes | None]
    due_ns: dict[int, int]


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

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk."""

    def append(self, block: Block) -> None:
        """Take the block, or raise StorageError and be as before."""

    def in_memory(self, number: int) -> Block | None:
        """The block in memory that holds `number`."""

    def read(
        self, number: int, size_bytes: int = READ_BYTES, before: int = NO_BOUND
    ) -> Block | None:
        """From disk: the block that holds `number`, or the first one behind it, and its followers.

        About `size_bytes` are read at a time, and no block that begins at `before` or behind it.
        """

    def following(self, number: int) -> int:
        """`number`, or the first number behind it that a message has or will have."""

    def count(self, first: int, end: int) -> int:
        """How many messages lie in `first` to `end` (exclusive)."""

    def trim(self, floor: int) -> None:
        """Forget what lies before `floor`."""


class DiskLog:
    """The log of a topic in its folder.

    `files` bounds what is open; `defer` runs a function in the one thread that syncs and closes files,
    in order. `sync` is that thread's, everything else the loop's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        memory: Memory,
        segment_size_max_bytes: int,
        now_ms: int,
        files: OpenFiles,
        defer: Callable[[Callable[[], None]], object],
    ) -> None:
        self._folder = folder
        self._memory = memory
        self._segment_size_max = segment_size_max_bytes
        self._files = files
        self._defer = defer
        self._segments = recovery.recover(folder)
        self._unsealed = [
            (segment, AppendFile(segment.path, files, segment.size_bytes))
            for segment in self._segments
            if not segment.is_sealed
        ]
        self._gone: list[Path] = []
        # How many names were made in the folder, and how many of them are on the disk.
        self._named = self._named_durably = 0
        self._next = now_ms << NUMBERS_PER_MS_BITS
        if self._segments:
            self._next = max(self._next, self._segments[-1].end)
        # Why there is no file yet for what comes next: a full disk. A message that comes begins one.
        self.refused: StorageError | None = None
        try:
            self._file = self._begin_segment(self._next)
        except StorageError as failure:
            if not failure.is_full:
                raise
            self.refused = failure
            self._file = self._go_without(self._next)
        self._confirmed = (self._segments[-1], self._segments[-1].size_bytes, self._next)

    @property
    def start(self) -> int:
        return self._segments[0].first

    @property
    def end(self) -> int:
        return self._next

    @property
    def confirmed_end(self) -> int:
        """Messages before this number are on the disk, as far as `confirm` was told."""
        return self._confirmed[2]

    @property
    def memory_start(self) -> int:
        first = self._memory.first
        return self.end if first is None else first

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segments(self) -> list[Segment]:
        """All files of the log, the oldest first; the last is written to."""
        return list(self._segments)

    @property
    def wants_sync(self) -> bool:
        """Whether there is anything that is not on the disk."""
        return bool(self._unsealed) or not self._file.is_synced or self._named > self._named_durably

    def append(self, block: Block) -> None:
        segment = self._segments[-1]
        if segment.size_bytes >= self._segment_size_max or not self._is_writable(segment):
            self._roll(block.first)
            segment = self._segments[-1]
        header = block.header()
        self._file.append([header, block.frames])
        segment.note(block.first, segment.size_bytes)
        segment.size_bytes += len(header) + len(block.frames)
        segment.end = self._next = block.end
        segment.written_ns = block.timestamp_ns
        self._memory.append(block)

    def in_memory(self, number: int) -> Block | None:
        return self._memory.find(number)

    def read(
        self, number: int, size_bytes: int = READ_BYTES, before: int = NO_BOUND
    ) -> Block | None:
        segment = self._segment_of(number)
        if segment is None or segment.first >= before:
            return None
        position = segment.position_before(number)
        while position < segment.size_bytes:
            found = self._blocks(segment, position, size_bytes)
            if isinstance(found, BadBlock):
                _give_up(segment, found, segment.end - number)
                return self.read(segment.end, size_bytes, before)
            chain = [block for block, _, _ in found if number < block.end and block.first < before]
            for block, follower in pairwise(chain):
                block.next = follower
            if chain:
                return chain[0]
            position = found[-1][2]
        if segment is self._segments[-1]:
            return None
        return self.read(segment.end, size_bytes, before)

    def find(self, numbers: Sequence[int], bytes_max: int) -> Found | None:
        """Messages, ascending, from disk; None where they are larger than `bytes_max` together.

        For any thread. Raises StorageError.
        """
        found = Found({}, {})
        block: Block | None = None
        is_end = False
        for number in numbers:
            while block is not None and block.end <= number:
                block = block.next
            if block is None and not is_end:
                block = self.read(number, LOOK_UP_BYTES)
                is_end = block is None
            # What is before the block is not there, nor is anything behind the end.
            if block is None or number < block.first:
                found.frames[number] = None
                continue
            frame = found.frames[number] = block.slice(number, number + 1)
            if block.due_ns:
                found.due_ns[number] = block.due_ns
            bytes_max -= len(frame)
            if bytes_max < 0:
                return None
        return found

    def following(self, number: int) -> int:
        segment = self._segment_of(number)
        return self.end if segment is None else max(number, segment.first)

    def count(self, first: int, end: int) -> int:
        return self._ordinal_of(end) - self._ordinal_of(first)

    # What is on the disk

    def sync(self) -> None:
        """Bring to the disk what was appended before the call, and seal what is complete.

        For the syncing thread. Raises StorageError; then nothing is good that was not so before, and
        the next segment is begun with the next message.
        """
        file = self._file
        try:
            self._sync_folder()
        except StorageError:
            file.doubtful = True  # with another file its folder is written to again
            raise
        sealed = list(self._unsealed)
        for unsealed in sealed:
            self._seal(*unsealed)
            with contextlib.suppress(ValueError):  # rolled back meanwhile
                self._unsealed.remove(unsealed)
        if all(one is not file for _, one in sealed):
            file.sync()

    def name_changed(self) -> None:
        """A name was made in the folder, or taken away: the next sync makes that durable."""
        self._named += 1

    def confirm(self) -> None:
        """A sync of everything has succeeded, and nothing was appended since it began."""
        last = self._segments[-1]
        self._confirmed = (last, last.size_bytes, self._next)

    def roll_back(self) -> None:
        """Take back what was appended since `confirm`: nobody was told that it is there.

        Its numbers are not used again. On the disk it goes with the next sync; a kill before that may
        let it come back.
        """
        last, size_bytes, end = self._confirmed
        files = {segment.path: file for segment, file in self._unsealed}
        while self._segments[-1] is not last:
            self._gone.append(self._segments.pop().path)
        if self._file.path != last.path:
            self._file.discard()
            self._file = files.get(last.path) or AppendFile(last.path, self._files, last.size_bytes)
            known = set(self._segments[:-1])
            self._unsealed[:] = [pair for pair in self._unsealed if pair[0] in known]
        self._file.doubtful |= last.is_sealed
        last.is_sealed = False
        # It may have ended before that: numbers that were taken back lie between.
        last.cut(size_bytes, min(max(end, last.first), last.end))
        self._memory.drop_from(end)
        if self._gone:
            self._defer(self._remove_gone)

    def leave_doubtful(self) -> None:
        """Begin a new segment where the written one cannot be relied on, so that the next sync can
        write that one anew. Raises StorageError."""
        # Where there is no file yet there is nothing to write anew.
        if self._file.size_bytes and not self._is_writable(self._segments[-1]):
            self._roll(self._next)

    def trim(self, floor: int) -> None:
        """Forget what lies before `floor`; what is not sealed yet stays."""
        unsealed = {segment.path for segment, _ in self._unsealed}
        while len(self._segments) > 1 and self._segments[0].end <= floor:
            if self._segments[0].path in unsealed:
                break
            gone = self._segments.pop(0)
            self._gone.append(gone.path)
            if gone is self._confirmed[0]:  # all that is left of the log may be taken back
                self._confirmed = (self._segments[0], HEADER_SIZE_BYTES, self._confirmed[2])
        if self._gone:
            self._defer(self._remove_gone)

    def clear(self, needed: Sequence[int], floor: int) -> bool:
        """Free the room of a file that lies before `floor` and holds none of the messages `needed`,
        ascending; whether there was one. The last is so, too: the next message begins a new one.

        Raises StorageError, and then is as before.
        """
        for at, segment in enumerate(self._segments):
            wanted = bisect_left(needed, segment.first)
            is_needed = wanted < len(needed) and needed[wanted] < segment.end
            is_still = segment.is_sealed or segment is self._segments[-1]
            if is_still and not is_needed and segment.first < segment.end <= floor:
                self._clear(at)
                return True
        return False

    def close(self) -> None:
        """Nothing is appended any more; the next sync seals everything."""
        self._file.let_go()
        self._unsealed.append((self._segments[-1], self._file))

    def discard(self) -> None:
        """Close everything and forget it: the folder is about to be removed."""
        self._memory.drop_before(self.end)
        self._file.discard()

    # Inside

    def _is_writable(self, segment: Segment) -> bool:
        return not self._file.doubtful and self._file.size_bytes == segment.size_bytes

    def _clear(self, at: int) -> None:
        segment = self._segments[at]
        count = segment.end - segment.first
        durable.unlink(segment.path.with_suffix(INDEX_SUFFIX))
        # From here on the last is shorter than what was appended, so that nobody goes on in it.
        segment.clear()
        segment.is_sealed = True
        for before in self._segments[:at]:
            before.ordinal += count
        if self._confirmed[0] is segment:
            self._confirmed = (segment, segment.size_bytes, self._confirmed[2])

    def _sync_folder(self) -> None:
        named = self._named
        if named > self._named_durably:
            durable.fsync_directory(self._folder)
            self._named_durably = named

    def _seal(self, segment: Segment, file: AppendFile) -> None:
        if segment.end == segment.first:
            recovery.remove(segment.path)
            segment.is_sealed = True
            return
        if file.doubtful or file.size_bytes != segment.size_bytes:
            bad = renew(segment)
            if bad is not None:
                _give_up(segment, bad, segment.end - segment.first)
        else:
            file.sync()
        try:
            durable.replace_file(segment.path.with_suffix(INDEX_SUFFIX), segment.index_bytes())
        except StorageError as cause:  # it is only a help
            log.error("a log segment has no index path=%s error=%s", segment.path, cause)
        # From here on it may be cleared: an index that is made then would say what is no longer so.
        segment.is_sealed = True

    def _remove_gone(self) -> None:
        for path in list(self._gone):
            recovery.remove(path)
            self._gone.remove(path)

    def _blocks(
        self, segment: Segment, position: int, size_bytes: int
    ) -> list[tuple[Block, int, int]] | BadBlock:
        try:
            return read_blocks(segment.path, position, segment.size_bytes, size_bytes)
        except StorageError as failure:
            # Nothing is known where the folder is not there, nor of what goes now or is written to.
            is_kept = segment in self._segments[:-1]
            if failure.errno == errno.ENOENT and is_kept and durable.is_taken(self._folder):
                return BadBlock(position, "the file is gone")
            raise

    def _segment_of(self, number: int) -> Segment | None:
        """The segment that holds `number`, or the first one behind it that holds anything."""
        at = max(0, bisect_right(self._segments, number, key=lambda segment: segment.first) - 1)
        for segment in self._segments[at:]:
            if number < segment.end and segment.first < segment.end:
                return segment
        return None

    def _ordinal_of(self, number: int) -> int:
        segment = self._segments[-1]  # nearly always it is the last
        if number < segment.first:
            at = bisect_right(self._segments, number, key=lambda segment: segment.first) - 1
            if at < 0:
                return self._segments[0].ordinal
            segment = self._segments[at]
        return segment.ordinal + min(number, segment.end) - segment.first

    def _roll(self, first: int) -> None:
        """Go on in a new segment. Raises StorageError, and is as before."""
        last, file = self._segments[-1], self._file
        is_empty = last.end == last.first and not last.is_sealed
        if is_empty:
            durable.unlink(last.path)  # the next one may get its name
        self._file = self._begin_segment(first)
        if is_empty:
            file.discard()
            self._segments.remove(last)
        elif last.is_sealed:
            # It was cleared: its file says that the gap between its neighbours is no loss.
            file.discard()
        else:
            file.let_go()
            self._unsealed.append((last, file))
        if is_empty and self._confirmed[0] is last:
            new = self._segments[-1]
            self._confirmed = (new, new.size_bytes, self._confirmed[2])

    def _begin_segment(self, first: int) -> AppendFile:
        segment = self._next_segment(first)
        self._named += 1
        if segment.path not in self._gone:  # what is on its way out anyway
            durable.unlink(segment.path)  # what an earlier try could not take away
        file = AppendFile.create(segment.path, self._files, segment.header())
        self._segments.append(segment)
        return file

    def _go_without(self, first: int) -> AppendFile:
        """A last segment that has no file: nobody goes on in it, the next message begins one."""
        segment = self._next_segment(first)
        self._segments.append(segment)
        return AppendFile(segment.path, self._files, 0)

    def _next_segment(self, first: int) -> Segment:
        last = self._segments[-1] if self._segments else None
        ordinal = last.ordinal + last.end - last.first if last is not None else 0
        path = self._folder / f"{first:020d}{SEGMENT_SUFFIX}"
        return Segment(path=path, first=first, ordinal=ordinal, end=first)


def _give_up(segment: Segment, bad: BadBlock, messages: int) -> None:
    """Say what a damaged segment costs: what is behind the damage cannot be delivered."""
    text = "the rest of a damaged log segment is given up path=%s offset=%d reason=%r messages=%d"
    log.error(text, segment.path, bad.position, bad.reason, messages)
