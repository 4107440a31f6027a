"""What has come and was not taken yet, and the waiting for more of it.

Work for each read does not depend on how many nsqds there are: sums are kept, nothing is looked up.
Any number of tasks may wait at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.client.batch import Batch, Part
    from nsqtools.client.subscription import Subscription


class Inbox:
    """Batches in the order in which they came.

    `first_s` and `last_s` are when the oldest and the newest of them came, in seconds of the loop's
    clock; they mean nothing while there is none. `window` is the RDY of all connections together.
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.messages = 0
        self.size_bytes = 0
        self.first_s = self.last_s = 0.0
        self.window = 0
        self.fullest = 0.0
        """How much of its RDY waits of the connection that has most: at 1 its nsqd sends no more."""
        self.ended = False
        self._at = 0  # how much of the first batch was taken
        self._waiters: dict[asyncio.Future[None], float] = {}

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def fill(self) -> float:
        """How much of the window waits here: 1 when no nsqd may send any more."""
        return self.messages / self.window if self.window else float(self.messages > 0)

    def put(self, batch: Batch, subscription: Subscription, now_s: float) -> None:
        """Take a batch in, and wake those who wait for as much."""
        if not self.batches:
            self.first_s = now_s
        self.last_s = now_s
        self.batches.append(batch)
        self.messages += len(batch)
        self.size_bytes += batch.size_bytes
        subscription.waiting += len(batch)
        self.fullest = max(self.fullest, subscription.waiting / (subscription.rdy or 1))
        if self._waiters:
            self._wake(self.fill)

    def take(self) -> list[Batch]:
        """Everything that has come and was not taken; may be nothing.

        What `take_some` has left of a batch is to be taken by it.
        """
        assert not self._at, "a batch that was begun is given whole"  # noqa: S101
        batches, self.batches = self.batches, []
        for batch in batches:
            batch.subscription.waiting = 0
        self.messages = self.size_bytes = 0
        self.fullest = 0.0
        return batches

    def take_some(self, messages_max: int, bytes_max: int) -> list[Part]:
        """The oldest messages within both bounds; at least one, when there is one."""
        parts: list[Part] = []
        while self.batches and messages_max > 0 and (bytes_max > 0 or not parts):
            batch = self.batches[0]
            stop = self._at + batch.count_within(self._at, messages_max, bytes_max)
            if stop == self._at:
                if parts:
                    break
                stop += 1
            part = batch.part(self._at, stop)
            parts.append(part)
            messages_max -= len(part)
            bytes_max -= part.size_bytes
            self._forget(batch, len(part), part.size_bytes)
            self._at = stop
            if stop == len(batch):
                del self.batches[0]
                self._at = 0
                batch.cut_up()
        if not self.batches:
            self.fullest = 0.0
        return parts

    def drop(self, subscription: Subscription) -> int:
        """Forget what came by this connection and was not taken; gives how many messages.

        The connection is gone: they cannot be settled, and nsqd will deliver them again.
        """
        dropped = 0
        for batch in [batch for batch in self.batches if batch.subscription is subscription]:
            at = self._at if batch is self.batches[0] else 0
            self._at -= at
            self.batches.remove(batch)
            rest = batch.part(at, len(batch)) if at else batch
            self._forget(batch, len(rest), rest.size_bytes)
            rest.let_go()
            dropped += len(rest)
        return dropped

    def _forget(self, batch: Batch, messages: int, size_bytes: int) -> None:
        self.messages -= messages
        self.size_bytes -= size_bytes
        batch.subscription.waiting -= messages

    @property
    def is_begun(self) -> bool:
        """Whether some of the first batch was taken."""
        return self._at > 0

    async def wait(self, timeout_s: float | None = None, *, fill: float = 0.0) -> None:
        """Wait until something has come, or until this much of the window waits.

        Returns at once when that is so, and when nothing can come any more; after `timeout_s` in any
        case. Cancelling it changes nothing.
        """
        if self.ended or (self.batches and self.fill >= fill):
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters[waiter] = fill
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            del self._waiters[waiter]
            if timer is not None:
                timer.cancel()

    def end(self) -> None:
        """Nothing comes any more: nobody has to wait."""
        self.ended = True
        self._wake(float("inf"))

    def _wake(self, fill: float) -> None:
        for waiter, wanted in self._waiters.items():
            if fill >= wanted:
                _wake(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
