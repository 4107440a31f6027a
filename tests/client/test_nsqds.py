"""Which nsqds a consumer calls, and when it calls them again."""

from __future__ import annotations

import asyncio

import pytest
from tests.client.helpers import consumer_of, last_rdy, receive
from tests.support.clients import until
from tests.support.lookupd import UNKNOWN, listing, lookupds
from tests.support.peer import Peer, messages

from nsqtools.client import lookup, nsqds


async def test_answers_of_all_lookupds_are_merged() -> None:
    async with (
        Peer() as one,
        Peer() as two,
        Peer() as dead_port,
        lookupds(
            listing(("127.0.0.1", one.port)), listing(("127.0.0.1", two.port)), UNKNOWN
        ) as fakes,
    ):
        addresses = [*(fake.address for fake in fakes), dead_port.address]
        async with consumer_of(lookupd=addresses):
            first, second = await one.subscribed(), await two.subscribed()
            assert await last_rdy(first) == b"RDY 50"
            assert await last_rdy(second) == b"RDY 50"


async def test_an_nsqd_that_is_no_longer_listed_is_not_called_again(peer: Peer) -> None:
    async with (
        lookupds(listing(("127.0.0.1", peer.port))) as (fake,),
        consumer_of(lookupd=[fake.address]) as consumer,
    ):
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        fake.answer = UNKNOWN
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) >= asked + 2)
        nsqd.send(messages(1))
        await receive(consumer, 1)  # what is connected stays
        nsqd.cut()
        await until(lambda: not consumer.connections)
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) >= asked + 3)
        assert not peer.has_waiting
        fake.answer = listing(("127.0.0.1", peer.port))
        await peer.subscribed()


@pytest.mark.parametrize("turn", range(3))
async def test_a_lost_nsqd_is_called_again_only_when_lookupd_could_say_no(
    turn: int, peer: Peer
) -> None:
    """Calling it at once would make a topic anew that has just been deleted."""
    async with (
        lookupds(listing(("127.0.0.1", peer.port))) as (fake,),
        consumer_of(lookupd=[fake.address], lookupd_poll_interval="200ms") as consumer,
    ):
        nsqd = await peer.subscribed()
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) > asked + turn)
        fake.answer = UNKNOWN
        nsqd.cut()
        await until(lambda: not consumer.connections)
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) >= asked + 4)
        assert not peer.has_waiting


async def test_a_lookupd_that_lists_nonsense_does_not_stop_the_others(peer: Peer) -> None:
    answer = listing(("a" * 70, 4150), ("127.0.0.1", peer.port))
    async with lookupds(answer) as (fake,), consumer_of(lookupd=[fake.address]):
        await (await peer.subscribed()).expect(b"RDY 100")


async def test_lookupd_is_asked_again_after_the_loss_before_a_topic_could_be_made_anew(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nsqd closes the connections of a deleted topic first, and is taken off the list after that:
    an answer that was given in between must not be believed."""
    monkeypatch.setattr(nsqds, "ASK_AFTER_S", 0.3)
    async with (
        lookupds(listing(("127.0.0.1", peer.port))) as (fake,),
        consumer_of(lookupd=[fake.address], lookupd_poll_interval="60s") as consumer,
    ):
        nsqd = await peer.subscribed()
        nsqd.cut()
        await until(lambda: not consumer.connections)
        await asyncio.sleep(0.1)
        fake.answer = UNKNOWN
        asked = len(fake.asked)
        await until(lambda: len(fake.asked) > asked)
        await asyncio.sleep(0.3)
        assert not peer.has_waiting


async def test_a_lookupd_that_comes_up_later_is_found_soon(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lookup, "FIRST_ANSWER_S", 0.02)
    async with (
        lookupds((500, b"")) as (fake,),
        consumer_of(lookupd=[fake.address], lookupd_poll_interval="60s") as consumer,
    ):
        await until(lambda: len(fake.asked) >= 3)
        assert consumer.unconnected == {"": "no nsqd is known to have the topic"}
        assert consumer.failing_lookupds.keys() == {fake.address}
        fake.answer = listing(("127.0.0.1", peer.port))
        await (await peer.subscribed()).expect(b"RDY 100")
        assert consumer.unconnected == {}
        assert not consumer.failing_lookupds
    said = [
        r for r in caplog.records if "lookupd failed" in r.getMessage() and r.levelname != "DEBUG"
    ]
    assert len(said) == 1


async def test_several_connections_to_one_nsqd_share_what_is_in_flight(peer: Peer) -> None:
    async with consumer_of(peer, connections_per_nsqd="3") as consumer:
        connections = [await peer.subscribed() for _ in range(3)]
        shares = sorted([await last_rdy(nsqd) for nsqd in connections])
        assert shares == [b"RDY 33", b"RDY 33", b"RDY 34"]
        assert consumer.connections == 3
        connections[0].cut()
        await peer.subscribed()
        await until(lambda: consumer.connections == 3)


async def test_what_is_not_connected_is_known_with_the_reason(peer: Peer) -> None:
    async with Peer() as dead:
        pass
    async with consumer_of(peer, dead) as consumer:
        await peer.subscribed()
        await until(lambda: bool(consumer.connections and consumer.unconnected.get(dead.address)))
        assert consumer.unconnected.keys() == {dead.address}
        assert "Connect call failed" in consumer.unconnected[dead.address]
