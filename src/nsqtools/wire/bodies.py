"""Message bodies that are published together, and what is known of their sizes.

Who cuts a batch out of what came knows the sizes; who numbers, frames and counts it need not ask each
message again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


class Bodies(NamedTuple):
    """At least one body; `size_bytes` is that of all, `even_bytes` that of each, 0 where they differ."""

    each: list[bytes]
    size_bytes: int
    even_bytes: int


def measured(each: list[bytes]) -> Bodies:
    """Bodies of which no size is known yet."""
    sizes = set(map(len, each))
    return Bodies(each, sum(map(len, each)), sizes.pop() if len(sizes) == 1 else 0)


def joined(several: Iterable[Bodies]) -> Bodies:
    """All of them as one, in their order."""
    each: list[bytes] = []
    sizes = set()
    size_bytes = 0
    for bodies in several:
        each += bodies.each
        size_bytes += bodies.size_bytes
        sizes.add(bodies.even_bytes)
    return Bodies(each, size_bytes, sizes.pop() if len(sizes) == 1 else 0)
