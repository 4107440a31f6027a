"""What the parts of a reader hand to each other: pieces of content, runs of records, damage."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from nsqtools.errors import StorageError
from nsqtools.wire.frames import BODY_SIZE_MAX_BYTES
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from nsqtools.archive.failures import Failure

READ_BYTES = 256 << 10
# Of a stretch that will be read whole so much is read at a time.
_STRETCH_BYTES = 1 << 20
# A frame or member of up to this much content is checked whole before any of it is handed out.
VERIFIED_BYTES_MAX = 32 << 20
# Content is handed on in pieces of up to this size, so that batches are small by nature.
BLOCK_BYTES_MAX = 1 << 20
# A client takes no larger body, so none can come; what is written can be read again.
BODY_BYTES_MAX = BODY_SIZE_MAX_BYTES


class Damage(Exception):  # noqa: N818 - it is what was found, and becomes DamagedArchive
    """The bytes at `offset` are not what the format says.

    `torn` means that they only end too early, as a write cut by a crash does.
    """

    def __init__(self, offset: int, reason: str, *, torn: bool = False) -> None:
        super().__init__(reason)
        self.offset = offset
        self.reason = reason
        self.torn = torn
        self.in_container = False
        """Whether compression found it, and not the record format inside."""
        self.end: int | None = None
        """Where what is damaged ends, when that is certain all the same."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records in the order of the file; `messages` and `nsqds` are there where the format keeps them,
    `failures` where there is one, in a dead letter.

    `first_record` counts from 0 in the file (of a selection by time: the number of the first of
    these). `offset` is a byte position in the file: of the first record or its group; when
    compressed, of the first frame or member. `lines` are the lines that the records were, without
    their ends, where the format is one of lines and the body is not the line.
    """

    bodies: list[bytes]
    offset: int
    nsqds: list[str] | None = None
    failures: list[Failure | None] | None = None
    make_messages: Callable[[], Messages] | None = None
    first_record: int = 0
    make_lines: Callable[[], list[bytes]] | None = None

    @cached_property
    def messages(self) -> Messages | None:
        return None if self.make_messages is None else self.make_messages()

    @cached_property
    def lines(self) -> list[bytes] | None:
        return None if self.make_lines is None else self.make_lines()

    def pick(self, keep: Sequence[int]) -> Records:
        """The records at these positions, which ascend, and of which there is one at least."""
        return self._chosen(lambda column: [column[at] for at in keep], keep[0])

    def part(self, start: int, stop: int) -> Records:
        """Those from number `start` up to `stop`, of which there is one at least."""
        return self._chosen(itemgetter(slice(start, stop)), start)

    def _chosen(self, choose: Callable[[list[Any]], list[Any]], first: int) -> Records:
        return Records(
            bodies=choose(self.bodies),
            offset=self.offset,
            nsqds=None if self.nsqds is None else choose(self.nsqds),
            failures=None if self.failures is None else choose(self.failures),
            make_messages=None
            if self.make_messages is None
            else partial(self._chosen_messages, choose),
            first_record=self.first_record + first,
            make_lines=None if self.make_lines is None else partial(self._chosen_lines, choose),
        )

    def _chosen_lines(self, choose: Callable[[list[Any]], list[Any]]) -> list[bytes]:
        return choose(self.lines or [])

    def _chosen_messages(self, choose: Callable[[list[Any]], list[Any]]) -> Messages:
        return Messages(choose([] if self.messages is None else self.messages.payloads))


class RecordDecoder(Protocol):
    """Pieces of content to records; what it holds back is bounded by the largest record."""

    def feed(self, data: bytes, offset: int) -> Iterator[Records]:
        """What `data`, which stands at `offset`, completes; raises `Damage` behind the last whole."""

    def finish(self) -> Iterator[Records]:
        """What is left at the end; raises `Damage` when that is torn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Content, and where in the file it comes from (its frame or member, when compressed)."""

    data: bytes
    offset: int


class Walk(Protocol):
    """One pass over a file: its content without the compression."""

    late: Damage | None
    """What is wrong beside the content, known when all of it was handed out."""

    def blocks(self) -> Iterator[Block]:
        """Content in pieces; raises `Damage` behind what is whole."""


@runtime_checkable
class Expecting(Protocol):
    """A file that reads ahead on its own, and should not in vain."""

    def expect(self, stop: int | None) -> None:
        """Nothing from this offset on will be read; None: that is not known any more."""


def can_seek(file: BinaryIO | io.RawIOBase, name: Path | str) -> bool:
    """Whether an open file is one that can seek. Raises `StorageError` where a disk does not say: what
    Python answers then, for good, is that it were a pipe, and what was read of it would be lost."""
    try:
        file.tell()
    except io.UnsupportedOperation:
        return False
    except OSError as error:
        if error.errno == errno.ESPIPE:
            return False
        raise StorageError("seek", name, error) from error
    return file.seekable()


def seek(
    file: BinaryIO | io.RawIOBase, name: Path | str, offset: int, whence: int = os.SEEK_SET
) -> int:
    """Where an open file stands now. Raises `StorageError`."""
    try:
        return file.seek(offset, whence)
    except OSError as error:
        raise StorageError("seek", name, error) from error


class Source:
    """A file read forward in pieces, with a look ahead; it may be a pipe.

    Raises `StorageError` when the operating system refuses, and `Damage` when a file has become
    shorter than it was: its end would otherwise look like an ordinary one.
    """

    def __init__(
        self, file: BinaryIO | io.RawIOBase, name: Path | str, *, read_bytes: int = READ_BYTES
    ) -> None:
        """`read_bytes` is what is read at a time, and more where more is asked for."""
        self._file = file
        self.read_bytes = read_bytes
        self.name = name
        self._buffer = b""
        self._at = 0
        self._start = 0
        self.seekable = can_seek(file, name)
        try:
            if self.seekable:
                self._start = file.tell()
        except OSError as error:
            raise StorageError("seek", name, error) from error
        self._position = 0
        self._stop: int | None = None
        self._failed: StorageError | None = None
        self._size_bytes = self._seen_size_bytes()

    @property
    def position(self) -> int:
        """Offset of the next byte, counted from where the file stood when it was handed over."""
        return self._position - (len(self._buffer) - self._at)

    def size_bytes(self) -> int:
        """The file's size; it must be seekable."""
        try:
            here = self._file.tell()
            end = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise StorageError("seek", self.name, error) from error
        self._seek_back(here)
        return end - self._start

    def _seek_back(self, here: int) -> None:
        """A file that is left at its end would look as if it had nothing in it."""
        try:
            self._file.seek(here)
        except OSError as error:
            self._failed = StorageError("seek", self.name, error)
            raise self._failed from error

    def seek(self, offset: int, stop: int | None = None) -> None:
        """Read on from there; nothing from `stop` on is wanted, and what follows looks like the end."""
        ahead = offset - self.position
        if stop is not None and stop == self._stop and 0 <= ahead <= len(self._buffer) - self._at:
            self._at += ahead  # it was read already
            return
        seek(self._file, self.name, self._start + offset)
        self._buffer, self._at, self._position = b"", 0, offset
        self._stop = stop
        if isinstance(self._file, Expecting):
            self._file.expect(None if stop is None else self._start + stop)

    def peek(self, count: int) -> bytes:
        """The next `count` bytes without taking them; fewer only at the end of the file."""
        self._fill(count)
        return self._buffer[self._at : self._at + count]

    def _fill(self, count: int) -> None:
        while len(self._buffer) - self._at < count:
            data = self._read(max(self.read_bytes, count))
            if not data:
                break
            self._buffer = self._buffer[self._at :] + data
            self._at = 0

    def look(self, count: int) -> memoryview:
        """What `peek` gives and what else was read already, not copied; valid until the next call."""
        self._fill(count)
        return memoryview(self._buffer)[self._at :]

    def take(self, count: int) -> bytes:
        """The next `count` bytes; fewer only at the end of the file."""
        data = self.peek(count)
        self._at += len(data)
        return data

    def take_some(self, convenient_bytes: int = 0) -> bytes:
        """What was read already, or a piece of convenient size; nothing only at the end of the file."""
        if self._at < len(self._buffer):
            data = self._buffer[self._at :] if self._at else self._buffer
            self._buffer, self._at = b"", 0
            return data
        return self._read(max(self.read_bytes, convenient_bytes))

    def rewind(self, count: int) -> None:
        """Give back the last `count` bytes of the last `take`."""
        self._at -= count

    def _read(self, count: int) -> bytes:
        if self._stop is not None:
            count = min(max(count, _STRETCH_BYTES), self._stop - self._position)
            if count <= 0:
                return b""
        try:
            data = self._file.read(count)
        except OSError as error:
            raise StorageError("read", self.name, error) from error
        if data is None:
            # A pipe set to non-blocking has nothing yet: waiting here would be a busy loop.
            raise StorageError("read", self.name, BlockingIOError(11, "no data yet"))
        self._position += len(data)
        if not data and self._position < self._size_bytes > self._seen_size_bytes():
            raise Damage(self._position, "the file became shorter while it was read")
        return data

    def _seen_size_bytes(self) -> int:
        """The file's size, or 0 where there is none; files of the kernel may say too much."""
        try:
            return self.size_bytes() if self.seekable else 0
        except StorageError:
            if self._failed is not None:
                raise
            return 0

    def close(self) -> None:
        """Close the file; what the disk says of that is no news of what was read."""
        with contextlib.suppress(OSError):
            self._file.close()
