"""How much of an unfinished file is whole: one pass over it, in pieces, that changes nothing.

Record format and compression are what the file's claim says, and are not guessed. Which pass is whose
stands in their tables (`archive.formats`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zlib_ng.zlib_ng import crc32

from nsqtools.archive import gzip_members, zstd_frames
from nsqtools.archive.framed import FramedDecoder
from nsqtools.archive.header import HeaderError
from nsqtools.archive.jsonl_reading import JsonlDecoder
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.stream import BODY_BYTES_MAX, Damage, Source
from nsqtools.archive.zstd_walk import ZstdWalk
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.formats import Compression, RecordFormat
    from nsqtools.archive.stream import RecordDecoder, Records


@dataclass(slots=True, kw_only=True)
class Survey:
    """`end` is where the last whole commit ends; `damage` is what stands behind it, if anything.

    `trailer` is to be written at `end` to seal the file; nothing, when it needs none, or has one, which
    are the last `trailer_bytes` before `end`. `groups` are
    members or frames with content; that of all whole ones has `content_bytes` and `content_crc32`.
    """

    size_bytes: int = 0
    end: int = 0
    trailer_bytes: int = 0
    records: int = 0
    groups: int = 0
    content_bytes: int = 0
    content_crc32: int = 0
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None
    damage: Damage | None = None
    trailer: bytes = b""

    @property
    def commits_end(self) -> int:
        """Where the last whole commit ends, and what seals the file begins."""
        return self.end - self.trailer_bytes

    def add(self, records: int, first_ts_ns: int | None, last_ts_ns: int | None) -> None:
        self.records += records
        if first_ts_ns is None or last_ts_ns is None:
            return
        if self.first_ts_ns is None or first_ts_ns < self.first_ts_ns:
            self.first_ts_ns = first_ts_ns
        if self.last_ts_ns is None or last_ts_ns > self.last_ts_ns:
            self.last_ts_ns = last_ts_ns


def survey(fd: int, path: Path, record_format: RecordFormat, compression: Compression) -> Survey:
    """Read the open file from its start. Raises `StorageError`, never `Damage`."""
    found = Survey()
    try:
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            file.seek(0)
            source = Source(file, path)
            found.size_bytes = source.size_bytes()
            compression.survey(source, found, record_format)
    except Damage as damage:
        found.damage = damage
    except OSError as error:
        raise StorageError("read", path, error) from error
    return found


def survey_plain(source: Source, found: Survey, record_format: RecordFormat) -> None:
    """Of a file without compression."""
    record_format.survey(source, found)


def _check_start(source: Source, magic: bytes) -> None:
    start = source.peek(len(magic))
    if not magic.startswith(start):
        raise Damage(0, "not a file that a writer of archives began")


def survey_zstd(source: Source, found: Survey, _record_format: RecordFormat) -> None:
    """Frames with their notes, which say how many records there are."""
    _check_start(source, zstd_frames.OUR_MAGIC)
    walk = ZstdWalk(source, strict=True)
    try:
        for block in walk.blocks():
            found.content_crc32 = crc32(block.data, found.content_crc32)
    finally:
        # Whatever ended the walk: this is what it had seen whole.
        found.end = walk.committed_end
        index = walk.index
        found.records = sum(index.records)
        found.groups = len(index)
        found.content_bytes = sum(index.content_sizes)
        found.first_ts_ns = min(index.first_ts_ns, default=None)
        found.last_ts_ns = max(index.last_ts_ns, default=None)
        if len(index) and walk.is_sealed:
            found.trailer_bytes = walk.committed_end - zstd_frames.commits_end(index)
        if len(index) and not walk.is_sealed:
            found.trailer = zstd_frames.encode_trailer(walk.header_frame_bytes, index)


class _Counter:
    """Counts records in content; what was counted becomes part of the survey by `commit`."""

    def __init__(self, record_format: RecordFormat) -> None:
        self._decoder: RecordDecoder | None = None
        if not record_format.is_any_line:
            new_decoder = record_format.new_decoder
            self._decoder = new_decoder(body_bytes_max=BODY_BYTES_MAX, header_due=True)
        self._pending = Survey()
        self._crc32 = 0

    def feed(self, data: bytes) -> None:
        self._pending.content_bytes += len(data)
        self._crc32 = crc32(data, self._crc32)
        if self._decoder is None:
            self._pending.records += data.count(NEWLINE)
            return
        for run in self._decoder.feed(data, 0):
            _add(self._pending, run)

    def commit(self, found: Survey, end: int) -> None:
        found.add(self._pending.records, self._pending.first_ts_ns, self._pending.last_ts_ns)
        found.end = end
        if self._pending.content_bytes:
            found.groups += 1
            found.content_bytes += self._pending.content_bytes
            found.content_crc32 = self._crc32
        self._pending = Survey()


def survey_gzip(source: Source, found: Survey, record_format: RecordFormat) -> None:
    """Members, whose records are counted."""
    _check_start(source, gzip_members.MAGIC)
    try:
        header = gzip_members.read_gzip_header(source)
    except HeaderError as error:
        raise Damage(0, error.reason, torn=error.torn) from error
    if header is None:
        size = found.size_bytes
        torn = size < gzip_members.HEADER_START_BYTES
        raise Damage(0, "no file header in the first gzip member", torn=torn)
    counter = _Counter(record_format)
    while source.peek(1):
        member = source.position
        try:
            for data in gzip_members.member_pieces(source):
                counter.feed(data)
        except Damage as damage:
            raise Damage(member, damage.reason, torn=damage.torn) from damage
        counter.commit(found, source.position)


def survey_framed(source: Source, found: Survey) -> None:
    """Groups with their marks."""
    decoder = FramedDecoder(BODY_BYTES_MAX, header_due=True)
    try:
        while data := source.take_some():
            for run in decoder.feed(data, source.position - len(data)):
                _add(found, run)
        for _ in decoder.finish():
            pass
    finally:
        found.end = decoder.committed_end


def survey_lines(source: Source, found: Survey) -> None:
    """Whole lines, of any length."""
    _survey_lines(source, found, None)


def survey_jsonl(source: Source, found: Survey) -> None:
    """Whole lines, and their times."""
    _survey_lines(source, found, JsonlDecoder(BODY_BYTES_MAX))


def _survey_lines(source: Source, found: Survey, decoder: JsonlDecoder | None) -> None:
    while data := source.take_some():
        start = source.position - len(data)
        if decoder is None:
            found.records += data.count(NEWLINE)
        else:
            _count_jsonl(decoder, data, start, found)
        if (cut := data.rfind(NEWLINE)) >= 0:
            found.end = start + cut + 1
    if found.end < found.size_bytes:
        raise Damage(found.end, "a cut line", torn=True)


def _count_jsonl(decoder: JsonlDecoder, data: bytes, start: int, found: Survey) -> None:
    try:
        for run in decoder.feed(data, start):
            _add(found, run)
    except Damage as damage:
        found.end = damage.offset
        raise


def _add(found: Survey, run: Records) -> None:
    if run.messages is not None:
        found.add(len(run.bodies), *run.messages.time_range_ns())
