"""One file of a topic's log: a header, then blocks (docs/formats.md, "The broker's log").

The header, big-endian:

    8 bytes magic "NSQTLOG\\x01" | u64 first | u64 ordinal | u32 crc32 of the 24 bytes before

Inside a segment sequence numbers are contiguous, so `ordinal` (how many messages the topic took before
this segment) turns a sequence number into a count. The index holds one position about every 64 KiB of
log; it is kept beside a sealed segment (`.index`) and is only a help: when it is missing or does not
fit, it is made anew from the segment.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zlib_ng.zlib_ng import crc32

from nsqtools import durable
from nsqtools.broker.block import HEADER_BYTES, BadBlock, Block, Short, parse_block
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"NSQTLOG\x01"
_HEADER = struct.Struct(">8sQQ")
_CRC = struct.Struct(">I")
HEADER_SIZE_BYTES = _HEADER.size + _CRC.size
SEGMENT_SUFFIX = ".log"
INDEX_SUFFIX = ".index"
INDEX_BYTES_MAX = 64 << 20
INDEX_STEP_BYTES = 64 << 10
# Each hand-over from the reading thread costs about as much as a few hundred messages.
READ_BYTES = 1 << 20
# A block is one group commit: everything that publishers sent within one turn of the loop.
BLOCK_LENGTH_MAX_BYTES = 1 << 30


@dataclass(slots=True, kw_only=True, eq=False)
class Segment:
    """What is known of one file of the log; `end` and `size_bytes` grow while it is written.

    `written_ns` is when something was written last, in nanoseconds since the epoch.

    Once `is_sealed` nothing is added to it, it is on the disk, and has its index.
    """

    path: Path
    first: int
    ordinal: int
    end: int
    size_bytes: int = HEADER_SIZE_BYTES
    firsts: array[int] = field(default_factory=lambda: array("Q"))
    positions: array[int] = field(default_factory=lambda: array("Q"))
    is_sealed: bool = False
    written_ns: int = 0

    def header(self) -> bytes:
        raw = _HEADER.pack(MAGIC, self.first, self.ordinal)
        return raw + _CRC.pack(crc32(raw))

    def note(self, first: int, position: int) -> None:
        """Remember where a block begins, if it is far enough from the one remembered last."""
        if not self.positions or position - self.positions[-1] >= INDEX_STEP_BYTES:
            self.firsts.append(first)
            self.positions.append(position)

    def cut(self, size_bytes: int, end: int) -> None:
        """Forget what was added behind this size and number."""
        self.size_bytes, self.end = size_bytes, end
        while self.positions and self.positions[-1] >= size_bytes:
            self.firsts.pop()
            self.positions.pop()

    def clear(self) -> None:
        """Free the room of what it holds. Raises StorageError, and is as before.

        It is empty then, and a recovery removes it.
        """
        with durable.storage("truncate", self.path):
            os.truncate(self.path, HEADER_SIZE_BYTES)
        self.ordinal += self.end - self.first
        self.first = self.end
        self.cut(HEADER_SIZE_BYTES, self.end)

    def position_before(self, number: int) -> int:
        """A position from which reading forward finds message `number`."""
        at = bisect_right(self.firsts, number) - 1
        return self.positions[at] if at >= 0 else HEADER_SIZE_BYTES

    def index_bytes(self) -> bytes:
        raw = struct.pack(">QQ", self.end, self.size_bytes)
        pairs = array("Q", self.firsts)
        pairs.extend(self.positions)
        raw += struct.pack(f">{len(pairs)}Q", *pairs)
        return raw + _CRC.pack(crc32(raw))

    def load_index(self, raw: bytes) -> bool:
        """Take over an index file; False when it is not this segment's."""
        if len(raw) < 20 or (len(raw) - 20) % 16 or crc32(raw[:-4]) != _CRC.unpack(raw[-4:])[0]:
            return False
        end, size_bytes = struct.unpack_from(">QQ", raw)
        if size_bytes != self.size_bytes:
            return False
        pairs = struct.unpack_from(f">{(len(raw) - 20) // 8}Q", raw, 16)
        half = len(pairs) // 2
        self.firsts, self.positions = array("Q", pairs[:half]), array("Q", pairs[half:])
        self.end = end
        return True


def parse_header(raw: bytes) -> tuple[int, int] | None:
    """`first` and `ordinal` of a segment; None when these are not the first bytes of one."""
    if len(raw) < HEADER_SIZE_BYTES:
        return None
    magic, first, ordinal = _HEADER.unpack_from(raw)
    if magic != MAGIC or _CRC.unpack_from(raw, _HEADER.size)[0] != crc32(raw[: _HEADER.size]):
        return None
    return first, ordinal


def scan(segment: Segment) -> BadBlock | None:
    """Read a whole segment, check every block, and set its end, size and index.

    Returns where and why the sound part ends, or None when all of it is sound. Raises StorageError
    when the disk refuses; that says nothing about the data.
    """
    with durable.storage("stat", segment.path):  # also for a file whose folder has gone
        size = durable.size_of(segment.path)
    segment.firsts, segment.positions = array("Q"), array("Q")
    segment.size_bytes, segment.end = HEADER_SIZE_BYTES, segment.first
    while segment.size_bytes < size:
        found = read_blocks(segment.path, segment.size_bytes, size)
        if isinstance(found, BadBlock):
            return found
        for block, position, end in found:
            if block.first != segment.end:
                return BadBlock(position, f"message {block.first} where {segment.end} is due")
            segment.note(block.first, position)
            segment.size_bytes, segment.end = end, block.end
    return None


def renew(segment: Segment) -> BadBlock | None:
    """Write the file of a segment anew, as long as the segment is, durably, in the place of the old one.

    For one whose fsync has failed: what of it is on the disk is not known, but it can be read still.
    Every block of the copy is checked; returns where the sound part of it ends, or None where that is
    all. Raises StorageError; then the old one stands.
    """
    temporary = durable.temporary_name(segment.path.parent)
    fd = durable.create(temporary, 0o600)
    try:
        position = 0
        while position < segment.size_bytes:
            data = _read(segment.path, position, min(READ_BYTES, segment.size_bytes - position))
            if not data:
                break
            durable.write_at(fd, data, position, temporary)
            position += len(data)
        durable.sync_data(fd, temporary)
        bad = scan(replace(segment, path=temporary))
        durable.put_in_place(temporary, segment.path)
    except BaseException:
        with contextlib.suppress(StorageError):
            durable.unlink(temporary)
        raise
    finally:
        durable.close(fd)
    return bad


def read_blocks(
    path: Path, position: int, size: int, want: int = READ_BYTES
) -> list[tuple[Block, int, int]] | BadBlock:
    """The blocks from `position` on, about `want` bytes of them and at least one.

    Each with its position and its end. `size` is where the log ends. Raises StorageError.
    """
    while True:
        data = _read(path, position, min(want, size - position))
        found: list[tuple[Block, int, int]] = []
        at = 0
        while at < len(data):
            parsed = parse_block(data, at, BLOCK_LENGTH_MAX_BYTES)
            if isinstance(parsed, BadBlock):
                return found or BadBlock(position + at, parsed.reason)
            if isinstance(parsed, Short):
                break
            found.append((parsed[0], position + at, position + parsed[1]))
            at = parsed[1]
        if found:
            return found
        if len(data) < want or not isinstance(parsed, Short):
            return BadBlock(position, "the last block is cut")
        want = max(parsed.need, HEADER_BYTES)
        if position + want > size:
            return BadBlock(position, "the last block is cut")


def _read(path: Path, position: int, count: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), count, position)
    except OSError as cause:
        raise StorageError("read", path, cause) from cause
