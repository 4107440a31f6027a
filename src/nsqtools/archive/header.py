"""The file header block (docs/formats.md, "The file header"), big-endian:

    magic 8 | u16 version | u32 length | JSON | u32 crc32 of all before

It opens a `framed` stream, rides in an extra field of the first gzip member, and is the content of
the first frame of a `.zst`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from zlib_ng.zlib_ng import crc32

MAGIC = b"\x89NSQA\r\n\x1a"
VERSION = 1
META_BYTES_MAX = 8192  # ours are some 150 bytes; an extra field of gzip has room for 64 KiB

_FIXED = struct.Struct(">8sHI")
_CRC = struct.Struct(">I")
FIXED_BYTES = _FIXED.size
CRC_BYTES = _CRC.size
HEADER_BYTES_MAX = FIXED_BYTES + META_BYTES_MAX + CRC_BYTES
_MAGIC_LIKENESS = 6  # bytes of a magic that are enough to know a damaged one


class HeaderError(Exception):
    """A block that begins like a file header and is none.

    `torn` when it only ends too early, `newer` when it is sound but of a version not known here.
    """

    def __init__(self, reason: str, *, torn: bool = False, newer: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.torn = torn
        self.newer = newer


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """What the block said, and its length in bytes."""

    meta: dict[str, str]
    size_bytes: int


def encode_header(*, record_format: str, topic: str, channel: str, host: str) -> bytes:
    """The block for a file of this topic, channel and host."""
    meta = {"format": record_format, "topic": topic, "channel": channel, "host": host}
    text = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogateescape"
    )
    block = _FIXED.pack(MAGIC, VERSION, len(text)) + text
    return block + _CRC.pack(crc32(block))


def decode_header(data: bytes) -> FileHeader:
    """Read the block at the start of `data`; raises `HeaderError`."""
    if not data.startswith(MAGIC):
        torn = MAGIC.startswith(data)
        raise HeaderError("no file header" if not torn else "a cut file header", torn=torn)
    if len(data) < FIXED_BYTES:
        raise HeaderError("a cut file header", torn=True)
    _, version, length = _FIXED.unpack_from(data)
    if length > META_BYTES_MAX:
        raise HeaderError(f"a file header of {length} bytes")
    end = FIXED_BYTES + length
    if len(data) < end + CRC_BYTES:
        raise HeaderError("a cut file header", torn=True)
    if _CRC.unpack_from(data, end)[0] != crc32(data[:end]):
        raise HeaderError("a file header with a wrong checksum")
    if version != VERSION:
        raise HeaderError(f"format version {version} is not known here", newer=True)
    return FileHeader(meta=_decode_meta(data[FIXED_BYTES:end]), size_bytes=end + CRC_BYTES)


def _decode_meta(text: bytes) -> dict[str, str]:
    try:
        meta = json.loads(text.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise HeaderError("a file header that is no JSON") from error
    if not isinstance(meta, dict):
        raise HeaderError("a file header that is no object")
    strings = {name: value for name, value in meta.items() if isinstance(value, str)}
    if "format" not in strings:
        raise HeaderError("a file header that names no record format")
    return strings


def looks_damaged(start: bytes) -> bool:
    """Whether the start of a file that nothing else recognised was one of our headers once.

    A flipped byte in a magic number must not turn a `framed` or compressed archive into `lines`.
    """
    alike = sum(a == b for a, b in zip(start, MAGIC, strict=False))
    return alike >= _MAGIC_LIKENESS or MAGIC in start
