"""Messages that were received together, and the one place where each of them is answered.

A message is settled at most once: FIN, or REQ. What is not settled when its connection ends cannot be
settled any more (nsqd gives it to somebody else when its time is over); asking for it is counted, not
an error: whoever had made it durable by then has a possible duplicate.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Protocol

from nsqtools.client.memory import MESSAGE_COST_BYTES
from nsqtools.errors import NotSettled
from nsqtools.wire import commands
from nsqtools.wire.messages import Messages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


# The part of max_msg_timeout for which a message is kept.
KEEP_MAX = 0.9


class Settler(Protocol):
    """The connection of a batch, as the consumer keeps it."""

    address: str
    waiting: int
    rdy: int

    @property
    def max_msg_timeout_s(self) -> float:
        """How long a message can be held at the most, from its delivery on."""

    @property
    def is_open(self) -> bool:
        """Whether FIN, REQ and TOUCH still reach nsqd."""

    def settle(self, data: bytes, count: int) -> None:
        """Send FIN or REQ commands for `count` messages."""

    def release(self, batch: Batch) -> None:
        """Nothing of a batch is unsettled any more: it is held no longer."""

    def release_some(self, size_bytes: int) -> None:
        """So much of a batch is held no longer."""

    def send(self, data: bytes) -> None:
        """Send commands that settle nothing (TOUCH)."""

    def flush(self) -> None:
        """Send what was settled now, and not when this turn of the loop ends."""


class Batch:
    """Messages of one connection. `received_s` is the loop's time; `size_bytes` what they cost here,
    without the parts that were settled.

    `open_ids` are the ids that are not settled.
    """

    __slots__ = (
        "_open",
        "messages",
        "received_s",
        "size_bytes",
        "subscription",
        "touched_s",
        "unsettled",
    )

    def __init__(self, subscription: Settler, messages: Messages, received_s: float) -> None:
        self.messages = messages
        self.received_s = self.touched_s = received_s
        self.unsettled = len(messages)
        self.size_bytes = cost_bytes(messages)
        self.subscription = subscription
        self._open: dict[bytes, int] | None = None

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
        return self.subscription.address

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone: nsqd will deliver what is unsettled again."""
        return not self.subscription.is_open

    @property
    def expires_s(self) -> float:
        """Until when they can be kept, in the loop's time: nsqd gives them to somebody else after
        max_msg_timeout, however often they are touched, and a little of that is left for the way."""
        return self.received_s + self.subscription.max_msg_timeout_s * KEEP_MAX

    @property
    def open_ids(self) -> Sequence[bytes]:
        return self.messages.ids if self._open is None else list(self._open)

    def finish(self) -> int:
        """FIN for all that is not settled; gives how many could not be settled any more."""
        return self._settle_all(commands.fin)

    def requeue(self, delay_s: float = 0.0) -> int:
        """REQ for all that is not settled, to come again after `delay_s`; else as `finish`."""
        delay_ms = round(delay_s * 1000)
        return self._settle_all(lambda ids: commands.req(ids, delay_ms))

    def let_go(self) -> None:
        """Forget them unsettled, when the connection is gone."""
        self.unsettled = 0
        self._open = {}
        self.subscription.release(self)

    def flush(self) -> None:
        """Send the answers now, and not when this turn of the loop ends."""
        self.subscription.flush()

    def touch(self, now_s: float) -> None:
        """More time for all that is not settled."""
        self.touched_s = now_s
        if self.unsettled:
            self.subscription.send(commands.touch(self.open_ids))

    def part(self, start: int, stop: int) -> Part:
        """The messages from number `start` up to `stop`, to be settled apart from the others."""
        return Part(self, self.messages.part(start, stop))

    def cut_up(self) -> None:
        """All messages are in parts now, and each part keeps its own: one that is held for long must not
        keep the others in memory."""
        if self._open is None:
            self._open = Counter(self.messages.ids)
        self.messages = Messages([], nsqd=self.messages.nsqd)

    def count_within(self, start: int, messages_max: int, bytes_max: int) -> int:
        """How many messages from number `start` on are within both bounds."""
        count = 0
        for payload in self.messages.payloads[start : start + messages_max]:
            bytes_max -= len(payload) - PAYLOAD_HEADER_BYTES + MESSAGE_COST_BYTES
            if bytes_max < 0:
                break
            count += 1
        return count

    def settle_some(self, ids: Sequence[bytes], encode: Encode, size_bytes: int = 0) -> int:
        """Settle some of the messages, which take `size_bytes`; gives how many could not be settled any
        more.

        Those that were settled before are passed over.
        """
        unsettled, count = self._close(ids)
        lost = self._send(unsettled, encode, count)
        self._lighten(size_bytes if count else 0)
        return lost

    def let_go_some(self, ids: Sequence[bytes], size_bytes: int) -> None:
        """Forget some of them unsettled, when the connection is gone."""
        _, count = self._close(ids)
        self._lighten(size_bytes if count else 0)
        if not self.unsettled:
            self.subscription.release(self)

    def _lighten(self, size_bytes: int) -> None:
        if size_bytes and self.unsettled:  # the last of it is released with the batch
            self.size_bytes -= size_bytes
            self.subscription.release_some(size_bytes)

    def _close(self, ids: Sequence[bytes]) -> tuple[list[bytes], int]:
        """Those of the ids that were open, and how many messages they are."""
        if self._open is None:
            self._open = Counter(self.messages.ids)
        unsettled = [one for one in dict.fromkeys(ids) if one in self._open]
        count = sum(self._open.pop(one) for one in unsettled)
        self.unsettled -= count
        return unsettled, count

    def settle_one(self, message_id: bytes, encode: Encode) -> None:
        """FIN or REQ of one message. Raises NotSettled when that cannot be."""
        if self._open is not None and message_id not in self._open:
            raise NotSettled(f"message {message_id.decode()} is settled already")
        if self.settle_some([message_id], encode):
            raise NotSettled(f"message {message_id.decode()}: its connection is gone")

    def send_touch(self, message_id: bytes) -> None:
        self.subscription.send(commands.touch([message_id]))

    def _settle_all(self, encode: Encode) -> int:
        count, self.unsettled = self.unsettled, 0
        ids, self._open = self.open_ids, {}
        return self._send(ids, encode, count)

    def _send(self, ids: Sequence[bytes], encode: Encode, count: int) -> int:
        if not count:
            return 0
        lost = self.is_lost
        if not lost:
            self.subscription.settle(encode(ids), count)
        if not self.unsettled:
            self.subscription.release(self)
        return count if lost else 0


class Part:
    """Some messages of a batch, which an output gets alone; it is settled as a batch is."""

    __slots__ = ("batch", "messages", "size_bytes")

    def __init__(self, batch: Batch, messages: Messages) -> None:
        self.batch = batch
        self.messages = messages
        self.size_bytes = cost_bytes(messages)

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def received_s(self) -> float:
        return self.batch.received_s

    @property
    def expires_s(self) -> float:
        return self.batch.expires_s

    @property
    def is_lost(self) -> bool:
        return self.batch.is_lost

    def finish(self) -> int:
        return self.batch.settle_some(self.messages.ids, commands.fin, self.size_bytes)

    def requeue(self, delay_s: float = 0.0) -> int:
        delay_ms = round(delay_s * 1000)
        return self.batch.settle_some(
            self.messages.ids, lambda ids: commands.req(ids, delay_ms), self.size_bytes
        )

    def flush(self) -> None:
        """Send the answers now, and not when this turn of the loop ends."""
        self.batch.flush()

    def let_go(self) -> None:
        """Forget them unsettled, when the connection is gone."""
        self.batch.let_go_some(self.messages.ids, self.size_bytes)


def cost_bytes(messages: Messages) -> int:
    """What these messages take in memory, roughly."""
    return messages.size_bytes + MESSAGE_COST_BYTES * len(messages)


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
        """The loop's time of arrival."""
        return self._batch.received_s

    def finish(self) -> None:
        """FIN. Raises NotSettled when it is settled already or its connection is gone."""
        self._batch.settle_one(self.id, commands.fin)

    def requeue(self, delay_s: float = 0.0) -> None:
        """REQ, to come again after `delay_s`. Raises NotSettled, as `finish`."""
        delay_ms = round(delay_s * 1000)
        self._batch.settle_one(self.id, lambda ids: commands.req(ids, delay_ms))

    def touch(self) -> None:
        """More time; the consumer does this by itself while the message is held."""
        self._batch.send_touch(self.id)


def settle_all(batches: Sequence[Batch]) -> int:
    """FIN for whole batches; gives how many messages could not be settled any more."""
    return sum(batch.finish() for batch in batches)
