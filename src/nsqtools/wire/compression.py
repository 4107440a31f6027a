"""What a connection speaks after a compression upgrade (spec: tcp-protocol, 3.1); both roles.

A codec holds one stream for each direction, for the life of the connection:

    write(codec.compress(frames))                      one flush: the peer can read all of it
    out = codec.decompress(received, max_bytes)
    while codec.pending: out = codec.decompress(b"", max_bytes)

Deflate is a raw RFC 1951 stream (no zlib header) with a sync flush after every `compress`. Snappy
is the framing format: a stream identifier, then chunks, each with the masked CRC-32C of its data:

    type u8 | length u24 little-endian | body
    0xff identifier "sNaPpY" | 0x00 compressed | 0x01 plain | 0x80-0xfe skipped | 0x02-0x7f refused

A kilobyte can inflate to a megabyte, so `decompress` returns at most `max_bytes` at a time, and
keeps the input for the next call. While `pending` is true the caller should feed nothing new: then
what a codec holds is bounded by one read and one chunk. Anything damaged raises ProtocolError, and
the codec is of no use from then on.
"""

from __future__ import annotations

import zlib
from typing import Protocol

import cramjam

from nsqtools.errors import ProtocolError
from nsqtools.wire.identify import DEFLATE_LEVEL_DEFAULT

DECOMPRESS_BYTES_MAX = 1 << 20
_RAW_DEFLATE = -15

SNAPPY_CHUNK_BYTES_MAX = 65_536
_SNAPPY_CRC_BYTES = 4
_SNAPPY_HEADER_BYTES = 4
# The longest block that data of one chunk can be compressed to, by the rule of the block format.
_SNAPPY_BLOCK_BYTES_MAX = 32 + SNAPPY_CHUNK_BYTES_MAX + SNAPPY_CHUNK_BYTES_MAX // 6
_SNAPPY_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
_COMPRESSED, _PLAIN, _SKIPPABLE_FIRST, _IDENTIFIER = 0x00, 0x01, 0x80, 0xFF


class Codec(Protocol):
    """One compressed connection, both directions; not to be shared between connections."""

    @property
    def pending(self) -> bool:
        """Whether `decompress(b"")` may return more without new input."""

    def compress(self, data: bytes) -> bytes:
        """What to send so that the peer can read all of `data` now; nothing for nothing."""

    def decompress(self, data: bytes, max_bytes: int = DECOMPRESS_BYTES_MAX) -> bytes:
        """The next at most `max_bytes` of what the peer sent; raises ProtocolError if damaged."""


class Deflate:
    """The deflate upgrade; `level` 1 to 9 is that of what we send."""

    def __init__(self, level: int = DEFLATE_LEVEL_DEFAULT) -> None:
        self._compressor = zlib.compressobj(level, zlib.DEFLATED, _RAW_DEFLATE)
        self._decompressor = zlib.decompressobj(_RAW_DEFLATE)
        self._pending = False

    @property
    def pending(self) -> bool:
        return self._pending

    def compress(self, data: bytes) -> bytes:
        if not data:
            return b""
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def decompress(self, data: bytes, max_bytes: int = DECOMPRESS_BYTES_MAX) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        source = self._decompressor
        held = source.unconsumed_tail
        if source.eof and (data or held):
            raise ProtocolError("E_INVALID", "data after the end of the deflate stream")
        try:
            out = source.decompress(held + data if held else data, max_bytes)
        except zlib.error as error:
            raise ProtocolError("E_INVALID", f"damaged deflate stream: {error}") from error
        if source.unused_data:
            raise ProtocolError("E_INVALID", "data after the end of the deflate stream")
        # zlib can hold output although it has taken all input, so a full answer means: ask again.
        self._pending = len(out) == max_bytes
        return out


class Snappy:
    """The snappy upgrade."""

    def __init__(self) -> None:
        self._sent_identifier = False
        self._got_identifier = False
        self._input = bytearray()
        self._at = 0  # what lies before it in the input is done with
        self._skip_bytes = 0
        self._pending = False

    @property
    def pending(self) -> bool:
        return self._pending

    def compress(self, data: bytes) -> bytes:
        if not data:
            return b""
        framed = bytes(cramjam.snappy.compress(data))
        if self._sent_identifier:
            return framed[len(_SNAPPY_IDENTIFIER) :]
        self._sent_identifier = True
        return framed

    def decompress(self, data: bytes, max_bytes: int = DECOMPRESS_BYTES_MAX) -> bytes:
        """As `Codec.decompress`; a chunk is not divided, so `max_bytes` is at least 65536."""
        if max_bytes < SNAPPY_CHUNK_BYTES_MAX:
            raise ValueError(f"max_bytes must be at least {SNAPPY_CHUNK_BYTES_MAX}")
        self._input += data
        self._pending = False
        parts: list[bytes] = []
        left = max_bytes
        while (end := self._find_chunk()) is not None:
            chunk = bytes(memoryview(self._input)[self._at : end])
            size = _data_size(chunk)
            if size > left:
                self._pending = True
                break
            parts.append(_open_chunk(chunk))
            left -= size
            self._at = end
        # Once for each call: cutting at every chunk would move the rest as often.
        del self._input[: self._at]
        self._at = 0
        return b"".join(parts)

    def _find_chunk(self) -> int | None:
        """Go to the next data chunk and return where it ends; None when it is not all there.

        Chunks without data are passed over on the way, however long they are.
        """
        while True:
            skipped = min(self._skip_bytes, len(self._input) - self._at)
            self._at += skipped
            self._skip_bytes -= skipped
            body = self._at + _SNAPPY_HEADER_BYTES
            if self._skip_bytes or len(self._input) < body:
                return None
            kind = self._input[self._at]
            length = int.from_bytes(self._input[self._at + 1 : body], "little")
            self._check(kind, length)
            if _SKIPPABLE_FIRST <= kind < _IDENTIFIER:
                self._skip_bytes = _SNAPPY_HEADER_BYTES + length
                continue
            if len(self._input) < body + length:
                return None
            if kind != _IDENTIFIER:
                return body + length
            self._take_identifier(body + length)

    def _check(self, kind: int, length: int) -> None:
        if kind == _IDENTIFIER:
            if length != len(_SNAPPY_IDENTIFIER) - _SNAPPY_HEADER_BYTES:
                raise _damaged("stream identifier of a wrong length")
            return
        if not self._got_identifier:
            raise _damaged("no stream identifier")
        if _PLAIN < kind < _SKIPPABLE_FIRST:
            raise _damaged(f"unknown chunk type 0x{kind:02x}")
        longest = SNAPPY_CHUNK_BYTES_MAX if kind == _PLAIN else _SNAPPY_BLOCK_BYTES_MAX
        if kind <= _PLAIN and not _SNAPPY_CRC_BYTES <= length <= longest + _SNAPPY_CRC_BYTES:
            raise _damaged(f"chunk of {length} bytes")

    def _take_identifier(self, end: int) -> None:
        if self._input[self._at : end] != _SNAPPY_IDENTIFIER:
            raise _damaged("wrong stream identifier")
        self._got_identifier = True
        self._at = end


def _data_size(chunk: bytes) -> int:
    """How many bytes a data chunk claims to open to; it is checked to be a legal number."""
    body = chunk[_SNAPPY_HEADER_BYTES + _SNAPPY_CRC_BYTES :]
    if chunk[0] == _PLAIN:
        return len(body)
    try:
        size = int(cramjam.snappy.decompress_raw_len(body))
    except cramjam.DecompressionError as error:
        raise _damaged(str(error)) from error
    if size > SNAPPY_CHUNK_BYTES_MAX:
        raise _damaged(f"chunk claims {size} bytes of data")
    return size


def _open_chunk(chunk: bytes) -> bytes:
    # As a stream of its own, because that way the library checks the checksum.
    try:
        return bytes(cramjam.snappy.decompress(_SNAPPY_IDENTIFIER + chunk))
    except cramjam.DecompressionError as error:
        raise _damaged(str(error)) from error


def _damaged(what: str) -> ProtocolError:
    return ProtocolError("E_INVALID", f"damaged snappy stream: {what}")
