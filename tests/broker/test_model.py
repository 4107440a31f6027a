"""Random conversations over several connections, beside a simple model of what a broker keeps.

The model knows of each channel which messages are not finished, and of each connection which it holds.
Nothing is lost and nothing comes from nowhere; `/stats` counts what the model counts; a restart, in
order or as after a kill, changes none of it. The seed is printed, and taken from CRASH_SEED.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import new_rng
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import MESSAGE, OK, RawClient, parse_message
from tests.support.web import get_stats, post

from nsqtools.wire import commands

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.nsqd import Flag
    from tests.support.raw import Message

TOPIC = "t"
CHANNELS = ("a", "b", "c#ephemeral")
STEPS = 150
LATER_MS = 3_600_000
# A segment every few messages, and most of them on disk only.
FLAGS: dict[str, Flag] = {
    "max_bytes_per_file": 4096,
    "mem_queue_size": 100,
    "mem_queue_bytes": 2000,
}


@dataclass(slots=True, eq=False)
class Consumer:
    """One subscribed connection, and what it holds."""

    client: RawClient
    channel: str
    rdy: int = 0
    held: dict[bytes, Message] = field(default_factory=dict)


class Model:
    """What is true of a broker, and the conversations with it."""

    def __init__(self, nsqd: EmbeddedNsqd, rng: random.Random) -> None:
        self.nsqd = nsqd
        self.rng = rng
        self.count = 0
        self.unfinished: dict[str, set[bytes]] = {}
        self.deferred: dict[str, set[bytes]] = {}
        self.consumers: list[Consumer] = []

    async def start(self) -> None:
        self.publisher = await RawClient(self.nsqd.tcp_address).__aenter__()
        for name in CHANNELS[:2]:
            await self.connect(name)

    # Steps

    async def publish(self) -> None:
        count = self.rng.choice([1, 1, 5, 30])
        delay_ms = self.rng.choice([0, 0, 0, LATER_MS]) if count == 1 else 0
        bodies = [
            b"%05d" % (self.count + at) + b"." * self.rng.randrange(200) for at in range(count)
        ]
        self.count += count
        if delay_ms:
            assert await self.publisher.ask(commands.dpub(TOPIC, bodies[0], delay_ms)) == OK
        else:
            await self.publisher.publish(TOPIC, *bodies)
        for name in self.unfinished:
            self.unfinished[name].update(bodies)
            if delay_ms:
                self.deferred[name].update(bodies)

    async def connect(self, name: str | None = None) -> None:
        name = name or self.rng.choice(CHANNELS)
        if sum(one.channel == name for one in self.consumers) < 3:
            client = await RawClient(self.nsqd.tcp_address).__aenter__()
            assert await client.ask(commands.sub(TOPIC, name)) == OK
            self.consumers.append(Consumer(client, name))
            self.unfinished.setdefault(name, set())
            self.deferred.setdefault(name, set())

    async def disconnect(self) -> None:
        one = self.rng.choice(self.consumers)
        await self.leave(one)

    async def leave(self, one: Consumer) -> None:
        """Nothing is on its way: who leaves with something unread may take back what was sent."""
        one.client.send(commands.rdy(0))
        await self.take(one)
        await self.gone(one)

    async def gone(self, one: Consumer) -> None:
        self.consumers.remove(one)
        await one.client.close()
        if "#" in one.channel and not any(c.channel == one.channel for c in self.consumers):
            del self.unfinished[one.channel], self.deferred[one.channel]

    async def ready(self) -> None:
        one = self.rng.choice(self.consumers)
        one.rdy = self.rng.choice([0, 1, 5, 50])
        one.client.send(commands.rdy(one.rdy))

    async def answer(self) -> None:
        """FIN, REQ or TOUCH for some of what a consumer holds, in any order."""
        one = self.rng.choice(self.consumers)
        await self.take(one)
        bodies = self.rng.sample(sorted(one.held), self.rng.randint(0, len(one.held)))
        for body in bodies:
            message = one.held[body]
            what = self.rng.choice(["fin"] * 5 + ["req", "later", "touch"])
            if what == "touch":
                one.client.send(commands.touch([message.id]))
                continue
            del one.held[body]
            if what == "fin":
                one.client.send(commands.fin([message.id]))
                self.unfinished[one.channel].discard(body)
            else:
                delay_ms = LATER_MS if what == "later" else 0
                one.client.send(commands.req([message.id], delay_ms))
                if delay_ms:
                    self.deferred[one.channel].add(body)

    async def pause(self) -> None:
        name = self.rng.choice(sorted(self.unfinished)).replace("#", "%23")
        await post(self.nsqd, f"/channel/pause?topic={TOPIC}&channel={name}")
        await post(self.nsqd, f"/channel/unpause?topic={TOPIC}&channel={name}")

    async def empty(self) -> None:
        if self.rng.random() < 0.2:
            name = self.rng.choice(sorted(self.unfinished))
            for one in self.consumers:
                if one.channel == name:
                    await self.take(one)
                    one.held.clear()
            await post(
                self.nsqd, f"/channel/empty?topic={TOPIC}&channel={name.replace('#', '%23')}"
            )
            self.unfinished[name].clear()
            self.deferred[name].clear()
            for one in self.consumers:  # what was on its way is nobody's any more
                if one.channel == name:
                    await self.take(one, forget=True)

    async def restart(self) -> None:
        if self.rng.random() < 0.3:
            await self.settle()
            await self.nsqd.restart(kill=self.rng.random() < 0.5)
            for one in list(self.consumers):
                await self.gone(one)
            await self.publisher.close()
            for name in [name for name in self.unfinished if "#" in name]:
                del self.unfinished[name], self.deferred[name]
            await self.start()

    # What is checked

    async def take(self, one: Consumer, *, forget: bool = False) -> None:
        """Receive what is there, up to an answer that is asked for now."""
        one.client.send(commands.pub("other", b"x"))
        while True:
            kind, data = await one.client.frame()
            if (kind, data) == OK:
                return
            assert kind == MESSAGE, data
            message = parse_message(data)
            if not forget:
                assert message.body in self.unfinished[one.channel], "finished, or from nowhere"
                assert message.body not in one.held, "twice in one hand"
                self.deferred[one.channel].discard(message.body)
                one.held[message.body] = message

    async def settle(self) -> None:
        """Everything that was sent has been carried out, twice over: the answer may overtake journals."""
        for _ in range(2):
            for one in self.consumers:
                await self.take(one)

    async def check(self) -> None:
        await self.settle()
        stats = {topic["topic_name"]: topic for topic in (await get_stats(self.nsqd))["topics"]}
        found = {channel["channel_name"]: channel for channel in stats[TOPIC]["channels"]}
        for name, unfinished in self.unfinished.items():
            counted = found[name]
            total = counted["depth"] + counted["in_flight_count"] + counted["deferred_count"]
            if "#" in name:
                assert total + counted.get("dropped_count", 0) >= len(unfinished)
            else:
                assert total == len(unfinished), f"channel {name}"
                assert counted["deferred_count"] == len(self.deferred[name]), f"channel {name}"

    async def drain(self) -> None:
        """Whatever is not deferred comes, and when it is finished nothing is left."""
        for one in list(self.consumers):
            await self.leave(one)
        for name in CHANNELS[:2]:
            await self.connect(name)
            (one,) = self.consumers
            one.client.send(commands.rdy(100))
            async with asyncio.timeout(PATIENCE_S):
                while self.unfinished[name] - self.deferred[name]:
                    await self.take(one)
                    if one.held:
                        one.client.send(commands.fin([message.id for message in one.held.values()]))
                    self.unfinished[name] -= one.held.keys()
                    one.held.clear()
            await self.check()
            await self.leave(one)


async def converse(folder: Path, steps: int, rng: random.Random, flags: dict[str, Flag]) -> None:
    nsqd = EmbeddedNsqd(folder, {**FLAGS, **flags})
    folder.mkdir()
    await nsqd.start()
    model = Model(nsqd, rng)
    try:
        await model.start()
        possible: list[Callable[[], Awaitable[None]]] = [
            *[model.publish] * 4,
            *[model.ready] * 3,
            *[model.answer] * 6,
            model.connect,
            model.disconnect,
            model.pause,
            model.empty,
            model.restart,
        ]
        for number in range(steps):
            if not model.consumers:
                await model.connect("a")
            await rng.choice(possible)()
            if number % 10 == 0:
                await model.check()
        await model.check()
        await model.drain()
    finally:
        for client in [*(one.client for one in model.consumers), model.publisher]:
            with contextlib.suppress(OSError):
                await client.close()
        await nsqd.stop()


@pytest.mark.parametrize("durable", [False, True])
async def test_a_broker_is_what_the_model_says(tmp_path: Path, durable: bool) -> None:
    await converse(tmp_path / "data", STEPS, new_rng(), {"durable": durable})


@pytest.mark.soak
@pytest.mark.parametrize("durable", [False, True])
async def test_a_broker_is_what_the_model_says_for_long(tmp_path: Path, durable: bool) -> None:
    rng = new_rng()
    for life in range(40):
        await converse(tmp_path / str(life), 400, rng, {"durable": durable})
