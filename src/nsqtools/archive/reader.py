"""Reading archives and plain logs: `open_archive`, then `batches` (docs/formats.md, "Reading").

Record format and compression are recognised from the bytes. Everything whole is handed out before
damage is reported. Memory is bounded by a batch, a group (4 MiB and a record) and 32 MiB of
verified content.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from nsqtools.archive.files import PART_SUFFIX, is_unfinished
from nsqtools.archive.formats import (
    COMPRESSIONS,
    FRAMED,
    JSONL,
    LINES,
    NONE,
    RECORD_FORMATS,
    START_BYTES,
)
from nsqtools.archive.header import MAGIC, HeaderError, decode_header, looks_damaged
from nsqtools.archive.jsonl import LINE_START, line_bytes_max
from nsqtools.archive.jsonl_reading import is_ours
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.stream import (
    BODY_BYTES_MAX,
    READ_BYTES,
    Block,
    Damage,
    Records,
    Source,
)
from nsqtools.archive.zstd_frames import knows_times
from nsqtools.archive.zstd_walk import ZstdWalk, indexed_blocks, load_index, skim_index
from nsqtools.errors import ArchiveError, DamagedArchive, StorageError

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from nsqtools.archive.formats import Compression, RecordFormat
    from nsqtools.archive.stream import Walk
    from nsqtools.archive.zstd_frames import Index, IndexEntry

T = TypeVar("T")

BATCH_RECORDS_MAX = 10_000
BATCH_BYTES_MAX = 1 << 20
# Of a file of which the index may be all that is read.
LOOK_BYTES = 4096
# Frames of small commits are joined up to this much, so that a batch is worth its overhead.
_JOINED_BYTES = 256 << 10
_SNIFF_BYTES_MAX = 1 << 20
_NEWER_HINT = "Read it with the nsqtools that wrote it, or a later one."
_TIMESTAMPS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveInfo:
    """What is known without reading the records.

    `sealed`: of a zstd archive, that its index is there and sound; of others, that the name does
    not end with `.part`. Counts and times (ns since the epoch) are known with an index only.
    """

    record_format: str
    compression: str
    meta: dict[str, str]
    sealed: bool
    frames: int | None = None
    records: int | None = None
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None
    content_bytes: int | None = None


def open_archive(
    source: Path | BinaryIO | io.RawIOBase,
    *,
    record_format: str | None = None,
    compression: str | None = None,
    name: str = "",
    body_bytes_max: int = BODY_BYTES_MAX,
    read_bytes: int = READ_BYTES,
    look_bytes: int | None = None,
) -> ArchiveReader:
    """Open a file, or a binary stream that need not be seekable (it is not closed).

    `record_format` and `compression` override what the bytes say. `name` stands in messages.
    `read_bytes` is what is read at a time: little, for a look at `info` alone. `look_bytes` is that
    until `info` is known: little, where much may be passed over by its index.
    Raises `StorageError`, `ArchiveError` for a version or an override that is not known, and
    `DamagedArchive` where the start of a file of ours is damaged beyond recognition.
    """
    wanted = (
        _named(RECORD_FORMATS, "record format", record_format),
        _named(COMPRESSIONS, "compression", compression),
    )
    owned = isinstance(source, Path)
    if isinstance(source, Path):
        try:
            file: BinaryIO | io.RawIOBase = source.open("rb", buffering=0)
        except OSError as error:
            raise StorageError("open", source, error) from error
    else:
        file = source
    label = name or (str(source) if owned else getattr(source, "name", "stream"))
    try:
        opened = Source(file, str(label), read_bytes=look_bytes or read_bytes)
        reader = ArchiveReader(opened, *wanted, body_bytes_max, owned=owned)
        opened.read_bytes = read_bytes
        return reader
    except BaseException as error:
        if owned:
            file.close()
        if isinstance(error, Damage):
            raise DamagedArchive(str(label), error.offset, 0, error.reason) from error
        raise


def _named(known: Mapping[str, T], kind: str, name: str | None) -> T | None:
    if name is None:
        return None
    if name not in known:
        raise ArchiveError(f"unknown {kind} {name}")
    return known[name]


def named_compression(name: str) -> str:
    """The compression that a name tells, "" for none. What begins otherwise is damaged."""
    finished = name.removesuffix(PART_SUFFIX)
    named = [one for one in COMPRESSIONS.values() if one.suffix and finished.endswith(one.suffix)]
    return named[0].name if named else ""


class ArchiveReader:
    """One open archive; made by `open_archive`. Blocking: for a worker thread."""

    def __init__(
        self,
        source: Source,
        record_format: RecordFormat | None,
        compression: Compression | None,
        body_bytes_max: int,
        *,
        owned: bool,
    ) -> None:
        self._source = source
        self._owned = owned
        self._name = str(source.name)
        self._body_bytes_max = body_bytes_max
        self._records = 0
        self._compression = compression or self._recognise_compression(record_format)
        self._meta = self._read_meta()
        self._index: Index | None = None
        self._index_ends: Damage | None = None
        if self._compression.has_index and source.seekable:
            self._index = load_index(source)
            source.seek(0)
        self._walk: Walk = self._compression.new_walk(source)
        self._primed: Iterator[Block] | None = self._walk.blocks()
        self._record_format = record_format or self._recognise_record_format()
        self.info = self._describe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, when it was opened by path."""
        if self._owned:
            self._source.close()

    @property
    def selects_exactly(self) -> bool:
        """Whether a range of time gives the messages in it and no others."""
        return self._record_format.keeps_ids

    def batches(
        self, since_ns: int | None = None, until_ns: int | None = None
    ) -> Iterator[Records]:
        """All records, or those published from `since_ns` up to but not including `until_ns`.

        `lines` with an index gives whole frames that overlap the range. Of a stream that cannot
        seek this may be called once. Raises `DamagedArchive` after everything whole,
        `ArchiveError` when the range cannot be applied, `StorageError`.
        """
        wanted = _range_of(since_ns, until_ns)
        if wanted is None:
            return self._read(self._start(), 0, None)
        index = self._index_for_times()
        if index is None:
            return self._read(self._start(), 0, wanted)
        return self._select(index, wanted)

    def content(self, since_ns: int | None = None, until_ns: int | None = None) -> Iterator[Block]:
        """What `batches` gives of `lines`, as it stands in the file and not cut into records.

        A last line may lack its end. Raises as `batches` does; for `lines` only.
        """
        assert not self._record_format.keeps_ids, "selected by the record"  # noqa: S101
        wanted = _range_of(since_ns, until_ns)
        index = None if wanted is None else self._index_for_times()
        if wanted is None or index is None:
            blocks = self._start()
            notes = self._walk.index if self._meta and isinstance(self._walk, ZstdWalk) else None
            return self._checked(blocks, 0, notes)
        return self._select_content(index, wanted)

    def _select_content(self, index: Index, wanted: range) -> Iterator[Block]:
        self._primed = None
        for stretch, first_record in _stretches(index, wanted):
            yield from self._checked(indexed_blocks(self._source, stretch), first_record, index)
        if self._index_ends is not None:
            raise self._damaged(self._index_ends) from self._index_ends

    def _checked(
        self, blocks: Iterator[Block], first_record: int, notes: Index | None
    ) -> Iterator[Block]:
        """The blocks; what `notes` say is not counted here, which would cost half as much again."""
        self._records = first_record
        try:
            for block in blocks:
                yield block
                if notes is None:
                    self._records += block.data.count(NEWLINE)
            if self._walk.late is not None:
                raise self._walk.late
        except Damage as damage:
            if notes is not None:
                pairs = zip(notes.offsets, notes.records, strict=True)
                self._records = sum(count for at, count in pairs if at < damage.offset)
            raise self._damaged(damage) from damage

    def _index_for_times(self) -> Index | None:
        """The index; of a file that was not sealed, what its notes say.

        None where records have times of their own; raises `ArchiveError` where nothing has.
        """
        keeps_ids = self._record_format.keeps_ids
        can_skim = self._compression.has_index and self._source.seekable and not keeps_ids
        if self._index is None and can_skim:
            self._source.seek(0)
            self._index, self._index_ends = skim_index(self._source)
        index = self._index
        if index is not None and len(index) and knows_times(index):
            return index
        if keeps_ids:
            return None
        raise ArchiveError(
            f"{self._name}: lines keep no time, and there is no index to select by",
            hint="Read the whole file, or archive as framed, jsonl, or with zstd.",
        )

    def _select(self, index: Index, wanted: range) -> Iterator[Records]:
        """Batches of the frames that overlap, each stretch of neighbours with its own count."""
        self._primed = None
        kept = wanted if self._record_format.keeps_ids else None
        for stretch, first_record in _stretches(index, wanted):
            yield from self._read(indexed_blocks(self._source, stretch), first_record, kept)
        if self._index_ends is not None:
            raise self._damaged(self._index_ends) from self._index_ends

    def _read(
        self, blocks: Iterator[Block], first_record: int, wanted: range | None
    ) -> Iterator[Records]:
        self._records = first_record
        try:
            for run in self._runs(blocks, header_due=first_record == 0):
                for batch in _batches_of(run, self._records):
                    kept = batch if wanted is None else _within(batch, wanted)
                    if kept is not None:
                        yield kept
                self._records += len(run.bodies)
        except Damage as damage:
            raise self._damaged(damage) from damage

    def _runs(self, blocks: Iterator[Block], *, header_due: bool) -> Iterator[Records]:
        decoder = self._record_format.new_decoder(
            body_bytes_max=self._body_bytes_max, header_due=header_due
        )
        compressed = self._compression is not NONE
        offset = 0
        try:
            for block in _joined(blocks) if compressed else blocks:
                offset = block.offset
                for run in decoder.feed(block.data, block.offset):
                    yield replace(run, offset=offset) if compressed else run
            yield from decoder.finish()
        except Damage as damage:
            if compressed and not damage.in_container:
                damage.offset = offset  # a decoder counts in content: name the frame instead
            raise
        if self._walk.late is not None:
            raise self._walk.late

    def _start(self) -> Iterator[Block]:
        blocks, self._primed = self._primed, None
        if blocks is not None:
            return blocks
        if not self._source.seekable:
            raise ArchiveError(f"{self._name}: a stream that cannot seek can be read once only")
        self._source.seek(0)
        self._walk = self._compression.new_walk(self._source)
        return self._walk.blocks()

    def _recognise_compression(self, record_format: RecordFormat | None) -> Compression:
        start = self._source.peek(START_BYTES)
        for compression in COMPRESSIONS.values():
            if compression.begins(start):
                return compression
        if record_format is None and not start.startswith(MAGIC) and looks_damaged(start):
            raise self._damaged(Damage(0, "a damaged file header"))
        if start and (named := named_compression(self._name)):
            raise self._damaged(Damage(0, f"no {named}, as its name says that it is"))
        return NONE

    def _read_meta(self) -> dict[str, str]:
        """What the file header says; nothing when it is damaged, which is met again on the way."""
        try:
            header = self._compression.peek_header(self._source)
            return {} if header is None else decode_header(header).meta
        except HeaderError as error:
            if error.newer:
                raise ArchiveError(f"{self._name}: {error.reason}", hint=_NEWER_HINT) from error
            return {}

    def _recognise_record_format(self) -> RecordFormat:
        name = self._meta.get("format")
        if name is None:
            return self._sniff()
        if name not in RECORD_FORMATS:
            problem = f"{self._name}: unknown record format {name}"
            raise ArchiveError(problem, hint=_NEWER_HINT)
        return RECORD_FORMATS[name]

    def _sniff(self) -> RecordFormat:
        """The record format of content without a header: by its first line."""
        blocks = self._primed or iter(())
        first: list[Block] = []
        damage: Damage | None = None
        size = 0
        try:
            for block in blocks:
                first.append(block)
                size += len(block.data)
                if NEWLINE in block.data or size > self._sniff_bytes_max(first[0].data):
                    break
        except Damage as found:
            damage = found
        self._primed = _again(first, blocks, damage)
        start = b"".join([block.data for block in first])
        if start.startswith(MAGIC):
            return FRAMED
        return JSONL if is_ours(start.split(NEWLINE, 1)[0]) else LINES

    def _sniff_bytes_max(self, start: bytes) -> int:
        """How far to look for the end of the first line: what begins like ours can be long."""
        like_ours = start.startswith(LINE_START)
        return line_bytes_max(self._body_bytes_max) if like_ours else _SNIFF_BYTES_MAX

    def _describe(self) -> ArchiveInfo:
        index = self._index
        if index is None:
            return ArchiveInfo(
                record_format=self._record_format.name,
                compression=self._compression.name,
                meta=self._meta,
                sealed=not (self._compression.has_index or is_unfinished(self._name)),
            )
        return ArchiveInfo(
            record_format=self._record_format.name,
            compression=self._compression.name,
            meta=self._meta,
            sealed=True,
            frames=len(index),
            records=sum(index.records),
            first_ts_ns=min(index.first_ts_ns) if knows_times(index) else None,
            last_ts_ns=max(index.last_ts_ns) if knows_times(index) else None,
            content_bytes=sum(index.content_sizes),
        )

    def _damaged(self, damage: Damage) -> DamagedArchive:
        return DamagedArchive(self._name, damage.offset, self._records, damage.reason)


def _range_of(since_ns: int | None, until_ns: int | None) -> range | None:
    if since_ns is None and until_ns is None:
        return None
    return range(max(since_ns or 0, 0), _TIMESTAMPS if until_ns is None else until_ns)


def _stretches(index: Index, wanted: range) -> Iterator[tuple[list[IndexEntry], int]]:
    """Neighbouring frames that overlap the range, and the number of the first record in each."""
    first_record = 0
    stretch: list[IndexEntry] = []
    stretch_first = 0
    times = zip(index.first_ts_ns, index.last_ts_ns, index.records, strict=True)
    for at, (first_ts_ns, last_ts_ns, records) in enumerate(times):
        if last_ts_ns >= wanted.start and first_ts_ns < wanted.stop:
            if not stretch:
                stretch_first = first_record
            stretch.append(index[at])
        elif stretch:
            yield stretch, stretch_first
            stretch = []
        first_record += records
    if stretch:
        yield stretch, stretch_first


def _again(first: list[Block], rest: Iterator[Block], damage: Damage | None) -> Iterator[Block]:
    """What was looked at, what follows, and the damage that was met while looking."""
    yield from first
    if damage is not None:
        raise damage
    yield from rest


def _joined(blocks: Iterator[Block]) -> Iterator[Block]:
    """Neighbouring small blocks as one; what came before damage goes out before it is raised."""
    held: list[bytes] = []
    size = 0
    offset = 0
    damage: Damage | None = None
    try:
        for block in blocks:
            if held and size + len(block.data) > _JOINED_BYTES:
                yield Block(data=b"".join(held), offset=offset)
                held, size = [], 0
            if not held:
                offset = block.offset
            held.append(block.data)
            size += len(block.data)
    except Damage as found:
        damage = found
        damage.in_container = True
    if held:
        yield Block(data=b"".join(held), offset=offset)
    if damage is not None:
        raise damage


def _batches_of(run: Records, first_record: int) -> Iterator[Records]:
    """A run in batches of at most BATCH_RECORDS_MAX, and BATCH_BYTES_MAX of bodies or one record."""
    run = replace(run, first_record=first_record)
    count = len(run.bodies)
    if count <= BATCH_RECORDS_MAX and sum(map(len, run.bodies)) <= BATCH_BYTES_MAX:
        yield run
        return
    before = list(accumulate(map(len, run.bodies), initial=0))
    start = 0
    while start < count:
        fitting = bisect_right(before, before[start] + BATCH_BYTES_MAX) - 1
        stop = max(start + 1, min(fitting, start + BATCH_RECORDS_MAX))
        yield run.part(start, stop)
        start = stop


def _within(batch: Records, wanted: range) -> Records | None:
    """The records published in the range."""
    if batch.messages is None:
        return batch
    timestamps = batch.messages.timestamps
    keep = [at for at, timestamp in enumerate(timestamps) if timestamp in wanted]
    if len(keep) == len(timestamps):
        return batch
    return batch.pick(keep) if keep else None
