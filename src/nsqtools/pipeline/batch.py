"""Runs that end by themselves: after so many messages, or when none has come for a time.

`Idle` is a decision on (state, now). `Quota` shares what is still wanted among the topics: nsqd is asked
(RDY) for no more than that, and less as it gets less. What was on its way already comes all the same.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.client.consumer import Consumer

# How often what is wanted is shared anew: fewer messages than topics go round among these.
SHARE_INTERVAL_S = 0.5
# How often it is looked whether anything comes: this part of the time, and at least so often.
LOOKS = 8
LOOK_MAX_S = 1.0


class Quota:
    """So many messages are wanted in this run, of all topics together. `reached` is called when they are
    done, once. For the loop."""

    def __init__(self, messages: int, reached: Callable[[], None]) -> None:
        self._left = messages
        self._reached = reached
        self._consumers: list[Consumer] = []
        self._turn = itertools.count()

    @property
    def left(self) -> int:
        """How many messages are still wanted."""
        return max(0, self._left)

    def enter(self, consumer: Consumer) -> None:
        """A topic begins; before it is connected."""
        self._consumers.append(consumer)
        self.share()

    def leave(self, consumer: Consumer) -> None:
        self._consumers.remove(consumer)
        self.share()

    def settling(self, consumer: Consumer, messages: int) -> None:
        """So many messages are about to be answered: nsqd must hear a lower RDY first, or it would send
        others in their place."""
        self._share({consumer: messages})

    def done(self, messages: int) -> None:
        """So many were done."""
        was, self._left = self._left, self._left - messages
        if self._left <= 0 < was:
            self._reached()
        self.share()

    def share(self) -> None:
        """Let each topic have what it holds, and a part of what is wanted beyond that."""
        self._share({})

    def _share(self, settling: dict[Consumer, int]) -> None:
        held = [one.in_flight - settling.get(one, 0) for one in self._consumers]
        wanted = max(0, self._left - sum(settling.values()) - sum(held))
        for consumer, part, holds in zip(
            self._consumers, self._parts(wanted, len(held)), held, strict=True
        ):
            consumer.allow(part + holds, strictly=True)

    def _parts(self, wanted: int, topics: int) -> list[int]:
        """Even ones; what is left over goes to another topic each time."""
        if not topics:
            return []
        each, over = divmod(wanted, topics)
        first = next(self._turn) * max(1, over) % topics
        return [each + ((at - first) % topics < over) for at in range(topics)]


class Idle:
    """Whether nothing has come for `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since_s: float | None = None
        self._received = -1

    @property
    def look_s(self) -> float:
        """How often to look."""
        return min(self._after_s / LOOKS, LOOK_MAX_S)

    def is_over(self, *, is_quiet: bool, received: int, now_s: float) -> bool:
        """`is_quiet`: everything that is asked for is connected and works, and nothing is in flight;
        `received` is how many messages have come in all."""
        if not is_quiet or received != self._received or self._since_s is None:
            self._received = received
            self._since_s = now_s if is_quiet else None
            return False
        return now_s - self._since_s >= self._after_s
