"""Compression `gzip`: one member per group (docs/formats.md, "Compression `gzip`").

Two libraries do the work, both several times faster than zlib. Levels 1 to 6 are ISA-L's: on 2,500
log lines of 210 bytes its level 2 took 0.9 us a message at a ratio of 2.97, where zlib's level 6 took
4.4 us at 3.14. Levels 7 to 9 ask for size, and are zlib-ng's (level 9: 4.9 us at 3.23; zlib's: 7.0 us
at 3.26). Where there is no ISA-L (it is built for x86-64 and ARM64), all levels are zlib-ng's. A
rewrite, which no commit waits for, is always zlib-ng's: what of gzip's own size its level promises.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from zlib_ng import zlib_ng

try:
    from isal import isal_zlib

    HAS_ISAL = True
except ImportError:  # no build for this processor
    HAS_ISAL = False

from nsqtools.archive.groups import Group
from nsqtools.archive.header import CRC_BYTES, FIXED_BYTES, HeaderError, decode_header
from nsqtools.archive.stream import BLOCK_BYTES_MAX, VERIFIED_BYTES_MAX, Block, Damage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.stream import Source

MAGIC = b"\x1f\x8b"
_MEMBER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_MEMBER_WITH_EXTRA = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff"
_EMPTY = b"\x03\x00" + bytes(8)
_SUBFIELD = b"NQ"
_EXTRA = struct.Struct("<H2sH")
HEADER_START_BYTES = len(_MEMBER_WITH_EXTRA) + _EXTRA.size
_TRAILER = struct.Struct("<II")
_RAW_DEFLATE = -15
_GZIP_WINDOW = 31
_MEMORY_LEVEL = 8
INPUT_BYTES = 64 << 10
# zlib-ng's level 1 is a third larger than zlib's, and its level 2 no larger.
REWRITE_LEVEL_MIN = 2
# gzip's level to ISA-L's; higher ones are zlib-ng's.
_ISAL_LEVELS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2}


class Compressor(Protocol):
    """A deflate stream, of whichever library."""

    def compress(self, data: bytes | bytearray, /) -> bytes: ...

    def flush(self) -> bytes: ...


class GzipContainer:
    """Encodes the commits of one file; there is nothing to add when it is sealed."""

    time_range_ns = None

    def __init__(self, header: bytes, level: int, *, is_rewrite: bool = False) -> None:
        extra = _EXTRA.pack(4 + len(header), _SUBFIELD, len(header)) + header
        self.file_header = _MEMBER_WITH_EXTRA + extra + _EMPTY
        self.frames = 0  # not counted: nothing is remembered of a member
        self._level = max(level, REWRITE_LEVEL_MIN) if is_rewrite else level
        self._is_fast = HAS_ISAL and level in _ISAL_LEVELS and not is_rewrite

    def encode(self, groups: Sequence[Group]) -> bytes:
        return b"".join(part for group in groups for part in self._member(group.content))

    def keep(self) -> None:
        """Nothing is remembered."""

    def trailer(self) -> bytes:
        return b""

    def _member(self, content: bytes | bytearray) -> tuple[bytes, ...]:
        deflate = _fast_compressor(self._level) if self._is_fast else _compressor(self._level)
        checksum = zlib_ng.crc32(content)
        trailer = _TRAILER.pack(checksum, len(content) & 0xFFFFFFFF)
        return _MEMBER, deflate.compress(content), deflate.flush(), trailer


def _fast_compressor(level: int) -> Compressor:
    return isal_zlib.compressobj(_ISAL_LEVELS[level], isal_zlib.DEFLATED, _RAW_DEFLATE)


def _compressor(level: int) -> Compressor:
    return zlib_ng.compressobj(
        level, zlib_ng.DEFLATED, _RAW_DEFLATE, _MEMORY_LEVEL, zlib_ng.Z_DEFAULT_STRATEGY
    )


def read_gzip_header(source: Source) -> bytes | None:
    """The file header in the first member's extra field, or None when it is not one of ours.

    Nothing is taken from `source`. Raises `HeaderError` for a damaged or cut one.
    """
    start = source.peek(HEADER_START_BYTES)
    if not start.startswith(_MEMBER_WITH_EXTRA) or len(start) < HEADER_START_BYTES:
        return None
    extra_bytes, subfield, header_bytes = _EXTRA.unpack_from(start, len(_MEMBER_WITH_EXTRA))
    if subfield != _SUBFIELD or extra_bytes != 4 + header_bytes:
        return None
    if header_bytes < FIXED_BYTES + CRC_BYTES:
        raise HeaderError("a file header that is too short")
    data = source.peek(len(start) + header_bytes)[len(start) :]
    decode_header(data)
    return data


def gzip_blocks(source: Source) -> Iterator[Block]:
    """The content of each member, in pieces, checked against its checksum first where it is small.

    Raises `Damage` at the offset of the member that is cut or wrong.
    """
    while source.peek(1):
        yield from _member_blocks(source)


def member_pieces(source: Source) -> Iterator[bytes]:
    """The content of the next member, in pieces, of which none is checked before the last."""
    return _inflate(source, source.position)


def _member_blocks(source: Source) -> Iterator[Block]:
    start = source.position
    parts: list[bytes] = []
    held = 0
    for data in _inflate(source, start):
        parts.append(data)
        held += len(data)
        if held > VERIFIED_BYTES_MAX:
            # Not written by us: from here on damage is found after its records went out.
            for part in parts:
                yield Block(data=part, offset=start)
            parts.clear()
    for part in parts:
        yield Block(data=part, offset=start)


def _inflate(source: Source, start: int) -> Iterator[bytes]:
    """The pieces of one member; what follows it is given back to `source`."""
    inflate = zlib_ng.decompressobj(_GZIP_WINDOW)
    data = b""
    while not inflate.eof:
        data = inflate.unconsumed_tail or source.take(INPUT_BYTES)
        try:
            piece = inflate.decompress(data, BLOCK_BYTES_MAX)
        except zlib_ng.error as error:  # type: ignore[misc]
            raise Damage(start, f"a gzip member that does not decode ({error})") from error
        if piece:
            yield piece
        elif not data:
            raise Damage(start, "a cut gzip member", torn=True)
    source.rewind(len(inflate.unused_data))


def gzip_groups(source: Source) -> Iterator[Group]:
    """The members of a file, without counts and times."""
    while source.peek(1):
        content = b"".join(member_pieces(source))
        if content:
            yield Group(content=content, records=0, times=_unknown)


def _unknown() -> tuple[int, int]:
    raise AssertionError("a gzip member keeps no times, and nobody asks for them")
