"""Messages as parallel columns, made with Python work per batch, not per message.

A *payload* is NSQ's message layout, the same on the wire, in nsqd's disk queue and in a `framed`
archive (spec: tcp-protocol, 5.1; nsqd-http, 5.3), big-endian:

    i64 timestamp_ns | u16 attempts | 16 bytes id | body

Payloads sort by publish time, because they begin with it: `min(payloads)` is the earliest.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from nsqtools.wire.cutting import NUMBER_CODES, cut, cut_numbers, same_in_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ID_BYTES = 16
TIME_BYTES = 8
# In front of a payload on the wire: i32 size, i32 frame type.
FRAME_HEADER_BYTES = 8
PAYLOAD_HEADER = struct.Struct(">qH16s")
PAYLOAD_HEADER_BYTES = PAYLOAD_HEADER.size
_ATTEMPTS_AT = 8
_ID_AT = 10
_BODY_AT = PAYLOAD_HEADER_BYTES


class Span(NamedTuple):
    """Messages of one size, as they lie in the bytes of a read: `messages` times a frame of `stride`
    bytes, the first at `start`; the payload is the end of each."""

    data: bytes
    start: int
    stride: int
    messages: int

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

    def field(self, start: int, end: int) -> bytes:
        """These bytes of the first payload."""
        at = self.start + FRAME_HEADER_BYTES
        return self.data[at + start : at + end]

    def is_same(self, offset: int) -> bool:
        """Whether the byte at `offset` is the same in each payload."""
        stop = self.start + self.messages * self.stride
        columns = (FRAME_HEADER_BYTES + offset,)
        return same_in_run(self.data, self.start, stop, self.stride, columns)

    def numbers(self, offset: int, size: int) -> list[int]:
        """The unsigned number at `offset` into each payload."""
        return cut_numbers(
            self.data, self.start, self.stride, FRAME_HEADER_BYTES + offset, size, self.messages
        )


class Messages:
    """Messages in the order in which they came; each column is built on first use and then kept.

    They are made from payloads, or from the spans and payloads that the decoder found; a column of a
    span is cut straight out of the bytes that were read. `nsqd` is who delivered them, `host:port`;
    the connection fills it in.
    """

    parts: Sequence[int] = ()
    """Which of those that were made of one message each is; empty where none was made."""

    def __init__(
        self,
        payloads: list[bytes],
        parts: list[Span | list[bytes]] | None = None,
        *,
        nsqd: str = "",
    ) -> None:
        self.nsqd = nsqd
        self._parts: list[Span | list[bytes]] = [payloads] if parts is None else parts
        self._count = sum(
            part.messages if isinstance(part, Span) else len(part) for part in self._parts
        )

    def __len__(self) -> int:
        return self._count

    @cached_property
    def payloads(self) -> list[bytes]:
        first = self._parts[0] if self._parts else []
        if len(self._parts) <= 1 and isinstance(first, list):
            return first
        return self._column(0, None)

    @cached_property
    def ids(self) -> list[bytes]:
        if "_heads" in self.__dict__:
            size = _BODY_AT - _ID_AT
            return [one for head in self._heads for one in head.column(_ID_AT, size)]
        return self._column(_ID_AT, _BODY_AT)

    @cached_property
    def bodies(self) -> list[bytes]:
        return self._column(_BODY_AT, None)

    @cached_property
    def timestamps(self) -> list[int]:
        """Publish times in nanoseconds since the epoch."""
        return self._numbers(0, _ATTEMPTS_AT)

    @cached_property
    def _heads(self) -> list[Span]:
        """All that stands before the bodies: where payloads have many sizes, put together once."""
        return [part if isinstance(part, Span) else _head_span(part) for part in self._parts]

    @cached_property
    def times(self) -> bytes:
        """The timestamps as they came, 8 bytes each, one after the other."""
        return b"".join([head.together(0, TIME_BYTES) for head in self._heads])

    @cached_property
    def attempts(self) -> list[int]:
        return self._numbers(_ATTEMPTS_AT, _ID_AT)

    @cached_property
    def same_attempts(self) -> int | None:
        """What all messages have; None when they do not, or when there are none."""
        seen: set[bytes] = set()
        for head in self._heads:
            if not head.messages:
                continue
            if not (head.is_same(_ATTEMPTS_AT) and head.is_same(_ATTEMPTS_AT + 1)):
                return None
            seen.add(head.field(_ATTEMPTS_AT, _ID_AT))
        return int.from_bytes(seen.pop(), "big") if len(seen) == 1 else None

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all bodies."""
        return sum(
            part.messages * (part.stride - FRAME_HEADER_BYTES)
            if isinstance(part, Span)
            else sum(map(len, part))
            for part in self._parts
        ) - PAYLOAD_HEADER_BYTES * len(self)

    @property
    def first_timestamp_ns(self) -> int:
        """Publish time of the first message, without a look at the others; there must be one."""
        part = next(part for part in self._parts if not isinstance(part, list) or part)
        if isinstance(part, Span):
            start = part.start + FRAME_HEADER_BYTES
            return int.from_bytes(part.data[start : start + _ATTEMPTS_AT], "big")
        return int.from_bytes(part[0][:_ATTEMPTS_AT], "big")

    @cached_property
    def body_bytes_max(self) -> int:
        """Bytes of the largest body; 0 when there is no message."""
        largest = max(
            part.stride - FRAME_HEADER_BYTES
            if isinstance(part, Span)
            else max(map(len, part), default=PAYLOAD_HEADER_BYTES)
            for part in self._parts or [[]]
        )
        return largest - PAYLOAD_HEADER_BYTES

    def runs(self) -> Iterator[tuple[int | None, list[bytes]]]:
        """The payloads in order, in runs, each with the size that all of the run are known to have."""
        for part in self._parts:
            if isinstance(part, Span):
                size = part.stride - FRAME_HEADER_BYTES
                yield size, part.column(0, size)
            else:
                yield None, part

    def time_range_ns(self) -> tuple[int, int]:
        """First and last publish time in nanoseconds; the messages must not be none."""
        ends: list[bytes] = []
        for part in self._parts:
            column = part.column(0, _ATTEMPTS_AT) if isinstance(part, Span) else part
            if column:
                ends += (min(column), max(column))
        first, last = min(ends)[:_ATTEMPTS_AT], max(ends)[:_ATTEMPTS_AT]
        return int.from_bytes(first, "big"), int.from_bytes(last, "big")

    def ends(self) -> tuple[bytes, bytes]:
        """All that stands before the body, of the message that was published first and of the last; the
        messages must not be none."""
        heads = self._column(0, PAYLOAD_HEADER_BYTES)
        return min(heads), max(heads)

    def part(self, start: int, stop: int) -> Messages:
        """Those from number `start` up to `stop`."""
        return Messages(self.payloads[start:stop], nsqd=self.nsqd)

    def pick(self, places: Sequence[int]) -> Messages:
        """Some of them, by their numbers."""
        payloads = self.payloads
        return Messages([payloads[at] for at in places], nsqd=self.nsqd)

    def without_siblings(self) -> Messages:
        """One of those that were made of one message, for each such message."""
        return self

    def _numbers(self, start: int, end: int) -> list[int]:
        numbers: list[int] = []
        for part in self._parts:
            if isinstance(part, Span):
                numbers += part.numbers(start, end - start)
            else:
                fields = b"".join([payload[start:end] for payload in part])
                numbers += struct.unpack(f">{len(part)}{NUMBER_CODES[end - start]}", fields)
        return numbers

    def _column(self, start: int, end: int | None) -> list[bytes]:
        """The field from `start` to `end` (None: the end) of every payload."""
        column: list[bytes] = []
        for part in self._parts:
            if isinstance(part, Span):
                size = (part.stride - FRAME_HEADER_BYTES if end is None else end) - start
                column += part.column(start, size)
            else:
                column += [payload[start:end] for payload in part]
        return column


class PartedMessages(Messages):
    """Messages of which several may be made of one: these have its id and time, stand together, and each
    has its number among them in `parts`, from 0."""

    def __init__(self, payloads: list[bytes], parts: Sequence[int], *, nsqd: str = "") -> None:
        super().__init__(payloads, nsqd=nsqd)
        self.parts = parts

    def part(self, start: int, stop: int) -> PartedMessages:
        return PartedMessages(self.payloads[start:stop], self.parts[start:stop], nsqd=self.nsqd)

    def pick(self, places: Sequence[int]) -> PartedMessages:
        payloads, parts = self.payloads, self.parts
        return PartedMessages(
            [payloads[at] for at in places], [parts[at] for at in places], nsqd=self.nsqd
        )

    @cached_property
    def are_siblings(self) -> list[bool]:
        """Whether each is made of the same message as the one before it."""
        keys = list(zip(self.ids, self.timestamps, strict=True))
        return [
            part > 0 and at > 0 and keys[at] == keys[at - 1] for at, part in enumerate(self.parts)
        ]

    def without_siblings(self) -> Messages:
        pairs = zip(self.payloads, self.are_siblings, strict=True)
        return Messages(
            [payload for payload, is_sibling in pairs if not is_sibling], nsqd=self.nsqd
        )


def _head_span(payloads: list[bytes]) -> Span:
    """What stands before the bodies, as if no message had one."""
    between = bytes(FRAME_HEADER_BYTES)
    heads = between.join([payload[:PAYLOAD_HEADER_BYTES] for payload in payloads])
    return Span(between + heads, 0, FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES, len(payloads))


def encode_payload(timestamp_ns: int, attempts: int, message_id: bytes, body: bytes) -> bytes:
    """One message in NSQ's layout."""
    return PAYLOAD_HEADER.pack(timestamp_ns, attempts, message_id) + body


def count_messages(batches: Sequence[Messages]) -> int:
    return sum(map(len, batches))
