"""Several messages as the body of one request, and bodies compressed.

lines              each body and a newline; one that holds a newline cannot be told from two
json               a JSON array of the bodies, each of which must be JSON
length-prefixed    each body behind its size, 4 bytes, big-endian: any bytes
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson
import zstandard
from zlib_ng import zlib_ng

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BatchFormat = Literal["lines", "json", "length-prefixed"]
Encoding = Literal["none", "gzip", "zstd"]
_SIZE = struct.Struct(">I")
_ZSTD_LEVEL = 3
_GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # 15, and a gzip header


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """At most `messages_max` messages and about `bytes_max` bytes in a request; none of them waits
    longer than `wait_s` for others."""

    messages_max: int
    bytes_max: int
    wait_s: float
    format: BatchFormat


class Unfit(ValueError):  # noqa: N818 - reads as the fact it states
    """A message that cannot be sent as it should be; `reason` is why, in two words that are counted."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what)
        self.reason = reason


def join(bodies: Sequence[bytes], batch_format: BatchFormat) -> bytes:
    """The body of a request."""
    if batch_format == "lines":
        return b"\n".join(bodies) + b"\n"
    if batch_format == "json":
        return b"[%b]" % b",".join(bodies)
    return b"".join([part for body in bodies for part in (_SIZE.pack(len(body)), body)])


def is_json(body: bytes) -> bool:
    """Whether it can stand in an array: one JSON text in UTF-8."""
    try:
        orjson.loads(body)
    except ValueError:  # it has limits that JSON has not: of depth, of halves of surrogates
        return _is_any_json(body)
    return True


def _is_any_json(body: bytes) -> bool:
    try:
        # Numbers stay text: Python makes none of more than 4300 digits.
        json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def compressor(encoding: Encoding) -> Callable[[bytes], bytes] | None:
    """What compresses a body, for one thread at a time; None where it stays as it is."""
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress
    return _gzip if encoding == "gzip" else None


def _gzip(body: bytes) -> bytes:
    compressed: bytes = zlib_ng.compress(body, _GZIP_LEVEL, _GZIP_WINDOW)
    return compressed
