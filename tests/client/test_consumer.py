"""A consumer against scripted nsqds: what it says to them, in full, and what becomes of messages."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from tests.client.helpers import consumer_of, ids, last_rdy, receive
from tests.support.clients import consumer_options, until
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, fins, frame, ids_of, message, messages

from nsqtools.client import consumer as consumer_module
from nsqtools.client.batch import settle_all
from nsqtools.client.connection import Connection
from nsqtools.client.consumer import Consumer
from nsqtools.client.memory import ConsumerMemory
from nsqtools.client.subscription import BEYOND_FACTOR, BEYOND_MIN
from nsqtools.errors import NotSettled, OptionsError
from nsqtools.wire.frames import FrameDecoder

# The conversation


async def test_a_whole_conversation(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2, 3))
        batches = await receive(consumer, 3)
        assert consumer.in_flight == 3
        assert settle_all(batches) == 0
        assert consumer.in_flight == 0
        stopping = asyncio.create_task(consumer.stop(PATIENCE_S))
        await nsqd.expect(*fins(1, 2, 3), b"CLS")
        nsqd.send(messages(4))  # was on its way
        nsqd.respond(b"CLOSE_WAIT")
        assert await stopping
        assert settle_all(await consumer.receive()) == 0
        closing = asyncio.create_task(consumer.close())
        assert await nsqd.rest() == fins(4)
        nsqd.end()
        await closing
        assert await consumer.receive() == []
        assert consumer.ended
    assert nsqd.told == [
        b"IDENTIFY",
        b"SUB t c",
        b"RDY 100",
        *fins(1, 2, 3),
        b"CLS",
        *fins(4),
    ]
    assert consumer.counts["received"] == 4


async def test_fin_of_a_batch_is_one_run_of_bytes(peer: Peer) -> None:
    sent: list[bytes] = []
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(*range(50)))
        batches = await receive(consumer, 50)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Connection, "send", lambda _, data: sent.append(data))
            settle_all(batches)
            await asyncio.sleep(0)
    assert b"".join(sent) == b"".join(fin + b"\n" for fin in fins(*range(50)))
    assert len(sent) == 1, "one write for all of a turn"


async def test_what_stands_in_the_way_of_the_whole_batch(peer: Peer) -> None:
    """One is finished alone, one requeued; the rest goes with the batch."""
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2, 3, 4))
        (batch,) = await receive(consumer, 4)
        first, second, *_ = batch
        first.finish()
        second.requeue(1.5)
        with pytest.raises(NotSettled, match="settled already"):
            first.finish()
        with pytest.raises(NotSettled, match="settled already"):
            second.requeue()
        await nsqd.expect(*fins(1), b"REQ %b 1500" % ids_of([2])[0])
        assert batch.finish() == 0
        assert sorted([await nsqd.command(), await nsqd.command()]) == fins(3, 4)
        assert batch.finish() == 0, "there is nothing left to settle"
        assert batch.requeue() == 0
        assert await nsqd.is_quiet()
        assert consumer.in_flight == 0


async def test_a_batch_can_be_requeued(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2))
        (batch,) = await receive(consumer, 2)
        batch.requeue(0.25)
        await nsqd.expect(*[b"REQ %b 250" % message_id for message_id in ids_of([1, 2])])


async def test_a_message_has_what_nsqd_says_of_it(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(message(7, b"\x00\nany bytes", attempts=3))
        (batch,) = await receive(consumer, 1)
        (one,) = batch
        assert one.id == ids_of([7])[0]
        assert one.body == b"\x00\nany bytes"
        assert one.timestamp_ns == 1_700_000_000_000_000_007
        assert one.attempts == 3
        assert one.nsqd == peer.address


async def test_a_refused_fin_is_counted(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.refuse(b"E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight")
        await until(lambda: consumer.counts["E_FIN_FAILED"])
        assert consumer.connections == 1, "it is no reason to part"


async def test_a_batch_of_a_connection_that_is_gone_cannot_be_settled(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2))
        (batch,) = await receive(consumer, 2)
        nsqd.cut()
        await until(lambda: not consumer.connections)
        (first, _) = batch
        with pytest.raises(NotSettled, match="its connection is gone"):
            first.finish()
        assert settle_all([batch]) == 1, "the other one was told of already"
        assert consumer.counts["unsettled_lost"] == 2


async def test_a_message_that_is_too_large_goes_back_and_is_told(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It would end the connection again and again, and nothing behind it would ever come."""
    monkeypatch.setattr(FrameDecoder.__init__, "__defaults__", (1000,))
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(message(1, bytes(200_000), attempts=4) + messages(2))
        await nsqd.expect(b"REQ %b 900000" % ids_of([1])[0])
        assert ids(await receive(consumer, 1)) == ids_of([2])
        assert consumer.counts["oversized"] == 1
        assert consumer.connections == 1
    assert "too large" in caplog.text
    assert "bytes=200000" in caplog.text


def test_names_are_checked() -> None:
    with pytest.raises(OptionsError) as caught:
        Consumer("no topic", "", consumer_options())
    assert len(caught.value.problems) == 2


# Connections


async def test_a_refused_sub_is_tried_again(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.accept()
        await nsqd.identify()
        await nsqd.expect(b"SUB t c")
        nsqd.refuse(b"E_SUB_FAILED SUB failed consumers for t:c exceeds limit of 1")
        again = await peer.subscribed()
        await again.expect(b"RDY 100")
        assert consumer.counts["connect_failed"] == 1


async def test_messages_before_the_answer_to_sub_end_the_connection(
    peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.accept()
        await nsqd.identify()
        await nsqd.expect(b"SUB t c")
        nsqd.send(messages(1))
        again = await peer.subscribed()
        await again.expect(b"RDY 100")
        assert not consumer.inbox.messages
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_cut_in_the_middle_of_a_frame(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1) + message(2)[:20])
        assert ids(await receive(consumer, 1)) == ids_of([1])
        nsqd.cut()
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(2))
        assert ids(await receive(consumer, 1)) == ids_of([2])


async def test_a_silent_nsqd_is_given_up_and_called_again(peer: Peer) -> None:
    consumer = consumer_of(peer, read_timeout="100ms", heartbeat_interval="50ms")
    async with consumer:
        await peer.subscribed()
        await peer.subscribed()
        assert consumer.connections <= 1


async def test_a_dead_nsqd_does_not_stop_the_others(peer: Peer) -> None:
    async with Peer() as dead:
        pass
    async with consumer_of(dead, peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1))
        assert len(await receive(consumer, 1)) == 1
        await until(lambda: consumer.counts["connect_failed"] >= 2)
        async with Peer(dead.port) as alive:
            await (await alive.subscribed()).expect(b"RDY 50")
            await nsqd.expect(b"RDY 50")


async def test_leaving_closes_what_is_open_and_what_is_being_opened(peer: Peer) -> None:
    async with Peer() as slow:
        async with consumer_of(peer, slow):
            nsqd = await peer.subscribed()
            await nsqd.expect(b"RDY 100")
            waiting = await slow.accept()
            await waiting.magic()
        assert await nsqd.rest() == []
        assert await waiting.rest() == [b"IDENTIFY"]


# RDY


async def test_rdy_is_shared_and_a_loss_gives_it_back() -> None:
    sent: list[tuple[Connection, bytes]] = []
    real_send, real_lost = Connection.send, Connection.connection_lost

    def send(connection: Connection, data: bytes) -> None:
        sent.append((connection, data))
        real_send(connection, data)

    def lost(connection: Connection, error: BaseException | None) -> None:
        sent.append((connection, b"RDY 0"))
        real_lost(connection, error)

    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Connection, "send", send)
        patch.setattr(Connection, "connection_lost", lost)
        peers = [await stack.enter_async_context(Peer()) for _ in range(3)]
        await stack.enter_async_context(consumer_of(*peers))
        first = await peers[0].subscribed()
        await first.expect(b"RDY 100")
        second = await peers[1].subscribed()
        await first.expect(b"RDY 50")
        await second.expect(b"RDY 50")
        third = await peers[2].subscribed()
        shares = [await nsqd.command() for nsqd in (first, second, third)]
        assert sorted(shares) == [b"RDY 33", b"RDY 33", b"RDY 34"]
        third.cut()
        again = await peers[2].subscribed()
        assert await again.command() in (b"RDY 33", b"RDY 34")
        assert b"RDY 50" in await first.rest_until_quiet()
    assert max(sums_of_rdy(sent)) == 100


def sums_of_rdy(sent: list[tuple[Connection, bytes]]) -> list[int]:
    """The sum over all connections, after each RDY that was sent."""
    rdy: dict[Connection, int] = {}
    sums = []
    for connection, data in sent:
        if data.startswith(b"RDY "):
            rdy[connection] = int(data[4:])
            sums.append(sum(rdy.values()))
    return sums


async def test_a_small_limit_of_nsqd_leaves_more_for_the_others(peer: Peer) -> None:
    async with Peer() as other, consumer_of(peer, other):
        small = await peer.subscribed(max_rdy_count=10)
        await small.expect(b"RDY 10")
        large = await other.subscribed()
        await large.expect(b"RDY 90")


async def test_more_connections_than_max_in_flight_take_turns() -> None:
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer()) for _ in range(2)]
        consumer = consumer_of(
            *peers, max_in_flight=1, low_rdy_idle_timeout="1s", rdy_redistribute_interval="10ms"
        )
        await stack.enter_async_context(consumer)
        first = await peers[0].subscribed()
        await first.expect(b"RDY 1")
        second = await peers[1].subscribed()
        await first.expect(b"RDY 0")
        await second.expect(b"RDY 1")


async def test_pause_and_resume(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        consumer.pause()
        consumer.pause()
        await nsqd.expect(b"RDY 0")
        nsqd.send(messages(1))
        await receive(consumer, 1)
        consumer.resume()
        await nsqd.expect(b"RDY 100")


# TOUCH


async def test_what_is_held_is_touched_at_half_of_its_time(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "TOUCH_INTERVAL_S", 0.01)
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed(msg_timeout=1000)
        await nsqd.expect(b"RDY 100")
        began_s = asyncio.get_running_loop().time()
        nsqd.send(messages(1, 2, 3))
        (batch,) = await receive(consumer, 3)
        one, *_ = batch
        one.finish()
        await nsqd.expect(*fins(1))
        assert sorted([await nsqd.command(), await nsqd.command()]) == [
            b"TOUCH " + message_id for message_id in ids_of([2, 3])
        ]
        assert 0.45 <= asyncio.get_running_loop().time() - began_s < 1.0
        batch.finish()
        assert sorted([await nsqd.command(), await nsqd.command()]) == fins(2, 3)


async def test_what_cannot_be_kept_any_longer_is_not_touched(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "TOUCH_INTERVAL_S", 0.005)
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed(msg_timeout=100, max_msg_timeout=170)
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1))
        await receive(consumer, 1)
        await until(lambda: consumer.counts["too_old_to_touch"])
        told = await nsqd.rest_until_quiet()
    assert 1 <= len(told) <= 3
    assert set(told) == {b"TOUCH " + ids_of([1])[0]}


# The end


async def test_a_stop_without_connections_is_over_at_once() -> None:
    async with Peer() as dead:
        pass
    async with consumer_of(dead) as consumer:
        assert await consumer.stop(PATIENCE_S)
        assert await consumer.receive() == []


async def test_an_nsqd_that_never_answers_cls(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1))
        batches = await receive(consumer, 1)
        assert not await consumer.stop(0.05)
        assert settle_all(batches) == 0
        assert await consumer.receive() == []
        await nsqd.expect(b"CLS", *fins(1))


async def test_a_connection_that_is_lost_while_stopping_is_not_made_again(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        stopping = asyncio.create_task(consumer.stop(PATIENCE_S))
        await nsqd.expect(b"CLS")
        nsqd.cut()
        assert await stopping
        await asyncio.sleep(0.05)
        assert not peer.has_waiting


# Discovery


# Waiting


async def test_wait_returns_when_its_time_is_over(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        await consumer.inbox.wait(0.01)
        assert not consumer.inbox.messages


async def test_any_number_of_tasks_may_receive(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        tasks = [asyncio.create_task(consumer.receive()) for _ in range(2)]
        await asyncio.sleep(0)
        nsqd.send(messages(1))
        await until(lambda: any(task.done() for task in tasks))
        assert sum(task.done() for task in tasks) == 1
        nsqd.send(messages(2))
        async with asyncio.timeout(PATIENCE_S):
            found = await asyncio.gather(*tasks)
        assert sorted(ids(batch for batches in found for batch in batches)) == ids_of([1, 2])


async def test_leaving_without_a_stop_ends_who_waits(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        await peer.subscribed()
        waiting = asyncio.create_task(consumer.receive())
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting == []


async def test_who_waits_is_woken_when_so_much_of_the_window_has_come(peer: Peer) -> None:
    async with consumer_of(peer, max_in_flight=10) as consumer:
        assert consumer.inbox.fill == 0
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 10")
        nsqd.send(messages(1, 2, 3, 4))
        await until(lambda: consumer.inbox.messages == 4)
        assert consumer.inbox.fill == 0.4
        waiting = asyncio.create_task(consumer.inbox.wait(fill=0.5))
        nsqd.send(messages(5))
        await waiting
        assert consumer.inbox.fill == 0.5
        assert len(ids(consumer.inbox.take())) == 5
        nsqd.send(frame(0, b"OK"))  # is of no interest to anybody
        assert await nsqd.is_quiet()


async def test_rdy_asks_for_no_more_than_may_be_held(peer: Peer) -> None:
    memory = ConsumerMemory(1 << 20)
    async with consumer_of(peer, memory=memory) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 4")
        nsqd.send(message(1, b"x" * (100 << 10)))
        await nsqd.expect(b"RDY 10")
        assert settle_all(await receive(consumer, 1)) == 0
        await nsqd.expect(*fins(1))
        # Small ones bring it back, little by little.
        asked = [10]
        for number in range(2, 40):
            nsqd.send(message(number, b"small"))
            assert settle_all(await receive(consumer, 1)) == 0
            while (told := await nsqd.command()) != fins(number)[0]:
                asked.append(int(told.removeprefix(b"RDY ")))
        assert asked == sorted(asked)
        assert asked[-1] == 100


async def test_with_many_nsqds_more_is_in_flight(peer: Peer) -> None:
    """With a few of each the way there and back would cost more than the messages."""
    async with Peer() as other, consumer_of(peer, other, max_in_flight_per_nsqd="80") as consumer:
        one = await peer.subscribed()
        two = await other.subscribed()
        assert await last_rdy(one) == await last_rdy(two) == b"RDY 80"
        assert consumer.max_in_flight == 160
        two.cut()
        assert await last_rdy(one) == b"RDY 100"


async def test_few_messages_of_unknown_size_are_asked_for(peer: Peer) -> None:
    """With many consumers: each could get so many at once that nothing is left for the others."""
    memory = ConsumerMemory(32 << 10)
    async with consumer_of(peer, memory=memory):
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 1")
        nsqd.send(message(1, b"small"))
        await nsqd.expect(b"RDY 100")


MIB = b"x" * (1 << 20)


async def test_more_than_was_asked_for_is_read_and_no_more_is_asked_for(peer: Peer) -> None:
    """An nsqd that could not write for a heartbeat interval sends nothing more: what was on its way
    when it became too much is taken, however long it is held."""
    memory = ConsumerMemory(1 << 20)
    async with consumer_of(peer, memory=memory, heartbeat_interval="1s") as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 4")
        for number in range(3):
            nsqd.send(message(number, MIB))
        await nsqd.expect(b"RDY 1", b"RDY 0")
        await until(lambda: consumer.inbox.messages == 3)
        nsqd.respond(b"_heartbeat_")
        await nsqd.expect(b"NOP")
        await asyncio.sleep(1.0)  # longer than one that is not read would be kept
        assert consumer.connections == 1
        assert settle_all(await receive(consumer, 3)) == 0
        assert b"RDY 1" in await nsqd.rest_until_quiet()


async def test_far_more_than_was_asked_for_is_not_read(peer: Peer) -> None:
    """Sizes are known too late for what is on its way already, or an nsqd sends what it likes."""
    memory = ConsumerMemory(1 << 20)
    async with consumer_of(peer, memory=memory) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 4")
        for number in range(20):
            nsqd.send(message(number, MIB))
        await nsqd.expect(b"RDY 1", b"RDY 0")
        await nsqd.expect(b"NOP")  # it does not read, and says that it is there
        assert consumer.held_bytes <= 10 << 20
        seen: list[bytes] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(seen) < 20:
                batches = await consumer.receive()
                seen += ids(batches)
                assert settle_all(batches) == 0
        assert seen == ids_of([*range(20)])
        assert consumer.held_bytes == memory.held_bytes == 0


async def test_the_end_does_not_wait_for_what_is_not_read(peer: Peer) -> None:
    """The answer to CLS stands behind it."""
    memory = ConsumerMemory(1 << 20)
    async with consumer_of(peer, memory=memory) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 4")
        for number in range(7):
            nsqd.send(message(number, MIB))
        await nsqd.expect(b"RDY 1", b"RDY 0", b"NOP")
        stopping = asyncio.create_task(consumer.stop(PATIENCE_S))
        await nsqd.expect(b"CLS")
        nsqd.send(frame(0, b"CLOSE_WAIT"))
        assert await stopping
    assert memory.held_bytes == 0


async def test_one_that_stopped_reading_goes_on_when_others_hold_less(peer: Peer) -> None:
    memory = ConsumerMemory(1 << 20)
    async with (
        Peer() as other,
        consumer_of(peer, memory=memory) as one,
        consumer_of(other, memory=memory) as two,
    ):
        nsqd, another = await peer.subscribed(), await other.subscribed()
        for number in range(6):
            another.send(message(number, MIB))
        await until(memory.is_overfull)
        for number in range(3):
            nsqd.send(message(number, MIB))
        await until(lambda: one.inbox.messages > 0)
        assert one.inbox.messages < 3
        assert settle_all(await two.receive()) == 0
        await until(lambda: one.inbox.messages == 3)


async def test_consumers_share_what_may_be_held(peer: Peer) -> None:
    memory = ConsumerMemory(1 << 20)
    async with Peer() as other, consumer_of(peer, memory=memory) as one:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 4")
        async with consumer_of(other, memory=memory):
            await other.subscribed()
            nsqd.send(message(1, b"x" * (100 << 10)))
            await nsqd.expect(b"RDY 5")
        one.resume()
        await nsqd.expect(b"RDY 10")


async def test_what_a_lost_connection_brought_is_forgotten_unless_it_was_taken(peer: Peer) -> None:
    """nsqd delivers it again: writing it now would make it double."""
    async with consumer_of(peer) as consumer:
        for round_ in range(3):
            nsqd = await peer.subscribed()
            await nsqd.expect(b"RDY 100")
            nsqd.send(messages(1, 2))
            await until(lambda: consumer.inbox.messages == 2)
            (taken,) = consumer.inbox.take()
            nsqd.send(messages(3, 4, 5))
            await until(lambda: consumer.inbox.messages == 3)
            nsqd.cut()
            await until(lambda: not consumer.connections)
            assert consumer.inbox.take() == []
            assert taken.is_lost
            assert taken.finish() == 2
            assert consumer.held_bytes == 0
            assert consumer.counts["untaken_lost"] == 3 * (round_ + 1)


async def test_a_part_of_what_has_come(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(b"".join(message(number, b"%d" % number) for number in range(5)))
        await until(lambda: consumer.inbox.messages == 5)
        (first,) = consumer.inbox.take_some(2, 1 << 20)
        assert first.messages.bodies == [b"0", b"1"]
        assert consumer.inbox.messages == 3
        (second,) = consumer.inbox.take_some(100, 1)
        assert second.messages.bodies == [b"2"], "one at least, however large"
        assert first.finish() == 0
        await nsqd.expect(*fins(0, 1))
        assert first.finish() == 0, "there is nothing left to settle"
        assert second.requeue(1.0) == 0
        await nsqd.expect(b"REQ %b 1000" % ids_of([2])[0])
        (third,) = consumer.inbox.take_some(100, 1 << 20)
        assert third.finish() == 0
        await nsqd.expect(*fins(3, 4))
        assert (consumer.in_flight, consumer.held_bytes) == (0, 0)


async def test_everything_can_be_given_back_at_once(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2))
        await receive(consumer, 2)
        consumer.give_back()
        await nsqd.expect(*[b"REQ %b 0" % message_id for message_id in ids_of([1, 2])])
        assert consumer.in_flight == 0


async def test_an_nsqd_that_refuses_every_command_is_listened_to(peer: Peer) -> None:
    count = 3000
    async with consumer_of(peer, max_in_flight=count) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.command()
        nsqd.send(messages(*range(count)))
        for batch in await receive(consumer, count):
            batch.finish()
        await nsqd.until_told(*fins(count - 1))
        for number in range(count):
            nsqd.refuse(b"E_FIN_FAILED FIN %016d failed ID not in flight" % number)
        await until(lambda: consumer.counts["E_FIN_FAILED"] == count)
        assert consumer.connections == 1


@pytest.mark.parametrize("more", [0, 1])
async def test_an_nsqd_that_sends_far_more_than_was_asked_for_is_given_up(
    more: int, peer: Peer
) -> None:
    """What timed out comes once more beside what is here: some more than RDY is no offence."""
    rdy = 10
    most = rdy + BEYOND_FACTOR * rdy + BEYOND_MIN
    async with consumer_of(peer, max_in_flight=rdy) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY %d" % rdy)
        nsqd.send(messages(*range(most + more)))
        if more:
            await until(lambda: consumer.counts["connections_lost"] == 1)
            assert "far more messages" in consumer.last_failures[peer.address]
            await peer.subscribed()
        else:
            await receive(consumer, most)
            assert consumer.connections == 1


async def test_a_fatal_error_ends_the_connection(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.command()
        nsqd.refuse(b"E_INVENTED \x1b[2J")
        assert await nsqd.rest() == []
        await peer.subscribed()
        assert consumer.counts["other_errors"] == 1
        assert not [code for code in consumer.counts if "INVENTED" in code]
