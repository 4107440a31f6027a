"""A commit's messages as groups: bounded pieces, each with the form of a commit on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsqtools.wire.messages import count_messages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nsqtools.wire.messages import Messages

# Bounds what a reader must hold before it can check a group. Compression gains nothing beyond it.
GROUP_BYTES_MAX = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Group:
    """Encoded records, and how many. `times` is called when an index wants the earliest and the
    latest publish time."""

    content: bytes | bytearray
    records: int
    times: Callable[[], tuple[int, int]]

    @classmethod
    def of(cls, batches: Sequence[Messages], content: bytes | bytearray) -> Group:
        """Of messages that were encoded as `content`; there must be one."""
        return cls(
            content=content,
            records=count_messages(batches),
            times=lambda: time_range_ns(batches),
        )

    @cached_property
    def _time_range_ns(self) -> tuple[int, int]:
        return self.times()

    @property
    def first_ts_ns(self) -> int:
        """The earliest publish time."""
        return self._time_range_ns[0]

    @property
    def last_ts_ns(self) -> int:
        """The latest publish time."""
        return self._time_range_ns[1]


def time_range_ns(batches: Sequence[Messages]) -> tuple[int, int]:
    """Earliest and latest publish time; there must be a message."""
    ranges = [messages.time_range_ns() for messages in batches]
    return min(first for first, _ in ranges), max(last for _, last in ranges)


class Encoded(NamedTuple):
    """A batch as bytes; `ambiguous` counts bodies that a reader will not tell apart."""

    content: bytes | bytearray
    ambiguous: int


class RecordEncoder(Protocol):
    """Messages to bytes, a batch at a time."""

    stream_header: bytes
    """What a file's content begins with, before the first record."""

    def encode(self, batches: Sequence[Messages]) -> Encoded: ...


class Container(Protocol):
    """One file's compression: groups to bytes.

    `encode` may be called again for the same groups when writing its result failed; `keep` says
    that the last result is durable.
    """

    file_header: bytes

    @property
    def time_range_ns(self) -> tuple[int, int] | None:
        """Earliest and latest publish time of what was kept, where that is remembered."""

    @property
    def frames(self) -> int:
        """Groups that are remembered until the file is sealed."""

    def encode(self, groups: Sequence[Group]) -> bytes | bytearray: ...

    def keep(self) -> None: ...

    def trailer(self) -> bytes:
        """What is appended when the file is sealed."""


class PlainContainer:
    """No compression."""

    file_header = b""
    time_range_ns = None

    def __init__(self) -> None:
        self.frames = 0

    def encode(self, groups: Sequence[Group]) -> bytes | bytearray:
        if len(groups) == 1:
            return groups[0].content
        return b"".join([group.content for group in groups])

    def keep(self) -> None:
        """Nothing is remembered."""

    def trailer(self) -> bytes:
        return b""


def payload_bytes(batches: Sequence[Messages]) -> int:
    """What `split` counts."""
    return sum(messages.size_bytes + PAYLOAD_HEADER_BYTES * len(messages) for messages in batches)


def split(batches: Sequence[Messages]) -> Iterator[list[Messages]]:
    """The batches in pieces of about `GROUP_BYTES_MAX` of payload, at least a message each."""
    piece: list[Messages] = []
    piece_bytes = 0
    for messages in batches:
        start = 0
        for at, payload in enumerate(messages.payloads):
            if piece_bytes and piece_bytes + len(payload) > GROUP_BYTES_MAX:
                if at > start:
                    piece.append(messages.part(start, at))
                yield piece
                piece, start, piece_bytes = [], at, 0
            piece_bytes += len(payload)
        if len(messages) > start:
            piece.append(messages.part(start, len(messages)))
    if piece:
        yield piece


def encode_groups(
    encoder: RecordEncoder, batches: Sequence[Messages], *, is_first: bool
) -> tuple[list[Group], int]:
    """Messages as groups, and how many a reader will not tell apart. `is_first`: nothing is in the file
    yet."""
    full = [messages for messages in batches if len(messages)]
    groups: list[Group] = []
    ambiguous = 0
    before = encoder.stream_header if is_first else b""
    for part in [full] if payload_bytes(full) <= GROUP_BYTES_MAX else split(full):
        encoded = encoder.encode(part)
        content = before + encoded.content if before else encoded.content
        groups.append(Group.of(part, content))
        ambiguous += encoded.ambiguous
        before = b""
    return groups, ambiguous
