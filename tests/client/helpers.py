"""Consumers for scripted nsqds, and what they received."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.clients import consumer_options
from tests.support.nsqd import PATIENCE_S

from nsqtools.client.consumer import Consumer
from nsqtools.client.memory import ConsumerMemory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.peer import Peer, PeerConnection

    from nsqtools.client.batch import Batch
    from nsqtools.client.discovery import Discovery

# The consumer comes back at once, so that a test need not wait.
SOON = {"lookupd_poll_interval": "10ms"}
# All of max-in-flight is asked for before the size of a message is known.
AMPLE_BYTES = 1 << 30


def consumer_of(
    *peers: Peer,
    max_in_flight: int = 100,
    lookupd: Iterable[str] = (),
    memory: ConsumerMemory | None = None,
    discovery: Discovery | None = None,
    **settings: str,
) -> Consumer:
    return Consumer(
        "t",
        "c",
        consumer_options(max_in_flight, **(SOON | settings)),
        nsqd_addresses=[peer.address for peer in peers],
        lookupd_addresses=lookupd,
        memory=memory or ConsumerMemory(AMPLE_BYTES),
        discovery=discovery,
    )


def bodies(batches: Iterable[Batch]) -> list[bytes]:
    return [body for batch in batches for body in batch.messages.bodies]


def ids(batches: Iterable[Batch]) -> list[bytes]:
    return [message_id for batch in batches for message_id in batch.messages.ids]


async def receive(consumer: Consumer, count: int) -> list[Batch]:
    """So many messages, in the batches in which they come."""
    batches: list[Batch] = []
    async with asyncio.timeout(PATIENCE_S):
        while sum(map(len, batches)) < count:
            batches += await consumer.receive()
    return batches


async def last_rdy(nsqd: PeerConnection) -> bytes:
    return (await nsqd.rest_until_quiet())[-1]
