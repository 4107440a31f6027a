"""Messages as parallel columns, made with Python work per batch, not per message."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from nsqtools.wire.payloads import (
    ID_BYTES,
    PAYLOAD_HEADER,
    PAYLOAD_HEADER_BYTES,
    TIME_BYTES,
    Apart,
    Span,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.wire.payloads import Payloads

_ATTEMPTS_AT = TIME_BYTES
_ID_AT = 10


class Messages:
    """Messages in the order in which they came; each column is built on first use and then kept.

    They are made from payloads, or from what the decoder found, as it lies in the bytes that were read.
    `nsqd` is who delivered them, `host:port`; the connection fills it in.
    """

    parts: Sequence[int] = ()
    """Which of those that were made of one message each is; empty where none was made."""

    def __init__(
        self, payloads: list[bytes], runs: list[Payloads] | None = None, *, nsqd: str = ""
    ) -> None:
        self.nsqd = nsqd
        self._runs: list[Payloads] = [Apart(payloads)] if runs is None else runs
        self._count = sum([part.messages for part in self._runs])

    def __len__(self) -> int:
        return self._count

    @cached_property
    def payloads(self) -> list[bytes]:
        if len(self._runs) == 1:
            return self._runs[0].payloads()
        return [payload for part in self._runs for payload in part.payloads()]

    @cached_property
    def bodies(self) -> list[bytes]:
        if len(self._runs) == 1:
            return self._runs[0].bodies()
        return [body for part in self._runs for body in part.bodies()]

    @cached_property
    def ids(self) -> list[bytes]:
        return self._column(_ID_AT, ID_BYTES)

    @cached_property
    def timestamps(self) -> list[int]:
        """Publish times in nanoseconds since the epoch."""
        return self._numbers(0, TIME_BYTES)

    @cached_property
    def times(self) -> bytes:
        """The timestamps as they came, 8 bytes each, one after the other."""
        return b"".join([part.heads.together(0, TIME_BYTES) for part in self._runs])

    @cached_property
    def attempts(self) -> list[int]:
        return self._numbers(_ATTEMPTS_AT, _ID_AT - _ATTEMPTS_AT)

    @cached_property
    def same_attempts(self) -> int | None:
        """What all messages have; None when they do not, or when there are none."""
        seen: set[bytes] = set()
        for part in self._runs:
            if not part.messages:
                continue
            heads = part.heads
            if not (heads.is_same(_ATTEMPTS_AT) and heads.is_same(_ATTEMPTS_AT + 1)):
                return None
            seen.add(heads.of_first(_ATTEMPTS_AT, _ID_AT))
        return int.from_bytes(seen.pop(), "big") if len(seen) == 1 else None

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all bodies."""
        payloads_bytes = sum([part.payloads_bytes for part in self._runs])
        return payloads_bytes - PAYLOAD_HEADER_BYTES * self._count

    @property
    def first_timestamp_ns(self) -> int:
        """Publish time of the first message, without a look at the others; there must be one."""
        part = next(part for part in self._runs if part.messages)
        return int.from_bytes(part.of_first(0, TIME_BYTES), "big")

    @cached_property
    def body_bytes_max(self) -> int:
        """Bytes of the largest body; 0 when there is no message."""
        largest = max([part.payload_bytes_max for part in self._runs], default=0)
        return max(0, largest - PAYLOAD_HEADER_BYTES)

    def has_body_of_more(self, limit_bytes: int) -> bool:
        """Whether a body has more bytes; most often the size of all says no."""
        return self.size_bytes > limit_bytes and self.body_bytes_max > limit_bytes

    def runs(self) -> Iterator[tuple[int | None, list[bytes]]]:
        """The payloads in order, in runs, each with the size that all of the run are known to have."""
        for part in self._runs:
            size = part.payload_bytes_max if isinstance(part, Span) else None
            yield size, part.payloads()

    def time_range_ns(self) -> tuple[int, int]:
        """First and last publish time in nanoseconds; the messages must not be none."""
        times = self._column(0, TIME_BYTES)
        return int.from_bytes(min(times), "big"), int.from_bytes(max(times), "big")

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

    def _column(self, offset: int, size: int) -> list[bytes]:
        """A field of what stands before the bodies, of every message."""
        if len(self._runs) == 1:
            return self._runs[0].heads.column(offset, size)
        return [field for part in self._runs for field in part.heads.column(offset, size)]

    def _numbers(self, offset: int, size: int) -> list[int]:
        return [number for part in self._runs for number in part.heads.numbers(offset, size)]


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


def encode_payload(timestamp_ns: int, attempts: int, message_id: bytes, body: bytes) -> bytes:
    """One message in NSQ's layout."""
    return PAYLOAD_HEADER.pack(timestamp_ns, attempts, message_id) + body


def count_messages(batches: Sequence[Messages]) -> int:
    return sum(map(len, batches))
