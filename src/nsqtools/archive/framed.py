"""Record format `framed`: NSQ's message layout behind a size (docs/formats.md, "framed").

    file header
    group:  n x (i32 size | payload), then i32 -1 | u32 n | u32 crc32 of the group's record bytes

No record of a group is handed out before its mark was found right.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng.zlib_ng import crc32

from nsqtools.archive.groups import Encoded
from nsqtools.archive.header import HEADER_BYTES_MAX, MAGIC, HeaderError, decode_header
from nsqtools.archive.stream import Damage, Records
from nsqtools.wire.cutting import cut, same_in_run
from nsqtools.wire.messages import Messages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SIZE = struct.Struct(">i")
_MARK = struct.Struct(">iII")
_MARK_SIZE = -1
SIZE_BYTES = _SIZE.size
MARK_BYTES = _MARK.size
_MARK_ROOM = bytes(MARK_BYTES)
# Records that are tried at a time whether they have one size; more while they do.
_RUN_MIN = 16
_RUN_MAX = 1024
# Records of the size before them that are taken alone after some that had not one size.
_RUN_PAUSE = 64
_PREFIXES_MAX = 4096  # sizes remembered by one encoder
# A writer closes a group at 4 MiB and one message; this is what a reader will hold beyond one.
GROUP_SLACK_BYTES = 8 << 20


class _Prefixes(dict[int, bytes]):
    """The 4 bytes of each size seen, packed once."""

    def __missing__(self, payload_bytes: int) -> bytes:
        if len(self) >= _PREFIXES_MAX:
            self.clear()
        prefix = self[payload_bytes] = _SIZE.pack(payload_bytes)
        return prefix


class FramedEncoder:
    """Two joins for a batch, one checksum for a group."""

    def __init__(self, header: bytes) -> None:
        self.stream_header = header
        self._prefixes = _Prefixes()

    def encode(self, batches: Sequence[Messages]) -> Encoded:
        """None is ambiguous: sizes tell records apart."""
        parts: list[bytes] = []
        count = 0
        for messages in batches:
            count += len(messages)
            for payload_bytes, payloads in messages.runs():
                if payload_bytes is None:
                    parts += self._with_sizes(payloads)
                else:
                    prefix = self._prefixes[payload_bytes]
                    parts += (prefix, prefix.join(payloads))
        parts.append(_MARK_ROOM)  # filled in where it stands, after one large allocation
        content = bytearray().join(parts)
        end = len(content) - MARK_BYTES
        with memoryview(content) as view:
            _MARK.pack_into(content, end, _MARK_SIZE, count, crc32(view[:end]))
        return Encoded(content, 0)

    def _with_sizes(self, payloads: list[bytes]) -> list[bytes]:
        parts = [b""] * (2 * len(payloads))
        parts[::2] = map(self._prefixes.__getitem__, map(len, payloads))
        parts[1::2] = payloads
        return parts


class _Run(NamedTuple):
    """Records of one size, as they lie in `data`; cut when it is known what of them is wanted."""

    data: bytes
    at: int
    stride: int
    records: int

    def column(self, offset: int) -> list[bytes]:
        """What follows `offset` bytes behind the start of each payload."""
        start = SIZE_BYTES + offset
        return cut(self.data, self.at, self.stride, start, self.stride - start, self.records)


def _column(parts: Sequence[_Run | list[bytes]], offset: int) -> list[bytes]:
    """The same of all records; a list holds payloads."""
    column: list[bytes] = []
    for part in parts:
        if isinstance(part, _Run):
            column += part.column(offset)
        else:
            column += [payload[offset:] for payload in part]
    return column


def _messages(parts: Sequence[_Run | list[bytes]]) -> Messages:
    return Messages(_column(parts, 0))


class FramedDecoder:
    """Pieces of a stream to verified groups.

    What is held is one unfinished group at most: `_buffer` begins with it, `_at` is as far as its
    records were scanned. `committed_end` is the offset behind the last whole group or header, as
    long as the pieces follow on each other.
    """

    def __init__(self, body_bytes_max: int, *, header_due: bool) -> None:
        self._payload_bytes_max = body_bytes_max + PAYLOAD_HEADER_BYTES
        self._group_bytes_max = body_bytes_max + GROUP_SLACK_BYTES
        self._header_due = header_due
        self._buffer = b""
        self._start = 0
        self._at = 0
        self._parts: list[_Run | list[bytes]] = []
        self._count = 0
        self._cut = 0  # so many of the parts are lists
        self._waiting: list[bytes] = []
        self._missing_bytes = 0
        self._run = _RUN_MIN
        self._pause = 0
        self.committed_end = 0

    def feed(self, data: bytes, offset: int) -> Iterator[Records]:
        """The groups that `data` completes; raises `Damage` behind the last sound one."""
        if not self._buffer and not self._waiting:
            self.committed_end = offset
        self._waiting.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes > 0:
            return  # within one long record: joining now would be quadratic
        self._buffer = b"".join((self._buffer, *self._waiting))
        self._waiting.clear()
        self._missing_bytes = 0
        offset = self.committed_end
        parts: list[_Run | list[bytes]] = []
        damage = self._take_groups(parts)
        if parts:
            bodies = _column(parts, PAYLOAD_HEADER_BYTES)
            yield Records(bodies=bodies, offset=offset, make_messages=partial(_messages, parts))
        if damage is not None:
            raise damage
        self._cut_runs()
        self._buffer = self._buffer[self._start :]
        self._at -= self._start
        self._start = 0

    def _cut_runs(self) -> None:
        """Of a group without an end yet: what was read is not kept for its runs."""
        for at in range(self._cut, len(self._parts)):
            part = self._parts[at]
            if isinstance(part, _Run):
                self._parts[at] = part.column(0)
        self._cut = len(self._parts)

    def _take_groups(self, parts: list[_Run | list[bytes]]) -> Damage | None:
        """Move the records of every whole group to `parts`, up to damage, which is returned."""
        try:
            while True:
                if self._is_header_next():
                    if not self._take_header():
                        return None
                elif self._scan():
                    parts += self._close_group()
                else:
                    return None
        except Damage as damage:
            return damage

    def finish(self) -> Iterator[Records]:
        """The stream is at its end; raises `Damage` when that is within a group."""
        if self._buffer or self._waiting:
            raise Damage(self.committed_end, "a cut group of records", torn=True)
        if self._header_due:
            raise Damage(self.committed_end, "no file header", torn=True)
        return iter(())

    def _is_header_next(self) -> bool:
        at_group = self._at == self._start < len(self._buffer)
        return at_group and (self._header_due or self._buffer[self._at] == MAGIC[0])

    def _take_header(self) -> bool:
        """Pass over a file header; False when it is not all there yet."""
        try:
            block = self._buffer[self._at : self._at + HEADER_BYTES_MAX]
            header = decode_header(block)
        except HeaderError as error:
            if error.torn:
                return False
            raise Damage(self.committed_end, error.reason) from error
        if header.meta["format"] != "framed":
            raise Damage(self.committed_end, "a file header of another record format")
        self._header_due = False
        self._move_on(header.size_bytes)
        return True

    def _move_on(self, count: int) -> None:
        self._at += count
        self.committed_end += self._at - self._start
        self._start = self._at

    def _scan(self) -> bool:
        """Collect records; True when a commit mark is at `_at`."""
        buffer, at, end = self._buffer, self._at, len(self._buffer)
        payloads: list[bytes] = []
        unpack = _SIZE.unpack_from
        size_min, size_max = PAYLOAD_HEADER_BYTES, self._payload_bytes_max
        size = last_size = 0
        while at + SIZE_BYTES <= end:
            (size,) = unpack(buffer, at)
            stop = at + SIZE_BYTES + size
            if not size_min <= size <= size_max:
                break
            if stop > end:
                self._missing_bytes = stop - end
                break
            payloads.append(buffer[at + SIZE_BYTES : stop])
            at = stop
            if size != last_size:
                last_size = size
            elif self._pause:
                self._pause -= 1
            elif (run := self._find_run(at, size)) is not None:
                self._add(payloads, run)
                payloads = []
                at += run.records * run.stride
        else:
            size = size_min  # it ends between records
        self._add(payloads)
        self._at = at
        if size == _MARK_SIZE:
            return at + MARK_BYTES <= end
        if not size_min <= size <= size_max:
            raise Damage(self.committed_end, f"a record of {size} bytes")
        if at - self._start > self._group_bytes_max:
            raise Damage(self.committed_end, "a group of records without an end")
        return False

    def _add(self, payloads: list[bytes], run: _Run | None = None) -> None:
        """Records of the group that is read."""
        if payloads:
            self._parts.append(payloads)
            self._count += len(payloads)
        if run is not None:
            self._parts.append(run)
            self._count += run.records

    def _find_run(self, at: int, size: int) -> _Run | None:
        """The records from `at` on that all have this size, as many as are tried at a time."""
        stride = SIZE_BYTES + size
        count = min((len(self._buffer) - at) // stride, self._run)
        stop = at + count * stride
        # The last byte of a size differs first, so it is compared first.
        is_run = self._buffer.startswith(_SIZE.pack(size), at) and same_in_run(
            self._buffer, at, stop, stride, (3, 2, 1, 0)
        )
        if not count:
            return None
        if not is_run:
            self._run, self._pause = _RUN_MIN, _RUN_PAUSE
            return None
        self._run = min(_RUN_MAX, self._run << 1)
        return _Run(self._buffer, at, stride, count)

    def _close_group(self) -> list[_Run | list[bytes]]:
        _, count, checksum = _MARK.unpack_from(self._buffer, self._at)
        records = memoryview(self._buffer)[self._start : self._at]
        if count != self._count or checksum != crc32(records):
            damage = Damage(self.committed_end, "a group of records with a wrong checksum")
            if count == self._count:  # every size led to the next one, and to the mark
                damage.end = self.committed_end + len(records) + MARK_BYTES
            raise damage
        parts, self._parts = self._parts, []
        self._count = self._cut = 0
        self._move_on(MARK_BYTES)
        return parts
