"""What stands still costs no work: counted in steps (calls of functions), never in time.

Each operation is done beside little and beside much that stands still. A search through what stands
there would take as many times the steps; a heap's or a bisection's logarithm is allowed for.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.broker.test_channel import NOW_NS, SECOND_NS, Consumer, Feed, join, make, publish
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import OK, RawClient
from tests.support.web import post

from nsqtools.broker.flight import NOT_IN_FLIGHT
from nsqtools.wire import commands
from nsqtools.wire.commands import fin

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.nsqd import StartNsqd

    from nsqtools.broker.channel import Channel

FEW, MANY = 100, 2000
# Twenty times as much of everything; a logarithm grows by 1.65.
FACTOR_MAX = 2.5
LATER_NS = NOW_NS + 3600 * SECOND_NS
BODY = b"x"


def steps(operation: Callable[[], object]) -> int:
    """How many functions it calls, those of the interpreter among them."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # what it would call is not the operation's
    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def backlog(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    for _ in range(size):
        publish(feed, channel, BODY)
    return feed, channel


def deferred(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    for at in range(size):
        publish(feed, channel, BODY, due_ns=LATER_NS + at)
    return feed, channel


def deferred_in_a_backlog(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    for at in range(size // 2):
        publish(feed, channel, BODY)
        publish(feed, channel, BODY, due_ns=LATER_NS + at)
    return feed, channel


def voids(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    for _ in range(size // 2):
        publish(feed, channel, BODY)
        channel.void(*feed.publish(BODY))
    return feed, channel


def in_flight(size: int) -> tuple[Feed, Channel]:
    """Each in a lease of its own, of one consumer."""
    feed, channel = make()
    consumer = join(channel, size)
    for _ in range(size):
        publish(feed, channel, BODY)
    assert consumer.in_flight == size
    return feed, channel


def touched(size: int) -> tuple[Feed, Channel]:
    feed, channel = in_flight(size)
    (holder,) = channel.subscribers
    for number in list(channel._flight.numbers()):
        channel.touch(holder, b"%016x" % number, 0.0)
    return feed, channel


def waiting_again(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    holder = join(channel, size)
    publish(feed, channel, *[BODY] * size)
    channel.unsubscribe(holder)
    assert channel.depth == size
    return feed, channel


def ready(size: int) -> tuple[Feed, Channel]:
    feed, channel = make()
    for _ in range(size):
        join(channel, 1000)
    return feed, channel


def holders(size: int) -> tuple[Feed, Channel]:
    """Consumers that hold a message each, and can take no more."""
    feed, channel = make()
    for _ in range(size):
        join(channel, 1)
        publish(feed, channel, BODY)
    assert channel.in_flight == size
    return feed, channel


STANDING = [
    backlog,
    deferred,
    deferred_in_a_backlog,
    voids,
    in_flight,
    touched,
    waiting_again,
    ready,
    holders,
]


def a_publish(feed: Feed, channel: Channel) -> Callable[[], object]:
    run = feed.publish(BODY)
    return lambda: channel.pumped(*run)


def a_deferred_publish(feed: Feed, channel: Channel) -> Callable[[], object]:
    run = feed.publish(BODY, due_ns=LATER_NS)
    return lambda: channel.pumped(*run)


def a_scan(feed: Feed, channel: Channel) -> Callable[[], object]:
    return lambda: channel.scan(1.0, NOW_NS)


def the_statistics(feed: Feed, channel: Channel) -> Callable[[], object]:
    return lambda: (channel.depth, channel.backend_depth, channel.in_flight, channel.deferred)


def the_floor(feed: Feed, channel: Channel) -> Callable[[], object]:
    channel.floor()
    return channel.floor


def too_many_stragglers(feed: Feed, channel: Channel) -> Callable[[], object]:
    return lambda: channel.stragglers(feed.pumped, 10)


def a_void(feed: Feed, channel: Channel) -> Callable[[], object]:
    run = feed.publish(BODY, BODY)
    return lambda: channel.void(*run)


def one_consumer(feed: Feed, channel: Channel) -> Callable[[], object]:
    """It comes, is served one message, answers, requeues and goes with one that it holds."""

    def come_and_go() -> None:
        consumer = Consumer(1)
        channel.subscribe(consumer)
        channel.deliver()
        channel.pumped(*feed.publish(BODY))
        for _ in range(2):
            if consumer.ids:
                channel.finish(consumer, fin([consumer.ids.popitem()[1]]))
                channel.deliver()
            if consumer.ids:
                channel.requeue(consumer, consumer.ids.popitem()[1], LATER_NS)
                channel.deliver()
        channel.unsubscribe(consumer)

    return come_and_go


def an_unknown_answer(feed: Feed, channel: Channel) -> Callable[[], object]:
    """Whatever has to be sorted for the first one is not sorted again."""
    consumer = join(channel, 0)
    unknown = b"%016x" % (feed.log.start - 1)
    channel.finish(consumer, fin([unknown]))

    def answer() -> None:
        assert channel.finish(consumer, fin([unknown])) == [(unknown, NOT_IN_FLIGHT)]

    return answer


OPERATIONS = [
    a_publish,
    a_deferred_publish,
    a_scan,
    the_statistics,
    the_floor,
    too_many_stragglers,
    a_void,
    one_consumer,
    an_unknown_answer,
]


@pytest.mark.parametrize("standing", STANDING)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_stands_still_costs_no_work(
    standing: Callable[[int], tuple[Feed, Channel]],
    operation: Callable[[Feed, Channel], Callable[[], object]],
) -> None:
    few, many = (steps(operation(*standing(size))) for size in (FEW, MANY))
    assert many <= FACTOR_MAX * few + 10


@pytest.mark.parametrize("standing", STANDING)
def test_a_channel_where_nothing_is_due_is_not_looked_at(
    standing: Callable[[int], tuple[Feed, Channel]],
) -> None:
    feed, _ = standing(FEW)
    assert feed.alarms.due(1.0, NOW_NS) == []


def test_consumers_that_go_one_after_the_other_each_cost_the_same() -> None:
    def leaving(size: int) -> int:
        _, channel = holders(size)
        channel.pause(paused=True)  # what they held stays where it is

        def leave() -> None:
            for one in list(channel.subscribers):
                channel.unsubscribe(one)

        return steps(leave)

    assert leaving(MANY) / MANY <= FACTOR_MAX * leaving(FEW) / FEW


def test_answers_out_of_order_each_cost_the_same() -> None:
    def answering(size: int) -> int:
        feed, channel = make()
        consumer = join(channel, size)
        publish(feed, channel, *[BODY] * size)
        ids = [b"%016x" % number for number in reversed(list(channel._flight.numbers()))]
        return steps(lambda: [channel.finish(consumer, fin([one])) for one in ids])

    assert answering(MANY) / MANY <= FACTOR_MAX * answering(FEW) / FEW


def test_a_message_costs_the_same_however_many_are_ready() -> None:
    def publishing(size: int) -> int:
        feed, channel = ready(size)

        def publish_some() -> None:
            for _ in range(50):
                publish(feed, channel, BODY)

        return steps(publish_some)

    assert publishing(5000) <= 2 * publishing(10)


def test_leases_that_are_over_are_forgotten() -> None:
    """Their time is long, and they end by answers: nothing comes to the top of a heap."""
    feed, channel = make()
    consumer = join(channel, 10)
    for _ in range(10_000):
        publish(feed, channel, BODY)
        channel.finish(consumer, fin([consumer.ids.popitem()[1]]))
        consumer.got.clear()
    flight = channel._flight
    assert len(flight) == 0
    assert max(len(flight._by_deadline), len(flight._by_number)) < 2000
    assert len(flight._runs) + len(flight._others) < 2000


@pytest.mark.parametrize("way", ["stalls", "holds one", "is deferred"])
async def test_an_ephemeral_topic_keeps_what_its_channels_may_hold(
    way: str, start_nsqd: StartNsqd
) -> None:
    """Between two looks at the clock, too: nothing here takes a second."""
    nsqd = await start_nsqd(mem_queue_size=100)
    if not isinstance(nsqd, EmbeddedNsqd):
        pytest.skip("looks into the embedded broker")
    async with RawClient(nsqd.tcp_address) as slow, RawClient(nsqd.tcp_address) as publisher:
        await slow.subscribe("t#ephemeral", "c", rdy=0 if way == "stalls" else 1)
        if way == "is deferred":
            assert await publisher.ask(commands.dpub("t#ephemeral", b"later", 60_000)) == OK
        await publisher.publish("t#ephemeral", b"first")
        topic = nsqd.broker.topics["t#ephemeral"]
        longest = 0
        async with RawClient(nsqd.tcp_address) as other:
            if way == "holds one":
                held = await slow.message()
                await other.subscribe("t#ephemeral", "c", rdy=200)
            for number in range(100):
                await publisher.publish("t#ephemeral", *[b"%d" % number] * 50)
                if way == "holds one":
                    other.finish(*await other.messages(50))
                elif way == "is deferred":
                    slow.send(commands.rdy(100))
                    slow.finish(*await slow.messages(51 if number == 0 else 50))
                longest = max(longest, topic.log.count(topic.log.start, topic.log.end))
        assert longest <= 4 * (100 + 51)
        channel = topic.channels["c"]
        if way == "stalls":
            assert (channel.depth, channel.dropped_count) == (100, 5001 - 100)
            slow.send(commands.rdy(200))
            expected = [b"first", *[b"0"] * 50, *[b"1"] * 49]
            assert [message.body for message in await slow.messages(100)] == expected
        elif way == "holds one":
            assert held.body == b"first"
            slow.requeue(held)
            assert (await slow.message()).body == b"first"
        assert channel.deferred == (way == "is deferred")


@pytest.mark.parametrize("topics", [1, 5])
async def test_ephemeral_topics_hold_no_more_bytes_than_they_may(
    topics: int, start_nsqd: StartNsqd
) -> None:
    """However large their messages are, and whatever their channels have of them."""
    nsqd = await start_nsqd(mem_queue_size=100, mem_queue_bytes=65536)
    if not isinstance(nsqd, EmbeddedNsqd):
        pytest.skip("looks into the embedded broker")
    names = [f"t{number}#ephemeral" for number in range(topics)]
    room = nsqd.broker._ephemeral
    body = b"x" * 50_000
    async with RawClient(nsqd.tcp_address) as slow, RawClient(nsqd.tcp_address) as publisher:
        await slow.subscribe(names[0], "c", rdy=0)
        for _ in range(100):
            for name in names:
                await publisher.publish(name, body)
            assert room.held_bytes <= room.bytes_max + len(body) + 1000
        dropped = sum(topic.dropped_count for topic in nsqd.broker.topics.values())
        kept = nsqd.broker.topics[names[0]].channels["c"].depth
        assert kept
        assert dropped >= 100 * topics - room.bytes_max // len(body) - 1
        slow.send(commands.rdy(100))
        slow.finish(*await slow.messages(kept))
        for name in names:
            await post(nsqd, f"/topic/empty?topic={quote(name)}")
        await publisher.publish(names[0], b"again")
        assert (await slow.message()).body == b"again"
        for name in names:
            await post(nsqd, f"/topic/delete?topic={quote(name)}")
    assert room.held_bytes == 0


@pytest.mark.parametrize("batch", [1, 10])
async def test_one_message_does_not_fill_all_room_of_ephemeral_topics(
    batch: int, start_nsqd: StartNsqd
) -> None:
    """What came with it and behind it was acknowledged: there is room for what comes next."""
    nsqd = await start_nsqd(mem_queue_bytes=65536)
    if not isinstance(nsqd, EmbeddedNsqd):
        pytest.skip("looks into the embedded broker")
    async with RawClient(nsqd.tcp_address) as consumer, RawClient(nsqd.tcp_address) as publisher:
        await consumer.subscribe("t#ephemeral", "c", rdy=100)
        topic, room = nsqd.broker.topics["t#ephemeral"], nsqd.broker._ephemeral
        await publisher.publish("t#ephemeral", *[b"x" * 50_000] * (batch - 1), b"held")
        *others, held = await consumer.messages(batch)
        if others:
            consumer.finish(*others)
        for _ in range(3 * room.bytes_max // 50_000):
            await publisher.publish("t#ephemeral", b"x" * 50_000)
            assert topic.dropped_count == 0
            consumer.finish(await consumer.message())
            await until_settled(topic.channels["c"], 1)
        consumer.requeue(held)
        assert (await consumer.message()).body == b"held"


async def until_settled(channel: Channel, in_flight: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while channel.in_flight > in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
