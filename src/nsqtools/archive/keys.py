"""Key files: which messages an archive got last, for whoever must know after the process is gone.

    <work dir>/.nsqtools-<uid>/<digest>-<unique>.keys      one for each writer, locked by it

A message that is delivered again is known by its *key*: nsqd, id and publish time. A writer notes the
keys of a commit here before the commit itself is written, and never syncs them: they survive the
process, not the machine. What is noted counts only where the commit is there, too (docs/formats.md,
"Key files"): a key that is missing makes a message stand in the archive twice, one too many would
lose it.

The file has two halves of a fixed size, each with a generation: what is to be remembered is written
anew into the other half when one is full. So it never grows, and whatever a kill cuts, one is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng.zlib_ng import crc32

from nsqtools import durable
from nsqtools.archive.claims import make_claim_folder
from nsqtools.errors import DataPathInUse, StorageError
from nsqtools.wire.payloads import ID_BYTES, TIME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from nsqtools.wire.messages import Messages

KEYS_SUFFIX = ".keys"
KEY_BYTES = ID_BYTES + TIME_BYTES
_MAGIC = b"NSQKEYS\x01"
_HEAD = struct.Struct(">8sQI")  # magic, generation, bytes of each half
_RECORD = struct.Struct(">BII")  # kind, bytes of what follows, crc32 of kind and that
_COMMIT = struct.Struct(">QQQ")  # number of the commit, where it begins and ends in its file
_SEALED = struct.Struct(">Q")
_GROUP = struct.Struct(">HI")  # bytes of the nsqd's name, messages
_KNOWN, _COMMITTED, _WHOLE, _END = b"KCWE"
KEY_FILE_NAME = re.compile(r"([0-9a-f]{16})-[0-9]+-[0-9a-f]{16}\.keys", re.ASCII)
_UNIQUE_BYTES_MAX = 255
_HALF_BYTES_MIN, _HALF_BYTES_MAX = 64 << 10, 64 << 20
# Commits leave this much of a half free: whoever finishes the files of a dead writer notes there how far
# each of them is whole.
_LEFT_FREE_BYTES = 16 << 10
# How often another process may look at a file in the moment between its creation and its lock.
_CREATE_TRIES = 8


class Keys(NamedTuple):
    """The keys of messages of one nsqd: ids of 16 bytes and times of 8, one after the other."""

    nsqd: str
    ids: bytes
    times: bytes

    def __len__(self) -> int:
        return len(self.ids) // ID_BYTES

    @classmethod
    def of(cls, messages: Messages) -> Keys:
        messages = messages.without_siblings()
        return cls(messages.nsqd, b"".join(messages.ids), messages.times)

    def pairs(self) -> Iterator[tuple[bytes, int]]:
        """Id and time of each, the time as a number."""
        count = len(self.ids) // ID_BYTES
        ids = struct.unpack(f"{ID_BYTES}s" * count, self.ids)
        return zip(ids, struct.unpack(f">{count}Q", self.times), strict=True)

    @classmethod
    def from_pairs(cls, nsqd: str, pairs: Iterable[tuple[bytes, int]]) -> Keys:
        listed = list(pairs)
        times = struct.pack(f">{len(listed)}Q", *[time for _, time in listed])
        return cls(nsqd, b"".join([message_id for message_id, _ in listed]), times)


class KeyFile:
    """The key file of a living writer; whoever has it open for writing holds its lock.

    Raises `StorageError`; a call that raised can be made again.
    """

    def __init__(self, fd: int, path: Path, half_bytes: int) -> None:
        self.path = path
        self.half_bytes = half_bytes
        self._fd = fd
        self._generation = 0
        self._at = half_bytes  # full: `begin` comes first
        self._commit = 0

    @classmethod
    def create(cls, work_dir: Path, topic: str, channel: str, half_bytes: int) -> KeyFile:
        """A new one, locked; it holds nothing yet."""
        folder = make_claim_folder(work_dir)
        half_bytes = min(max(half_bytes, _HALF_BYTES_MIN), _HALF_BYTES_MAX)
        for _ in range(_CREATE_TRIES):
            unique = f"{os.getpid()}-{secrets.token_hex(8)}"
            path = folder / f"{digest(topic, channel)}-{unique}{KEYS_SUFFIX}"
            file = cls._try_to_create(path, half_bytes)
            if file is not None:
                return file
        busy = OSError(f"looked at by another process {_CREATE_TRIES} times in a row")
        raise StorageError("make a key file in", folder, busy)

    @classmethod
    def _try_to_create(cls, path: Path, half_bytes: int) -> KeyFile | None:
        try:
            file = cls(durable.create(path, 0o600), path, half_bytes)
        except FileExistsError:
            return None
        try:
            durable.lock_file(file._fd, path)
            if durable.is_at(path, durable.identity(file._fd, path)):
                return file
        except DataPathInUse:
            pass  # another writer found it before it was locked, and removes it
        except BaseException:
            file.close()
            raise
        file.close()
        return None

    def begin(self, known: Iterable[Keys]) -> None:
        """Begin the other half, with all that is to be remembered; what does not fit is left out."""
        generation = self._generation + 1
        parts = [_HEAD.pack(_MAGIC, generation, self.half_bytes)]
        room = self.half_bytes - len(parts[0]) - _RECORD.size
        for keys in known:
            record = _encode(_KNOWN, _group(keys), generation)
            if len(record) > room:
                break
            room -= len(record)
            parts.append(record)
        parts.append(_encode(_END, b"", generation))  # the image is whole
        image = b"".join(parts)
        durable.write_at(self._fd, image, self._start(generation), self.path)
        self._generation = generation
        self._at = len(image)

    def _start(self, generation: int) -> int:
        return generation % 2 * self.half_bytes

    def commit(self, unique: str, start: int, end: int, keys: Sequence[Keys]) -> bool:
        """Note a commit that is about to be written into a file, from byte `start` to `end`. False
        when this half has no room for it."""
        head = _name(unique) + _COMMIT.pack(self._commit, start, end)
        data = head + b"".join([_group(one) for one in keys])
        if not self._append(_COMMITTED, data, leave_bytes=_LEFT_FREE_BYTES):
            return False
        self._commit += 1
        return True

    def void(self, unique: str, start: int) -> bool:
        """Note that the commit that was to begin there failed; False as for `commit`. Durable on return:
        of two notes a power cut may leave the first one alone."""
        has_room = self.commit(unique, start, start, [])
        if has_room:
            durable.sync_data(self._fd, self.path)
        return has_room

    def whole(self, unique: str, end: int) -> bool:
        """Note that a file is whole up to this byte, and that nothing is appended any more. False as
        for `commit`."""
        return self._append(_WHOLE, _whole(unique, end))

    def _append(self, kind: int, data: bytes, *, leave_bytes: int = 0) -> bool:
        record = _encode(kind, data, self._generation)
        if self._at + len(record) + leave_bytes > self.half_bytes:
            return False
        offset = self._start(self._generation) + self._at
        durable.write_at(self._fd, record, offset, self.path)
        self._at += len(record)
        return True

    def close(self) -> None:
        """Let go of it: whoever takes it over finds what was noted."""
        if self._fd >= 0:
            if self._generation:
                with contextlib.suppress(StorageError):  # what is behind it is not needed
                    end = self._start(self._generation) + self._at
                    durable.truncate(self._fd, end, self.path)
            durable.close(self._fd)
            self._fd = -1


@dataclass(slots=True)
class Found:
    """What one half says."""

    known: list[Keys] = field(default_factory=list)
    pending: dict[str, list[tuple[int, int, int, Keys]]] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    end: int = 0

    def add(self, unique: str, commit: tuple[int, int, int], keys: list[Keys]) -> None:
        """One that begins where another has not ended has taken its place."""
        _, start, _ = commit
        before = self.pending.setdefault(unique, [])
        while before and before[-1][2] > start and before[-1][0] != commit[0]:
            before.pop()
        before += [(*commit, one) for one in keys]

    def settle(self, unique: str, whole_end: int) -> None:
        self.whole[unique] = whole_end
        for _, _, end, keys in self.pending.pop(unique, ()):
            if end <= whole_end:
                self.known.append(keys)


def digest(topic: str, channel: str) -> str:
    """What the name of a key file begins with."""
    return hashlib.sha256(f"{topic}\n{channel}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class Half:
    """One half of a file, and what it says."""

    generation: int
    size_bytes: int
    found: Found


def read_newest(fd: int, path: Path) -> Half | None:
    """What counts in a key file: the newest half that is whole. Raises `StorageError`."""
    return max(_read_halves(fd, path), key=lambda half: half.generation, default=None)


def _read_halves(fd: int, path: Path) -> list[Half]:
    data = durable.read_at_most(fd, 2 * _HALF_BYTES_MAX, path)
    halves = []
    for start in _starts(data):
        half = _read_half(memoryview(data)[start:])
        if half is not None:
            halves.append(half)
    return halves


def _starts(data: bytes) -> list[int]:
    """Where halves begin: at 0, and where the other one says that its size ends."""
    starts = [0]
    for at in (0, *_second_starts(data)):
        if at and at not in starts:
            starts.append(at)
    return starts


def _second_starts(data: bytes) -> list[int]:
    if len(data) >= _HEAD.size:
        magic, _, half_bytes = _HEAD.unpack_from(data)
        if magic == _MAGIC:
            return [half_bytes]
    at = data.find(_MAGIC, 1)  # the first half was never written
    return [at] if at > 0 else []


def _read_half(data: memoryview) -> Half | None:
    """None when its image is not whole."""
    if len(data) < _HEAD.size:
        return None
    magic, generation, half_bytes = _HEAD.unpack_from(data)
    if magic != _MAGIC or not _HALF_BYTES_MIN <= half_bytes <= _HALF_BYTES_MAX:
        return None
    found, is_whole = Found(end=_HEAD.size), False
    for kind, content, end in _records(data[:half_bytes], generation):
        found.end = end
        if kind == _END:
            is_whole = True
        else:
            try:
                _note(found, kind, content)
            except (ValueError, IndexError, struct.error):
                break  # not what we write, whatever its checksum says
    return Half(generation, half_bytes, found) if is_whole else None


def _records(data: memoryview, generation: int) -> Iterator[tuple[int, memoryview, int]]:
    at = _HEAD.size
    while at + _RECORD.size <= len(data):
        kind, size, checksum = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + size
        content = data[at + _RECORD.size : end]
        if len(content) != size or _checksum(kind, content, generation) != checksum:
            return  # what an older generation left, or a record that was cut
        yield kind, content, end
        at = end


def _note(found: Found, kind: int, content: memoryview) -> None:
    if kind == _KNOWN:
        found.known += _groups(content)
        return
    size = content[0]
    unique, rest = bytes(content[1 : 1 + size]).decode("ascii", "replace"), content[1 + size :]
    if kind == _COMMITTED:
        found.add(unique, _COMMIT.unpack_from(rest), list(_groups(rest[_COMMIT.size :])))
    elif kind == _WHOLE:
        found.settle(unique, _SEALED.unpack_from(rest)[0])


def encode_whole(unique: str, end: int, generation: int) -> bytes:
    """The note of one that recovers a file: it is whole up to byte `end`."""
    return _encode(_WHOLE, _whole(unique, end), generation)


def _whole(unique: str, end: int) -> bytes:
    return _name(unique) + _SEALED.pack(end)


def _encode(kind: int, content: bytes, generation: int) -> bytes:
    return _RECORD.pack(kind, len(content), _checksum(kind, content, generation)) + content


def _checksum(kind: int, content: bytes | memoryview, generation: int) -> int:
    """With the generation: a record of an older one must not be taken for one of this."""
    return crc32(content, crc32(struct.pack(">BQ", kind, generation)))


def _name(unique: str) -> bytes:
    encoded = unique.encode("ascii")[:_UNIQUE_BYTES_MAX]
    return bytes((len(encoded),)) + encoded


def _group(keys: Keys) -> bytes:
    nsqd = keys.nsqd.encode("utf-8", "surrogatepass")[:0xFFFF]
    return _GROUP.pack(len(nsqd), len(keys)) + nsqd + keys.ids + keys.times


def _groups(content: memoryview) -> Iterator[Keys]:
    at = 0
    while at < len(content):
        name_bytes, count = _GROUP.unpack_from(content, at)
        ids_at = at + _GROUP.size + name_bytes
        times_at = ids_at + count * ID_BYTES
        nsqd = bytes(content[at + _GROUP.size : ids_at]).decode("utf-8", "surrogatepass")
        at = times_at + count * TIME_BYTES
        if at > len(content):
            raise ValueError("a group that is cut")
        yield Keys(nsqd, bytes(content[ids_at:times_at]), bytes(content[times_at:at]))
