"""Payloads, and how they lie in memory; a field of all of them is cut when it is asked for.

A *payload* is NSQ's message layout, the same on the wire, in nsqd's disk queue and in a `framed`
archive (spec: tcp-protocol, 5.1; nsqd-http, 5.3), big-endian:

    i64 timestamp_ns | u16 attempts | 16 bytes id | body

Payloads sort by publish time, because they begin with it. What stands before the body is the *head*.
"""

from __future__ import annotations

import operator
import struct
from itertools import pairwise
from typing import NamedTuple

from nsqtools.wire.cutting import cut, cut_numbers, same_in_run

ID_BYTES = 16
TIME_BYTES = 8
# In front of a payload on the wire: i32 size, i32 frame type.
FRAME_HEADER_BYTES = 8
PAYLOAD_HEADER = struct.Struct(">qH16s")
PAYLOAD_HEADER_BYTES = PAYLOAD_HEADER.size
_HEAD_BYTES = FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES


class Span(NamedTuple):
    """Messages of one size, as they lie in the bytes of a read: `messages` times a frame of `stride`
    bytes, the first at `start`; the payload is the end of each."""

    data: bytes
    start: int
    stride: int
    messages: int

    @property
    def payloads_bytes(self) -> int:
        """Of all payloads."""
        return self.messages * self.payload_bytes_max

    @property
    def payload_bytes_max(self) -> int:
        """Of the largest payload, and of each."""
        return self.stride - FRAME_HEADER_BYTES

    @property
    def heads(self) -> Span:
        """All that stands before the bodies, at a fixed distance."""
        return self

    def payloads(self) -> list[bytes]:
        """Each whole."""
        return self.column(0, self.payload_bytes_max)

    def bodies(self) -> list[bytes]:
        """What follows the head of each."""
        return self.column(PAYLOAD_HEADER_BYTES, self.stride - _HEAD_BYTES)

    def column(self, offset: int, size: int) -> list[bytes]:
        """The field at `offset` into each payload."""
        return cut(
            self.data, self.start, self.stride, FRAME_HEADER_BYTES + offset, size, self.messages
        )

    def together(self, offset: int, size: int) -> bytes:
        """The same, one after the other: byte by byte is the quickest for small fields."""
        joined = bytearray(size * self.messages)
        start = self.start + FRAME_HEADER_BYTES + offset
        stop = self.start + self.messages * self.stride
        for at in range(size):
            joined[at::size] = self.data[start + at : stop : self.stride]
        return bytes(joined)

    def numbers(self, offset: int, size: int) -> list[int]:
        """The unsigned number at `offset` into each payload."""
        return cut_numbers(
            self.data, self.start, self.stride, FRAME_HEADER_BYTES + offset, size, self.messages
        )

    def is_same(self, offset: int) -> bool:
        """Whether the byte at `offset` is the same in each payload."""
        stop = self.start + self.messages * self.stride
        columns = (FRAME_HEADER_BYTES + offset,)
        return same_in_run(self.data, self.start, stop, self.stride, columns)

    def of_first(self, start: int, end: int) -> bytes:
        """These bytes of the first payload."""
        at = self.start + FRAME_HEADER_BYTES
        return self.data[at + start : at + end]


class Mixed:
    """Messages of many sizes, as they lie in the bytes of a read: `starts` says where the frame of each
    begins, and where the last one ends."""

    __slots__ = ("_heads", "data", "starts")

    def __init__(self, data: bytes, starts: list[int]) -> None:
        self.data = data
        self.starts = starts
        self._heads: Span | None = None

    @property
    def messages(self) -> int:
        return len(self.starts) - 1

    @property
    def payloads_bytes(self) -> int:
        return self.starts[-1] - self.starts[0] - FRAME_HEADER_BYTES * self.messages

    @property
    def payload_bytes_max(self) -> int:
        largest = max(map(operator.sub, self.starts[1:], self.starts), default=FRAME_HEADER_BYTES)
        return largest - FRAME_HEADER_BYTES

    @property
    def heads(self) -> Span:
        if self._heads is None:
            data = self.data
            heads = b"".join([data[at : at + _HEAD_BYTES] for at in self.starts[:-1]])
            self._heads = Span(heads, 0, _HEAD_BYTES, self.messages)
        return self._heads

    def payloads(self) -> list[bytes]:
        return self._from(FRAME_HEADER_BYTES)

    def bodies(self) -> list[bytes]:
        return self._from(_HEAD_BYTES)

    def _from(self, offset: int) -> list[bytes]:
        data, starts = self.data, self.starts
        return [data[at + offset : end] for at, end in pairwise(starts)]

    def of_first(self, start: int, end: int) -> bytes:
        at = self.starts[0] + FRAME_HEADER_BYTES
        return self.data[at + start : at + end]


class Apart:
    """Payloads that are cut already."""

    __slots__ = ("_heads", "_payloads")

    def __init__(self, payloads: list[bytes]) -> None:
        self._payloads = payloads
        self._heads: Span | None = None

    @property
    def messages(self) -> int:
        return len(self._payloads)

    @property
    def payloads_bytes(self) -> int:
        return sum(map(len, self._payloads))

    @property
    def payload_bytes_max(self) -> int:
        return max(map(len, self._payloads), default=0)

    @property
    def heads(self) -> Span:
        if self._heads is None:
            between = bytes(FRAME_HEADER_BYTES)
            heads = between.join([payload[:PAYLOAD_HEADER_BYTES] for payload in self._payloads])
            self._heads = Span(between + heads, 0, _HEAD_BYTES, len(self._payloads))
        return self._heads

    def payloads(self) -> list[bytes]:
        return self._payloads

    def bodies(self) -> list[bytes]:
        return [payload[PAYLOAD_HEADER_BYTES:] for payload in self._payloads]

    def of_first(self, start: int, end: int) -> bytes:
        return self._payloads[0][start:end]


# What is asked of the one is asked of the others; see `Span`.
Payloads = Span | Mixed | Apart
