"""A run of messages as parallel columns, made with Python work per batch, not per message.

A *payload* is NSQ's message layout, the same on the wire, in nsqd's disk queue and in a `framed`
archive (spec: tcp-protocol, 5.1; nsqd-http, 5.3), big-endian:

    i64 timestamp_ns | u16 attempts | 16 bytes id | body

Payloads sort by publish time, because they begin with it: `min(payloads)` is the earliest.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

ID_BYTES = 16
PAYLOAD_HEADER = struct.Struct(">qH16s")
PAYLOAD_HEADER_BYTES = PAYLOAD_HEADER.size
_ATTEMPTS_AT = 8
_ID_AT = 10
_BODY_AT = PAYLOAD_HEADER_BYTES


class Messages:
    """Messages in arrival order; each column is built on first use and then kept."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.payloads = payloads

    def __len__(self) -> int:
        return len(self.payloads)

    @cached_property
    def ids(self) -> list[bytes]:
        return [payload[_ID_AT:_BODY_AT] for payload in self.payloads]

    @cached_property
    def bodies(self) -> list[bytes]:
        return [payload[_BODY_AT:] for payload in self.payloads]

    @cached_property
    def timestamps(self) -> list[int]:
        """Publish times in nanoseconds since the epoch."""
        return [int.from_bytes(payload[:_ATTEMPTS_AT], "big") for payload in self.payloads]

    @cached_property
    def attempts(self) -> list[int]:
        return [payload[8] << 8 | payload[9] for payload in self.payloads]

    @cached_property
    def size_bytes(self) -> int:
        """Bytes of all bodies."""
        return sum(map(len, self.payloads)) - PAYLOAD_HEADER_BYTES * len(self.payloads)

    def time_range_ns(self) -> tuple[int, int]:
        """First and last publish time in nanoseconds; the messages must not be none."""
        first, last = min(self.payloads), max(self.payloads)
        return int.from_bytes(first[:_ATTEMPTS_AT], "big"), int.from_bytes(
            last[:_ATTEMPTS_AT], "big"
        )


class Arrival(NamedTuple):
    """Messages together with the nsqd that delivered them (`host:port`)."""

    nsqd: str
    messages: Messages


def encode_payload(timestamp_ns: int, attempts: int, message_id: bytes, body: bytes) -> bytes:
    """One message in NSQ's layout."""
    return PAYLOAD_HEADER.pack(timestamp_ns, attempts, message_id) + body


def count_messages(arrivals: Sequence[Arrival]) -> int:
    return sum(len(arrival.messages) for arrival in arrivals)
