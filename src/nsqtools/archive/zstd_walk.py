"""Reading a chain of zstd frames: in order with every check, or by its index."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from nsqtools.archive.groups import Group
from nsqtools.archive.header import MAGIC, HeaderError, decode_header
from nsqtools.archive.stream import (
    BLOCK_BYTES_MAX,
    VERIFIED_BYTES_MAX,
    Block,
    Damage,
)
from nsqtools.archive.zstd_ahead import Frames, new_decompressor
from nsqtools.archive.zstd_frames import (
    INDEX_TAG,
    NOTE_FRAME_BYTES,
    NOTE_TAG,
    SEEK_ENTRIES_MAX,
    SEEK_FOOTER,
    SEEK_MAGIC,
    SEEKABLE_MAGIC,
    SKIPPABLE_BYTES,
    Index,
    IndexEntry,
    decode_index,
    decode_note,
    decode_seek_table,
    frame_sizes,
    offsets_agree,
)
from nsqtools.archive.zstd_reading import DataFrame, Skippable, decode_frame, next_frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.stream import Source


class ZstdWalk:
    """The frames of a file in order.

    Notes, index and seek table of our own files are compared with what was read. A fault in them
    alone does not stop the reading: it is kept in `late`, for after the end; unless `strict`.
    """

    def __init__(
        self,
        source: Source,
        *,
        strict: bool = False,
        header_frame_bytes: int = 0,
        threads: int = 0,
    ) -> None:
        """With `header_frame_bytes` it begins within a file of ours that has such a header. With
        `threads` it decodes ahead, and its end is to be told by `close`."""
        self._frames = Frames(source, threads)
        self._strict = strict
        self._content_bytes = 0
        self._index_frame_bytes = 0
        self.header_frame_bytes = header_frame_bytes
        """Of the header frame last met; 0 outside our own files."""
        self.index = Index()
        """The frames since then."""
        self.committed_end = 0
        """Offset behind the last whole commit, the header, or the seek table."""
        self.is_sealed = False
        self.late: Damage | None = None

    def blocks(self) -> Iterator[Block]:
        """Content in pieces; raises `Damage` behind the last commit that is whole."""
        while (frame := self._frames.next()) is not None:
            if isinstance(frame, DataFrame):
                yield from self._data(frame)
            elif frame.magic == SEEK_MAGIC:
                self._take_seek_table(frame)
            elif frame.is_ours:
                self._take_ours(frame)

    def close(self) -> None:
        """Let go of the threads."""
        self._frames.close()

    def _data(self, frame: DataFrame) -> Iterator[Block]:
        if self._index_frame_bytes:
            raise Damage(frame.offset, "data behind the index")
        parts: list[bytes] = []
        self._content_bytes = held = 0
        for data in self._frames.decoded(frame, BLOCK_BYTES_MAX):
            parts.append(data)
            held += len(data)
            self._content_bytes += len(data)
            if held > VERIFIED_BYTES_MAX:
                yield from in_blocks(parts, frame.offset)
                parts.clear()
                held = 0
        if self.header_frame_bytes:
            self._take_note(frame)
        yield from in_blocks(parts, frame.offset)

    def _take_note(self, frame: DataFrame) -> None:
        end = self._frames.position
        try:
            found = self._frames.next()
        except Damage as damage:
            reason = "a commit without its note"
            raise Damage(frame.offset, reason, torn=damage.torn) from damage
        if found is None:
            raise Damage(frame.offset, "a commit without its note", torn=True)
        if not isinstance(found, Skippable) or found.size_bytes != NOTE_FRAME_BYTES:
            raise Damage(frame.offset, "a commit without its note")
        note = decode_note(found.content)
        if note is None:
            self._blame(found.offset, "a commit note with a wrong checksum")
            return
        self.index.append(
            IndexEntry(
                offset=frame.offset,
                size_bytes=end - frame.offset,
                content_bytes=self._content_bytes,
                records=note.records,
                first_ts_ns=note.first_ts_ns,
                last_ts_ns=note.last_ts_ns,
            )
        )
        self.committed_end = self._frames.position

    def _take_ours(self, frame: Skippable) -> None:
        if frame.content.startswith(INDEX_TAG) and self.header_frame_bytes:
            self._index_frame_bytes = frame.size_bytes
            index = decode_index(frame.content)
            if index is None or not _same(index, self.index):
                self._blame(frame.offset, "an index that does not fit the data")
        elif frame.content.startswith(NOTE_TAG) or self._is_open():
            self._blame(frame.offset, "a frame of ours where none belongs")
        else:
            self._take_header(frame)

    def _is_open(self) -> bool:
        return self.header_frame_bytes > 0 and not self.is_sealed

    def _take_header(self, frame: Skippable) -> None:
        try:
            decode_header(frame.content)
        except HeaderError as error:
            self._blame(frame.offset, error.reason)
        self.header_frame_bytes = frame.size_bytes
        self.index = Index()
        self.committed_end = self._frames.position
        self._index_frame_bytes = 0
        self.is_sealed = False

    def _take_seek_table(self, frame: Skippable) -> None:
        if not self.header_frame_bytes:
            return  # of somebody else's seekable file: the data is read without it
        table = decode_seek_table(frame.content)
        sizes = frame_sizes(self.header_frame_bytes, self.index, self._index_frame_bytes)
        if table != sizes:
            self._blame(frame.offset, "a seek table that does not fit the data")
        self.is_sealed = True
        self.committed_end = self._frames.position

    def _blame(self, offset: int, reason: str) -> None:
        fault = Damage(offset, reason)
        if self._strict:
            raise fault
        self.late = self.late or fault


def in_blocks(parts: list[bytes], offset: int) -> Iterator[Block]:
    """Content as blocks of bounded size."""
    for part in parts:
        if len(part) <= BLOCK_BYTES_MAX:
            if part:
                yield Block(data=part, offset=offset)
            continue
        for at in range(0, len(part), BLOCK_BYTES_MAX):
            yield Block(data=part[at : at + BLOCK_BYTES_MAX], offset=offset)


def _same(one: Index, other: Index) -> bool:
    # Offsets are left out: they shift when files are put together with `cat`.
    return (
        one.sizes == other.sizes
        and one.content_sizes == other.content_sizes
        and one.records == other.records
        and one.first_ts_ns == other.first_ts_ns
        and one.last_ts_ns == other.last_ts_ns
    )


def load_index(source: Source) -> Index | None:
    """The index of a sealed file, found from its end; None when there is none that can be trusted.

    `source` must be seekable, and is left anywhere.
    """
    try:
        return _load_index(source)
    except Damage:
        return None


def _load_index(source: Source) -> Index | None:
    size = source.size_bytes()
    if size < SEEK_FOOTER.size:
        return None
    source.seek(size - SEEK_FOOTER.size)
    count, _, magic = SEEK_FOOTER.unpack(source.take(SEEK_FOOTER.size))
    if magic != SEEKABLE_MAGIC or not 2 <= count <= SEEK_ENTRIES_MAX:
        return None
    table_at = size - (SKIPPABLE_BYTES + 8 * count + SEEK_FOOTER.size)
    table = _skippable_at(source, table_at)
    sizes = decode_seek_table(table.content) if table and table.magic == SEEK_MAGIC else None
    # Of files put together the table covers the last only.
    if not sizes or sum(pair[0] for pair in sizes) != table_at:
        return None
    frame = _skippable_at(source, table_at - sizes[-1][0])
    index = decode_index(frame.content) if frame and frame.is_ours else None
    if index is None or sizes != frame_sizes(sizes[0][0], index, sizes[-1][0]):
        return None
    return index if offsets_agree(sizes[0][0], index) else None


def skim_index(source: Source) -> tuple[Index | None, Damage | None]:
    """What the notes say, from the start of `source` on, without decoding anything between them: the
    index of a file that has none, or none that can be trusted.

    None where there is no header of ours. The index ends at the first damage, which is returned, too:
    the end of a file that is being written looks like that.
    """
    index = Index()
    try:
        first = next_frame(source)
        if not isinstance(first, Skippable) or not first.is_ours:
            return None, None
        while (frame := next_frame(source)) is not None:
            if isinstance(frame, DataFrame):
                _skim(source, frame, index)
            elif frame.content.startswith(INDEX_TAG):
                return index, Damage(frame.offset, "an index that does not fit the data")
            elif frame.content.startswith(MAGIC):
                return None, None  # files put together: whose notes count from here on is not asked
    except Damage as damage:
        return index, damage
    return index, None


def _skim(source: Source, frame: DataFrame, index: Index) -> None:
    for _ in frame.pieces():
        pass
    end = source.position
    found = next_frame(source)
    note = decode_note(found.content) if isinstance(found, Skippable) else None
    if note is None or frame.content_bytes is None:
        raise Damage(frame.offset, "a commit without its note", torn=found is None)
    index.append(
        IndexEntry(
            offset=frame.offset,
            size_bytes=end - frame.offset,
            content_bytes=frame.content_bytes,
            records=note.records,
            first_ts_ns=note.first_ts_ns,
            last_ts_ns=note.last_ts_ns,
        )
    )


def _skippable_at(source: Source, offset: int) -> Skippable | None:
    if offset < 0:
        return None
    source.seek(offset)
    frame = next_frame(source)
    return frame if isinstance(frame, Skippable) else None


def indexed_blocks(source: Source, entries: Sequence[IndexEntry]) -> Iterator[Block]:
    """The content of the frames named, which are neighbours, each checked as a whole. Nothing behind
    them is read."""
    decompressor = new_decompressor()
    stop = entries[-1].offset + entries[-1].size_bytes
    for entry in entries:
        source.seek(entry.offset, stop)
        frame = next_frame(source)
        if not isinstance(frame, DataFrame) or frame.content_bytes != entry.content_bytes:
            raise Damage(entry.offset, "not the frame that the index names")
        parts = list(decode_frame(frame, decompressor, BLOCK_BYTES_MAX))
        if source.position != entry.offset + entry.size_bytes:
            raise Damage(entry.offset, "not the frame that the index names")
        yield from in_blocks(parts, entry.offset)


def zstd_groups(source: Source) -> Iterator[Group]:
    """The frames of a file as they were committed."""
    walk = ZstdWalk(source, strict=True)
    # With the notes that it belongs to: of files put together each has its own.
    for (offset, index), blocks in groupby(
        ((block, walk.index) for block in walk.blocks()), key=lambda one: (one[0].offset, one[1])
    ):
        content = b"".join([block.data for block, _ in blocks])
        at = bisect_left(index.offsets, offset)
        if at == len(index) or index.offsets[at] != offset:
            raise Damage(offset, "a frame that another program wrote")
        entry = index[at]
        yield Group(
            content=content,
            records=entry.records,
            times=partial(_times_of, entry.first_ts_ns, entry.last_ts_ns),
        )


def _times_of(first_ts_ns: int, last_ts_ns: int) -> tuple[int, int]:
    return first_ts_ns, last_ts_ns
