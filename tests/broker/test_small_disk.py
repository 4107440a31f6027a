"""A small disk that the broker itself has filled: what consumers are done with makes room again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from tests.broker.test_server import running, until
from tests.support.disks import small_filesystem
from tests.support.raw import OK, RawClient, bodies
from tests.support.web import request

from nsqtools.broker import upkeep
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nsqd import EmbeddedNsqd

BODY = b"x" * 2000


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


async def drain(nsqd: EmbeddedNsqd, count: int) -> None:
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=10)
        for _ in range(count):
            client.finish(await client.message())
        await until(lambda: nsqd.broker.topics["t"].channels["c"].in_flight == 0)


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
