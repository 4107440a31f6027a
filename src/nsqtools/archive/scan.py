"""One pass over a whole file that does not end at damage: what is whole, and what lies between.

`Scan` is what verifying, repairing and rewriting share. It gives, in the order of the file, `Records`
(of `framed` and `jsonl`), `Text` (of `lines`) and `Lost`. Memory is bounded as a reader's is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.archive.formats import FRAMED, JSONL, LINES, NONE, ZSTD
from nsqtools.archive.groups import GROUP_BYTES_MAX
from nsqtools.archive.gzip_members import INPUT_BYTES, member_pieces, read_gzip_header
from nsqtools.archive.header import MAGIC, HeaderError
from nsqtools.archive.jsonl import line_bytes_max
from nsqtools.archive.jsonl_reading import decode_lines, is_ours
from nsqtools.archive.lines import NEWLINE, LineSplitter
from nsqtools.archive.resync import resync
from nsqtools.archive.stream import BODY_BYTES_MAX, Block, Damage, Records
from nsqtools.archive.zstd_walk import ZstdWalk, load_index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.archive.formats import Compression, RecordFormat
    from nsqtools.archive.stream import Source
    from nsqtools.archive.zstd_frames import Index, IndexEntry

# The largest group that a writer makes, with room: a file that says it is ours and has a larger frame
# is not, and is not held in memory.
_FRAME_BYTES_MAX = GROUP_BYTES_MAX + 6 * BODY_BYTES_MAX // 4
NOT_SEALED = "no index at the end: the file was cut, or never finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The bytes from `start` up to `end` are not whole; where these are the same, something is wrong
    there that takes no byte of its own with it.

    `torn`: they only end too early. `records`: how many there were, where an index tells.
    """

    start: int
    end: int
    reason: str
    torn: bool
    records: int | None = None

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Content of `lines`. With `entry`, what its writer noted of it, it is a whole commit or group;
    without, it may begin and end within a line."""

    data: bytes
    offset: int
    entry: IndexEntry | None = None

    def miscounted(self) -> Lost | None:
        """What is wrong where it has fewer lines than were noted, or ends within one. A newline within a
        body makes two lines of it, never fewer."""
        if self.entry is None:
            return None
        lines = self.data.count(NEWLINE)
        if lines >= self.entry.records and self.data.endswith(NEWLINE):
            return None
        reason = f"{lines} lines where {self.entry.records} records were noted"
        return Lost(start=self.offset, end=self.offset, reason=reason, torn=False)


class _Frame:
    """The blocks of one frame until they are all there; of one without a sound note that is known when
    the next begins."""

    def __init__(self) -> None:
        self.offset = -1
        self.size_bytes = 0
        self._parts: list[bytes] = []

    def add(self, block: Block) -> None:
        self.offset = block.offset
        self.size_bytes += len(block.data)
        self._parts.append(block.data)
        if self.size_bytes > _FRAME_BYTES_MAX:
            raise Damage(block.offset, "a frame larger than any writer makes")

    def take(self, entry: IndexEntry | None) -> Iterator[tuple[Block, IndexEntry | None]]:
        parts, self._parts, self.size_bytes = self._parts, [], 0
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            yield Block(data=data, offset=self.offset), entry


class Scan:
    """The pass; iterate once. `source` stands at its start, and must be seekable for what lies behind
    damage to be found: of a stream all of that is lost.

    `is_open`: the file is being written, so that a line without an end is no record yet. `threads`
    decode ahead what can be.
    Iterating raises `StorageError`.
    """

    def __init__(
        self,
        source: Source,
        record_format: RecordFormat,
        compression: Compression,
        *,
        is_open: bool = False,
        threads: int = 0,
    ) -> None:
        self._source = source
        self._format = record_format
        self._compression = compression
        self._is_open = is_open
        self._threads = threads
        self._header_frame_bytes = 0
        self._has_lost = False
        self._index: Index | None = None
        self.content_bytes = 0
        """Without compression, of what was whole so far."""
        self.groups = 0
        """Frames or members that this came from."""
        self.is_sealed = False
        """Of zstd: whether a seek table was met at the end."""

    def __iter__(self) -> Iterator[Records | Text | Lost]:
        source = self._source
        if self._compression.has_index and source.seekable:
            self._index = load_index(source)
            source.seek(0)
        start: int | None = 0
        while start is not None:
            try:
                yield from self._pass(is_first=start == 0)
                return
            except Damage as damage:
                self._has_lost = True
                start = self._next_start(damage)
                end = self._size_bytes() if start is None else start
                yield self._lost(damage, end)
                if start is not None:
                    source.seek(start)

    def _next_start(self, damage: Damage) -> int | None:
        if not self._source.seekable:
            return None
        names = self._compression.name, self._format.name
        # Within it no beginning counts: a message may be an archive itself.
        behind = damage.offset if damage.end is None else damage.end - 1
        try:
            return resync(self._source, *names, behind)
        except Damage:  # it became shorter meanwhile: there is nothing behind it any more
            return None

    def _size_bytes(self) -> int:
        return self._source.size_bytes() if self._source.seekable else self._source.position

    def _lost(self, damage: Damage, end: int) -> Lost:
        records = None
        if self._index is not None:
            pairs = zip(self._index.offsets, self._index.records, strict=True)
            records = sum(count for offset, count in pairs if damage.offset <= offset < end)
        return Lost(
            start=damage.offset,
            end=max(end, damage.offset),
            reason=damage.reason,
            torn=damage.torn,
            records=records,
        )

    def _pass(self, *, is_first: bool) -> Iterator[Records | Text | Lost]:
        """Everything from where the source stands up to damage, which is raised."""
        if self._compression is ZSTD:
            walk = ZstdWalk(
                self._source, header_frame_bytes=self._header_frame_bytes, threads=self._threads
            )
            try:
                yield from self._decoded(self._zstd(walk), is_first=is_first)
            finally:
                walk.close()
                self._header_frame_bytes = walk.header_frame_bytes
                self.is_sealed = walk.is_sealed
            late = walk.late
            if walk.header_frame_bytes and not walk.is_sealed and late is None:
                late = Damage(walk.committed_end, NOT_SEALED, torn=True)
        else:
            plain = self._compression.new_walk(self._source)
            blocks = plain.blocks() if not self._is_foreign_gzip() else self._unchecked()
            yield from self._decoded(((block, None) for block in blocks), is_first=is_first)
            late = plain.late
        if late is not None and not self._has_lost:
            yield self._lost(late, late.offset)

    def _is_foreign_gzip(self) -> bool:
        if self._compression.name != "gzip":
            return False
        try:
            return self._source.position == 0 and read_gzip_header(self._source) is None
        except HeaderError:
            return False

    def _unchecked(self) -> Iterator[Block]:
        """Somebody else's gzip may be one member, which is not to be lost whole for its end.

        Damage is named where it was met, give or take what is read at a time.
        """
        while self._source.peek(1):
            start = self._source.position
            try:
                for data in member_pieces(self._source):
                    yield Block(data=data, offset=start)
            except Damage as damage:
                met = self._source.position - (0 if damage.torn else INPUT_BYTES)
                raise Damage(max(start, met), damage.reason, torn=damage.torn) from damage

    def _zstd(self, walk: ZstdWalk) -> Iterator[tuple[Block, IndexEntry | None]]:
        """Blocks; of our own files whole frames, each with what its note says."""
        held = _Frame()
        try:
            for block in walk.blocks():
                if not walk.header_frame_bytes:
                    yield block, None
                    continue
                if held.offset != block.offset:
                    yield from held.take(None)
                held.add(block)
                entry = walk.index[-1] if len(walk.index) else None
                whole = (block.offset, held.size_bytes)
                if entry is not None and (entry.offset, entry.content_bytes) == whole:
                    yield from held.take(entry)
        except Damage as damage:
            if held.offset != damage.offset:
                yield from held.take(None)
            raise
        yield from held.take(None)

    def _decoded(
        self, found: Iterator[tuple[Block, IndexEntry | None]], *, is_first: bool
    ) -> Iterator[Records | Text | Lost]:
        blocks = self._counted(found)
        if self._format is LINES:
            yield from self._lines(blocks)
        elif self._format is JSONL:
            yield from self._jsonl(blocks)
        else:
            yield from self._framed(blocks, header_due=is_first)

    def _counted(
        self, blocks: Iterator[tuple[Block, IndexEntry | None]]
    ) -> Iterator[tuple[Block, IndexEntry | None]]:
        offset = -1
        for block, entry in blocks:
            self.content_bytes += len(block.data)
            self.groups += block.offset != offset
            offset = block.offset
            yield block, entry

    def _lines(self, blocks: Iterator[tuple[Block, IndexEntry | None]]) -> Iterator[Text | Lost]:
        is_plain = self._compression is NONE
        line_start = end = 0
        line_bytes = 0
        for block, entry in blocks:
            yield Text(data=block.data, offset=block.offset, entry=entry)
            line_bytes += len(block.data)
            if line_bytes > BODY_BYTES_MAX and block.data.find(NEWLINE) < 0:
                # Told once, and no reader takes what stands behind it either.
                start = line_start if is_plain else block.offset
                raise Damage(start, f"a line of more than {BODY_BYTES_MAX} bytes")
            end = block.offset + len(block.data)
            newline = block.data.rfind(NEWLINE)
            if newline >= 0:
                line_start = block.offset + newline + 1
                line_bytes = len(block.data) - newline - 1
        if self._is_open and is_plain and line_start < end:
            yield Lost(start=line_start, end=end, reason="a cut line", torn=True)

    def _jsonl(self, blocks: Iterator[tuple[Block, IndexEntry | None]]) -> Iterator[Records | Lost]:
        splitter = LineSplitter(line_bytes_max(BODY_BYTES_MAX))
        at = 0
        for block, entry in blocks:
            lines, start = splitter.feed(block.data, block.offset)
            at = block.offset
            yield from self._decode_lines(lines, start if self._compression is NONE else at)
            yield from _compared(entry, len(lines), at)
        rest, start = splitter.rest()
        if rest is None:
            return
        found = list(self._decode_lines([rest], start if self._compression is NONE else at))
        for one in found:
            if isinstance(one, Lost):
                yield Lost(start=one.start, end=one.end, reason="a cut line", torn=True)
            else:
                yield one

    def _decode_lines(self, lines: list[bytes], start: int) -> Iterator[Records | Lost]:
        """Records, and a `Lost` for each line that is none."""
        while lines:
            done = 0
            try:
                for run in decode_lines(lines, start):
                    done += len(run.bodies)
                    yield run
            except Damage as damage:
                is_plain = self._compression is NONE
                offset = damage.offset if is_plain else start
                size = len(lines[done]) + 1 if is_plain else 0
                yield Lost(
                    start=offset, end=offset + size, reason=damage.reason, torn=False, records=1
                )
                start = offset + size
                lines = lines[done + 1 :]
            else:
                return

    def _framed(
        self, blocks: Iterator[tuple[Block, IndexEntry | None]], *, header_due: bool
    ) -> Iterator[Records | Lost]:
        decoder = FRAMED.new_decoder(body_bytes_max=BODY_BYTES_MAX, header_due=header_due)
        is_plain = self._compression is NONE
        bad = -1
        at = 0
        for block, entry in blocks:
            at = block.offset
            if at == bad:
                continue  # the rest of the frame or member in which something is wrong
            records = 0
            try:
                for run in decoder.feed(block.data, at):
                    records += len(run.bodies)
                    yield run
                yield from _compared(entry, records, at)
            except Damage as damage:
                if is_plain:
                    raise
                bad = at
                yield Lost(start=at, end=at, reason=damage.reason, torn=False)
                decoder = FRAMED.new_decoder(body_bytes_max=BODY_BYTES_MAX, header_due=False)
        try:
            yield from decoder.finish()
        except Damage as damage:
            if is_plain:
                raise
            yield Lost(start=at, end=at, reason=damage.reason, torn=damage.torn)


def _compared(entry: IndexEntry | None, records: int, offset: int) -> Iterator[Lost]:
    if entry is not None and entry.records != records:
        reason = f"{records} records where {entry.records} were noted"
        yield Lost(start=offset, end=offset, reason=reason, torn=False)


def first_whole_format(source: Source, compression: Compression) -> RecordFormat:
    """The record format of the first frame or member that is whole, without a file header that would
    say it. `source` must be seekable, and is left anywhere. Raises `StorageError`."""
    start: int | None = 0
    while start is not None:
        source.seek(start)
        try:
            block = next(compression.new_walk(source).blocks(), None)
        except Damage as damage:
            with contextlib.suppress(Damage):  # it became shorter meanwhile
                start = resync(source, compression.name, "", max(start, damage.offset))
                continue
            return LINES
        return LINES if block is None else _format_of(block)
    return LINES


def _format_of(block: Block) -> RecordFormat:
    """By what a group begins with."""
    if is_ours(block.data.split(NEWLINE, 1)[0]):
        return JSONL
    decoder = FRAMED.new_decoder(
        body_bytes_max=BODY_BYTES_MAX, header_due=block.data.startswith(MAGIC)
    )
    try:
        is_framed = next(decoder.feed(block.data, block.offset), None) is not None
    except Damage:
        return LINES
    return FRAMED if is_framed else LINES
