"""A new file of what is whole in another: durable, read back, and under a name that was free.

Repairing, indexing and compacting by hand share this. The old file is not changed; where a new one is
to take its place, it does so by one rename, and only while the old one is what was read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zlib_ng.zlib_ng import crc32

from nsqtools import durable, publish
from nsqtools.archive.compaction import PIECE_BYTES, Content, verify, write_groups
from nsqtools.archive.formats import COMPRESSIONS, NONE
from nsqtools.archive.framed import FramedEncoder
from nsqtools.archive.groups import Group
from nsqtools.archive.header import encode_header
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.scan import Lost, Text
from nsqtools.archive.stream import BODY_BYTES_MAX, Damage
from nsqtools.archive.zstd_frames import ANY_TIME
from nsqtools.errors import ArchiveError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from nsqtools.archive.stream import Records
    from nsqtools.archive.zstd_frames import IndexEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What the new file is to be; `header` is what its file header says beside the format."""

    record_format: str
    compression: str
    level: int
    topic: str
    channel: str
    host: str

    @property
    def header(self) -> bytes:
        """The file header block."""
        return encode_header(
            record_format=self.record_format,
            topic=self.topic,
            channel=self.channel,
            host=self.host,
        )


@dataclass(slots=True, kw_only=True)
class Rewritten:
    """A new file: its size in bytes, its records, and what of the old one is not in it."""

    size_bytes: int = 0
    records: int = 0
    losses: list[Lost] = field(default_factory=list)


@contextlib.contextmanager
def new_file(folder: Path) -> Iterator[tuple[int, Path]]:
    """A file to write under a name that nobody uses, removed behind the block unless it was placed.

    Raises `StorageError`.
    """
    path = durable.temporary_name(folder)
    fd = -1
    is_ours = True  # from the first moment on: what ends us may come when the file is hardly there
    try:
        try:
            fd = durable.create(path)
        except FileExistsError as error:
            is_ours = False
            raise StorageError("create", path, error) from error
        durable.lock_file(fd, path)  # so that nobody takes it for one that a crash has left
        yield fd, path
    finally:
        if fd >= 0:
            durable.close(fd)
        if is_ours:
            with contextlib.suppress(StorageError):
                durable.unlink(path)


def write_whole(
    items: Iterable[Records | Text | Lost], form: Form, writing: int, path: Path, *, name: str
) -> Rewritten:
    """Write what is whole, durable and read back on return; what is `Lost` is noted. `name` is that of
    the old file, for messages.

    Raises `StorageError`, and `ArchiveError` when what was read back is not what was written.
    """
    made = Rewritten()
    content = Content()
    container = COMPRESSIONS[form.compression].new_containers(form.header, form.level)()
    groups = _Groups(form, made, name).of(items)
    made.size_bytes = write_groups(groups, container, content, writing, path)
    try:
        if form.compression == NONE.name:
            _check_plain(writing, path, content)
        else:
            verify(writing, path, form.record_format, form.compression, content, made.records)
    except Damage as damage:
        raise ArchiveError(
            f"{path}: what was written could not be read back: {damage.reason}",
            hint="The old file is as it was. Look after the disk.",
        ) from damage
    return made


def _check_plain(fd: int, path: Path, content: Content) -> None:
    checksum = offset = 0
    with durable.storage("read", path):
        while data := os.pread(fd, PIECE_BYTES, offset):
            checksum = crc32(data, checksum)
            offset += len(data)
    if (offset, checksum) != (content.size_bytes, content.crc32):
        raise Damage(offset, "other bytes than were written")


class _Groups:
    """What a scan gave as groups of the new file."""

    def __init__(self, form: Form, made: Rewritten, name: str) -> None:
        self._name = name
        self._form = form
        self._made = made
        self._encoder = FramedEncoder(form.header)
        self._is_first = True
        self._held: list[bytes] = []
        self._held_bytes = 0

    def of(self, items: Iterable[Records | Text | Lost]) -> Iterator[Group]:
        for item in items:
            if isinstance(item, Lost):
                self._made.losses.append(item)
                self._drop_cut_line(item)
            elif not isinstance(item, Text):
                yield self._counted(self._of_records(item))
            elif item.entry is not None:
                yield self._counted(self._of_commit(item, item.entry))
            else:
                yield from map(self._counted, self._of_text(item))
        yield from map(self._counted, self._rest())

    def _counted(self, group: Group) -> Group:
        self._made.records += group.records
        return group

    def _of_records(self, run: Records) -> Group:
        assert run.messages is not None, "records of a format that keeps ids"  # noqa: S101
        content: bytes | bytearray
        if run.lines is not None:
            content = NEWLINE.join([*run.lines, b""])
        else:
            content = self._encoder.encode([run.messages]).content
            if self._is_first:
                content = self._form.header + content
        self._is_first = False
        return _group(content, len(run.bodies), run.messages.time_range_ns())

    def _of_commit(self, text: Text, entry: IndexEntry) -> Group:
        """What its writer noted, as far as it can be true; what stands before it in its first line, from
        another file, stays there."""
        data, records = b"".join((*self._held, text.data)), entry.records
        self._held, self._held_bytes = [], 0
        if (lost := text.miscounted()) is not None:
            self._made.losses.append(lost)
            data = data if data.endswith(NEWLINE) else data + NEWLINE
            records = min(records, data.count(NEWLINE))
        return _group(data, records, (entry.first_ts_ns, entry.last_ts_ns))

    def _of_text(self, text: Text) -> Iterator[Group]:
        """Whole lines, of which nobody noted anything."""
        cut = text.data.rfind(NEWLINE) + 1
        if cut:
            whole = b"".join((*self._held, text.data[:cut]))
            self._held, self._held_bytes = [], 0
            yield _group(whole, whole.count(NEWLINE), ANY_TIME)
        if cut < len(text.data):
            self._held.append(text.data[cut:])
            self._held_bytes += len(text.data) - cut
        if self._held_bytes > BODY_BYTES_MAX:
            raise ArchiveError(f"{self._name}: a line of more than {BODY_BYTES_MAX} bytes")

    def _rest(self) -> Iterator[Group]:
        """A last line without an end is a record, and gets one."""
        if self._held:
            yield _group(b"".join((*self._held, NEWLINE)), 1, ANY_TIME)

    def _drop_cut_line(self, lost: Lost) -> None:
        if self._held:
            reason = "a line whose rest is lost"
            self._made.losses.append(
                Lost(start=lost.start, end=lost.start, reason=reason, torn=False, records=1)
            )
        self._held, self._held_bytes = [], 0


def _group(content: bytes | bytearray, records: int, times: tuple[int, int]) -> Group:
    return Group(content=content, records=records, times=lambda: times)


def place(path: Path, target: Path) -> None:
    """Give a new file its name, which must be free; durable on return.

    Raises `StorageError`, also when the name is taken.
    """
    try:
        publish.place(path, target)
    except FileExistsError as error:
        taken = OSError(errno.EEXIST, "there is a file of this name already")
        raise StorageError("write", target, taken) from error


def replace(path: Path, old: Path, was: os.stat_result) -> None:
    """Let a new file take the place of `old`, which must still be what `was` looked at.

    Raises `StorageError`.
    """
    check_unchanged(old, was)
    durable.put_in_place(path, old)


def check_unchanged(path: Path, was: os.stat_result) -> None:
    """Raise `StorageError` unless the name is still that of the file, which nobody wrote to since, nor
    has open for writing: what NSQ's nsq_to_file appends to it would be gone."""
    with durable.storage("stat", path):
        now = os.lstat(path)
        if _what(now) != _what(was):
            raise OSError(errno.EBUSY, "somebody changed the file meanwhile")
        if durable.is_being_written(path):
            raise OSError(errno.EBUSY, "somebody has the file open for writing")


def _what(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
