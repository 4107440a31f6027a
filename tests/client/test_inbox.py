"""What has come: sums, waiting, and work that does not grow with the number of nsqds."""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.clients import consumer_options
from tests.support.peer import ids_of

from nsqtools.client.consumer import Consumer
from nsqtools.client.inbox import Inbox
from nsqtools.client.subscription import Subscription
from nsqtools.wire.identify import IdentifyReply
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from nsqtools.client.connection import Connection


class StandInConnection:
    """What a subscription needs of a connection."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_open = True
        self.reply = IdentifyReply()
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)


def subscription(
    number: int = 0, rdy: int = 10, released: Callable[[int], None] = lambda _: None
) -> Subscription:
    connection = cast("Connection", StandInConnection(f"127.0.0.1:{number}"))
    made = Subscription(connection, 0.0, settled=lambda _: None, released=released)
    made.rdy = rdy
    return made


def messages_of(*numbers: int, size: int = 1) -> Messages:
    return Messages(
        [encode_payload(1, 1, one, bytes(size)) for one in ids_of([*numbers])], nsqd="n:1"
    )


def put(inbox: Inbox, to: Subscription, messages: Messages, now_s: float = 0.0) -> None:
    inbox.put(to.receive(messages, now_s), to, now_s)


async def test_sums_follow_what_comes_and_goes() -> None:
    inbox, one, two = Inbox(), subscription(1), subscription(2)
    inbox.window = 20
    put(inbox, one, messages_of(1, 2, 3), 1.0)
    put(inbox, two, messages_of(4), 2.0)
    assert (inbox.messages, inbox.fill, inbox.fullest) == (4, 0.2, 0.3)
    assert (inbox.first_s, inbox.last_s) == (1.0, 2.0)
    assert inbox.drop(one) == 3
    assert (inbox.messages, one.waiting, two.waiting) == (1, 0, 1)
    assert len(inbox.take()) == 1
    assert (inbox.messages, inbox.size_bytes, inbox.fullest, two.waiting) == (0, 0, 0.0, 0)


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    takes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 400)), min_size=1, max_size=30),
)
def test_taking_some_gives_each_message_once_and_in_order(
    counts: list[int], takes: list[tuple[int, int]]
) -> None:
    inbox, to = Inbox(), subscription()
    numbers = iter(range(100))
    for count in counts:
        put(inbox, to, messages_of(*[next(numbers) for _ in range(count)]))
    total = sum(counts)
    seen: list[bytes] = []
    for messages_max, bytes_max in [*takes, (1000, 1 << 20)]:
        parts = inbox.take_some(messages_max, bytes_max)
        taken = [message_id for part in parts for message_id in part.messages.ids]
        assert len(taken) <= messages_max
        assert taken or len(seen) == total, "one at least, when there is one"
        assert sum(part.size_bytes for part in parts) <= bytes_max or len(taken) == 1
        seen += taken
        assert inbox.messages == total - len(seen) == to.waiting
    assert seen == ids_of([*range(total)])
    assert inbox.size_bytes == 0


def test_dropping_counts_only_what_was_not_taken() -> None:
    inbox, to = Inbox(), subscription()
    put(inbox, to, messages_of(1, 2, 3))
    inbox.take_some(1, 1 << 20)
    assert inbox.drop(to) == 2
    assert (inbox.messages, inbox.size_bytes, to.waiting, inbox.batches) == (0, 0, 0, [])
    put(inbox, to, messages_of(4, 5))
    assert [len(part) for part in inbox.take_some(5, 1 << 20)] == [2]


async def test_each_waits_for_as_much_as_it_wants() -> None:
    inbox, to = Inbox(), subscription()
    inbox.window = 10
    any_, half = (asyncio.create_task(inbox.wait(fill=fill)) for fill in (0.0, 0.5))
    await asyncio.sleep(0)
    put(inbox, to, messages_of(1))
    await any_
    assert not half.done()
    put(inbox, to, messages_of(2, 3, 4, 5))
    await half
    late = asyncio.create_task(inbox.wait(fill=2.0))
    await asyncio.sleep(0)
    inbox.end()
    await late


def steps_of_a_read(nsqds: int) -> int:
    """How many calls of ours one read makes, of a consumer with so many nsqds."""

    async def count() -> int:
        consumer = Consumer("t", "c", consumer_options(2500))
        consumer._loop = asyncio.get_running_loop()
        for number in range(nsqds):
            made = subscription(number, rdy=2500 // nsqds)
            consumer._subscriptions[made.connection] = made
        connection = next(iter(consumer._subscriptions))
        consumer.inbox.window = 2500
        consumer._shared_s = consumer._loop.time()
        consumer.messages_received(connection, messages_of(1))
        calls = 0

        def profile(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        messages = messages_of(2, 3)
        sys.setprofile(profile)
        try:
            consumer.messages_received(connection, messages)
        finally:
            sys.setprofile(None)
        return calls

    return asyncio.run(count())


@pytest.mark.parametrize("nsqds", [10, 200])
def test_a_read_costs_the_same_with_any_number_of_nsqds(nsqds: int) -> None:
    assert steps_of_a_read(nsqds) <= steps_of_a_read(1) + 2


async def test_a_part_that_is_held_for_long_keeps_nothing_of_the_others() -> None:
    released: list[int] = []
    inbox, one = Inbox(), subscription(rdy=100, released=released.append)
    messages = messages_of(*range(100), size=1000)
    came = weakref.ref(messages)
    put(inbox, one, messages)
    del messages
    held_bytes = inbox.size_bytes
    parts = [part for _ in range(10) for part in inbox.take_some(10, held_bytes)]
    assert came() is None
    for part in parts[1:] * 2:
        part.finish()
    assert sum(released) == held_bytes - parts[0].size_bytes
    assert one.in_flight == len(parts[0]) == 10
    parts[0].batch.touch(1.0)
    assert cast("StandInConnection", one.connection).sent[-1].count(b"TOUCH ") == 10
    parts[0].requeue()
    assert (sum(released), one.in_flight) == (held_bytes, 0)


async def test_a_part_with_a_message_that_came_twice_is_settled_as_a_whole() -> None:
    """We stood still for so long that nsqd sent it again before the first one was read."""
    released: list[int] = []
    inbox, one = Inbox(), subscription(released=released.append)
    put(inbox, one, messages_of(1, 2, 1, 3, 4))
    held_bytes = inbox.size_bytes
    first, second = inbox.take_some(4, held_bytes), inbox.take_some(4, held_bytes)
    assert [len(part) for part in (*first, *second)] == [4, 1]
    assert first[0].finish() == 0
    assert one.in_flight == 1
    one.flush()
    sent = cast("StandInConnection", one.connection).sent
    assert sent == [b"".join(b"FIN %b\n" % each for each in ids_of([1, 2, 3]))]
    second[0].requeue()
    assert (sum(released), one.in_flight) == (held_bytes, 0)


@given(st.data())
def test_what_is_held_is_nothing_in_the_end(data: st.DataObject) -> None:
    async def hold_and_settle() -> None:
        released: list[int] = []
        inbox, one = Inbox(), subscription(rdy=100, released=released.append)
        for first in range(0, 30, 10):
            put(inbox, one, messages_of(*range(first, first + 10), size=first))
        held_bytes = inbox.size_bytes
        while len(inbox) and data.draw(st.booleans()):
            for part in inbox.take_some(data.draw(st.integers(1, 15)), held_bytes):
                how = data.draw(st.sampled_from(["finish", "requeue", "let_go", "hold"]))
                if how != "hold":
                    getattr(part, how)()
                    if data.draw(st.booleans()):
                        part.finish()
        one.give_back()
        assert sum(released) == held_bytes
        inbox.drop(one)
        assert sum(released) == held_bytes

    asyncio.run(hold_and_settle())
