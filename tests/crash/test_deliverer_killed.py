"""nsq_to_http killed with -9 at random moments: each message was taken, or is a dead letter.

The broker and the endpoint live on. The endpoint takes most, is busy for some now and then, and never
takes others.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.crash.accounting import Client, Tally, new_rng, number_of, patience_s
from tests.support.endpoints import Received, serving
from tests.support.programs import NsqdProgram, Program
from tests.support.web import POLL_S

if TYPE_CHECKING:
    import random
    from pathlib import Path

TOPIC = "crash"
CHANNEL = "deliver"
MAX_IN_FLIGHT = 400
MESSAGES_PER_LIFE = 600
LIFE_MAX_S = 0.6
# One in so many is never taken, and one request in so many finds the endpoint busy.
NEVER_TAKEN = 17
BUSY = 20


class Accounts:
    """What the endpoint took of each number."""

    def __init__(self, total: int, rng: random.Random) -> None:
        self.taken = Tally(total)
        self._rng = rng

    async def answer(self, one: Received) -> web.Response:
        bodies = one.body.removesuffix(b"\n").split(b"\n")
        await asyncio.sleep(self._rng.choice((0, 0, 0, 0.02)))
        if not self._rng.randrange(BUSY):
            return web.Response(status=503)
        if any(number_of(body) % NEVER_TAKEN == 0 for body in bodies):
            return web.Response(status=422)
        self.taken.add(bodies)
        return web.Response()


def dead(folder: Path, pattern: str = "*.jsonl") -> set[int]:
    """The numbers in dead letters, those of finished files unless another pattern is given."""
    found = set()
    for path in folder.glob(pattern):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert (record["status"], record["topic"]) == (422, TOPIC)
            found.add(number_of(record["body"].encode()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "flags"),
    [
        pytest.param(10, (), id="one-by-one"),
        pytest.param(6, ("--batch-size=20", "--batch-wait=20ms"), id="batches"),
        pytest.param(200, (), id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]),
    ],
)
async def test_what_was_killed_lost_nothing(
    kills: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    rng = new_rng()
    total = kills * MESSAGES_PER_LIFE
    accounts = Accounts(total, rng)
    data_path, folder = tmp_path / "nsqd", tmp_path / "dead"
    data_path.mkdir()
    async with (
        NsqdProgram(data_path, "--msg-timeout=2s") as nsqd,
        Program("nsq_to_http") as tool,
        serving(accounts.answer) as endpoint,
    ):
        await nsqd.serve()
        argv = [
            *(f"--topic={TOPIC}", f"--channel={CHANNEL}", f"--nsqd-tcp-address={nsqd.address}"),
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--status-every=0"),
            *(f"--max-in-flight={MAX_IN_FLIGHT}", "--n=20", *flags),
        ]
        async with Client(nsqd.port) as publisher:
            async with Client(nsqd.port) as first:
                await first.subscribe(TOPIC, CHANNEL, 0)
            for life in range(kills):
                start = life * MESSAGES_PER_LIFE
                await publisher.publish(TOPIC, range(start, start + MESSAGES_PER_LIFE))
                await tool.start(*argv)
                await tool.says("subscribed")
                await asyncio.sleep(rng.uniform(0, LIFE_MAX_S))
                await tool.kill()
        await tool.start(*argv)
        await tool.says("subscribed")
        deadline = time.monotonic() + patience_s(total)
        while any(number % NEVER_TAKEN for number in accounts.taken.missing):
            assert time.monotonic() < deadline, f"lost: {accounts.taken.missing[:20]}"
            await asyncio.sleep(POLL_S)
        while len(dead(folder, "*.jsonl*")) < len(range(0, total, NEVER_TAKEN)):
            assert time.monotonic() < deadline, "a refused message is no dead letter"
            await asyncio.sleep(POLL_S)
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert set(accounts.taken.missing) == dead(folder) == set(range(0, total, NEVER_TAKEN))
    print(f"kills={kills} twice={accounts.taken.repeated} lost=0")
    assert accounts.taken.repeated <= (kills + 1) * MAX_IN_FLIGHT
