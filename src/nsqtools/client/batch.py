"""Messages that were received together, and the one place where each of them is answered.

A message is settled at most once: FIN, or REQ. What is not settled when its connection ends cannot be
settled any more (nsqd gives it to somebody else when its time is over); asking for it is counted, not
an error, because the archiver cannot do anything about it: it means a possible duplicate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from nsqtools.errors import NotSettled
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.wire.messages import Messages


class Settler(Protocol):
    """The connection of a batch, as the consumer keeps it."""

    address: str

    def settle(self, batch: Batch, data: bytes, count: int) -> bool:
        """Send FIN or REQ commands for `count` messages; False when the connection is gone."""

    def send(self, data: bytes) -> None:
        """Send commands that settle nothing (TOUCH)."""


class Batch:
    """Messages of one connection. `received_s` is monotonic time.

    `open_ids` are the ids that are not settled; once some were settled alone it is a set.
    """

    __slots__ = ("_open", "_settler", "messages", "received_s", "touched_s", "unsettled")

    def __init__(self, settler: Settler, messages: Messages, received_s: float) -> None:
        self.messages = messages
        self.received_s = self.touched_s = received_s
        self.unsettled = len(messages)
        self._settler = settler
        self._open: set[bytes] | None = None

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        columns = zip(
            self.messages.ids,
            self.messages.bodies,
            self.messages.timestamps,
            self.messages.attempts,
            strict=True,
        )
        return (Message(self, *column) for column in columns)

    @property
    def nsqd(self) -> str:
        """The nsqd that delivered them, `host:port`."""
        return self._settler.address

    @property
    def open_ids(self) -> Sequence[bytes]:
        return self.messages.ids if self._open is None else list(self._open)

    def finish(self) -> bool:
        """FIN for all that is not settled; False when the connection is gone."""
        return self._settle_all(commands.fin)

    def requeue(self, delay_s: float = 0.0) -> bool:
        """REQ for all that is not settled, to come again after `delay_s`."""
        delay_ms = round(delay_s * 1000)
        return self._settle_all(lambda ids: commands.req(ids, delay_ms))

    def touch(self, now_s: float) -> None:
        """More time for all that is not settled."""
        self.touched_s = now_s
        if self.unsettled:
            self._settler.send(commands.touch(self.open_ids))

    def settle_one(self, message_id: bytes, data: bytes) -> None:
        """Send the FIN or REQ of one message. Raises NotSettled when that cannot be."""
        if self._open is None:
            self._open = set(self.messages.ids)
        if message_id not in self._open:
            raise NotSettled(f"message {message_id.decode()} is settled already")
        self._open.discard(message_id)
        self.unsettled -= 1
        if not self._settler.settle(self, data, 1):
            raise NotSettled(f"message {message_id.decode()}: its connection is gone")

    def send_touch(self, message_id: bytes) -> None:
        self._settler.send(commands.touch([message_id]))

    def _settle_all(self, encode: Encode) -> bool:
        count, self.unsettled = self.unsettled, 0
        if not count:
            return True
        ids, self._open = self.open_ids, set()
        return self._settler.settle(self, encode(ids), count)


class Encode(Protocol):
    """Ids to the commands that settle them."""

    def __call__(self, ids: Sequence[bytes], /) -> bytes: ...


class Message:
    """One message, for those who want them one by one."""

    __slots__ = ("_batch", "attempts", "body", "id", "timestamp_ns")

    def __init__(
        self, batch: Batch, message_id: bytes, body: bytes, timestamp_ns: int, attempts: int
    ) -> None:
        self.id = message_id
        self.body = body
        self.timestamp_ns = timestamp_ns
        self.attempts = attempts
        self._batch = batch

    @property
    def nsqd(self) -> str:
        return self._batch.nsqd

    @property
    def received_s(self) -> float:
        """Monotonic time of arrival."""
        return self._batch.received_s

    def finish(self) -> None:
        """FIN. Raises NotSettled when it is settled already or its connection is gone."""
        self._batch.settle_one(self.id, commands.fin([self.id]))

    def requeue(self, delay_s: float = 0.0) -> None:
        """REQ, to come again after `delay_s`. Raises NotSettled, as `finish`."""
        self._batch.settle_one(self.id, commands.req([self.id], round(delay_s * 1000)))

    def touch(self) -> None:
        """More time; the consumer does this by itself while the message is held."""
        self._batch.send_touch(self.id)
