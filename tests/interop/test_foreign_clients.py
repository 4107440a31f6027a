"""Clients that were written elsewhere publish to the broker and consume from it.

ansq and pynsq each know the protocol in their own way: what they agree with, others will.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import ansq
import nsq
import pytest
from tests.support.nsqd import PATIENCE_S
from tests.support.raw import OK, RawClient, bodies
from tests.support.web import channel_stats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.filterwarnings("default")

TOPIC, CHANNEL = "orders", "archive"
BODIES = [b"%d\n\0\xff" % number for number in range(50)]


@pytest.fixture
async def writer(nsqd: Nsqd) -> AsyncIterator[Any]:
    made = await ansq.create_writer(nsqd_tcp_addresses=[nsqd.tcp_address])
    yield made
    await made.close()


async def test_ansq_publishes_and_consumes(nsqd: Nsqd, writer: Any) -> None:
    reader = await ansq.create_reader(
        topic=TOPIC, channel=CHANNEL, nsqd_tcp_addresses=[nsqd.tcp_address]
    )
    try:
        for body in BODIES[:10]:
            await writer.pub(TOPIC, body)
        await writer.mpub(TOPIC, *BODIES[10:])
        seen: list[bytes] = []
        async with asyncio.timeout(PATIENCE_S):
            async for message in reader.messages():
                if message.attempts == 1 and message.body == BODIES[7]:
                    await message.req(0)
                    continue
                seen.append(message.body)
                await message.touch()
                await message.fin()
                if len(seen) == len(BODIES):
                    break
        assert sorted(seen) == sorted(BODIES)
    finally:
        await reader.close()
    channel = await _settled(nsqd)
    assert (channel["depth"], channel["requeue_count"]) == (0, 1)


async def test_ansq_defers(nsqd: Nsqd, writer: Any) -> None:
    await writer.dpub(TOPIC, b"later", 800)
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe(TOPIC, CHANNEL)
        assert await client.is_quiet()
        assert (await client.message()).body == b"later"


async def _settled(nsqd: Nsqd) -> Any:
    """The channel, once nothing is in flight any more: FIN has no answer to wait for."""
    async with asyncio.timeout(PATIENCE_S):
        while (channel := await channel_stats(nsqd, TOPIC, CHANNEL))["in_flight_count"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return channel


class Collector:
    """What a pynsq reader was given; every fifth message is put back once."""

    def __init__(self, expected: int) -> None:
        self.bodies: list[bytes] = []
        self.done = asyncio.Event()
        self._expected = expected

    def __call__(self, message: Any) -> bool:
        if message.attempts == 1 and len(self.bodies) % 5 == 4:
            message.requeue(delay=0, backoff=False)
            return False
        self.bodies.append(message.body)
        message.finish()
        if len(self.bodies) == self._expected:
            self.done.set()
        return True


async def test_pynsq_consumes(nsqd: Nsqd) -> None:
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish(TOPIC, *BODIES)
    collector = Collector(len(BODIES))
    reader = nsq.Reader(
        message_handler=_async(collector),
        topic=TOPIC,
        channel=CHANNEL,
        nsqd_tcp_addresses=[nsqd.tcp_address],
        max_in_flight=7,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            await collector.done.wait()
        assert sorted(collector.bodies) == sorted(BODIES)
        assert (await _settled(nsqd))["depth"] == 0
    finally:
        reader.close()


def _async(collector: Collector) -> Callable[[Any], Any]:
    def handle(message: Any) -> bool:
        message.enable_async()
        return collector(message)

    return handle


def answer_to(future: asyncio.Future[bytes]) -> Callable[[Any, bytes], None]:
    return lambda _conn, data: future.set_result(data)


async def test_pynsq_publishes(nsqd: Nsqd) -> None:
    writer: Any = nsq.Writer([nsqd.tcp_address])
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not writer.conns:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            publishes: list[Callable[[Any], None]] = [
                lambda done: writer.pub(TOPIC, BODIES[0], callback=done),
                lambda done: writer.mpub(TOPIC, BODIES[1:], callback=done),
                lambda done: writer.dpub(TOPIC, 1, b"later", callback=done),
            ]
            for publish in publishes:
                answered = loop.create_future()
                publish(answer_to(answered))
                assert await answered == OK[1]
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe(TOPIC, CHANNEL, rdy=100)
            assert sorted(bodies(await client.messages(51))) == sorted([*BODIES, b"later"])
    finally:
        for conn in list(writer.conns.values()):
            conn.close()
