"""Records to MPUBs: what fits into one, what nsqd would refuse, what is empty. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.wire.commands import MPUB_COUNT_BYTES, SIZE_BYTES, mpub_size_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkLimits:
    """What nsqd takes, and how many messages go into one MPUB."""

    messages_max: int
    msg_size_max_bytes: int
    body_size_max_bytes: int


@dataclass(frozen=True, slots=True)
class Sorted:
    """The records that can be sent, and those that cannot: (position in the batch, size)."""

    bodies: Sequence[bytes]
    empty: int
    too_big: Sequence[tuple[int, int]]


def sort_out(bodies: Sequence[bytes], limits: ChunkLimits) -> Sorted:
    """Leave out empty messages, which nsqd refuses, and those over its limit."""
    sizes = list(map(len, bodies))
    limit = limits.msg_size_max_bytes
    if not sizes or (min(sizes) > 0 and max(sizes) <= limit):
        return Sorted(bodies, 0, ())
    too_big = [(at, size) for at, size in enumerate(sizes) if size > limit]
    return Sorted([body for body in bodies if 0 < len(body) <= limit], sizes.count(0), too_big)


def chunks(bodies: Sequence[bytes], limits: ChunkLimits) -> Iterator[Sequence[bytes]]:
    """Cut bodies, each of which fits, into MPUBs that fit."""
    for at in range(0, len(bodies), limits.messages_max):
        run = bodies[at : at + limits.messages_max]
        if mpub_size_bytes(run) <= limits.body_size_max_bytes:
            yield run
        else:
            yield from _by_size(run, limits.body_size_max_bytes)


def _by_size(bodies: Sequence[bytes], size_max: int) -> Iterator[Sequence[bytes]]:
    run: list[bytes] = []
    size = MPUB_COUNT_BYTES
    for body in bodies:
        if run and size + SIZE_BYTES + len(body) > size_max:
            yield run
            run, size = [], MPUB_COUNT_BYTES
        run.append(body)
        size += SIZE_BYTES + len(body)
    yield run
