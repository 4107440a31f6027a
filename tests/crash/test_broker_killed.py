"""The broker killed with -9 at random moments: what it said OK to is delivered, what was FINed is not.

Of a channel that is consumed all the while we know which FINs the broker had journaled: those behind
which it has answered twice. None of these messages may come again. A second channel is read when all
is over, from disk: it must hold every message once.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import Client, Cut, body_of, new_rng, number_of, patience_s
from tests.support.programs import PATIENCE_S, NsqdProgram

from nsqtools.wire import commands

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from nsqtools.wire.messages import Messages

TOPIC = "crash"
LIVE = "live"
LATE = "late"
# Small enough that files are rolled and removed, and that a reader is behind what is in memory.
FLAGS = ("--max-bytes-per-file=200000", "--mem-queue-size=500", "--sync-every=1000")
PUBLISHERS = 3
MPUB_MAX = 150
PIPELINED = 3
RDY = 200
# The longest that a killed life goes on after it listens, and the longest kill of a start, in seconds.
LIFE_MAX_S = 0.5
START_MAX_S = 0.4
REQUEUE_DELAY_MS = 50
UNKNOWN_ID = b"0" * 16


class Numbers:
    """The numbers that are published, and what became of them."""

    def __init__(self, total: int) -> None:
        self.left = list(range(total - 1, -1, -1))
        self.acknowledged: set[int] = set()

    def take(self, count: int) -> list[int]:
        taken = self.left[-count:]
        del self.left[-count:]
        return taken


class Ledger:
    """What a consumer was told and what it knows to be kept, over all lives of the broker."""

    def __init__(self) -> None:
        self.received: set[int] = set()
        self.finished: set[int] = set()
        self.journaled: set[int] = set()
        self.redelivered = 0
        self.came_back: list[int] = []
        self._fresh: list[int] = []
        self._asked: list[int] = []
        self._answered: list[int] = []

    def begin(self) -> None:
        """A new connection: FINs on their way were lost or not, nobody knows."""
        self._fresh, self._asked, self._answered = [], [], []

    def came(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.received.add(number)
            self.redelivered += number in self.finished
            if number in self.journaled:
                self.came_back.append(number)

    def sent_fin(self, numbers: list[int]) -> None:
        self.finished.update(numbers)
        self._fresh += numbers

    @property
    def wants_to_ask(self) -> bool:
        return bool(self._fresh or self._asked or self._answered)

    def answered(self) -> None:
        """What was asked behind the FINs is answered, and may be asked again.

        The first answer can overtake the journal, which is written at the end of the turn; the next
        one is of a later turn.
        """
        self.journaled.update(self._answered)
        self._answered, self._asked, self._fresh = self._asked, self._fresh, []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "messages", "flags"),
    [
        pytest.param(25, 100_000, (), id="written"),
        pytest.param(10, 20_000, ("--durable",), id="durable"),
    ],
)
async def test_what_was_said_ok_to_is_delivered(
    kills: int, messages: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    await kill_and_account(kills, messages, flags, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("flags", [(), ("--durable",)], ids=["written", "durable"])
async def test_the_same_hundreds_of_times(flags: tuple[str, ...], tmp_path: Path) -> None:
    await kill_and_account(400, 2_000_000, flags, tmp_path)


async def kill_and_account(
    kills: int, messages: int, flags: tuple[str, ...], data_path: Path
) -> None:
    rng = new_rng()
    numbers, ledger = Numbers(messages), Ledger()
    async with NsqdProgram(data_path, *FLAGS, *flags) as nsqd:
        await nsqd.serve()
        for channel in (LIVE, LATE):
            async with Client(nsqd.port) as client:
                await client.subscribe(TOPIC, channel, 0)
        async with asyncio.TaskGroup() as group:
            consuming = group.create_task(_consume(nsqd, ledger, rng))
            for life in range(kills):
                share = len(numbers.left) // (kills - life)
                await _live_and_die(nsqd, numbers, share, rng)
                await _start(nsqd, rng)
            async with Client(nsqd.port) as client:
                await _publish(client, numbers, len(numbers.left), rng)
            await _until_received(ledger, numbers.acknowledged, patience_s(messages))
            late = await _read_late(nsqd.port, messages)
            # Also what is there and was never answered, and what tells the end of it.
            await _until_received(ledger, {*late, messages}, patience_s(messages))
            consuming.cancel()
    print(
        f"kills={nsqd.lives - 1} acknowledged={len(numbers.acknowledged)}"
        f" unanswered_and_kept={len(set(late) - numbers.acknowledged)}"
        f" redelivered_after_fin={ledger.redelivered} journaled={len(ledger.journaled)}"
    )
    assert not numbers.acknowledged - set(late), "lost on the channel that nobody read"
    assert len(late) == len(set(late)), "delivered twice, and never handed out before"
    assert ledger.received == {*late, messages}, (
        "the two channels of a topic hold different messages"
    )
    assert not ledger.came_back, "acknowledged, and delivered again"
    assert ledger.redelivered <= (nsqd.lives - 1) * 2 * RDY, (
        "more than what was in flight at the kills"
    )
    assert len(ledger.journaled) > messages // 2, "too little was known to be journaled"


async def _live_and_die(
    nsqd: NsqdProgram, numbers: Numbers, share: int, rng: random.Random
) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(PUBLISHERS):
            group.create_task(_publish_until_cut(nsqd.port, numbers, share // PUBLISHERS, rng))
        await asyncio.sleep(rng.uniform(0, LIFE_MAX_S))
        await nsqd.kill()


async def _start(nsqd: NsqdProgram, rng: random.Random) -> None:
    """Start it again; some starts are killed, too."""
    if rng.random() < 0.2:
        await nsqd.start()
        await asyncio.sleep(rng.uniform(0, START_MAX_S))
        await nsqd.kill()
    await nsqd.serve()


async def _publish_until_cut(port: int, numbers: Numbers, count: int, rng: random.Random) -> None:
    try:
        async with Client(port) as client:
            await _publish(client, numbers, count, rng)
    except Cut:
        return


async def _publish(client: Client, numbers: Numbers, count: int, rng: random.Random) -> None:
    """MPUBs of all sizes, a few at a time; what is not answered is not sent again."""
    while count > 0 and numbers.left:
        sent = [numbers.take(rng.randint(1, MPUB_MAX)) for _ in range(PIPELINED)]
        sent = [some for some in sent if some]
        for some in sent:
            client.send(commands.mpub(TOPIC, [body_of(number) for number in some]))
        for some in sent:
            await client.expect_ok()
            numbers.acknowledged.update(some)
            count -= len(some)
        await asyncio.sleep(rng.uniform(0, 0.04))


async def _consume(nsqd: NsqdProgram, ledger: Ledger, rng: random.Random) -> None:
    while True:
        await nsqd.up.wait()
        try:
            async with Client(nsqd.port) as client:
                await client.subscribe(TOPIC, LIVE, RDY)
                await _settle(client, ledger, rng)
        except Cut:
            continue


async def _settle(client: Client, ledger: Ledger, rng: random.Random) -> None:
    """FIN nearly everything; behind the FINs always one question, which has an answer."""
    ledger.begin()
    is_asking = False
    while True:
        received = await client.receive()
        for messages in received.messages:
            _settle_run(client, ledger, messages, rng)
        for code in received.errors:
            assert code == "E_TOUCH_FAILED"
            ledger.answered()
            is_asking = False
        if ledger.wants_to_ask and not is_asking:
            is_asking = True
            client.send(commands.touch([UNKNOWN_ID]))


def _settle_run(client: Client, ledger: Ledger, messages: Messages, rng: random.Random) -> None:
    numbers = [number_of(body) for body in messages.bodies]
    ledger.came(numbers)
    requeued = rng.randrange(len(messages)) if rng.random() < 0.1 else -1
    if requeued >= 0:
        client.send(commands.req([messages.ids[requeued]], REQUEUE_DELAY_MS))
    ids = [message_id for at, message_id in enumerate(messages.ids) if at != requeued]
    if ids:
        client.send(commands.fin(ids))
        ledger.sent_fin([number for at, number in enumerate(numbers) if at != requeued])


async def _until_received(ledger: Ledger, wanted: set[int], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while lost := wanted - ledger.received:
        assert time.monotonic() < deadline, f"lost: {len(lost)} messages, such as {min(lost)}"
        await asyncio.sleep(0.02)


async def _read_late(port: int, sentinel: int) -> list[int]:
    """Everything on the channel that nobody has read, in its order."""
    found: list[int] = []
    async with Client(port) as client, asyncio.timeout(patience_s(sentinel)):
        await client.publish(TOPIC, [sentinel])
        await client.subscribe(TOPIC, LATE, RDY)
        while not found or found[-1] != sentinel:
            for messages in (await client.receive()).messages:
                assert set(messages.attempts) == {1}
                found += map(number_of, messages.bodies)
                client.send(commands.fin(messages.ids))
    return found[:-1]


@pytest.mark.slow
async def test_deferred_requeued_and_held_messages_survive_with_their_delay_and_attempts(
    tmp_path: Path,
) -> None:
    deferred, requeued, held, done = range(4)
    delay_s = 1.5
    async with NsqdProgram(tmp_path) as nsqd:
        await nsqd.serve()
        async with Client(nsqd.port) as client:
            await client.subscribe(TOPIC, LIVE, 10)
            began = time.monotonic()
            client.send(commands.dpub(TOPIC, body_of(deferred), int(delay_s * 1000)))
            await client.expect_ok()
            client.send(commands.mpub(TOPIC, [body_of(n) for n in (requeued, held, done)]))
            ids = dict(await _deliveries(client, 3))
            assert set(ids) == {(requeued, 1), (held, 1), (done, 1)}
            client.send(commands.req([ids[requeued, 1]], int(delay_s * 1000)))
            client.send(commands.fin([ids[done, 1]]))
            for _ in range(2):
                client.send(commands.touch([UNKNOWN_ID]))
                assert (await client.receive()).errors == ["E_TOUCH_FAILED"]
            await nsqd.kill()
        await nsqd.serve()
        async with Client(nsqd.port) as client:
            await client.subscribe(TOPIC, LIVE, 10)
            first = dict(await _deliveries(client, 1))
            assert set(first) == {(held, 2)}
            later = dict(await _deliveries(client, 2))
            assert set(later) == {(deferred, 1), (requeued, 2)}
            assert time.monotonic() - began >= delay_s


async def _deliveries(client: Client, count: int) -> list[tuple[tuple[int, int], bytes]]:
    """Number and attempts, with the id, of the next so many messages."""
    found: list[tuple[tuple[int, int], bytes]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            for messages in (await client.receive()).messages:
                numbers = map(number_of, messages.bodies)
                found += zip(
                    zip(numbers, messages.attempts, strict=True), messages.ids, strict=True
                )
    return found
