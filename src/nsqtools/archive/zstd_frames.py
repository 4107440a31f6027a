"""Compression `zstd`: frames, notes, index and seek table (docs/formats.md, "Compression `zstd`").

    header frame, (data frame, commit note)*, index frame, seek table

All little-endian.
"""

from __future__ import annotations

import struct
import threading
from array import array
from dataclasses import dataclass
from itertools import accumulate
from operator import eq
from typing import TYPE_CHECKING

import zstandard
from zlib_ng.zlib_ng import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.groups import Group

DATA_MAGIC = b"\x28\xb5\x2f\xfd"
OUR_MAGIC = b"\x5a\x2a\x4d\x18"
SEEK_MAGIC = b"\x5e\x2a\x4d\x18"
SEEKABLE_MAGIC = 0x8F92EAB1
NOTE_TAG = b"NSQC"
INDEX_TAG = b"NSQI"
# A writer begins another file at this many groups: an index of 4.5 MiB, as much in its memory.
FRAMES_PER_FILE = 1 << 17
# What a reader takes: a file may exceed the above by the groups of one commit.
FRAMES_MAX = 1 << 18

SKIPPABLE = struct.Struct("<4sI")
_NOTE = struct.Struct("<4sIQQ")
_CRC = struct.Struct("<I")
_INDEX_HEAD = struct.Struct("<4sI")
_INDEX_ENTRY = struct.Struct("<QIIIQQ")
_SEEK_ENTRY = struct.Struct("<II")
SEEK_FOOTER = struct.Struct("<IBI")
SKIPPABLE_BYTES = SKIPPABLE.size
NOTE_FRAME_BYTES = SKIPPABLE_BYTES + _NOTE.size + _CRC.size
# Room for header, data frame and note of each group, and the index.
SEEK_ENTRIES_MAX = 2 * FRAMES_MAX + 2
SKIPPABLE_KEPT_MAX = SEEK_ENTRIES_MAX * _INDEX_ENTRY.size
# The levels that are all about speed, the size of content their tables are made for, and their window.
_TABLES_LEVEL_MAX = 3
_TABLES_SOURCE_BYTES = 128 << 10
_WINDOW_LOG = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a commit note says of the data frame before it."""

    records: int
    first_ts_ns: int
    last_ts_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One data frame."""

    offset: int
    size_bytes: int
    content_bytes: int
    records: int
    first_ts_ns: int
    last_ts_ns: int


def commits_end(index: Index) -> int:
    """Offset behind the note of the last data frame, of which there must be one."""
    return index.offsets[-1] + index.sizes[-1] + NOTE_FRAME_BYTES


class Index:
    """The data frames of one file as columns: 36 bytes a frame, however small the commits are."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.sizes = array("I")
        self.content_sizes = array("I")
        self.records = array("I")
        self.first_ts_ns = array("Q")
        self.last_ts_ns = array("Q")

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, at: int) -> IndexEntry:
        return IndexEntry(
            offset=self.offsets[at],
            size_bytes=self.sizes[at],
            content_bytes=self.content_sizes[at],
            records=self.records[at],
            first_ts_ns=self.first_ts_ns[at],
            last_ts_ns=self.last_ts_ns[at],
        )

    def append(self, entry: IndexEntry) -> None:
        self.offsets.append(entry.offset)
        self.sizes.append(entry.size_bytes)
        self.content_sizes.append(entry.content_bytes)
        self.records.append(entry.records)
        self.first_ts_ns.append(entry.first_ts_ns)
        self.last_ts_ns.append(entry.last_ts_ns)

    def all_columns(self) -> tuple[array[int], ...]:
        """In the order of an entry of the index frame."""
        return (
            self.offsets,
            self.sizes,
            self.content_sizes,
            self.records,
            self.first_ts_ns,
            self.last_ts_ns,
        )

    def columns(self) -> Iterator[tuple[int, ...]]:
        """The entries as tuples in the order of the index frame."""
        return zip(*self.all_columns(), strict=True)


# What a note says of a group whose times nobody knows: it overlaps every range.
ANY_TIME = (0, 2**64 - 1)


def knows_times(index: Index) -> bool:
    """Whether any frame has a range of time."""
    times = zip(index.first_ts_ns, index.last_ts_ns, strict=True)
    return any(found != ANY_TIME for found in times)


def is_skippable_magic(magic: bytes) -> bool:
    return len(magic) == 4 and 0x50 <= magic[0] <= 0x5F and magic[1:] == OUR_MAGIC[1:]


def skippable(content: bytes, magic: bytes = OUR_MAGIC) -> bytes:
    return SKIPPABLE.pack(magic, len(content)) + content


def encode_note(group: Group) -> bytes:
    content = _NOTE.pack(NOTE_TAG, group.records, group.first_ts_ns, group.last_ts_ns)
    return skippable(content + _CRC.pack(crc32(content)))


def decode_note(content: bytes) -> Note | None:
    """The note in a skippable frame, or None when it is damaged."""
    if len(content) != _NOTE.size + _CRC.size:
        return None
    if _CRC.unpack_from(content, _NOTE.size)[0] != crc32(content[: _NOTE.size]):
        return None
    _, records, first, last = _NOTE.unpack_from(content)
    return Note(records=records, first_ts_ns=first, last_ts_ns=last)


def encode_index(index: Index) -> bytes:
    content = _INDEX_HEAD.pack(INDEX_TAG, len(index)) + b"".join(
        [_INDEX_ENTRY.pack(*columns) for columns in index.columns()]
    )
    return skippable(content + _CRC.pack(crc32(content)))


def decode_index(content: bytes) -> Index | None:
    """The index in a skippable frame's content, or None when it is damaged."""
    body = content[: -_CRC.size]
    if len(body) < _INDEX_HEAD.size or not body.startswith(INDEX_TAG):
        return None
    if _CRC.unpack_from(content, len(body))[0] != crc32(body):
        return None
    (_, count) = _INDEX_HEAD.unpack_from(body)
    if count > FRAMES_MAX or len(body) != _INDEX_HEAD.size + count * _INDEX_ENTRY.size:
        return None
    index = Index()
    # A column at a time: a search by time waits for this, and large files have some 20,000 frames.
    columns = zip(*_INDEX_ENTRY.iter_unpack(body[_INDEX_HEAD.size :]), strict=True)
    for column, values in zip(index.all_columns(), columns, strict=False):
        column.extend(values)
    return index


def encode_seek_table(sizes: Sequence[tuple[int, int]]) -> bytes:
    """The table over frames of (size, content size), the index frame included."""
    entries = b"".join([_SEEK_ENTRY.pack(*pair) for pair in sizes])
    return skippable(entries + SEEK_FOOTER.pack(len(sizes), 0, SEEKABLE_MAGIC), SEEK_MAGIC)


def decode_seek_table(content: bytes) -> list[tuple[int, int]] | None:
    """The (size, content size) of each frame, or None when it is damaged."""
    if len(content) < SEEK_FOOTER.size:
        return None
    count, descriptor, magic = SEEK_FOOTER.unpack_from(content, len(content) - SEEK_FOOTER.size)
    entries = content[: -SEEK_FOOTER.size]
    if magic != SEEKABLE_MAGIC or descriptor != 0 or len(entries) != count * _SEEK_ENTRY.size:
        return None
    return list(_SEEK_ENTRY.iter_unpack(entries))


class ZstdContainer:
    """Encodes the commits of one file and remembers what the index needs."""

    def __init__(self, header: bytes, level: int) -> None:
        self.file_header = skippable(header)
        self.index = Index()
        self.end = len(self.file_header)
        self._level = level
        self._pending: list[IndexEntry] = []

    @property
    def time_range_ns(self) -> tuple[int, int] | None:
        """Earliest and latest publish time of what was kept."""
        if not len(self.index):
            return None
        return min(self.index.first_ts_ns), max(self.index.last_ts_ns)

    @property
    def frames(self) -> int:
        return len(self.index)

    def encode(self, groups: Sequence[Group]) -> bytes:
        parts: list[bytes] = []
        self._pending = []
        offset = self.end
        compressor = compressor_of(self._level)
        for group in groups:
            frame = compressor.compress(group.content)
            parts += (frame, encode_note(group))
            self._pending.append(
                IndexEntry(
                    offset=offset,
                    size_bytes=len(frame),
                    content_bytes=len(group.content),
                    records=group.records,
                    first_ts_ns=group.first_ts_ns,
                    last_ts_ns=group.last_ts_ns,
                )
            )
            offset += len(frame) + NOTE_FRAME_BYTES
        return b"".join(parts)

    def keep(self) -> None:
        """What `encode` returned last is durable."""
        for entry in self._pending:
            self.index.append(entry)
            self.end = entry.offset + entry.size_bytes + NOTE_FRAME_BYTES
        self._pending = []

    def trailer(self) -> bytes:
        return encode_trailer(len(self.file_header), self.index)


def encode_trailer(header_frame_bytes: int, index: Index) -> bytes:
    """Index frame and seek table of a file that begins with a header frame of this size."""
    index_frame = encode_index(index)
    return index_frame + encode_seek_table(frame_sizes(header_frame_bytes, index, len(index_frame)))


def frame_sizes(
    header_frame_bytes: int, index: Index, index_frame_bytes: int
) -> list[tuple[int, int]]:
    """What the seek table of such a file holds."""
    sizes = [(NOTE_FRAME_BYTES, 0)] * (2 * len(index) + 2)
    sizes[0], sizes[-1] = (header_frame_bytes, 0), (index_frame_bytes, 0)
    sizes[1:-1:2] = zip(index.sizes, index.content_sizes, strict=True)
    return sizes


def offsets_agree(header_frame_bytes: int, index: Index) -> bool:
    """Whether the offsets are what the sizes add up to."""
    steps = [size + NOTE_FRAME_BYTES for size in index.sizes]
    offsets = accumulate(steps, initial=header_frame_bytes)
    return all(map(eq, index.offsets, offsets))


_compressors = threading.local()


def compressor_of(level: int) -> zstandard.ZstdCompressor:
    """This thread's compressor of a level, for all its files: each costs some 3 MB of tables."""
    kept: dict[int, zstandard.ZstdCompressor] = vars(_compressors).setdefault("of_level", {})
    if level not in kept:
        kept[level] = _new_compressor(level)
    return kept[level]


def _new_compressor(level: int) -> zstandard.ZstdCompressor:
    """Levels 1 to 3 with tables that fit a processor's second-level cache, whatever a group's size.

    zstd's own choice for more than 128 KiB is tables of 1 MiB at level 3. On 250 KB of log lines the
    smaller ones took 1.0 us a message instead of 1.15, at a ratio of 5.86 instead of 5.48. The window
    stays as large: what repeats far away is found as before.
    """
    if level > _TABLES_LEVEL_MAX:
        return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        source_size=_TABLES_SOURCE_BYTES,
        window_log=_WINDOW_LOG,
        write_checksum=True,
        write_content_size=True,
    )
    return zstandard.ZstdCompressor(compression_params=parameters)
