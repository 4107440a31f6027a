"""One connection of a consumer, with what it holds: the bookkeeping beside `Connection`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.client.batch import Batch
from nsqtools.client.rdy import ConnectionRdy
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.client.connection import Connection
    from nsqtools.wire.messages import Messages

# A message is touched when this part of its time is over.
TOUCH_AFTER = 0.5
# Holding this part of its RDY makes a connection starved: soon nsqd can send nothing more.
STARVED_AT = 0.5


class Subscription:
    """A subscribed connection: its RDY, its unsettled batches, and when they must be touched."""

    def __init__(
        self, connection: Connection, now_s: float, settled: Callable[[Subscription], None]
    ) -> None:
        self.connection = connection
        self.address = connection.address
        self.rdy = 0
        self.rdy_changed_s = now_s
        self.last_message_s: float | None = None
        self.in_flight = 0
        self.held_bytes = 0
        self.waiting = 0
        self.closing = False  # CLS was sent
        self.silent = False  # and CLOSE_WAIT has come
        self._settled = settled
        # In the order in which they must be touched.
        self._held: dict[Batch, None] = {}

    def receive(self, messages: Messages, now_s: float) -> Batch:
        batch = Batch(self, messages, now_s)
        self._held[batch] = None
        self.in_flight += len(messages)
        self.held_bytes += messages.size_bytes
        self.waiting += len(messages)
        self.last_message_s = now_s
        return batch

    @property
    def fill(self) -> float:
        """How much of a full batch waits to be taken: at 1, nsqd has little left to send."""
        full = self.rdy * STARVED_AT
        return self.waiting / full if full else float(self.waiting > 0)

    def taken(self, count: int) -> None:
        self.waiting -= count

    # Settler

    def settle(self, batch: Batch, data: bytes, count: int) -> bool:
        if not self.connection.is_open:
            return False
        self.in_flight -= count
        if not batch.unsettled and batch in self._held:
            del self._held[batch]
            self.held_bytes -= batch.messages.size_bytes
        self.connection.send(data)
        self._settled(self)
        return True

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    # RDY and TOUCH

    def set_rdy(self, rdy: int, now_s: float) -> None:
        if rdy != self.rdy and not self.closing:
            self.rdy = rdy
            self.rdy_changed_s = now_s
            self.connection.send(commands.rdy(rdy))

    def close_wait(self) -> None:
        """CLS: nsqd sends no more messages, and says when."""
        if not self.closing:
            self.closing = True
            self.rdy = 0
            self.connection.send(commands.CLS)

    def touch_due(self, now_s: float) -> int:
        """Touch what has used half of its time; gives how many were too old to be touched.

        nsqd grants no more than max_msg_timeout since the delivery; after that the message is given
        to somebody else, whatever we do (spec: tcp-protocol, 6.3).
        """
        timeout_s = self.connection.reply.msg_timeout_ms / 1000
        limit_s = self.connection.reply.max_msg_timeout_ms / 1000
        too_old = 0
        for batch in list(self._held):
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

    def snapshot(self) -> ConnectionRdy:
        return ConnectionRdy(
            key=self.address,
            max_rdy_count=0 if self.closing else self.connection.reply.max_rdy_count,
            rdy=self.rdy,
            in_flight=self.in_flight,
            rdy_changed_at=self.rdy_changed_s,
            last_message_at=self.last_message_s,
        )
