"""The consumers of a channel, and the ring of those that can take messages.

Nobody is asked whether they are ready: who can take more says so (`wake`), and stands in the ring until
they are served all that they can take. Serving sends to the end of the ring, so that all get a share.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from nsqtools.broker.flight import Holder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Subscriber(Holder, Protocol):
    """A consumer's connection, as a channel sees it."""

    msg_timeout_s: float
    sample_rate: int

    def budget(self) -> int:
        """How many more messages it may get now."""

    def deliver(self, frames: Sequence[bytes], count: int) -> None:
        """Send message frames, `count` of them in all pieces together."""

    def disconnect(self) -> None:
        """Close the connection: its channel is gone."""


class Consumers:
    """See the module; iterates over all of them, in the order in which they came."""

    def __init__(self) -> None:
        self._all: dict[Subscriber, None] = {}
        self._ready: OrderedDict[Subscriber, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._all)

    @property
    def ready_count(self) -> int:
        """How many are in the ring; some may have found out meanwhile that they cannot take more."""
        return len(self._ready)

    def add(self, subscriber: Subscriber) -> None:
        self._all[subscriber] = None
        self.wake(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        self._all.pop(subscriber, None)
        self._ready.pop(subscriber, None)

    def wake(self, subscriber: Subscriber) -> None:
        """What it can take has changed; it keeps its place in the ring."""
        if subscriber.budget() > 0:
            self._ready[subscriber] = None
        else:
            self._ready.pop(subscriber, None)

    def next_ready(self) -> Subscriber | None:
        """The one that has waited longest, and its place in the ring."""
        while self._ready:
            subscriber = next(iter(self._ready))
            if subscriber.budget() > 0:
                return subscriber
            del self._ready[subscriber]
        return None

    def served(self, subscriber: Subscriber) -> None:
        """It got something; what it gets next is behind what the others get."""
        if subscriber.budget() > 0:
            self._ready.move_to_end(subscriber)
        else:
            self._ready.pop(subscriber, None)
