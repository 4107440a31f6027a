"""A producer against a scripted nsqd: commands to the byte, answers in their order, and losses."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import TYPE_CHECKING

import pytest
from tests.support.clients import producer_options, until
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, PeerConnection, frame, messages
from tests.support.raw import ERROR, RESPONSE

from nsqtools.client import connection as connection_module
from nsqtools.client.connection import WRITE_HIGH_WATER_BYTES
from nsqtools.client.producer import Producer
from nsqtools.errors import ConnectionFailed, ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class AtOnce(random.Random):
    """No time between two attempts to connect."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


def producer_of(peer: Peer, **settings: str) -> Producer:
    return Producer(peer.address, producer_options(**settings), rng=AtOnce())


@pytest.fixture(autouse=True)
def _no_waiting_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT_S", 0.05)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as peer:
        yield peer


async def connected(peer: Peer, producer: Producer) -> PeerConnection:
    nsqd = await peer.accept()
    await nsqd.identify()
    await producer.connected(PATIENCE_S)
    return nsqd


async def test_commands_to_the_byte(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        publishes = [
            asyncio.create_task(publish)
            for publish in (
                producer.publish("t", b"one\n"),
                producer.publish_many("t", [b"", b"two", b"x" * 300]),
                producer.publish_deferred("t", b"later", 1.2345),
            )
        ]
        await nsqd.expect(b"PUB t", b"MPUB t", b"DPUB t 1234")
        assert nsqd.bodies[1:] == [
            b"one\n",
            struct.pack(">iii", 3, 0, 3) + b"two" + struct.pack(">i", 300) + b"x" * 300,
            b"later",
        ]
        assert not any(publish.done() for publish in publishes)
        for _ in publishes:
            nsqd.respond()
        await asyncio.gather(*publishes)


async def test_each_answer_belongs_to_the_oldest_publish(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        publishes = [
            asyncio.create_task(producer.publish("t", b"%d" % number)) for number in range(4)
        ]
        await nsqd.expect(*[b"PUB t"] * 4)
        publishes[2].cancel()
        nsqd.respond()
        nsqd.respond(b"_heartbeat_")
        nsqd.refuse(b"E_PUB_FAILED PUB failed disk is full")
        nsqd.respond()
        nsqd.respond()
        await nsqd.expect(b"NOP")
        results = await asyncio.gather(*publishes, return_exceptions=True)
    assert results[0] is None
    assert str(results[1]) == "E_PUB_FAILED PUB failed disk is full"
    assert isinstance(results[1], ServerError)
    assert isinstance(results[2], asyncio.CancelledError)
    assert results[3] is None


async def test_what_is_unanswered_when_the_connection_ends_has_failed(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        publishes = [asyncio.create_task(producer.publish("t", b"x")) for _ in range(3)]
        await nsqd.expect(*[b"PUB t"] * 3)
        nsqd.respond()
        await publishes[0]
        nsqd.cut()
        for publish in publishes[1:]:
            with pytest.raises(ConnectionFailed, match="unanswered"):
                await publish
        assert not producer.is_connected
        with pytest.raises(ConnectionFailed):
            await producer.publish("t", b"x")


async def test_it_connects_again_by_itself(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        nsqd.refuse(b"E_BAD_TOPIC PUB topic name is not valid")
        nsqd.end()
        nsqd = await peer.accept()
        await nsqd.identify()
        await until(lambda: producer.is_connected)
        publishing = asyncio.create_task(producer.publish("t", b"x"))
        await nsqd.expect(b"PUB t")
        nsqd.respond()
        await publishing


async def test_nobody_is_there() -> None:
    async with Peer() as gone:
        pass
    async with producer_of(gone) as producer:
        with pytest.raises(ConnectionFailed, match=gone.address):
            await producer.connected(0.05)
        with pytest.raises(ConnectionFailed, match=gone.address):
            await producer.publish("t", b"x")
        assert gone.address in str(producer.last_failure)


async def test_messages_are_not_for_a_producer(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        nsqd.send(messages(1, 2))
        await until(lambda: "2 unexpected messages" in str(producer.last_failure))


async def test_leaving_sends_what_was_given_and_fails_what_is_unanswered(peer: Peer) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        publishing = asyncio.create_task(producer.publish("t", b"x"))
        await nsqd.expect(b"PUB t")
        asyncio.get_running_loop().call_later(0.02, nsqd.end)
    with pytest.raises(ConnectionFailed, match="unanswered"):
        await publishing
    assert await nsqd.rest() == []


async def test_leaving_while_it_connects(peer: Peer) -> None:
    async with producer_of(peer):
        nsqd = await peer.accept()
        await nsqd.magic()
    assert await nsqd.rest() == [b"IDENTIFY"]


async def test_a_slow_nsqd_is_not_one_that_takes_nothing(peer: Peer) -> None:
    """All of it takes twice the write timeout; what is buffered for it is bounded all the same."""
    body = b"x" * (1 << 20)
    async with producer_of(peer, write_timeout="1s") as producer:
        nsqd = await connected(peer, producer)
        publishes = [asyncio.create_task(producer.publish("t", body)) for _ in range(25)]
        for _ in publishes:
            await asyncio.sleep(0.08)
            assert producer._connection is not None
            transport = producer._connection._transport
            assert transport is not None
            assert transport.get_write_buffer_size() < WRITE_HIGH_WATER_BYTES + 2 * len(body)
            await nsqd.expect(b"PUB t")
            nsqd.respond()
        await asyncio.gather(*publishes)


async def test_one_that_takes_nothing_is_given_up(peer: Peer) -> None:
    body = b"x" * (1 << 20)
    async with producer_of(peer, write_timeout="100ms") as producer:
        await connected(peer, producer)
        publishes = [asyncio.create_task(producer.publish("t", body)) for _ in range(25)]
        results = await asyncio.gather(*publishes, return_exceptions=True)
    assert {type(result) for result in results} == {ConnectionFailed}
    assert "nsqd takes no data" in str(results[0])


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (frame(RESPONSE, b"OK") * 2, "answers what nobody asked"),
        (messages(1), "unexpected messages"),
        (frame(RESPONSE, b"_heartbeat_") * 5000, "heartbeats without end"),
        (frame(ERROR, b"E_INVALID no"), "closes after E_INVALID no"),
    ],
)
async def test_an_nsqd_that_says_what_nobody_asked_for_is_given_up(
    said: bytes, word: str, peer: Peer
) -> None:
    async with producer_of(peer) as producer:
        nsqd = await connected(peer, producer)
        nsqd.send(said)
        await until(lambda: word in str(producer.last_failure))
        again = await connected(peer, producer)
        publish = asyncio.create_task(producer.publish("t", b"one"))
        await again.expect(b"PUB t")
        again.respond()
        await publish
