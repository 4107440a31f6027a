"""The broker under what makes brokers slow: many connections, many that stand still, a deep backlog.

Every figure has a broker of its own. Where the client's work would count, the broker's processor time is
compared instead of the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.benchmarks.nsqd import Nsqd
from tests.benchmarks.processes import BenchError, Children
from tests.benchmarks.table import Target

from nsqtools.wire import commands
from nsqtools.wire.frames import FrameDecoder
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from typing import Any

NAME = "load"
BODY = b"x" * 200
BATCH = 200
RDY = 2500
PUB_CONNECTIONS = 50
PUB_TARGET = 40_000
IDLE_TARGET_BYTES, BACKLOG_TARGET_BYTES = 300_000_000, 200_000_000
START_TARGET_S, ADDED_TARGET_S = 2.0, 0.001
READY_FEW, PUBS = 10, 300
LATER_MS = 3_600_000
# Connections of a client that are made at once.
_DIALS = 200
_OK = b"\x00\x00\x00\x06\x00\x00\x00\x00OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is taken for each figure."""

    backlog: int
    pub_seconds: float = 4.0
    channel_messages: int = 400_000
    memory_messages: int = 1_000_000
    idle_connections: int = 10_000
    ready_consumers: int = 5_000
    ready_messages: int = 3_000
    deferred: int = 300_000
    requeued: int = 200_000


QUICK = Sizes(
    backlog=100_000,
    pub_seconds=0.2,
    channel_messages=20_000,
    memory_messages=100_000,
    idle_connections=200,
    ready_consumers=100,
    ready_messages=300,
    deferred=2_000,
    requeued=2_000,
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was found of one thing, and what the project wants of it."""

    what: str
    wanted: str
    measured: str
    met: bool

    def target(self) -> Target:
        return Target(what=self.what, wanted=self.wanted, measured=self.measured, met=self.met)


def measure(folder: Path, sizes: Sizes) -> list[Figure]:
    """All of them, once. Raises BenchError when a process fails."""
    found: list[Figure] = []
    plain = _pub_rate(folder, sizes.pub_seconds, "pub")
    durable = _pub_rate(folder, sizes.pub_seconds, "pub-durable", "--durable")
    found.append(_rate("single PUBs over 50 connections", plain, PUB_TARGET))
    found.append(_rate("the same with --durable", durable, plain / 2))
    found.append(_channels(folder, sizes.channel_messages))
    found.append(_idle(folder, sizes.idle_connections))
    found.append(_ready(folder, sizes.ready_consumers, sizes.ready_messages))
    found += _backlog(folder, sizes.backlog, min(sizes.backlog, sizes.memory_messages))
    found += _standing(folder, sizes.deferred, sizes.requeued)
    return found


def _rate(what: str, rate: float, wanted: float) -> Figure:
    return Figure(what, f">= {wanted:,.0f}/s", f"{rate:,.0f}/s", rate >= wanted)


# A client: a connection is a reader and a writer


@dataclass(slots=True)
class _Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        answer = await self.reader.readexactly(len(_OK))
        if answer != _OK:
            raise BenchError(f"answered with {answer!r}")

    async def read(self) -> bytes:
        """What has come; raises BenchError at the end."""
        data = await self.reader.read(1 << 20)
        if not data:
            raise BenchError("the broker has closed a connection")
        return data


async def _connect(nsqd: Nsqd) -> _Client:
    client = _Client(*await asyncio.open_connection("127.0.0.1", nsqd.tcp_port, limit=1 << 21))
    client.writer.write(commands.MAGIC_V2)
    return client


@contextlib.asynccontextmanager
async def _clients(nsqd: Nsqd, count: int) -> AsyncIterator[list[_Client]]:
    made: list[_Client] = []
    try:
        while len(made) < count:
            some = min(_DIALS, count - len(made))
            made += await asyncio.gather(*[_connect(nsqd) for _ in range(some)])
        yield made
    finally:
        for client in made:
            client.writer.close()


def _run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    import uvloop

    return uvloop.run(work())


@contextlib.contextmanager
def _broker(folder: Path, name: str, *flags: str) -> Any:
    below = folder / name
    below.mkdir()
    with Children(below) as children:
        yield Nsqd(children, name, _argv(*flags))


def _argv(*flags: str) -> list[str]:
    return [sys.executable, "-m", "nsqtools", "nsqd", "--log-level=warn", *flags]


async def _publish(nsqd: Nsqd, topic: str, count: int) -> None:
    """MPUBs, some of them on their way at a time."""
    client = await _connect(nsqd)
    batch = commands.mpub(topic, [BODY] * BATCH)
    batches = -(-count // BATCH)
    sent = answered = 0
    while answered < batches:
        while sent < batches and sent - answered < 50:
            client.writer.write(batch)
            sent += 1
        await client.reader.readexactly(len(_OK))
        answered += 1
    client.writer.close()


async def _consume(nsqd: Nsqd, topic: str, channel: str, count: int) -> float:
    """Seconds from the subscription to the last of so many messages."""
    client = await _connect(nsqd)
    decoder = FrameDecoder()
    began_s = time.perf_counter()
    client.writer.write(commands.sub(topic, channel) + commands.rdy(RDY))
    while count > 0:
        for one in decoder.receive(await client.read()):
            if isinstance(one, Messages):
                count -= len(one.bodies)
                client.writer.write(commands.fin(one.ids))
    client.writer.close()
    return time.perf_counter() - began_s


# The figures


def _pub_rate(folder: Path, seconds: float, name: str, *flags: str) -> float:
    async def one(client: _Client, until_s: float) -> int:
        count, command = 0, commands.pub("t", BODY)
        while time.perf_counter() < until_s:
            await client.ask(command)
            count += 1
        return count

    async def work() -> float:
        async with _clients(nsqd, PUB_CONNECTIONS) as clients:
            until_s = time.perf_counter() + seconds
            return sum(await asyncio.gather(*[one(c, until_s) for c in clients])) / seconds

    with _broker(folder, name, *flags) as nsqd:
        rate: float = _run(work)
        return rate


def _channels(folder: Path, messages: int) -> Figure:
    """Processor time of the broker for one channel, and for three."""

    def spent(channels: int) -> float:
        async def work() -> None:
            await _publish(nsqd, "t", messages)
            names = [f"c{number}" for number in range(channels)]
            await asyncio.gather(*[_consume(nsqd, "t", c, messages) for c in names])

        with _broker(folder, f"channels-{channels}") as nsqd:
            nsqd.create("t")
            for number in range(channels):
                nsqd.create("t", f"c{number}")
            _run(work)
            seconds: float = nsqd.child.usage().cpu_s
            return seconds

    ratio = spent(3) / max(spent(1), 0.01)
    return Figure("three channels beside one, broker's CPU", "< 2 times", f"{ratio:.2f}", ratio < 2)


def _idle(folder: Path, connections: int) -> Figure:
    async def work() -> int:
        async with _clients(nsqd, connections):
            await asyncio.sleep(1.0)
            peak: int = nsqd.child.usage().peak_bytes
            return peak

    with _broker(folder, "idle") as nsqd:
        peak = _run(work)
    what = f"{connections:,} idle connections"
    return Figure(what, "< 300 MB", f"{peak / 1e6:.0f} MB", peak < IDLE_TARGET_BYTES)


def _ready(folder: Path, many: int, messages: int) -> Figure:
    """Processor time of the broker for a message, with few and with many ready consumers."""

    def spent(count: int) -> float:
        async def work() -> float:
            async with _clients(nsqd, count) as clients:
                for client in clients:
                    await client.ask(commands.sub("t", "c"))
                    client.writer.write(commands.rdy(RDY))
                publisher = await _connect(nsqd)
                before = nsqd.child.usage().cpu_s
                for _ in range(messages):
                    await publisher.ask(commands.pub("t", BODY))
                seconds: float = nsqd.child.usage().cpu_s - before
                return seconds

        with _broker(folder, f"ready-{count}") as nsqd:
            seconds: float = _run(work)
            return seconds

    ratio = spent(many) / max(spent(READY_FEW), 0.01)
    what = f"{many:,} ready consumers beside {READY_FEW}"
    return Figure(what, "<= 2 times", f"{ratio:.2f}", ratio <= 2)


def _backlog(folder: Path, messages: int, few: int) -> list[Figure]:
    with _broker(folder, "memory", f"--mem-queue-size={few}", "--mem-queue-bytes=2GiB") as nsqd:
        nsqd.create("t", "c")
        _run(lambda: _publish(nsqd, "t", few))
        in_memory_s = _run(lambda: _consume(nsqd, "t", "c", few)) / few
    below = folder / "backlog"
    below.mkdir()
    with Children(below) as children:
        nsqd = Nsqd(children, "backlog", _argv())
        nsqd.create("t", "c")
        _run(lambda: _publish(nsqd, "t", messages))
        peak = nsqd.child.usage().peak_bytes
        nsqd.child.kill()
        path = next(below.glob("data-*"))
        began_s = time.perf_counter()
        again = children.start(
            "again",
            [
                *_argv(),
                f"--data-path={path}",
                f"--tcp-address={nsqd.tcp_address}",
                f"--http-address=127.0.0.1:{nsqd.http_port}",
            ],
        )
        while not nsqd._answers():
            time.sleep(0.01)
        start_s = time.perf_counter() - began_s
        if nsqd.backlog("t", "c") != messages:
            raise BenchError(f"of {messages} messages {nsqd.backlog('t', 'c')} are left")
        from_disk_s = _run(lambda: _consume(nsqd, "t", "c", messages)) / messages
        peak = max(peak, again.usage().peak_bytes)
    ratio = in_memory_s / from_disk_s
    name = f"a backlog of {messages / 1e6:g} million"
    return [
        Figure(
            f"{name}: resident", "< 200 MB", f"{peak / 1e6:.0f} MB", peak < BACKLOG_TARGET_BYTES
        ),
        Figure(
            f"{name}: start after a kill", "< 2 s", f"{start_s:.2f} s", start_s < START_TARGET_S
        ),
        Figure(
            f"{name}: delivery beside one from memory",
            ">= 0.5 times",
            f"{ratio:.2f} ({1 / from_disk_s:,.0f}/s)",
            ratio >= 0.5,
        ),
    ]


def _standing(folder: Path, deferred: int, requeued: int) -> list[Figure]:
    """What a PUB takes before and after much is deferred and requeued."""

    async def pub_s(client: _Client, topic: str) -> float:
        times = []
        for _ in range(PUBS):
            began_s = time.perf_counter()
            await client.ask(commands.pub(topic, BODY))
            times.append(time.perf_counter() - began_s)
        return statistics.median(times)

    async def work() -> float:
        client = await _connect(nsqd)
        before_s = await pub_s(client, "t")
        defer = commands.dpub("t", BODY, LATER_MS)
        for at in range(0, deferred, 1000):
            client.writer.write(defer * min(1000, deferred - at))
            await client.reader.readexactly(len(_OK) * min(1000, deferred - at))
        await _publish(nsqd, "t", requeued)
        # Whoever held them is gone: they wait again.
        holder = await _connect(nsqd)
        await holder.ask(commands.sub("t", "c"))
        holder.writer.write(commands.rdy(RDY))
        await _requeue(holder, requeued)
        return await pub_s(client, "t") - before_s

    with _broker(folder, "standing") as nsqd:
        nsqd.create("t", "c")
        added_s = _run(work)
        stats = json.loads(nsqd._request("GET", "/stats?format=json"))
        (channel,) = stats["topics"][0]["channels"]
    what = f"{channel['deferred_count']:,} deferred, {channel['requeue_count']:,} requeued: a PUB"
    return [Figure(what, "< +1 ms", f"{added_s * 1000:+.2f} ms", added_s < ADDED_TARGET_S)]


async def _requeue(client: _Client, count: int) -> None:
    """Give back with a delay what comes, until it was so many."""
    decoder = FrameDecoder()
    while count > 0:
        for one in decoder.receive(await client.read()):
            if isinstance(one, Messages):
                count -= len(one.bodies)
                client.writer.write(commands.req(one.ids, LATER_MS))
                await client.writer.drain()
