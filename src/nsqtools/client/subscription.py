"""One connection of a consumer, with what it holds: the bookkeeping beside `Connection`."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from nsqtools.client.batch import Batch
from nsqtools.client.rdy import STRICT_PROBE_S, ConnectionRdy
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.client.connection import Connection
    from nsqtools.wire.messages import Messages

# A message is touched when this part of its time is over.
TOUCH_AFTER = 0.5
# A rate says something only over some time.
RATED_OVER_S = 0.05
# How much of what was counted before the last look counts still.
_RATE_MEMORY = 0.5
# Within BEYOND_INTERVAL_S, messages beyond what we have: so many times the highest RDY, and as many
# more. nsqd can send once more what has timed out meanwhile, and no more than RDY of it at a time.
BEYOND_FACTOR = 4
BEYOND_MIN = 1000
BEYOND_INTERVAL_S = 1.0
# Who has read nothing for so long has stood still: the process was stopped, or may hold no more.
# Each time that msg_timeout was over meanwhile nsqd has sent RDY messages again; they come within
# RESENT_S.
# An nsqd that hears nothing for longer than STOOD_STILL_MAX_S has closed the connection.
STOOD_STILL_S = 2.0
STOOD_STILL_MAX_S = 120.0
RESENT_S = 10.0
# Commands that nsqd can still refuse; all messages that can be in flight were answered, and touched.
REFUSABLE_MAX = 200_000


# There can be several connections to one nsqd.
_numbers = itertools.count()


class Subscription:
    """A subscribed connection: its RDY, its unsettled batches, and when they must be touched.

    `settled` is called when messages were answered, `released` with the bytes of a batch that is held
    no longer.
    """

    def __init__(
        self,
        connection: Connection,
        now_s: float,
        *,
        settled: Callable[[Subscription], None],
        released: Callable[[int], None],
    ) -> None:
        self.connection = connection
        self.address = connection.address
        self.key = f"{connection.address} {next(_numbers)}"
        self.rdy = 0
        self.rdy_changed_s = now_s
        self._rdy_before = 0
        self._lowered_s = now_s
        self.last_message_s: float | None = None
        self.in_flight = 0
        self.waiting = 0
        self.closing = False  # CLS was sent
        self.silent = False  # and CLOSE_WAIT has come
        self._settled = settled
        self._released = released
        self._rate = 0.0
        self._received = 0
        self._rated_s = now_s
        self._was_exhausted = False
        self._rdy_max = 0
        self._beyond = 0
        self._beyond_s = self._read_s = self._resent_until_s = now_s
        self._resent = 0.0
        self._refusable = 0
        # In the order in which they must be touched.
        self._held: dict[Batch, None] = {}
        self._unsent: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return self.connection.is_open

    @property
    def max_msg_timeout_s(self) -> float:
        return self.connection.reply.max_msg_timeout_ms / 1000

    @property
    def oldest_s(self) -> float | None:
        """When the oldest unsettled batch came, in the loop's time."""
        return min((batch.received_s for batch in self._held), default=None)

    def receive(self, messages: Messages, now_s: float) -> Batch:
        batch = Batch(self, messages, now_s)
        self._held[batch] = None
        self.in_flight += len(messages)
        self._received += len(messages)
        self.last_message_s = now_s
        if self.in_flight >= self.rdy:
            self._was_exhausted = True
        return batch

    def is_flooded(self, messages: int, now_s: float) -> bool:
        """Whether with so many more nsqd has sent far more than it was ever asked for."""
        self.reads(now_s)
        if now_s - self._beyond_s > BEYOND_INTERVAL_S:
            self._beyond, self._beyond_s = 0, now_s
        self._beyond += min(messages, max(0, self.in_flight + messages - self._rdy_max))
        resent = self._resent if now_s < self._resent_until_s else 0
        return self._beyond > BEYOND_FACTOR * self._rdy_max + BEYOND_MIN + resent

    def reads(self, now_s: float) -> None:
        """What comes is read; to be said now and then, so that a standstill is noticed."""
        stood_s, self._read_s = now_s - self._read_s, now_s
        if stood_s > STOOD_STILL_S:
            timeout_s = max(1, self.connection.reply.msg_timeout_ms) / 1000
            self._resent = self._rdy_max * min(stood_s, STOOD_STILL_MAX_S) / timeout_s
            self._resent_until_s = now_s + RESENT_S

    def may_refuse(self) -> bool:
        """Count an error of nsqd; whether there was a command that it can be about."""
        self._refusable -= 1
        return self._refusable >= -BEYOND_MIN

    # Settler

    def settle(self, data: bytes, count: int) -> None:
        """What is settled within one turn of the loop goes out in one write."""
        self.in_flight -= count
        self._refusable = min(self._refusable + count, REFUSABLE_MAX)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self.flush)
        self._unsent.append(data)
        self._settled(self)

    def release(self, batch: Batch) -> None:
        if batch in self._held:
            del self._held[batch]
            self._released(batch.size_bytes)

    def release_some(self, size_bytes: int) -> None:
        self._released(size_bytes)

    def send(self, data: bytes) -> None:
        self.flush()
        self._refusable = min(self._refusable + data.count(b"\n"), REFUSABLE_MAX)
        self.connection.send(data)

    def flush(self) -> None:
        """Send the answers that wait for the end of this turn."""
        if self._unsent:
            data, self._unsent = self._unsent, []
            self.connection.send(b"".join(data))

    def give_back(self) -> int:
        """REQ for everything that is held, to be delivered again at once; gives how many messages."""
        given_back = 0
        for batch in list(self._held):
            unsettled = batch.unsettled
            given_back += unsettled - batch.requeue()
        self.flush()
        return given_back

    # RDY and TOUCH

    def set_rdy(self, rdy: int, now_s: float) -> None:
        if rdy != self.rdy and not self.closing:
            if self.rdy >= self._rdy_before or now_s - self._lowered_s >= STRICT_PROBE_S:
                self._rdy_before, self._lowered_s = self.rdy, now_s
            self.rdy = rdy
            self._rdy_max = max(self._rdy_max, rdy)
            self.rdy_changed_s = now_s
            self.send(commands.rdy(rdy))

    def close_wait(self) -> None:
        """CLS: nsqd sends no more messages, and says when."""
        if not self.closing:
            self.closing = True
            self.rdy = 0
            self.send(commands.CLS)

    def touch_due(self, now_s: float) -> int:
        """Touch what has used half of its time; gives how many were too old to be touched.

        nsqd grants no more than max_msg_timeout since the delivery; after that the message is given
        to somebody else, whatever we do (spec: tcp-protocol, 6.3).
        """
        timeout_s = self.connection.reply.msg_timeout_ms / 1000
        limit_s = self.max_msg_timeout_s
        too_old = 0
        while self._held:
            batch = next(iter(self._held))
            if now_s - batch.touched_s < timeout_s * TOUCH_AFTER:
                break
            del self._held[batch]
            self._held[batch] = None
            if now_s - batch.received_s > limit_s:
                too_old += batch.unsettled
                batch.touched_s = now_s
            else:
                batch.touch(now_s)
        return too_old

    def rate_per_s(self, now_s: float) -> float:
        """How many messages a second came of late."""
        passed_s = now_s - self._rated_s
        if passed_s >= RATED_OVER_S:
            rate = self._received / passed_s
            self._rate = rate + (self._rate - rate) * _RATE_MEMORY
            self._received = 0
            self._rated_s = now_s
        return self._rate

    def snapshot(self, now_s: float) -> ConnectionRdy:
        """What counts of it since the last one, for a decision."""
        was_exhausted, self._was_exhausted = self._was_exhausted, False
        return ConnectionRdy(
            key=self.key,
            max_rdy_count=0 if self.closing else self.connection.reply.max_rdy_count,
            rdy=self.rdy,
            in_flight=self.in_flight,
            rdy_changed_at=self.rdy_changed_s,
            last_message_at=self.last_message_s,
            rate_per_s=self.rate_per_s(now_s),
            was_exhausted=was_exhausted,
            rdy_before=self._rdy_before if now_s - self._lowered_s < STRICT_PROBE_S else 0,
        )
