"""The messages of every figure: lines of a web service's log, from a fixed seed. All have 200 bytes but
for the figures of many sizes, where they have about that on average.
"""

from __future__ import annotations

import random
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGE_BYTES = 200
# Beyond this many, the same lines come again: no frame of an archive reaches that far back.
DISTINCT_MAX = 100_000
SEED = 20260131
DESCRIPTION = (
    f"{MESSAGE_BYTES}-byte JSON log lines, seed {SEED}, {DISTINCT_MAX:,} distinct, then again;"
    " mixed: of many sizes, about that on average"
)
MPUB_MESSAGES = 200

_METHODS = ("GET", "GET", "GET", "POST", "PUT")
_PATHS = ("/", "/login", "/api/v1/orders/{n}", "/api/v1/items/{n}", "/static/app.{n}.js")
_STATUS = (200, 200, 200, 200, 204, 304, 404, 500)
# How many lines, of about 185 bytes, are longer where there are to be many sizes, and by how much.
_NAMED = 0.4
_AGENT_BYTES_MAX = 80
_I32 = struct.Struct(">i")
_FRAME = struct.Struct(">iiqH16s")
FRAME_BYTES = _FRAME.size + MESSAGE_BYTES
FRAME_SIZE_AND_TYPE = struct.pack(">ii", FRAME_BYTES - 4, 2)


def messages(count: int, *, is_mixed: bool = False) -> Iterator[bytes]:
    """The first `count` messages, of many sizes or of one; a message is a line without its newline."""
    rng = random.Random(SEED)
    when_s = 1_769_860_800.0
    for _ in range(count):
        when_s += rng.random() / 200
        line = _line(rng, when_s)
        if is_mixed:
            agent = "x" * rng.randrange(_AGENT_BYTES_MAX)
            named = f',"agent":"{agent}"' if rng.random() < _NAMED else ""
            yield f"{line}{named}}}".encode("ascii")
        else:
            whole = line.ljust(MESSAGE_BYTES - 1)[: MESSAGE_BYTES - 1]
            yield whole.encode("ascii") + b"}"


def _line(rng: random.Random, when_s: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when_s))
    path = rng.choice(_PATHS).format(n=rng.randrange(5000))
    return (
        f'{{"time":"{stamp}.{int(when_s % 1 * 1000):03d}Z","level":"info","svc":"shop",'
        f'"host":"web-{rng.randrange(8):02d}","method":"{rng.choice(_METHODS)}","path":"{path}",'
        f'"status":{rng.choice(_STATUS)},"bytes":{rng.randrange(200, 50_000)},'
        f'"ms":{rng.randrange(1, 400)},"trace":"{rng.getrandbits(96):024x}"'
    )


def write_messages(path: Path, count: int, *, is_mixed: bool = False) -> None:
    """Write the distinct ones of `count` messages as lines."""
    with path.open("wb") as file:
        for message in messages(min(count, DISTINCT_MAX), is_mixed=is_mixed):
            file.write(message + b"\n")


def read_messages(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def size_bytes(path: Path, count: int) -> int:
    """Of `count` messages, when those of the file come again and again."""
    sizes = list(map(len, read_messages(path)))
    whole, rest = divmod(count, len(sizes))
    return whole * sum(sizes) + sum(sizes[:rest])


def mpubs(path: Path, topic: str, count: int) -> tuple[list[bytes], int, bytes]:
    """Encoded MPUBs that are sent round and round, how often one is sent, and a last, smaller one.

    The last one is empty when `count` is a multiple of MPUB_MESSAGES.
    """
    distinct = read_messages(path)
    whole, rest = divmod(count, MPUB_MESSAGES)
    last = len(distinct) - len(distinct) % MPUB_MESSAGES
    full = [_mpub(topic, distinct[at : at + MPUB_MESSAGES]) for at in range(0, last, MPUB_MESSAGES)]
    return full, whole, _mpub(topic, distinct[:rest]) if rest else b""


def _mpub(topic: str, bodies: list[bytes]) -> bytes:
    body = _I32.pack(len(bodies)) + b"".join(_I32.pack(len(one)) + one for one in bodies)
    return b"MPUB %b\n%b%b" % (topic.encode(), _I32.pack(len(body)), body)


def frames(path: Path) -> bytes:
    """The messages as nsqd sends them, one frame after the other."""
    return b"".join(
        _FRAME.pack(FRAME_BYTES - 4, 2, at, 1, b"%016x" % at) + body
        for at, body in enumerate(read_messages(path))
    )
