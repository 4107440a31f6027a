"""A block: messages that entered a topic together, laid out as the frames that consumers get.

The frame header is packed when a message enters, so delivering a run of messages is one slice of the
block, from memory and from disk alike. On disk (docs/formats.md, "The broker's log"), big-endian:

    u32 length | u32 crc32 | u64 first | u64 due_ns | u32 count | frames

`length` counts what follows the crc, `crc32` covers it. `first` is the sequence number of the first
message; a message's id is its sequence number in 16 hex digits. `due_ns` is 0, or the time at which
deferred messages may be delivered. `frames` are NSQ message frames with attempts 1.
"""

from __future__ import annotations

import struct
from array import array
from binascii import hexlify
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng.zlib_ng import crc32

from nsqtools.wire.commands import FIN_LINE_BYTES, fin
from nsqtools.wire.cutting import cut, same_in_run
from nsqtools.wire.frames import MESSAGE
from nsqtools.wire.payloads import ID_BYTES, PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.wire.bodies import Bodies

HEADER = struct.Struct(">IIQQI")
HEADER_BYTES = HEADER.size
_CHECKED = struct.Struct(">QQI")
_LENGTH_FIELDS_BYTES = 8
# A frame: i32 size, i32 type, then the payload.
_FRAME_HEADER_BYTES = 8
FRAME_OVERHEAD_BYTES = _FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES
# Of a block of one message without a body.
_LENGTH_MIN = _CHECKED.size + FRAME_OVERHEAD_BYTES
_FRAME_START = struct.Struct(">iiqH")
_SIZE_FIELD_BYTES = 4
_ATTEMPTS_AT = 16
_ID_AT = 18
_U16 = struct.Struct(">H")
_I32 = struct.Struct(">i")
_U32 = struct.Struct(">I")
_I64 = struct.Struct(">q")
ATTEMPTS_MAX = 65535
# The last four digits of ids repeat after so many messages; each column is one of them, in order.
_LOW_IDS = 1 << 16
_LOW_COLUMNS = [
    b"".join(b"%x" % digit * (_LOW_IDS >> bits) for digit in range(16)) * (1 << (bits - 4))
    for bits in (4, 8, 12, 16)
]
_ID_IN_FIN_AT = len(b"FIN ")
# An even block is copied once more, to have ids written into it: of messages this large, and so many
# bytes of them, that costs more than to make each head by itself.
_LARGE_BYTES = 512
_LARGE_BATCH_BYTES = 512 << 10
# In memory a message has its FIN and its start, a block what holds all of it.
_COST_BYTES = FIN_LINE_BYTES + 8
_BLOCK_COST_BYTES = 400
# A list is filled faster than an array, and takes five times the room.
_STARTS_AT_ONCE = 4096
# A stretch goes on to the next block until it is as long as that: what one consumer is sent at once.
STRETCH_BYTES = 512 << 10


class Stretch(NamedTuple):
    """Messages that follow each other, up to `end` (exclusive): their frames, in pieces, and the FIN
    lines that end them."""

    end: int
    frames: list[bytes]
    fins: bytes


class Block:
    """Messages `first` to `end` (exclusive), and the next block when that is in memory too."""

    __slots__ = ("_fins", "due_ns", "end", "first", "frames", "next", "starts")

    def __init__(self, first: int, frames: bytes, starts: Sequence[int], due_ns: int) -> None:
        self.first = first
        self.end = first + len(starts) - 1
        self.frames = frames
        self.starts = starts  # one more than messages: the last is the end
        self.due_ns = due_ns
        self.next: Block | None = None
        self._fins: bytes | None = None

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def cost_bytes(self) -> int:
        """About what it takes in memory: a small message costs more than its frame."""
        return len(self.frames) + len(self) * _COST_BYTES + _BLOCK_COST_BYTES

    @property
    def timestamp_ns(self) -> int:
        """When they were published, in nanoseconds since the epoch."""
        timestamp_ns: int = _I64.unpack_from(self.frames, _FRAME_HEADER_BYTES)[0]
        return timestamp_ns

    def slice(self, first: int, end: int) -> bytes:
        """The frames of messages `first` to `end` (exclusive), as they go to a consumer."""
        base = self.first
        return self.frames[self.starts[first - base] : self.starts[end - base]]

    def slice_fins(self, first: int, end: int) -> bytes:
        """The FIN lines that end messages `first` to `end` (exclusive): what a consumer sends of its
        own accord can be compared with them as it is."""
        if self._fins is None:  # most blocks of a backlog leave memory before anyone asks
            self._fins = _fins(self.first, len(self.starts) - 1)
        base = self.first
        return self._fins[(first - base) * FIN_LINE_BYTES : (end - base) * FIN_LINE_BYTES]

    def stretch(self, first: int, end: int) -> Stretch:
        """What goes to a consumer at once: messages from `first` on, of this block and those behind it
        in memory, no further than `end`, a gap, or one that is deferred."""
        block, at = self, min(end, self.end)
        frames = [self.slice(first, at)]
        left_bytes = STRETCH_BYTES - len(frames[0])
        while block.next is not None and at < end and left_bytes > 0:
            block = block.next
            if block.first != at or block.due_ns or not len(block):
                break
            at = min(end, block.end)
            frames.append(block.slice(block.first, at))
            left_bytes -= len(frames[-1])
        is_one = len(frames) == 1
        fins = self.slice_fins(first, at) if is_one else _fins(first, at - first)
        return Stretch(at, frames, fins)

    def header(self) -> bytes:
        """What stands before the frames on disk."""
        checked = _CHECKED.pack(self.first, self.due_ns, len(self))
        length = len(checked) + len(self.frames)
        return struct.pack(">II", length, crc32(self.frames, crc32(checked))) + checked


def build_block(first: int, bodies: Bodies, timestamp_ns: int, due_ns: int = 0) -> Block:
    """Frame `bodies` as messages numbered from `first`, published at `timestamp_ns`."""
    start = _FRAME_START.pack(0, MESSAGE, timestamp_ns, 1) + b"%016x" % first
    is_large = bodies.even_bytes > _LARGE_BYTES and bodies.size_bytes > _LARGE_BATCH_BYTES
    if bodies.even_bytes and not is_large:
        return _even_block(first, bodies, start, due_ns)
    return _mixed_block(first, bodies, start, due_ns)


def _even_block(first: int, bodies: Bodies, start: bytes, due_ns: int) -> Block:
    """All have one head but for the last digits of the ids, which are written by columns."""
    count = len(bodies.each)
    stride = FRAME_OVERHEAD_BYTES + bodies.even_bytes
    head = _I32.pack(stride - _SIZE_FIELD_BYTES) + start[_SIZE_FIELD_BYTES:]
    frames = bytearray(head).join([b"", *bodies.each])
    for digit, column in _columns(first, count):
        frames[_ID_AT + digit :: stride] = column
    return Block(first, bytes(frames), range(0, (count + 1) * stride, stride), due_ns)


def _mixed_block(first: int, bodies: Bodies, start: bytes, due_ns: int) -> Block:
    """The heads are made of one that is repeated, with the columns that differ written into it; bodies
    are copied only once."""
    count = len(bodies.each)
    strides = [FRAME_OVERHEAD_BYTES + len(body) for body in bodies.each]
    heads = bytearray(start * count)
    sizes = struct.pack(f">{count}i", *[stride - _SIZE_FIELD_BYTES for stride in strides])
    for byte in range(_SIZE_FIELD_BYTES):
        heads[byte::FRAME_OVERHEAD_BYTES] = sizes[byte::_SIZE_FIELD_BYTES]
    for digit, column in _columns(first, count):
        heads[_ID_AT + digit :: FRAME_OVERHEAD_BYTES] = column
    parts: list[bytes] = [b""] * (2 * count)
    parts[0::2] = cut(bytes(heads), 0, FRAME_OVERHEAD_BYTES, 0, FRAME_OVERHEAD_BYTES, count)
    parts[1::2] = bodies.each
    return Block(first, b"".join(parts), array("Q", accumulate(strides, initial=0)), due_ns)


def _columns(first: int, count: int) -> list[tuple[int, bytes]]:
    """Those digits of the ids of `count` messages from `first` on that differ: which of the 16 it is,
    and what stands there, message by message."""
    low = first % _LOW_IDS
    if low + count > _LOW_IDS:
        ids = hexlify(struct.pack(f">{count}Q", *range(first, first + count)))
        return [(digit, ids[digit::ID_BYTES]) for digit in range(ID_BYTES)]
    differ = (first ^ (first + count - 1)).bit_length()
    known = -(-differ // 4)
    return [
        (ID_BYTES - known + at, column[low : low + count])
        for at, column in enumerate(_LOW_COLUMNS[len(_LOW_COLUMNS) - known :])
    ]


def _fins(first: int, count: int) -> bytes:
    """The FIN lines of `count` messages from `first` on, one after the other."""
    lines = bytearray(fin([b"%016x" % first]) * count)
    for digit, column in _columns(first, count):
        lines[_ID_IN_FIN_AT + digit :: FIN_LINE_BYTES] = column
    return bytes(lines)


def with_attempts(frame: bytes, attempts: int) -> bytes:
    """The frame with another number of attempts."""
    counted = _U16.pack(attempts & ATTEMPTS_MAX)
    return frame[:_ATTEMPTS_AT] + counted + frame[_ATTEMPTS_AT + 2 :]


class BadBlock(NamedTuple):
    """Why the bytes at a position are not a block."""

    position: int
    reason: str


class Short(NamedTuple):
    """The block at a position needs this many bytes from there."""

    position: int
    need: int


def parse_block(
    data: bytes, position: int, length_max: int
) -> tuple[Block, int] | BadBlock | Short:
    """The block at `position` and where it ends; every byte of it is checked."""
    if len(data) - position < HEADER_BYTES:
        return Short(position, HEADER_BYTES)
    length, crc, first, due_ns, count = HEADER.unpack_from(data, position)
    if not _LENGTH_MIN <= length <= length_max or not count:
        return BadBlock(position, f"impossible block length {length}")
    end = position + _LENGTH_FIELDS_BYTES + length
    if end > len(data):
        return Short(position, _LENGTH_FIELDS_BYTES + length)
    checked = memoryview(data)[position + _LENGTH_FIELDS_BYTES : end]
    if crc32(checked) != crc:
        return BadBlock(position, "checksum mismatch")
    frames = data[position + HEADER_BYTES : end]
    starts = _starts(frames, count)
    if starts is None:
        return BadBlock(position, "frames do not match the message count")
    return Block(first, frames, starts, due_ns), end


def _starts(frames: bytes, count: int) -> Sequence[int] | None:
    """Where each frame begins, and the end; None when they do not add up."""
    stride = _SIZE_FIELD_BYTES + _I32.unpack_from(frames)[0]
    if stride * count == len(frames) and same_in_run(frames, 0, len(frames), stride, (3, 2, 1, 0)):
        return range(0, len(frames) + 1, stride)
    starts = array("Q", [0])
    unpack, position = _U32.unpack_from, 0
    try:
        while len(starts) <= count:
            some: list[int] = []
            note = some.append
            for _ in range(min(_STARTS_AT_ONCE, count + 1 - len(starts))):
                position += _SIZE_FIELD_BYTES + unpack(frames, position)[0]
                note(position)
            starts.extend(some)
    except struct.error:  # behind the end
        return None
    return starts if position == len(frames) else None
