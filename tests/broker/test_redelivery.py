"""What waits again and is on disk only is read in stretches, not message by message."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import EmbeddedNsqd
from tests.support.raw import RawClient

from nsqtools.broker.log import DiskLog
from nsqtools.wire import commands

if TYPE_CHECKING:
    from tests.support.nsqd import StartNsqd

    from nsqtools.broker.block import Block

MESSAGES = 1000
BODY = b"x" * 200


@pytest.mark.parametrize("way", ["its connection was lost", "its time was over"])
async def test_what_a_consumer_touched_and_lost_is_read_in_stretches(
    way: str, start_nsqd: StartNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A touched message has a lease of its own, and leases end in no order of messages."""
    nsqd = await start_nsqd(mem_queue_size=10, msg_timeout="1s")
    if not isinstance(nsqd, EmbeddedNsqd):
        pytest.skip("looks into the embedded broker")
    reads: list[int] = []
    real_read = DiskLog.read

    def read(log: DiskLog, number: int, *size: int) -> Block | None:
        reads.append(number)
        return real_read(log, number, *size)

    async with RawClient(nsqd.tcp_address) as publisher:
        for _ in range(20):
            await publisher.publish("t", *[BODY] * (MESSAGES // 20))
    async with RawClient(nsqd.tcp_address) as holder:
        await holder.subscribe("t", "c", MESSAGES)
        held = await holder.messages(MESSAGES)
        ids = [message.id for message in held]
        random.Random(1).shuffle(ids)
        holder.send(commands.touch(ids), commands.rdy(0))
        monkeypatch.setattr(DiskLog, "read", read)
        if way == "its connection was lost":
            await holder.close()
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", MESSAGES)
            again = await client.messages(MESSAGES)
    assert {message.id for message in again} == set(ids)
    assert {message.attempts for message in again} == {2}
    assert len(reads) <= 40
