"""A channel's journal: what it has handed out and what was acknowledged (docs/formats.md).

One file a channel, `<channel>.channel`: 8 bytes magic "NSQTCHN\\x01", then records, big-endian:

    u8 kind | u32 length | u32 crc32 of kind and data | data

The first record is a snapshot, with N and C records behind it for what it cannot hold; the others
change it, in order. Opening replays them and cuts a torn tail. When the file has grown past a limit it
is replaced by one that holds a fresh snapshot.

    S  u64 cursor, u8 paused, u32 n, n x (u64 number, u16 attempts, u64 due_ns)
    D  u64 first, u64 end            handed out: the cursor is at `end` now
    F  u64 first, u64 end            acknowledged, a run
    f  n x u64 number                acknowledged, one by one
    Q  n x (u64 number, u16 attempts, u64 due_ns)      back in the queue, at once or when due
    N  u64 first, u64 end            never to be handed out, once the cursor gets there
    V  u64 first, u64 end            passed over by the cursor
    E  u64 cursor                    emptied
    P  u8 paused
    C  u64 number, frame             a straggler's frame, carried over from an old segment

Writes are buffered and go out at the end of a turn of the loop, together. A process that is killed
before that has not answered for them in any way that a client could see.

A record means nothing without those before it: a hand-out that is missing would make the next one
say that its messages were acknowledged. So after a write that failed nothing is added any more, until
a fresh snapshot has replaced the file.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from nsqtools import durable
from nsqtools.broker.ranges import Ranges
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAGIC = b"NSQTCHN\x01"
COMPACT_BYTES = 4 << 20
RECORD_LENGTH_MAX_BYTES = 1 << 30
_RECORD = struct.Struct(">BII")
_RUN = struct.Struct(">QQ")
_ENTRY = struct.Struct(">QHQ")
_SNAPSHOT = struct.Struct(">QBI")
_U64 = struct.Struct(">Q")


@dataclass(slots=True)
class Pending:
    """A message that was handed out, or deferred, and not acknowledged."""

    attempts: int
    due_ns: int = 0


@dataclass(slots=True)
class ChannelState:
    """What a journal says: where the cursor is, and what before it is not acknowledged."""

    cursor: int
    paused: bool = False
    pending: dict[int, Pending] = field(default_factory=dict)
    carried: dict[int, bytes] = field(default_factory=dict)
    voids: Ranges = field(default_factory=Ranges)


class Journal:
    """The journal of one channel of a topic on disk. Methods that write raise StorageError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._size_bytes = 0
        self._compact_bytes = COMPACT_BYTES
        self._buffer: list[bytes] = []
        self._is_broken = False

    @property
    def wants_snapshot(self) -> bool:
        """Whether `create` is due: the file is long, or a write to it has failed."""
        return self._is_broken or self._size_bytes > self._compact_bytes

    @property
    def wants_flush(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._buffer) or self.wants_snapshot

    def create(self, state: ChannelState) -> None:
        """Begin the file anew with a snapshot, durably; also how it is compacted."""
        raw = MAGIC + b"".join(_snapshot(state))
        durable.replace_file(self.path, raw)
        self._buffer.clear()
        self._open(len(raw))
        # A large snapshot is made again when that pays, not at every write.
        self._compact_bytes = max(COMPACT_BYTES, 2 * len(raw))
        self._is_broken = False

    def load(self) -> tuple[ChannelState, int]:
        """Replay the file, cut its torn tail, go on behind it; also gives how much was cut.

        What is no journal is kept beside it (`.bad`) and says nothing. Raises StorageError.
        """
        try:
            raw = self.path.read_bytes()
        except OSError as cause:
            raise StorageError("read", self.path, cause) from cause
        state = ChannelState(0)
        size = len(MAGIC) if raw.startswith(MAGIC) else 0
        if not size:
            durable.replace_file(Path(f"{self.path}.bad"), raw)
            self._is_broken = True
        for kind, data, end in _records(raw) if size else ():
            _apply(state, kind, data)
            size = end
        if size < len(raw):
            with durable.storage("truncate", self.path):
                os.truncate(self.path, size)
        self._open(size)
        return state, len(raw) - size

    def delivered(self, first: int, end: int) -> None:
        self._add(b"D", _RUN.pack(first, end))

    def finished(self, runs: Sequence[tuple[int, int]], numbers: Sequence[int]) -> None:
        """Acknowledged: runs (first, end), and single numbers."""
        for run in runs:
            self._add(b"F", _RUN.pack(*run))
        if numbers:
            self._add(b"f", struct.pack(f">{len(numbers)}Q", *numbers))

    def queued(self, entries: Iterable[tuple[int, int, int]]) -> None:
        """Messages that wait again: (number, attempts so far, due_ns or 0)."""
        self._add(b"Q", b"".join([_ENTRY.pack(*entry) for entry in entries]))

    def voided(self, first: int, end: int) -> None:
        self._add(b"N", _RUN.pack(first, end))

    def passed(self, first: int, end: int) -> None:
        self._add(b"V", _RUN.pack(first, end))

    def emptied(self, cursor: int) -> None:
        self._add(b"E", _U64.pack(cursor))

    def paused(self, paused: bool) -> None:
        self._add(b"P", bytes([paused]))

    def carried(self, number: int, frame: bytes) -> None:
        self._add(b"C", _U64.pack(number) + frame)

    def flush(self) -> None:
        """Write what was added. Raises StorageError; then a snapshot is wanted."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._buffer.clear()
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])
        except OSError as cause:
            # Half a record that stays is cut by the next opening.
            self._is_broken = True
            raise StorageError("write", self.path, cause) from cause
        self._size_bytes += written

    def close(self) -> None:
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        self._buffer.clear()
        self.close()
        self.path.unlink(missing_ok=True)

    def _add(self, kind: bytes, data: bytes) -> None:
        if not self._is_broken:
            self._buffer.append(_record(kind, data))

    def _open(self, size_bytes: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as cause:
            raise StorageError("open", self.path, cause) from cause
        self._size_bytes = size_bytes


def _record(kind: bytes, data: bytes) -> bytes:
    return _RECORD.pack(kind[0], len(data), crc32(data, crc32(kind))) + data


def _snapshot(state: ChannelState) -> Iterator[bytes]:
    entries = b"".join(
        [
            _ENTRY.pack(number, pending.attempts, pending.due_ns)
            for number, pending in state.pending.items()
        ]
    )
    head = _SNAPSHOT.pack(state.cursor, state.paused, len(state.pending))
    yield _record(b"S", head + entries)
    for void in state.voids:
        yield _record(b"N", _RUN.pack(*void))
    for number, frame in state.carried.items():
        yield _record(b"C", _U64.pack(number) + frame)


def _records(raw: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Whole records with the position behind each; ends at the first that is not sound."""
    position = len(MAGIC)
    while position + _RECORD.size <= len(raw):
        kind, length, crc = _RECORD.unpack_from(raw, position)
        start = position + _RECORD.size
        data = raw[start : start + length]
        if len(data) < length or crc32(data, crc32(bytes([kind]))) != crc:
            return
        position = start + length
        yield bytes([kind]), data, position


def _apply(state: ChannelState, kind: bytes, data: bytes) -> None:
    pending = state.pending
    if kind == b"D":
        first, end = _RUN.unpack(data)
        state.cursor = max(state.cursor, end)
        pending.update((number, Pending(1)) for number in range(first, end))
    elif kind == b"F":
        for number in range(*_RUN.unpack(data)):
            _forget(state, number)
    elif kind == b"f":
        for (number,) in _U64.iter_unpack(data):
            _forget(state, number)
    elif kind == b"Q":
        _queue(state, data)
    elif kind == b"N":
        state.voids.add(*_RUN.unpack(data))
    elif kind == b"V":
        state.cursor = max(state.cursor, _RUN.unpack(data)[1])
        state.voids.drop_before(state.cursor)
    elif kind == b"E":
        state.cursor = _U64.unpack(data)[0]
        pending.clear()
        state.carried.clear()
        state.voids.clear()
    elif kind == b"P":
        state.paused = bool(data[0])
    elif kind == b"C":
        state.carried[_U64.unpack_from(data)[0]] = data[_U64.size :]
    elif kind == b"S":
        _restore(state, data)


def _forget(state: ChannelState, number: int) -> None:
    state.pending.pop(number, None)
    state.carried.pop(number, None)


def _queue(state: ChannelState, data: bytes) -> None:
    for number, attempts, due_ns in _ENTRY.iter_unpack(data):
        state.pending[number] = Pending(attempts, due_ns)
        if number >= state.cursor and number not in state.voids:
            state.cursor = number + 1


def _restore(state: ChannelState, data: bytes) -> None:
    state.cursor, paused, _ = _SNAPSHOT.unpack_from(data)
    state.paused = bool(paused)
    state.pending = {
        number: Pending(attempts, due_ns)
        for number, attempts, due_ns in _ENTRY.iter_unpack(data[_SNAPSHOT.size :])
    }
    state.carried = {}
    state.voids = Ranges()
