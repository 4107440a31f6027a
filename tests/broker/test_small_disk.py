"""A small disk that the broker itself has filled: what consumers are done with makes room again."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from tests.broker.test_server import running, until
from tests.support.disks import small_filesystem
from tests.support.nsqd import OUR_PROGRAM, PATIENCE_S, ProcessNsqd
from tests.support.raw import OK, RawClient, bodies
from tests.support.web import request

from nsqtools.broker import upkeep
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nsqd import EmbeddedNsqd, Flag

BODY = b"x" * 2000
OTHERS = "of-another-program"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_filesystem(tmp_path / "small", "256k")


async def fill(nsqd: EmbeddedNsqd) -> int:
    """Publish until the disk refuses; how many messages it took."""
    taken = 0
    for body in (BODY, b"x"):  # to the last byte
        async with RawClient(nsqd.tcp_address) as client:
            while await client.ask(commands.pub("t", body)) == OK:
                taken += 1
    return taken


def used_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).used


async def drain(nsqd: EmbeddedNsqd, count: int, *, held: int = 0) -> None:
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=10)
        for _ in range(count):
            client.finish(await client.message())
        await until(lambda: nsqd.broker.topics["t"].channels["c"].in_flight == held)


@pytest.mark.parametrize("segment_bytes", [16384, 100 << 20], ids=["many-files", "one-file"])
async def test_a_broker_that_has_filled_its_disk_goes_on_when_it_is_drained(
    segment_bytes: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PASS_INTERVAL_S", 0.01)
    async with running(small_disk, max_bytes_per_file=segment_bytes) as nsqd:
        await request(nsqd, "POST", "/topic/create?topic=t")
        await request(nsqd, "POST", "/channel/create?topic=t&channel=c")
        taken = await fill(nsqd)
        assert taken > 50
        assert (await request(nsqd, "GET", "/ping")).status == 500
        assert (await request(nsqd, "POST", "/topic/create?topic=refused")).status == 500
        assert not (small_disk / "refused.topic").exists()
        await drain(nsqd, taken)
        await until(lambda: nsqd.broker.health == "OK" and used_bytes(small_disk) < 65536)
        taken = await fill(nsqd)
        assert taken > 50
        await drain(nsqd, taken)
        await until(lambda: nsqd.broker.health == "OK" and used_bytes(small_disk) < 65536)
        async with RawClient(nsqd.tcp_address) as client:
            await client.publish("t", b"one", b"two")
        await nsqd.restart(kill=True)
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=10)
            assert bodies(await client.messages(2)) == [b"one", b"two"]
            assert await client.is_quiet()


@pytest.mark.parametrize("held", [False, True], ids=["deferred", "in-flight"])
async def test_a_straggler_in_front_does_not_hold_a_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """A copy of it needs room: what is behind it, and nobody needs, makes that."""
    monkeypatch.setattr(upkeep, "PASS_INTERVAL_S", 0.01)
    async with (
        running(small_disk, max_bytes_per_file=16384, sync_timeout="10ms") as nsqd,
        RawClient(nsqd.tcp_address) as consumer,
    ):
        nsqd.broker.topic("t").channel("c")
        async with RawClient(nsqd.tcp_address) as client:
            await client.ask(commands.dpub("t", b"first", 1 if held else 3_600_000))
        if held:
            await consumer.subscribe("t", "c", rdy=1)
            assert (await consumer.message()).body == b"first"
        taken = await fill(nsqd)
        fill_what_is_left(small_disk)
        await drain(nsqd, taken, held=int(held))
        await until(lambda: nsqd.broker.health == "OK")
        (small_disk / OTHERS).unlink()
        await until(lambda: used_bytes(small_disk) < 65536)
        async with RawClient(nsqd.tcp_address) as client:
            await client.publish("t", b"again")
        channel = nsqd.broker.topics["t"].channels["c"]
        assert channel.frozen().carried
        assert channel.deferred == (not held)


def fill_what_is_left(folder: Path) -> None:
    """As another program fills a disk: to the last byte."""
    with (folder / OTHERS).open("ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


async def settle_some(nsqd: ProcessNsqd, channel: str, count: int) -> set[bytes]:
    """Acknowledge the first messages of a channel, and leave it with more in flight."""
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", channel, rdy=2 * count)
        messages = await client.messages(2 * count)
        client.finish(*messages[:count])
        await client.ask(commands.pub("other", b"behind the acknowledgements"))
    return {message.body for message in messages[:count]}


async def take_all(nsqd: ProcessNsqd, channel: str, wanted: set[bytes]) -> None:
    """Consume a channel until all of `wanted` has come."""
    async with RawClient(nsqd.tcp_address) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe("t", channel, rdy=10)
        while wanted:
            message = await client.message()
            wanted.discard(message.body)
            client.finish(message)


@pytest.mark.parametrize(
    ("segment_bytes", "durable", "kill"),
    [
        (16384, True, False),
        (100 << 20, False, False),
        (16384, False, True),
        (100 << 20, True, True),
    ],
)
async def test_a_broker_starts_on_a_full_disk_and_goes_on_when_it_is_drained(
    small_disk: Path, segment_bytes: int, durable: bool, kill: bool
) -> None:
    flags: dict[str, Flag] = {"max_bytes_per_file": segment_bytes, "durable": durable}
    nsqd = ProcessNsqd(OUR_PROGRAM, small_disk, {**flags, "sync_timeout": "50ms"}, is_real=False)
    await nsqd.start()
    try:
        for path in ("topic/create?topic=t", "topic/create?topic=idle"):
            assert (await request(nsqd, "POST", f"/{path}")).status == 200
        for path in ("topic=t&channel=half", "topic=t&channel=none", "topic=idle&channel=c"):
            assert (await request(nsqd, "POST", f"/channel/create?{path}")).status == 200
        sent: set[bytes] = set()
        async with RawClient(nsqd.tcp_address) as client:
            for number in range(20):
                sent.add(b"%02d" % number + BODY)
                await client.publish("t", b"%02d" % number + BODY)
        done = await settle_some(nsqd, "half", 5)
        for size in (2000, 1):
            async with RawClient(nsqd.tcp_address) as client:
                number = 0
                body = b""
                while True:
                    body = b"%d-%d" % (size, number) + b"x" * size
                    if await client.ask(commands.pub("t", body)) != OK:
                        break
                    sent.add(body)
                    number += 1
        await nsqd.program.end(signal.SIGKILL if kill else signal.SIGTERM)
        fill_what_is_left(small_disk)
        await nsqd.start()
        ping = await request(nsqd, "GET", "/ping")
        assert (ping.status, ping.body[-23:]) == (500, b"No space left on device")
        async with RawClient(nsqd.tcp_address) as client:
            assert (await client.ask(commands.pub("t", b"refused")))[1].startswith(b"E_PUB_FAILED")
        for change in ("pause", "unpause"):  # neither can be kept now, which holds nothing up
            assert (await request(nsqd, "POST", f"/topic/{change}?topic=t")).status == 500
        await take_all(nsqd, "half", sent - done)
        await take_all(nsqd, "none", set(sent))
        async with asyncio.timeout(PATIENCE_S):
            while (await request(nsqd, "GET", "/ping")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        async with RawClient(nsqd.tcp_address) as client:
            await client.publish("t", b"again")
            await client.publish("idle", b"again")
        await nsqd.restart(kill=True)
        await take_all(nsqd, "half", {b"again"})
        await take_all(nsqd, "none", {b"again"})
    finally:
        await nsqd.stop()
