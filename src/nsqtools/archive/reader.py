"""Reading archives and plain logs: `open_archive`, then `batches` (docs/formats.md, "Reading").

Record format and compression are recognised from the bytes. Everything whole is handed out before
damage is reported. Memory is bounded by a batch, a group (4 MiB and a record) and 32 MiB of
verified content.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from nsqtools.archive import gzip_members, zstd_frames
from nsqtools.archive.framed import FramedDecoder
from nsqtools.archive.header import (
    COMPRESSIONS,
    HEADER_BYTES_MAX,
    MAGIC,
    RECORD_FORMATS,
    HeaderError,
    decode_header,
    looks_damaged,
)
from nsqtools.archive.jsonl import JsonlDecoder, is_ours
from nsqtools.archive.lines import NEWLINE, LinesDecoder
from nsqtools.archive.stream import RECORD_BYTES_MAX, Block, Damage, Source
from nsqtools.archive.zstd_walk import ZstdWalk, indexed_blocks, load_index
from nsqtools.errors import ArchiveError, DamagedArchive, StorageError
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
    from types import TracebackType

    from nsqtools.archive.failures import Failure
    from nsqtools.archive.stream import Records
    from nsqtools.archive.zstd_frames import Index, IndexEntry

BATCH_RECORDS_MAX = 10_000
BATCH_BYTES_MAX = 1 << 20
# Frames of small commits are joined up to this much, so that a batch is worth its overhead.
_JOINED_BYTES = 256 << 10
_SNIFF_BYTES_MAX = 1 << 20
_START_BYTES = 64
_TIMESTAMP_MAX = 2**64 - 1


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordBatch:
    """Records in the order of the file: at most 10,000, and at most 1 MiB of bodies or one record.

    `messages` and `nsqds` are there where the format keeps them, `failures` in a dead letter.
    `first_record` counts from 0 in the file (of a selection by time: the number of the batch's first
    record). `offset` is a byte position in the file: of the first record or its group; when
    compressed, of the first frame.
    """

    messages: Messages | None
    bodies: list[bytes]
    first_record: int
    offset: int
    nsqds: list[str] | None
    failures: list[Failure | None] | None = None


class _Decoder(Protocol):
    def feed(self, data: bytes, offset: int) -> Iterator[Records]: ...

    def finish(self) -> Iterator[Records]: ...


def open_archive(
    source: Path | BinaryIO | io.RawIOBase,
    *,
    record_format: str | None = None,
    compression: str | None = None,
    name: str = "",
    record_bytes_max: int = RECORD_BYTES_MAX,
) -> ArchiveReader:
    """Open a file, or a binary stream that need not be seekable (it is not closed).

    `record_format` and `compression` override what the bytes say. `name` stands in messages.
    Raises `StorageError`, `ArchiveError` for a version or an override that is not known, and
    `DamagedArchive` where the start of a file of ours is damaged beyond recognition.
    """
    if record_format not in (None, *RECORD_FORMATS):
        raise ArchiveError(f"unknown record format {record_format}")
    if compression not in (None, *COMPRESSIONS):
        raise ArchiveError(f"unknown compression {compression}")
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
        opened = Source(file, str(label))
        return ArchiveReader(opened, record_format, compression, record_bytes_max, owned=owned)
    except BaseException:
        if owned:
            file.close()
        raise


class ArchiveReader:
    """One open archive; made by `open_archive`. Blocking: for a worker thread."""

    def __init__(
        self,
        source: Source,
        record_format: str | None,
        compression: str | None,
        record_bytes_max: int,
        *,
        owned: bool,
    ) -> None:
        self._source = source
        self._owned = owned
        self._name = str(source.name)
        self._record_bytes_max = record_bytes_max
        self._records = 0
        self._walk: ZstdWalk | None = None
        self._header_damage: Damage | None = None
        self._compression = compression or self._recognise_compression(record_format)
        self._meta = self._read_meta()
        self._index: Index | None = None
        if self._compression == "zstd" and source.seekable:
            self._index = load_index(source)
            source.seek(0)
        self._primed: Iterator[Block] | None = self._new_blocks()
        self._record_format = record_format or self._meta.get("format") or self._sniff()
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

    def batches(
        self, since_ns: int | None = None, until_ns: int | None = None
    ) -> Iterator[RecordBatch]:
        """All records, or those published from `since_ns` up to but not including `until_ns`.

        `lines` with an index gives whole frames that overlap the range. Of a stream that cannot
        seek this may be called once. Raises `DamagedArchive` after everything whole,
        `ArchiveError` when the range cannot be applied, `StorageError`.
        """
        if since_ns is None and until_ns is None:
            return self._read(self._start(), 0, None)
        since = min(max(since_ns or 0, 0), _TIMESTAMP_MAX)
        until = _TIMESTAMP_MAX if until_ns is None else min(max(until_ns, 0), _TIMESTAMP_MAX)
        # One above the largest is no 64-bit number: eight bytes and one more stand behind it.
        end = until.to_bytes(8, "big") if until_ns is not None else b"\xff" * 9
        bounds = (since.to_bytes(8, "big"), end)
        if self._index is None:
            if self._record_format == "lines":
                raise ArchiveError(
                    f"{self._name}: lines keep no time, and there is no index to select by",
                    hint="Read the whole file, or archive as framed, jsonl, or with zstd.",
                )
            return self._read(self._start(), 0, bounds)
        return self._select(self._index, since, until if until_ns is not None else None, bounds)

    def _select(
        self, index: Index, since: int, until: int | None, bounds: tuple[bytes, bytes]
    ) -> Iterator[RecordBatch]:
        """Batches of the frames that overlap, each stretch of neighbours with its own count."""
        self._primed = None
        first_record = 0
        stretch: list[IndexEntry] = []
        stretch_first = 0
        kept = None if self._record_format == "lines" else bounds
        for at in range(len(index)):
            entry = index[at]
            if entry.last_ts_ns >= since and (until is None or entry.first_ts_ns < until):
                if not stretch:
                    stretch_first = first_record
                stretch.append(entry)
            elif stretch:
                yield from self._read(indexed_blocks(self._source, stretch), stretch_first, kept)
                stretch = []
            first_record += entry.records
        if stretch:
            yield from self._read(indexed_blocks(self._source, stretch), stretch_first, kept)

    def _read(
        self, blocks: Iterator[Block], first_record: int, bounds: tuple[bytes, bytes] | None
    ) -> Iterator[RecordBatch]:
        self._records = first_record
        try:
            for run in self._runs(blocks, header_due=first_record == 0):
                for batch in _batches_of(run, self._records):
                    kept = batch if bounds is None else _within(batch, bounds)
                    if kept is not None:
                        yield kept
                self._records += len(run.bodies)
        except Damage as damage:
            raise self._damaged(damage) from damage

    def _runs(self, blocks: Iterator[Block], *, header_due: bool) -> Iterator[Records]:
        decoder = self._new_decoder(header_due=header_due)
        compressed = self._compression != "none"
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
        late = self._walk.late if self._walk is not None else self._header_damage
        if late is not None:
            raise late

    def _new_decoder(self, *, header_due: bool) -> _Decoder:
        if self._record_format == "framed":
            return FramedDecoder(self._record_bytes_max, header_due=header_due)
        if self._record_format == "jsonl":
            return JsonlDecoder(self._record_bytes_max)
        return LinesDecoder(self._record_bytes_max)

    def _start(self) -> Iterator[Block]:
        blocks, self._primed = self._primed, None
        if blocks is not None:
            return blocks
        if not self._source.seekable:
            raise ArchiveError(f"{self._name}: a stream that cannot seek can be read once only")
        self._source.seek(0)
        return self._new_blocks()

    def _new_blocks(self) -> Iterator[Block]:
        if self._compression == "zstd":
            self._walk = ZstdWalk(self._source)
            return self._walk.blocks()
        if self._compression == "gzip":
            return gzip_members.gzip_blocks(self._source)
        return _plain_blocks(self._source)

    def _recognise_compression(self, record_format: str | None) -> str:
        start = self._source.peek(_START_BYTES)
        if start.startswith(gzip_members.MAGIC):
            return "gzip"
        if start.startswith(zstd_frames.DATA_MAGIC) or zstd_frames.is_skippable_magic(start[:4]):
            return "zstd"
        if record_format is None and not start.startswith(MAGIC) and looks_damaged(start):
            raise self._damaged(Damage(0, "a damaged file header"))
        return "none"

    def _read_meta(self) -> dict[str, str]:
        try:
            header = self._peek_header()
            return {} if header is None else decode_header(header).meta
        except HeaderError as error:
            if error.newer:
                hint = "Read it with the nsqtools that wrote it, or a later one."
                raise ArchiveError(f"{self._name}: {error.reason}", hint=hint) from error
            if self._compression == "gzip":
                # Decompression passes over it, so it is kept for the end; others meet it again.
                self._header_damage = Damage(0, error.reason)
            return {}

    def _peek_header(self) -> bytes | None:
        if self._compression == "gzip":
            return gzip_members.read_gzip_header(self._source)
        is_zstd = self._compression == "zstd"
        # No more than is needed to tell: a pipe may hold it back, and what it gave with it.
        if not self._source.peek(_START_BYTES).startswith(
            zstd_frames.OUR_MAGIC if is_zstd else MAGIC
        ):
            return None
        size = zstd_frames.SKIPPABLE_BYTES if is_zstd else 0
        start = self._source.peek(size + HEADER_BYTES_MAX)
        return start[size:] if start[size:].startswith(MAGIC) else None

    def _sniff(self) -> str:
        """The record format of content without a header: by its first line."""
        blocks = self._primed or iter(())
        first: list[Block] = []
        damage: Damage | None = None
        size = 0
        try:
            for block in blocks:
                first.append(block)
                size += len(block.data)
                if NEWLINE in block.data or size > _SNIFF_BYTES_MAX:
                    break
        except Damage as found:
            damage = found
        self._primed = _again(first, blocks, damage)
        start = b"".join([block.data for block in first])
        if start.startswith(MAGIC):
            return "framed"
        return "jsonl" if is_ours(start.split(NEWLINE, 1)[0]) else "lines"

    def _describe(self) -> ArchiveInfo:
        index = self._index
        if index is None:
            part = self._name.endswith(".part")
            return ArchiveInfo(
                record_format=self._record_format,
                compression=self._compression,
                meta=self._meta,
                sealed=not part and self._compression != "zstd",
            )
        return ArchiveInfo(
            record_format=self._record_format,
            compression=self._compression,
            meta=self._meta,
            sealed=True,
            frames=len(index),
            records=sum(index.records),
            first_ts_ns=min(index.first_ts_ns, default=None),
            last_ts_ns=max(index.last_ts_ns, default=None),
        )

    def _damaged(self, damage: Damage) -> DamagedArchive:
        return DamagedArchive(self._name, damage.offset, self._records, damage.reason)


def _plain_blocks(source: Source) -> Iterator[Block]:
    while True:
        offset = source.position
        data = source.take_some()
        if not data:
            return
        yield Block(data=data, offset=offset)


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


def _batches_of(run: Records, first_record: int) -> Iterator[RecordBatch]:
    whole = len(run.bodies) <= BATCH_RECORDS_MAX
    if whole and sum(map(len, run.bodies)) <= BATCH_BYTES_MAX:
        yield _batch(run, 0, len(run.bodies), first_record)
        return
    start = size = 0
    for at, body in enumerate(run.bodies):
        if at > start and (size + len(body) > BATCH_BYTES_MAX or at - start >= BATCH_RECORDS_MAX):
            yield _batch(run, start, at, first_record)
            start, size = at, 0
        size += len(body)
    yield _batch(run, start, len(run.bodies), first_record)


def _batch(run: Records, start: int, stop: int, first_record: int) -> RecordBatch:
    whole = start == 0 and stop == len(run.bodies)
    payloads, nsqds, failures = run.payloads, run.nsqds, run.failures
    if not whole:
        payloads = None if payloads is None else payloads[start:stop]
        nsqds = None if nsqds is None else nsqds[start:stop]
        failures = None if failures is None else failures[start:stop]
    return RecordBatch(
        messages=None if payloads is None else Messages(payloads),
        bodies=run.bodies if whole else run.bodies[start:stop],
        first_record=first_record + start,
        offset=run.offset,
        nsqds=nsqds,
        failures=failures,
    )


def _within(batch: RecordBatch, bounds: tuple[bytes, bytes]) -> RecordBatch | None:
    """The records published in the range: payloads sort by time, as they begin with it."""
    if batch.messages is None:
        return batch
    since, until = bounds
    payloads = batch.messages.payloads
    keep = [at for at, payload in enumerate(payloads) if since <= payload < until]
    if len(keep) == len(payloads):
        return batch
    if not keep:
        return None
    return RecordBatch(
        messages=Messages([payloads[at] for at in keep]),
        bodies=[batch.bodies[at] for at in keep],
        first_record=batch.first_record + keep[0],
        offset=batch.offset,
        nsqds=None if batch.nsqds is None else [batch.nsqds[at] for at in keep],
        failures=None if batch.failures is None else [batch.failures[at] for at in keep],
    )
