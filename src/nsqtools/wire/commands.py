"""Commands from a client to nsqd, as the client writes them (spec: tcp-protocol, part 2).

    NAME [SP param]* LF [i32 length, body]

The broker's side of the same commands is `wire/decoder.py`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nsqtools.wire.cutting import cut
from nsqtools.wire.payloads import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC_V2 = b"  V2"
NOP = b"NOP\n"
CLS = b"CLS\n"

_I32 = struct.Struct(">i")
_MPUB_HEAD = struct.Struct(">ii")
SIZE_BYTES = 4
# MPUB's body beside its messages: the count, and a size for each message.
MPUB_COUNT_BYTES = 4
_FIN = b"FIN "
FIN_LINE_BYTES = len(_FIN) + ID_BYTES + 1


def with_body(line: bytes, body: bytes) -> bytes:
    return b"%b\n%b%b" % (line, _I32.pack(len(body)), body)


def identify(body: bytes) -> bytes:
    return with_body(b"IDENTIFY", body)


def auth(secret: bytes) -> bytes:
    return with_body(b"AUTH", secret)


def sub(topic: str, channel: str) -> bytes:
    return f"SUB {topic} {channel}\n".encode()


def rdy(count: int) -> bytes:
    return b"RDY %d\n" % count


def fin(ids: Sequence[bytes]) -> bytes:
    """FIN for every id of a batch, as one run of bytes; `ids` must not be empty."""
    return b"FIN %b\n" % b"\nFIN ".join(ids)


def fin_ids(lines: bytes) -> list[bytes]:
    """The ids of a run of FINs."""
    return cut(lines, 0, FIN_LINE_BYTES, len(_FIN), ID_BYTES, len(lines) // FIN_LINE_BYTES)


def touch(ids: Sequence[bytes]) -> bytes:
    return b"TOUCH %b\n" % b"\nTOUCH ".join(ids)


def req(ids: Sequence[bytes], delay_ms: int) -> bytes:
    return b"".join([b"REQ %b %d\n" % (message_id, delay_ms) for message_id in ids])


def pub(topic: str, body: bytes) -> bytes:
    return with_body(b"PUB " + topic.encode(), body)


def dpub(topic: str, body: bytes, delay_ms: int) -> bytes:
    return with_body(b"DPUB %b %d" % (topic.encode(), delay_ms), body)


def mpub_size_bytes(bodies: Sequence[bytes]) -> int:
    """What MPUB's body size says for these messages; nsqd's --max-body-size bounds it."""
    return MPUB_COUNT_BYTES + SIZE_BYTES * len(bodies) + sum(map(len, bodies))


def mpub(topic: str, bodies: Sequence[bytes]) -> bytes:
    """One MPUB: all messages are parsed by nsqd before any is queued."""
    count = len(bodies)
    sizes = list(map(len, bodies))
    prefix = {size: _I32.pack(size) for size in set(sizes)}
    parts: list[bytes] = [b""] * (2 * count + 1)
    parts[0] = b"MPUB %b\n%b" % (
        topic.encode(),
        _MPUB_HEAD.pack(MPUB_COUNT_BYTES + SIZE_BYTES * count + sum(sizes), count),
    )
    parts[1::2] = map(prefix.__getitem__, sizes)
    parts[2::2] = bodies
    return b"".join(parts)
