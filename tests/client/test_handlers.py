"""Messages one by one: handlers, what they do with failures, and backoff."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.client.helpers import consumer_of
from tests.support.clients import consumer_options, until
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, fins, ids_of, message, messages

from nsqtools.client import handlers

if TYPE_CHECKING:
    from nsqtools.client.batch import Message


async def test_messages_one_by_one(peer: Peer) -> None:
    async with consumer_of(peer) as consumer:
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2, 3))
        seen: list[bytes] = []
        async for one in consumer:
            seen.append(one.id)
            one.touch()
            one.finish()
            if len(seen) == 3:
                break
        assert seen == ids_of([1, 2, 3])
        for message_id in seen:
            await nsqd.expect(b"TOUCH " + message_id, b"FIN " + message_id)


async def test_handlers_finish_what_they_do_and_requeue_what_fails(peer: Peer) -> None:
    attempts: Counter[bytes] = Counter()

    async def handle(one: Message) -> None:
        attempts[one.id] += 1
        if one.id == ids_of([2])[0]:
            raise ValueError("cannot")

    async with consumer_of(peer, default_requeue_delay="2s") as consumer:
        running = asyncio.create_task(handlers.handle(consumer, handle, concurrency=2))
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(message(1) + message(2, attempts=3) + message(3))
        told = sorted([await nsqd.command() for _ in range(3)])
        assert told == [*fins(1, 3), b"REQ %b 6000" % ids_of([2])[0]]
        assert consumer.counts["handler_failed"] == 1
        stopping = asyncio.create_task(consumer.stop(PATIENCE_S))
        await nsqd.expect(b"CLS")
        nsqd.respond(b"CLOSE_WAIT")
        assert await stopping
        await running


async def test_a_row_of_failures_backs_off_and_one_success_ends_it(peer: Peer) -> None:
    works = False

    async def handle(_: Message) -> None:
        if not works:
            raise ValueError("cannot")

    consumer = consumer_of(peer, backoff_multiplier="10ms", default_requeue_delay="0s")
    async with consumer:
        running = asyncio.create_task(handlers.handle(consumer, handle))
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1, 2))
        await nsqd.expect(*[b"REQ %b 0" % one for one in ids_of([1, 2])], b"RDY 0")
        works = True
        await nsqd.expect(b"RDY 1")
        nsqd.send(messages(3))
        await nsqd.expect(*fins(3), b"RDY 100")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_giving_up_has_to_be_asked_for(peer: Peer) -> None:
    handled: list[int] = []

    async def handle(one: Message) -> None:
        handled.append(one.attempts)

    async with consumer_of(peer, max_attempts="5") as consumer:
        running = asyncio.create_task(handlers.handle(consumer, handle))
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(message(1, attempts=5) + message(2, attempts=6))
        await nsqd.expect(*fins(1, 2))
        assert handled == [5]
        assert consumer.counts["given_up"] == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert consumer_options().max_attempts == 0


async def test_a_handler_whose_connection_went_away_fails_nobody_else(peer: Peer) -> None:
    async def handle(one: Message) -> None:
        if one.id == ids_of([1])[0]:
            nsqd.cut()
            await until(lambda: not consumer.connections)

    async with consumer_of(peer) as consumer:
        running = asyncio.create_task(handlers.handle(consumer, handle))
        nsqd = await peer.subscribed()
        await nsqd.expect(b"RDY 100")
        nsqd.send(messages(1))
        again = await peer.subscribed()
        await again.expect(b"RDY 100")
        again.send(messages(2))
        await again.expect(*fins(2))
        assert consumer.counts["not_settled"] == 1
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
