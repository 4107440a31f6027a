"""Reading zstd frames one after the other (docs/formats.md, "Compression `zstd`").

Frames are walked by their block headers, so that the extent of each is known without decoding it, and
decoding is always of exactly one frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import zstandard

from nsqtools.archive.stream import VERIFIED_BYTES_MAX, Damage
from nsqtools.archive.zstd_frames import (
    DATA_MAGIC,
    OUR_MAGIC,
    SEEK_MAGIC,
    SKIPPABLE,
    SKIPPABLE_BYTES,
    SKIPPABLE_KEPT_MAX,
    is_skippable_magic,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.archive.stream import Source

_BLOCK_BYTES_MAX = 128 << 10
_FRAME_HEADER_BYTES_MAX = 18
_CHECKSUM_BYTES = 4
_RLE_BLOCK, _RESERVED_BLOCK = 1, 3
_SKIP_BYTES = 256 << 10
# Frames of up to this size are taken whole.
_VIEW_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Skippable:
    """A skippable frame; `content` is empty when it was too large to be one of ours."""

    magic: bytes
    offset: int
    size_bytes: int
    content: bytes

    @property
    def is_ours(self) -> bool:
        return self.magic == OUR_MAGIC


class DataFrame:
    """A data frame at the source's position; `pieces` takes its bytes."""

    def __init__(self, source: Source) -> None:
        self.offset = source.position
        self._source = source
        start = source.peek(_FRAME_HEADER_BYTES_MAX)
        try:
            self._header_bytes = zstandard.frame_header_size(start)
            parameters = zstandard.get_frame_parameters(start)
        except zstandard.ZstdError as error:
            torn = len(start) < _FRAME_HEADER_BYTES_MAX
            reason = "a cut zstd frame" if torn else f"a damaged zstd frame header ({error})"
            raise Damage(self.offset, reason, torn=torn) from error
        self._has_checksum = parameters.has_checksum
        unknown = parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN
        self.content_bytes: int | None = None if unknown else parameters.content_size

    def pieces(self) -> Iterator[bytes]:
        """The frame's bytes, all of them and no more; raises `Damage` when they end too early."""
        size = self._size_in_view()
        if size:
            yield self._source.take(size)
            return
        yield self._take(self._header_bytes)
        last = False
        while not last:
            head = self._take(3)
            word = int.from_bytes(head, "little")
            last, kind, size = bool(word & 1), word >> 1 & 3, word >> 3
            if kind == _RESERVED_BLOCK or (kind != _RLE_BLOCK and size > _BLOCK_BYTES_MAX):
                raise Damage(self.offset, "a damaged zstd block header")
            yield head
            yield self._take(1 if kind == _RLE_BLOCK else size)
        if self._has_checksum:
            yield self._take(_CHECKSUM_BYTES)

    def _size_in_view(self) -> int:
        """The size of a frame that is small, whole and well formed; otherwise 0: take it in pieces."""
        view = self._source.look(_VIEW_BYTES)
        at = self._header_bytes
        while (head_end := at + 3) <= len(view):
            word = int.from_bytes(view[at:head_end], "little")
            kind, size = word >> 1 & 3, word >> 3
            if kind == _RESERVED_BLOCK or (kind != _RLE_BLOCK and size > _BLOCK_BYTES_MAX):
                return 0
            at = head_end + (1 if kind == _RLE_BLOCK else size)
            if word & 1:
                at += _CHECKSUM_BYTES if self._has_checksum else 0
                return at if at <= len(view) else 0
        return 0

    def _take(self, count: int) -> bytes:
        data = self._source.take(count)
        if len(data) < count:
            raise Damage(self.offset, "a cut zstd frame", torn=True)
        return data


def next_frame(source: Source) -> Skippable | DataFrame | None:
    """What stands at the source's position; None at the end of the file.

    A skippable frame is taken; a data frame is to be taken by its `pieces`. Raises `Damage`.
    """
    head = source.peek(SKIPPABLE_BYTES)
    if not head:
        return None
    magic = head[:4]
    if magic == DATA_MAGIC:
        return DataFrame(source)
    offset = source.position
    if len(head) < SKIPPABLE_BYTES:
        raise Damage(offset, "a cut zstd frame", torn=True)
    if not is_skippable_magic(magic):
        raise Damage(offset, "bytes that begin no zstd frame")
    size = SKIPPABLE.unpack(source.take(SKIPPABLE_BYTES))[1]
    content = _take_skippable(source, offset, size, kept=magic in (OUR_MAGIC, SEEK_MAGIC))
    return Skippable(magic=magic, offset=offset, size_bytes=SKIPPABLE_BYTES + size, content=content)


def _take_skippable(source: Source, offset: int, size: int, *, kept: bool) -> bytes:
    if kept and size <= SKIPPABLE_KEPT_MAX:
        content = source.take(size)
        if len(content) < size:
            raise Damage(offset, "a cut skippable zstd frame", torn=True)
        return content
    left = size
    while left:
        data = source.take(min(left, _SKIP_BYTES))
        if not data:
            raise Damage(offset, "a cut skippable zstd frame", torn=True)
        left -= len(data)
    return b""


class _Pieces:
    """A frame's pieces as the file object that a stream reader wants."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, count: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[count:]
        return data[:count]


def decode_frame(
    frame: DataFrame, decompressor: zstandard.ZstdDecompressor, piece_bytes: int
) -> Iterator[bytes]:
    """A frame's content. The first piece has the whole content, when that is of moderate size;
    otherwise pieces of `piece_bytes` come before the frame's checksum was seen.

    Raises `Damage` at the frame's offset.
    """
    pieces = frame.pieces()
    taken: list[bytes] = []
    held = 0
    for piece in pieces:
        taken.append(piece)
        held += len(piece)
        if held > VERIFIED_BYTES_MAX:
            break
    else:
        if frame.content_bytes is not None and frame.content_bytes <= VERIFIED_BYTES_MAX:
            yield decode_whole(frame, decompressor, b"".join(taken))
            return
    yield from _decode_stream(frame, decompressor, _chain(taken, pieces), piece_bytes)


def _chain(taken: list[bytes], pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield from taken
    yield from pieces


def decode_whole(frame: DataFrame, decompressor: zstandard.ZstdDecompressor, data: bytes) -> bytes:
    """The content of a frame that says its size, of all its bytes. Raises `Damage` at its offset."""
    try:
        content = decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise Damage(frame.offset, f"a zstd frame that does not decode ({error})") from error
    if len(content) != frame.content_bytes:
        raise Damage(frame.offset, "a zstd frame of another length than it says")
    return content


def _decode_stream(
    frame: DataFrame,
    decompressor: zstandard.ZstdDecompressor,
    pieces: Iterator[bytes],
    piece_bytes: int,
) -> Iterator[bytes]:
    parts: list[bytes] = []
    held = 0
    verified = False
    with decompressor.stream_reader(_Pieces(pieces), closefd=False) as reader:  # type: ignore[arg-type]
        while not verified:
            try:
                piece = reader.read(piece_bytes)
            except zstandard.ZstdError as error:
                reason = f"a zstd frame that does not decode ({error})"
                raise Damage(frame.offset, reason) from error
            verified = not piece
            parts.append(piece)
            held += len(piece)
            if verified or held > VERIFIED_BYTES_MAX:
                yield from parts
                parts.clear()
