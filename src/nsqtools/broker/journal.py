"""A channel's journal: what it has handed out and what was acknowledged (docs/formats.md).

One file a channel, `<channel>.channel`: 8 bytes magic "NSQTCHN\\x01", then records, big-endian:

    u8 kind | u32 length | u32 crc32 of kind and data | data

The first record is a snapshot, with N and C records behind it for what it cannot hold; the others
change it, in order. Opening replays them and cuts a torn tail. When the file has outgrown its snapshot
it is replaced by one that holds a fresh one.

    S  u64 cursor, u8 paused, u32 n, n x (u64 number, u16 attempts, u64 due_ns)
    D  u64 first, u64 end            handed out: the cursor is at `end` now
    F  u64 first, u64 end            acknowledged, a run
    f  n x u64 number                acknowledged, one by one
    Q  n x (u64 number, u16 attempts, u64 due_ns)      back in the queue, at once or when due
    A  as Q, of neighbours ahead of the cursor, and as N: as two records they could be torn apart
    N  u64 first, u64 end            never to be handed out, once the cursor gets there
    V  u64 first, u64 end            passed over by the cursor
    E  u64 cursor                    emptied
    P  u8 paused
    C  u64 number, frame             a straggler's frame, carried over from an old segment

Writes are buffered and go out at the end of a turn of the loop, together. A process that is killed
before that has not answered for them in any way that a client could see.

A record means nothing without those before it: a hand-out that is missing would make the next one
say that its messages were acknowledged. So after a write that failed nothing is kept any more, until
a fresh snapshot has replaced the file. That is also how a file that has grown is made short: the loop
gives the state, a thread writes it down, and what is added meanwhile goes to both files (`Rewrite`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zlib_ng.zlib_ng import crc32

from nsqtools import durable
from nsqtools.broker.files import AppendFile
from nsqtools.broker.ranges import Ranges
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nsqtools.broker.files import OpenFiles

    Entries = Sequence[tuple[int, int, int]]

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

    def frozen(self) -> Frozen:
        """The same, as a snapshot is made of it."""
        pending = [(number, one.attempts, one.due_ns) for number, one in self.pending.items()]
        return Frozen(self.cursor, self.paused, pending, self.carried, list(self.voids))


class Frozen(NamedTuple):
    """A channel's state that changes no more; `pending` are (number, attempts, due_ns)."""

    cursor: int
    paused: bool
    pending: Iterable[tuple[int, int, int]]
    carried: Mapping[int, bytes]
    voids: list[tuple[int, int]]


class NoJournal:
    """The journal of an ephemeral channel: nothing is kept."""

    wants_flush = wants_rewrite = is_broken = False

    def delivered(self, first: int, end: int) -> None: ...

    def finished(self, runs: Sequence[tuple[int, int]], numbers: Sequence[int]) -> None: ...

    def queued(self, entries: Entries, *, is_ahead: bool = False) -> None: ...

    def voided(self, first: int, end: int) -> None: ...

    def passed(self, first: int, end: int) -> None: ...

    def emptied(self, cursor: int) -> None: ...

    def paused(self, paused: bool) -> None: ...

    def carried(self, number: int, frame: bytes) -> None: ...

    def flush(self) -> None: ...

    def check(self) -> None: ...

    def sync(self) -> None: ...

    def rewrite(self, state: Frozen) -> Rewrite:
        raise RuntimeError("nothing is kept")

    def close(self, state: Frozen) -> None: ...

    def remove(self) -> None: ...


class Journal:
    """The journal of one channel of a topic on disk. Methods that write raise StorageError.

    All of it is the loop's, but for `sync`, which is the syncing thread's.
    """

    def __init__(self, path: Path, files: OpenFiles) -> None:
        self.path = path
        self._files = files
        self._file: AppendFile | None = None
        self._heir: AppendFile | None = None
        self._snapshot_bytes = 0
        self._buffer: list[bytes] = []
        # What was written since the snapshot of a rewrite was taken, until the rewrite is a file.
        self._tail: list[bytes] | None = None
        self._rewrite: Rewrite | None = None

    @property
    def is_broken(self) -> bool:
        """Whether a write has failed: nothing is kept until a rewrite is in place."""
        return self._file is None or self._file.doubtful

    @property
    def is_blank(self) -> bool:
        """Whether the file, as it was loaded, says nothing: it was no journal, or none any more."""
        return not self._snapshot_bytes

    @property
    def wants_rewrite(self) -> bool:
        """Whether a rewrite is due: the file has outgrown its snapshot, or a write to it has failed."""
        if self._rewrite is not None:
            return False
        if self._file is None or self._file.doubtful:
            return True
        grown_bytes = self._file.size_bytes - self._snapshot_bytes
        return grown_bytes > max(COMPACT_BYTES, self._snapshot_bytes)

    @property
    def wants_flush(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._buffer)

    def create(self, state: ChannelState) -> None:
        """Begin the file of a new channel; `sync` makes it durable."""
        raw = MAGIC + b"".join(_snapshot(state.frozen()))
        durable.unlink(self.path)
        self._file = AppendFile.create(self.path, self._files, raw)
        self._snapshot_bytes = len(raw)

    def load(self) -> tuple[ChannelState, int]:
        """Replay the file, cut its torn tail, go on behind it; also gives how much was cut.

        What is no journal is kept beside it (`.bad`) and says nothing. Raises StorageError.
        """
        with durable.storage("read", self.path):
            raw = durable.read_small(self.path, self.path.stat().st_size)
        if not raw.startswith(MAGIC):
            durable.replace_file(Path(f"{self.path}.bad"), raw)
            return ChannelState(0), len(raw)
        replay = _Replay()
        size = len(MAGIC)
        for kind, data, end in _records(raw):
            replay.apply(kind, data)
            size = end
            if kind == b"S":
                self._snapshot_bytes = end
        if size < len(raw):
            with durable.storage("truncate", self.path):
                os.truncate(self.path, size)
        self._file = AppendFile(self.path, self._files, size)
        return replay.result(), len(raw) - size

    def delivered(self, first: int, end: int) -> None:
        self._add(b"D", _RUN.pack(first, end))

    def finished(self, runs: Sequence[tuple[int, int]], numbers: Sequence[int]) -> None:
        """Acknowledged: runs (first, end), and single numbers."""
        for run in runs:
            self._add(b"F", _RUN.pack(*run))
        if numbers:
            self._add(b"f", struct.pack(f">{len(numbers)}Q", *numbers))

    def queued(self, entries: Entries, *, is_ahead: bool = False) -> None:
        """Messages that wait again: (number, attempts so far, due_ns or 0); `is_ahead`: and are void."""
        if entries:
            data = b"".join([_ENTRY.pack(*entry) for entry in entries])
            self._add(b"A" if is_ahead else b"Q", data)

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
        """Write what was added. Raises StorageError; then a rewrite is wanted."""
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._buffer.clear()
        if self._tail is not None:
            self._tail.append(data)
        try:
            for file in (self._file, self._heir):
                if file is not None:
                    file.append([data])
        except StorageError:
            self._break()
            raise

    def check(self) -> None:
        """Raise StorageError where nothing is kept for now: what was added is not."""
        if self.is_broken:
            raise StorageError(
                "write", self.path, OSError(errno.EIO, "an earlier write of this file has failed")
            )

    def sync(self) -> None:
        """Bring to the disk what was written before the call."""
        file = self._file
        if file is not None:
            file.sync()

    def rewrite(self, state: Frozen) -> Rewrite:
        """Begin to replace the file by one that says the same in fewer words; see `Rewrite`."""
        # The state has it; but should this be given up, the old file goes on.
        with contextlib.suppress(StorageError):
            self.flush()
        self._tail = []
        self._rewrite = Rewrite(self, state)
        return self._rewrite

    def close(self, state: Frozen) -> None:
        """Write the rest and have it synced and closed; `state` is for a file that is broken."""
        if self.is_broken:
            durable.replace_file(self.path, MAGIC + b"".join(_snapshot(state)))
            self._buffer.clear()
        else:
            self.flush()
        self._let_go()

    def remove(self) -> None:
        """The channel is deleted. Raises StorageError; then it goes on."""
        if self._rewrite is not None:
            self._rewrite.give_up()
        durable.unlink(self.path)
        self._buffer.clear()
        if self._file is not None:
            self._file.discard()

    # Inside

    def _add(self, kind: bytes, data: bytes) -> None:
        # Without those before it a record means nothing; a rewrite in the making takes it.
        if not self.is_broken or self._tail is not None or self._heir is not None:
            self._buffer.append(_record(kind, data))

    def _break(self) -> None:
        self._let_go()
        if self._rewrite is not None:
            self._rewrite.give_up()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.let_go()


class Rewrite:
    """How a journal is replaced, in steps: `write` and `place` wait for the disk and are a thread's, the
    others are the loop's and come behind them. Each raises StorageError; then `give_up`.

    What is written meanwhile goes into the old file, from `follow` on into both.
    """

    def __init__(self, journal: Journal, state: Frozen) -> None:
        self._journal = journal
        self._state = state
        self._path = durable.temporary_name(journal.path.parent)
        self._size_bytes = 0
        # Giving up waits for the change of names, and is before or behind it.
        self._naming = threading.Lock()
        self._is_placed = False

    @property
    def is_given_up(self) -> bool:
        return self._journal._rewrite is not self

    def write(self) -> None:
        """A file with the snapshot, which is durable."""
        raw = MAGIC + b"".join(_snapshot(self._state))
        self._size_bytes = len(raw)
        durable.write_anew(self._path, raw)

    def follow(self) -> None:
        """From now on what is added goes into the new file, too."""
        journal = self._journal
        tail, journal._tail = journal._tail, None
        if self.is_given_up:
            raise _given_up(journal.path)
        heir = AppendFile(self._path, journal._files, self._size_bytes)
        heir.append(tail or [b""])
        journal._heir = heir

    def place(self) -> None:
        """The new file gets the name of the old one."""
        path = self._journal.path
        with self._naming:
            if self.is_given_up:
                raise _given_up(path)
            with durable.storage("rename", path):
                os.replace(self._path, path)  # noqa: PTH105 - tests replace `os`
            self._is_placed = True
        durable.fsync_directory(path.parent)

    def settle(self) -> None:
        """The new file is the journal."""
        journal = self._journal
        heir = journal._heir
        if self.is_given_up or heir is None:
            raise _given_up(journal.path)
        if journal._file is not None:
            journal._file.discard()
        heir.path = journal.path
        journal._file, journal._heir, journal._rewrite = heir, None, None
        journal._snapshot_bytes = self._size_bytes

    def give_up(self) -> None:
        """Go on with the old file; where that is broken, or its name is not its own any more, another
        rewrite is wanted."""
        journal = self._journal
        with self._naming:
            if self.is_given_up:
                return
            heir = journal._heir
            journal._heir = journal._tail = journal._rewrite = None
        if heir is not None:
            heir.discard()
        if self._is_placed and journal._file is not None:
            journal._file.discard()
            journal._file = None

    def clean_up(self) -> None:
        """For a thread, behind `give_up`: nothing is left of it."""
        durable.unlink(self._path)


def _given_up(path: Path) -> StorageError:
    return StorageError("rewrite", path, OSError(errno.EIO, "a write failed meanwhile"))


def _record(kind: bytes, data: bytes) -> bytes:
    return _RECORD.pack(kind[0], len(data), crc32(data, crc32(kind))) + data


def _snapshot(state: Frozen) -> Iterator[bytes]:
    entries = b"".join([_ENTRY.pack(*one) for one in state.pending])
    head = _SNAPSHOT.pack(state.cursor, state.paused, len(entries) // _ENTRY.size)
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


class _Replay:
    """What records say, one after the other. A hand-out costs the same however many it was of."""

    def __init__(self) -> None:
        self.state = ChannelState(0)
        # Handed out once, and nothing else is known of them.
        self._handed = Ranges()

    def result(self) -> ChannelState:
        for first, end in self._handed:
            self.state.pending.update((number, Pending(1)) for number in range(first, end))
        self._handed.clear()
        return self.state

    def apply(self, kind: bytes, data: bytes) -> None:
        state = self.state
        if kind == b"D":
            first, end = _RUN.unpack(data)
            state.cursor = max(state.cursor, end)
            for number in _among(range(first, end), state.pending):
                del state.pending[number]
            self._handed.add(first, end)
        elif kind == b"F":
            self._forget(*_RUN.unpack(data))
        elif kind == b"f":
            for (number,) in _U64.iter_unpack(data):
                self._forget(number, number + 1)
        elif kind == b"Q":
            self._queue(data)
        elif kind == b"A":
            (first,) = _U64.unpack_from(data)
            state.voids.add(first, first + len(data) // _ENTRY.size)
            self._queue(data)
        elif kind == b"N":
            state.voids.add(*_RUN.unpack(data))
        elif kind == b"V":
            state.cursor = max(state.cursor, _RUN.unpack(data)[1])
            state.voids.drop_before(state.cursor)
        elif kind == b"E":
            self._handed.clear()
            self.state = ChannelState(_U64.unpack(data)[0], state.paused)
        elif kind == b"P":
            state.paused = bool(data[0])
        elif kind == b"C":
            state.carried[_U64.unpack_from(data)[0]] = data[_U64.size :]
        elif kind == b"S":
            self._restore(data)

    def _forget(self, first: int, end: int) -> None:
        self._handed.remove(first, end)
        kept: dict[int, Any]
        for kept in (self.state.pending, self.state.carried):
            for number in _among(range(first, end), kept):
                del kept[number]

    def _queue(self, data: bytes) -> None:
        state = self.state
        for number, attempts, due_ns in _ENTRY.iter_unpack(data):
            self._handed.remove(number, number + 1)
            state.pending[number] = Pending(attempts, due_ns)
            if number >= state.cursor and number not in state.voids:
                state.cursor = number + 1

    def _restore(self, data: bytes) -> None:
        cursor, paused, _ = _SNAPSHOT.unpack_from(data)
        pending = {
            number: Pending(attempts, due_ns)
            for number, attempts, due_ns in _ENTRY.iter_unpack(data[_SNAPSHOT.size :])
        }
        self._handed.clear()
        self.state = ChannelState(cursor, bool(paused), pending)


def _among(numbers: range, kept: Mapping[int, Any]) -> list[int]:
    """Those of `numbers` that are kept; looks at the fewer."""
    if len(kept) < len(numbers):
        return [number for number in kept if number in numbers]
    return [number for number in numbers if number in kept]
