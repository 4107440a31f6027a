"""A channel against a log in memory: what it hands out, takes back, keeps and lets go."""

from __future__ import annotations

import errno
import logging
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.support.disks import at_once as defer_nothing
from tests.support.disks import open_files

from nsqtools.broker import channel as channel_module
from nsqtools.broker import cursor as cursor_module
from nsqtools.broker import redelivery as redelivery_module
from nsqtools.broker.alarms import Alarms
from nsqtools.broker.block import FRAME_OVERHEAD_BYTES, Block, build_block
from nsqtools.broker.channel import Channel
from nsqtools.broker.journal import ChannelState, Journal
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import Memory, MemoryBudget, MemoryLog, Room
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.reading import Reader, Share, at_once
from nsqtools.broker.segment import READ_BYTES
from nsqtools.errors import StorageError
from nsqtools.options import load
from nsqtools.wire.bodies import measured
from nsqtools.wire.commands import fin
from nsqtools.wire.frames import FrameDecoder
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nsqtools.broker.log import Found, TopicLog

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Feed:
    """A topic as its channel sees it; time stands still unless it is moved."""

    def __init__(self, log: TopicLog) -> None:
        self.name = "t"
        self.log = log
        self.pumped = log.end
        self.time_s = 0.0
        self.alarms = Alarms()
        self.copies = Room(1 << 30)

    def now_s(self) -> float:
        return self.time_s

    def reader(
        self, told: Callable[[], None], *, size_max_bytes: int = READ_BYTES, ahead: bool = True
    ) -> Reader:
        def begin(number: int, size_bytes: int) -> Callable[[], Block | None]:
            return lambda: self.log.read(number, size_bytes)

        return Reader(begin, at_once, Share(), told, size_max_bytes=size_max_bytes, ahead=ahead)

    def publish(self, *bodies: bytes, due_ns: int = 0) -> tuple[int, int]:
        first = self.log.end
        self.log.append(build_block(first, measured(list(bodies)), NOW_NS, due_ns))
        self.pumped = self.log.end
        return first, self.log.end


class Consumer:
    """A consumer that remembers what it got."""

    def __init__(self, rdy: int = 0) -> None:
        self.rdy = rdy
        self.in_flight = 0
        self.msg_timeout_s = 10.0
        self.sample_rate = 0
        self.got: list[tuple[bytes, int]] = []
        self.ids: dict[bytes, bytes] = {}
        self.disconnected = False

    def budget(self) -> int:
        return self.rdy - self.in_flight

    def deliver(self, frames: Sequence[bytes], count: int) -> None:
        (messages,) = FrameDecoder().receive(b"".join(frames))
        assert isinstance(messages, Messages)
        assert len(messages) == count
        self.got += zip(messages.bodies, messages.attempts, strict=True)
        self.ids.update(zip(messages.bodies, messages.ids, strict=True))

    def disconnect(self) -> None:
        self.disconnected = True

    def id_of(self, body: bytes) -> bytes:
        return self.ids[body]

    def fins_of(self, *bodies: bytes) -> bytes:
        return fin([self.ids[body] for body in bodies])


def make(depth_max: int | None = None, log: TopicLog | None = None) -> tuple[Feed, Channel]:
    feed = Feed(log or MemoryLog(1, Room(1 << 30)))
    channel = Channel(
        "c",
        feed,
        state=ChannelState(feed.pumped),
        journal=None,
        depth_max=depth_max,
        max_msg_timeout_s=30.0,
    )
    return feed, channel


def join(channel: Channel, rdy: int) -> Consumer:
    consumer = Consumer(rdy)
    channel.subscribe(consumer)
    channel.deliver()
    return consumer


def publish(feed: Feed, channel: Channel, *bodies: bytes, due_ns: int = 0) -> None:
    channel.pumped(*feed.publish(*bodies, due_ns=due_ns))


def test_messages_are_shared_between_those_who_are_ready() -> None:
    feed, channel = make()
    one, two, idle = join(channel, 100), join(channel, 100), join(channel, 0)
    publish(feed, channel, *[b"%d" % number for number in range(10)])
    assert min(len(one.got), len(two.got)) >= 3
    assert idle.got == []
    assert Counter(one.got + two.got) == Counter((b"%d" % number, 1) for number in range(10))
    assert (channel.depth, channel.in_flight, channel.message_count) == (0, 10, 10)


def test_the_window_is_never_exceeded() -> None:
    feed, channel = make()
    consumer = join(channel, 3)
    publish(feed, channel, *[b"%d" % number for number in range(10)])
    assert consumer.in_flight == 3
    channel.finish(consumer, consumer.fins_of(b"0", b"2"))
    channel.deliver()
    assert [body for body, _ in consumer.got] == [b"0", b"1", b"2", b"3", b"4"]
    assert (channel.depth, channel.in_flight) == (5, 3)


def test_what_is_requeued_comes_behind_what_was_there_and_before_what_is_new() -> None:
    feed, channel = make()
    consumer = join(channel, 1)
    publish(feed, channel, b"1", b"2", b"3")
    channel.requeue(consumer, consumer.id_of(b"1"), 0)
    publish(feed, channel, b"4")
    for body in (b"2", b"3", b"1"):
        channel.finish(consumer, consumer.fins_of(body))
        channel.deliver()
    assert consumer.got == [(b"1", 1), (b"2", 1), (b"3", 1), (b"1", 2), (b"4", 1)]
    assert channel.requeue_count == 1


def test_a_message_that_is_always_requeued_neither_takes_all_deliveries_nor_starves() -> None:
    feed, channel = make()
    consumer = join(channel, 1)
    publish(feed, channel, b"poison")
    for number in range(100):
        publish(feed, channel, *[b"%d-%d" % (number, at) for at in range(5)])
        for _ in range(6):
            body = consumer.got[-1][0]
            if body == b"poison":
                channel.requeue(consumer, consumer.id_of(body), 0)
            else:
                channel.finish(consumer, consumer.fins_of(body))
            channel.deliver()
    tries = [attempts for body, attempts in consumer.got if body == b"poison"]
    assert tries == list(range(1, len(tries) + 1))
    assert len(tries) > 90
    assert len(consumer.got) - len(tries) > 490


def test_a_deep_backlog_does_not_starve_what_is_requeued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "TAIL_MESSAGES", 10)
    feed, channel = make()
    consumer = join(channel, 1)
    publish(feed, channel, b"again", *[b"%d" % number for number in range(1000)])
    channel.requeue(consumer, consumer.id_of(b"again"), 0)
    channel.deliver()
    for _ in range(10):
        channel.finish(consumer, consumer.fins_of(consumer.got[-1][0]))
        channel.deliver()
    assert consumer.got[-1] == (b"again", 2)


@pytest.mark.parametrize("sample_rate", [0, 100])
def test_the_turn_of_what_is_requeued_may_come_inside_of_what_is_passed_over(
    sample_rate: int,
) -> None:
    feed, channel = make()
    consumer = join(channel, 1)
    consumer.sample_rate = sample_rate
    publish(feed, channel, b"1", b"2")
    publish(feed, channel, b"later", due_ns=NOW_NS + SECOND_NS)
    channel.requeue(consumer, consumer.id_of(b"1"), 0)
    publish(feed, channel, b"later still", due_ns=NOW_NS + SECOND_NS)
    publish(feed, channel, b"3")
    for body in (b"2", b"1", b"3"):
        channel.deliver()
        assert consumer.got[-1][0] == body
        channel.finish(consumer, consumer.fins_of(body))
    assert consumer.got == [(b"1", 1), (b"2", 1), (b"1", 2), (b"3", 1)]
    assert (channel.depth, channel.deferred, channel.cursor) == (0, 2, feed.pumped)


def test_the_turn_of_what_is_requeued_may_come_between_two_runs_of_the_broker(
    tmp_path: Path,
) -> None:
    for now_ms in (1, 2):
        log = on_disk(tmp_path, now_ms)
        feed, channel = make(log=log)
        feed.publish(*[b"%d-%d" % (now_ms, at) for at in range(3)])
        log.close()
        log.sync()
    channel.seek(0)
    consumer = join(channel, 1)
    channel.requeue(consumer, consumer.id_of(b"1-0"), 0)
    channel.deliver()
    while len(consumer.got) < 7:
        channel.finish(consumer, consumer.fins_of(consumer.got[-1][0]))
        channel.deliver()
    assert consumer.got == [
        (b"1-0", 1),
        (b"1-1", 1),
        (b"1-2", 1),
        (b"1-0", 2),
        (b"2-0", 1),
        (b"2-1", 1),
        (b"2-2", 1),
    ]


def test_what_times_out_goes_behind_what_waits_as_what_is_requeued_does() -> None:
    feed, channel = make()
    consumer = join(channel, 2)
    publish(feed, channel, b"1", b"2", b"3", b"4")
    channel.scan(10.0, NOW_NS)
    assert channel.timeout_count == 2
    assert consumer.got[2:] == [(b"3", 1), (b"4", 1)]
    feed.time_s = 11.0
    channel.finish(consumer, consumer.fins_of(b"3", b"4"))
    channel.deliver()
    assert consumer.got[4:] == [(b"1", 2), (b"2", 2)]


def test_what_a_lost_connection_held_comes_first_but_not_for_ever() -> None:
    feed, channel = make()
    publish(feed, channel, b"1", b"2", b"3")
    for attempts in range(1, channel_module.LOST_FIRST_MAX + 2):
        consumer = join(channel, 1)
        assert consumer.got == [(b"1", attempts)]
        channel.unsubscribe(consumer)
    consumer = join(channel, 5)
    assert [body for body, _ in consumer.got] == [b"2", b"3", b"1"]


def test_consumers_share_what_waits_in_few_large_parts() -> None:
    """Not half of a block, half of the rest, and so on."""
    feed, channel = make()
    for _ in range(2):
        publish(feed, channel, *[b"x"] * 1000)
    first, second = Consumer(2500), Consumer(2500)
    channel.subscribe(first)
    channel.subscribe(second)
    channel.pause(paused=True)
    channel.ready(first)
    channel.ready(second)
    channel.pause(paused=False)
    channel.deliver()
    assert (len(first.got), len(second.got)) == (1000, 1000)
    assert len(channel._flight._runs) <= 4
    few = join(channel, 2500)
    publish(feed, channel, *[b"y"] * 9)
    assert [body for one in (first, second, few) for body, _ in one.got].count(b"y") == 9
    assert sum(b"y" in one.ids for one in (first, second, few)) == 3


def test_a_deferred_message_waits_for_its_time() -> None:
    feed, channel = make()
    consumer = join(channel, 5)
    publish(feed, channel, b"later", due_ns=NOW_NS + 5 * SECOND_NS)
    publish(feed, channel, b"now")
    assert [body for body, _ in consumer.got] == [b"now"]
    assert (channel.deferred, channel.depth) == (1, 0)
    assert feed.alarms.due(0.0, NOW_NS + 5 * SECOND_NS - 1) == []
    channel.scan(0.0, NOW_NS + 5 * SECOND_NS - 1)
    assert channel.deferred == 1
    assert feed.alarms.due(0.0, NOW_NS + 5 * SECOND_NS) == [channel]
    channel.scan(0.0, NOW_NS + 5 * SECOND_NS)
    assert consumer.got[-1] == (b"later", 1)


def test_what_is_deferred_is_so_at_once_behind_a_backlog_too() -> None:
    feed, channel = make()
    publish(feed, channel, b"1", b"2")
    publish(feed, channel, b"later", b"later too", due_ns=NOW_NS + SECOND_NS)
    publish(feed, channel, b"3")
    assert (channel.depth, channel.deferred) == (3, 2)
    channel.scan(0.0, NOW_NS + SECOND_NS)
    assert (channel.depth, channel.deferred) == (5, 0)
    publish(feed, channel, b"4")
    consumer = join(channel, 10)
    bodies = [body for body, _ in consumer.got]
    assert bodies == [b"1", b"2", b"3", b"later", b"later too", b"4"]


def test_what_waits_again_is_joined_to_runs_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redelivery_module, "RUN_BYTES_MAX", 1100)
    feed, channel = make()
    holder = join(channel, 10)
    bodies = [b"x" * 300] * 7 + [b"y" * 5000] * 2
    publish(feed, channel, *bodies)
    channel.unsubscribe(holder)
    consumer = Consumer(10)
    sizes: list[int] = []
    deliver = consumer.deliver

    def recorded(frames: Sequence[bytes], count: int) -> None:
        sizes.append(sum(map(len, frames)))
        deliver(frames, count)

    monkeypatch.setattr(consumer, "deliver", recorded)
    channel.subscribe(consumer)
    channel.deliver()
    assert consumer.got == [(body, 2) for body in bodies]
    assert [size <= 1100 for size in sizes] == [True, True, True, False, False]


def test_what_is_not_answered_in_time_goes_to_another() -> None:
    feed, channel = make()
    slow = join(channel, 1)
    publish(feed, channel, b"x")
    feed.time_s = 10.0
    slow.rdy = 0
    channel.scan(10.0, NOW_NS)
    assert (channel.timeout_count, channel.in_flight, channel.depth) == (1, 0, 1)
    other = join(channel, 1)
    assert other.got == [(b"x", 2)]
    assert channel.finish(slow, slow.fins_of(b"x")) == [
        (slow.id_of(b"x"), "client does not own message")
    ]


def test_a_consumer_that_leaves_gives_back_what_it_held() -> None:
    feed, channel = make()
    consumer = join(channel, 5)
    publish(feed, channel, b"1", b"2", b"3")
    channel.finish(consumer, consumer.fins_of(b"2"))
    channel.unsubscribe(consumer)
    assert (channel.depth, channel.in_flight) == (2, 0)
    other = join(channel, 5)
    assert sorted(other.got) == [(b"1", 2), (b"3", 2)]


def test_sampling_takes_the_rest_from_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    rolls = iter([29, 30, 0, 99])
    monkeypatch.setattr(random, "randrange", lambda _stop: next(rolls))
    feed, channel = make()
    consumer = Consumer(10)
    consumer.sample_rate = 30
    channel.subscribe(consumer)
    publish(feed, channel, b"1", b"2", b"3", b"4")
    assert [body for body, _ in consumer.got] == [b"1", b"3"]
    assert (channel.depth, channel.in_flight, channel.dropped_count) == (0, 2, 2)


def test_a_bounded_channel_drops_the_newest() -> None:
    feed, channel = make(depth_max=3)
    publish(feed, channel, b"1", b"2")
    publish(feed, channel, b"3", b"4", b"5")
    assert (channel.depth, channel.dropped_count) == (3, 2)
    publish(feed, channel, b"6")
    assert channel.dropped_count == 3
    consumer = join(channel, 2)
    publish(feed, channel, b"7")
    consumer.rdy = 10
    channel.ready(consumer)
    assert [body for body, _ in consumer.got] == [b"1", b"2", b"3", b"7"]


def test_what_a_bounded_channel_drops_is_not_what_a_consumer_can_take() -> None:
    feed, channel = make(depth_max=2)
    consumer = join(channel, 5)
    publish(feed, channel, *[b"%d" % number for number in range(10)])
    assert [body for body, _ in consumer.got] == [b"0", b"1", b"2", b"3", b"4"]
    assert (channel.depth, channel.dropped_count) == (2, 3)


def test_a_bounded_channel_holds_so_many_deferred_messages_too() -> None:
    feed, channel = make(depth_max=3)
    publish(feed, channel, b"1")
    publish(feed, channel, *[b"later"] * 5, due_ns=NOW_NS + SECOND_NS)
    publish(feed, channel, b"2", b"3", b"4")
    assert (channel.depth, channel.deferred, channel.dropped_count) == (3, 3, 3)
    consumer = join(channel, 10)
    assert [body for body, _ in consumer.got] == [b"1", b"2", b"3"]


def test_a_paused_channel_hands_out_nothing() -> None:
    feed, channel = make()
    consumer = join(channel, 5)
    channel.pause(paused=True)
    publish(feed, channel, b"x")
    assert consumer.got == []
    channel.pause(paused=False)
    channel.deliver()
    assert consumer.got == [(b"x", 1)]


def test_an_ephemeral_channel_whose_reader_stopped_does_not_hold_the_log() -> None:
    """All that a default broker keeps of it can be copied."""
    options = load(NsqdOptions, "nsqd", [], {})
    feed, channel = make(depth_max=options.mem_queue_size)
    join(channel, options.max_rdy_count)
    for _ in range(20):
        publish(feed, channel, *[b"x" * 200] * 1000)
    assert (
        channel.depth + channel.in_flight == feed.log.end - feed.log.start - channel.dropped_count
    )
    assert channel.dropped_count
    assert len(channel.stragglers(feed.log.end) or []) == channel.depth + channel.in_flight
    assert channel.carry_over(feed.log.end)
    assert channel.floor() == feed.log.end


def test_stragglers_are_carried_over_so_that_the_log_can_go(tmp_path: Path) -> None:
    log = on_disk(tmp_path, 1)
    feed, channel = make(log=log)
    consumer = join(channel, 1)
    publish(feed, channel, b"straggler")
    channel.requeue(consumer, consumer.id_of(b"straggler"), NOW_NS + SECOND_NS)
    for number in range(10):
        publish(feed, channel, b"x" * 100 + b"%d" % number)
        channel.finish(consumer, consumer.fins_of(consumer.got[-1][0]))
    channel.deliver()
    assert channel.floor() == log.start
    log.sync()
    # The room is for the copies of all channels.
    feed.copies.held_bytes = feed.copies.bytes_max
    assert channel.carry_room_bytes == 0
    feed.copies.held_bytes = 0
    carry_over(channel, log)
    assert feed.copies.held_bytes == len(b"straggler") + FRAME_OVERHEAD_BYTES
    log.trim(channel.floor())
    assert log.start > int(consumer.id_of(b"straggler"), 16)
    channel.scan(0.0, NOW_NS + SECOND_NS)
    channel.deliver()
    assert consumer.got[-1] == (b"straggler", 2)
    assert channel.finish(consumer, consumer.fins_of(b"straggler")) == []
    assert channel.frozen().carried == {}
    log.close()


def on_disk(folder: Path, ms: int = 1) -> DiskLog:
    """A log of small segments that has nothing but the newest block in memory."""
    return DiskLog(
        folder,
        memory=Memory(1, MemoryBudget(1)),
        segment_size_max_bytes=100,
        now_ms=ms,
        files=open_files(),
        defer=defer_nothing,
    )


def reopened(folder: Path, ms: int) -> tuple[Feed, Channel]:
    """The channel of a journal in the folder, as a restart makes it."""
    feed = Feed(on_disk(folder, ms))
    journal = Journal(folder / "c.channel", open_files())
    state, _ = journal.load()
    channel = Channel(
        "c", feed, state=state, journal=journal, depth_max=None, max_msg_timeout_s=30.0
    )
    return feed, channel


def test_few_messages_that_nobody_takes_do_not_hold_the_log(tmp_path: Path) -> None:
    """Those ahead of the cursor, over two runs of the broker, and what of them was deferred."""
    Journal(tmp_path / "c.channel", open_files()).create(ChannelState(1 << 20))
    feed, channel = reopened(tmp_path, 1)
    for number in range(5):
        publish(feed, channel, b"%d" % number + b"." * 50)
    publish(feed, channel, b"later", due_ns=NOW_NS + SECOND_NS)
    channel.journal.flush()
    feed, channel = reopened(tmp_path, 2)
    for number in range(5, 8):
        publish(feed, channel, b"%d" % number + b"." * 50)
    end = feed.log.end
    assert (channel.depth, channel.deferred, channel.floor()) == (8, 1, feed.log.start)
    numbers = channel.stragglers(end, 9)
    assert numbers is not None
    assert (len(numbers), numbers) == (9, sorted(numbers))
    assert channel.stragglers(end, 8) is None
    assert channel.stragglers(numbers[3], 9) == numbers[:3]
    assert channel.carry_over(end)
    assert (channel.depth, channel.deferred, channel.floor()) == (8, 1, end)
    assert channel.stragglers(end, 9) == []
    assert channel.stragglers(end, 8) is None, "copies count"
    assert isinstance(feed.log, DiskLog)
    feed.log.sync()
    feed.log.trim(channel.floor())
    channel.journal.flush()
    feed, channel = reopened(tmp_path, 3)
    assert feed.log.start > numbers[-2]
    channel.scan(0.0, NOW_NS + SECOND_NS)
    publish(feed, channel, b"new")
    consumer = join(channel, 10)
    found = [(body[:5].rstrip(b"."), attempts) for body, attempts in consumer.got]
    expected = [b"%d" % number for number in range(8)] + [b"later", b"new"]
    assert found == [(body, 1) for body in expected]
    channel.finish(consumer, consumer.fins_of(*[body for body, _ in consumer.got]))
    assert channel.frozen().carried == {}


def test_what_changes_while_stragglers_are_read(tmp_path: Path) -> None:
    feed, channel = make(log=on_disk(tmp_path))
    consumer = join(channel, 2)
    for body in (b"1", b"2", b"3", b"4"):
        publish(feed, channel, body)
    end = feed.log.end
    numbers = channel.stragglers(end, 10)
    assert numbers is not None
    read = channel._stragglers.find(numbers, 1 << 20)
    assert read is not None
    found = read.frames
    publish(feed, channel, b"5")
    channel.finish(consumer, consumer.fins_of(b"1"))
    channel.deliver()
    assert channel.stragglers(end, 10) == numbers[1:]
    assert not channel.carry({n: found[n] for n in numbers[2:]}, end), "one is missing"
    assert not channel.carry(found, end, bytes_max=10), "they are too large"
    assert channel.carry_room_bytes == channel_module.CARRY_BYTES_MAX
    assert not channel.carry(found, feed.log.end), "of the newest nothing was found"
    assert channel.carry({**found, numbers[-1]: None}, end)
    assert (channel.cursor, channel.floor()) == (end, end)
    kept_bytes = sum(len(found[number] or b"") for number in numbers[1:-1])
    assert channel.carry_room_bytes == channel_module.CARRY_BYTES_MAX - kept_bytes
    feed.log.trim(end)
    consumer.rdy = 10
    channel.ready(consumer)
    assert [body for body, _ in consumer.got] == [b"1", b"2", b"3", b"5"]
    assert (channel.dropped_count, channel.depth) == (1, 0), "it was not in the log any more"


def test_a_channel_that_is_deleted_holds_nothing_and_is_not_looked_at(tmp_path: Path) -> None:
    """Its consumers leave behind that, and what it wanted copies of may be on its way from the disk."""
    feed, channel = make(log=on_disk(tmp_path))
    consumer = join(channel, 1)
    publish(feed, channel, b"later", due_ns=NOW_NS + SECOND_NS)
    for body in (b"held", b"waits"):
        publish(feed, channel, body)
    numbers = channel.stragglers(feed.log.end)
    assert numbers is not None
    read = channel._stragglers.find(numbers, 1 << 20)
    assert read is not None
    channel.discard()
    assert not channel.carry(read.frames, feed.log.end, read.due_ns)
    channel.requeue(consumer, consumer.ids[b"held"], NOW_NS + SECOND_NS)
    channel.unsubscribe(consumer)
    assert feed.alarms.due(1e9, NOW_NS + 10 * SECOND_NS) == []
    assert feed.copies.held_bytes == 0


def test_times_that_nobody_has_seen_are_not_lost(tmp_path: Path) -> None:
    """A first channel gets what waited in the topic: too much to look for what is deferred in it."""
    feed = Feed(on_disk(tmp_path))
    first, _ = feed.publish(b"later", due_ns=NOW_NS + SECOND_NS)
    _, end = feed.publish(b"now")
    feed.pumped = first
    channel = Channel(
        "c",
        feed,
        state=ChannelState(first),
        journal=None,
        depth_max=None,
        max_msg_timeout_s=30.0,
    )
    feed.pumped = end
    channel.pumped(first, end)
    assert (channel.depth, channel.deferred) == (2, 0)
    numbers = channel.stragglers(end)
    assert numbers is not None
    found = channel._stragglers.find(numbers, 1 << 20)
    assert found is not None
    assert found.due_ns == {first: NOW_NS + SECOND_NS}
    assert not channel.carry(found.frames, end)
    assert channel.carry(found.frames, end, found.due_ns)
    assert (channel.depth, channel.deferred) == (1, 1)
    assert [body for body, _ in join(channel, 5).got] == [b"now"]


def test_a_disk_that_cannot_be_read_keeps_messages_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cursor_module, "LOOK_UP_BYTES", 1)
    log = DiskLog(
        tmp_path,
        memory=Memory(1, MemoryBudget(1)),
        segment_size_max_bytes=1 << 20,
        now_ms=1,
        files=open_files(),
        defer=defer_nothing,
    )
    caplog.set_level(logging.INFO, "nsqtools.broker")
    feed, channel = make(log=log)
    bodies = [b"%d" % number for number in range(6)]
    for body in bodies:
        publish(feed, channel, body)
    lost, consumer = join(channel, 3), join(channel, 1)
    assert [body for body, _ in lost.got + consumer.got] == bodies[:4]
    channel.unsubscribe(lost)
    consumer.rdy = 4

    def broken(*_args: object) -> None:
        raise StorageError("read", tmp_path, OSError(errno.EIO, "broken"))

    reads = DiskLog.read
    with monkeypatch.context() as patched:
        patched.setattr(DiskLog, "read", broken)
        channel.ready(consumer)
        for _ in range(2):
            assert feed.alarms.due(0.0, NOW_NS) == [channel], "it is tried again"
            channel.scan(0.0, NOW_NS)
        assert len(consumer.got) == 1
        assert (channel.depth, channel.in_flight) == (5, 1)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert "cannot be read" in caplog.text
        consumer.rdy = 0
        channel.ready(consumer)
        assert "can be read again" not in caplog.text, "nothing was read"
        consumer.rdy = 4
        # One that fails on the way: what was read before it goes out.
        calls: Iterator[Callable[..., Any]] = iter([reads, *[broken] * 9])
        patched.setattr(DiskLog, "read", lambda log, *rest: next(calls)(log, *rest))
        patched.setattr(cursor_module, "LOOK_UP_BYTES", 1)
        channel.ready(consumer)
        assert consumer.got[1:] == [(b"0", 2)]
    consumer.rdy = 10
    channel.ready(consumer)
    assert consumer.got[2:] == [(b"1", 2), (b"2", 2), (b"4", 1), (b"5", 1)]
    assert caplog.records[-1].levelname == "INFO"
    assert "can be read again" in caplog.text
    log.close()


def carry_over(channel: Channel, log: DiskLog) -> None:
    """What the broker's upkeep does, without the waits."""
    end = log.segments[0].end
    numbers = channel.stragglers(end)
    found = None if numbers is None else log.find(numbers, 1 << 20)
    if found is not None:
        channel.carry(found.frames, end, found.due_ns)


class ChannelMachine(RuleBasedStateMachine):
    """A channel on disk: every message is in one place, and a restart keeps it there.

    The model knows what was published and not finished.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.unfinished: set[bytes] = set()
        self.count = 0
        self.time_s = 0.0
        self.ms = 0
        self.end = 0
        self.found: Found | None = None

    @initialize()
    def start(self) -> None:
        Journal(self.path, open_files()).create(ChannelState(0))
        self.open()

    @property
    def path(self) -> Path:
        return self.folder / "c.channel"

    def open(self) -> None:
        self.ms += 1
        self.found = None
        self.log = DiskLog(
            self.folder,
            memory=Memory(4, MemoryBudget(1 << 20)),
            segment_size_max_bytes=400,
            now_ms=self.ms,
            files=open_files(),
            defer=defer_nothing,
        )
        self.feed = Feed(self.log)
        self.feed.time_s = self.time_s
        self.journal = Journal(self.path, open_files())
        state, _ = self.journal.load()
        state.cursor = max(state.cursor, self.log.start)
        self.channel = Channel(
            "c", self.feed, state=state, journal=self.journal, depth_max=None, max_msg_timeout_s=30
        )
        self.consumers = [Consumer(), Consumer()]
        for consumer in self.consumers:
            self.channel.subscribe(consumer)

    @rule(count=st.integers(1, 6), delay_s=st.sampled_from([0, 0, 0, 5]))
    def publish(self, count: int, delay_s: int) -> None:
        bodies = [b"%d" % (self.count + at) for at in range(count)]
        self.count += count
        self.unfinished.update(bodies)
        due_ns = self.now_ns + delay_s * SECOND_NS if delay_s else 0
        publish(self.feed, self.channel, *bodies, due_ns=due_ns)

    @property
    def now_ns(self) -> int:
        return NOW_NS + int(self.time_s * SECOND_NS)

    @rule(who=st.integers(0, 1), rdy=st.integers(0, 5))
    def ready(self, who: int, rdy: int) -> None:
        self.consumers[who].rdy = rdy
        self.channel.ready(self.consumers[who])

    @rule(who=st.integers(0, 1), data=st.data())
    def finish(self, who: int, data: st.DataObject) -> None:
        consumer = self.consumers[who]
        held = self.held_by(consumer)
        if held:
            chosen = data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True))
            assert self.channel.finish(consumer, consumer.fins_of(*chosen)) == []
            self.unfinished.difference_update(chosen)
            self.channel.deliver()

    @rule(who=st.integers(0, 1), data=st.data(), delay_s=st.sampled_from([0, 5]))
    def requeue(self, who: int, data: st.DataObject, delay_s: int) -> None:
        consumer = self.consumers[who]
        held = self.held_by(consumer)
        if held:
            body = data.draw(st.sampled_from(held))
            due_ns = self.now_ns + delay_s * SECOND_NS if delay_s else 0
            assert self.channel.requeue(consumer, consumer.id_of(body), due_ns) is None
            self.channel.deliver()

    @rule(passed_s=st.sampled_from([1, 6, 11]))
    def time_passes(self, passed_s: int) -> None:
        self.time_s += passed_s
        self.feed.time_s = self.time_s
        for one in self.feed.alarms.due(self.time_s, self.now_ns):
            one.scan(self.time_s, self.now_ns)
        self.channel.deliver()

    @rule(who=st.integers(0, 1))
    def reconnect(self, who: int) -> None:
        self.channel.unsubscribe(self.consumers[who])
        self.consumers[who] = Consumer()
        self.channel.subscribe(self.consumers[who])
        self.channel.deliver()

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        self.channel.journal.flush()
        if clean:
            self.channel.close()
        else:
            self.journal.flush()
        self.log.close()
        self.open()

    @rule()
    def trim(self) -> None:
        if self.channel.floor() < self.log.segments[0].end and len(self.log.segments) > 1:
            carry_over(self.channel, self.log)
        self.channel.journal.flush()
        self.log.trim(self.channel.floor())

    @rule()
    def look(self) -> None:
        """The first half of letting go: what is found now is kept later, or is not needed then."""
        self.end = self.log.end
        numbers = self.channel.stragglers(self.end)
        self.found = None if numbers is None else self.channel._stragglers.find(numbers, 1 << 20)

    @rule()
    @precondition(lambda self: self.found is not None)
    def keep(self) -> None:
        assert self.found is not None
        assert self.channel.carry(self.found.frames, self.end, self.found.due_ns)
        assert self.channel.floor() >= self.end
        self.found = None
        self.channel.journal.flush()
        self.log.trim(self.channel.floor())

    @rule()
    @precondition(lambda self: self.count > 10)
    def empty(self) -> None:
        self.channel.empty()
        self.unfinished.clear()

    def held_by(self, consumer: Consumer) -> list[bytes]:
        """Bodies that the consumer may answer for."""
        flight = self.channel._flight
        return [
            body
            for body, message_id in consumer.ids.items()
            if isinstance(flight.find(consumer, message_id), int)
        ]

    @invariant()
    def every_message_is_in_one_place(self) -> None:
        if not hasattr(self, "channel"):
            return
        channel = self.channel
        assert channel.depth + channel.in_flight + channel.deferred == len(self.unfinished)
        held = [body for consumer in self.consumers for body in self.held_by(consumer)]
        assert len(held) == len(set(held)) == channel.in_flight
        assert set(held) <= self.unfinished
        for consumer in self.consumers:
            assert consumer.in_flight == len(self.held_by(consumer))

    def teardown(self) -> None:
        with self.temporary:
            if hasattr(self, "channel"):
                self.drain()
                self.channel.close()
                self.log.close()

    def drain(self) -> None:
        """In the end everything that was not finished can still be had, once."""
        for consumer in self.consumers:
            self.channel.unsubscribe(consumer)
        self.time_s += 100
        consumer = join(self.channel, 10_000)
        # What a block defers is found out when the cursor gets there, also when it is due by then.
        for one in self.feed.alarms.due(self.feed.time_s, self.now_ns):
            one.scan(self.feed.time_s, self.now_ns)
        self.channel.deliver()
        assert sorted(body for body, _ in consumer.got) == sorted(self.unfinished)


def test_a_channel_against_its_model() -> None:
    run_state_machine_as_test(
        ChannelMachine, settings=settings(max_examples=50, stateful_step_count=30)
    )
