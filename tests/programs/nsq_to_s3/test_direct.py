"""--ack=upload while the store is away, and while nsqd takes back what is held."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.pipeline.helpers import CHANNEL, publish
from tests.programs.nsq_to_s3.test_run import TEN, flags, tool, until, until_acknowledged
from tests.support.web import channel_stats

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd, StartNsqd
    from tests.support.programs import Program

__all__ = ["flags", "tool"]


async def held(nsqd: Nsqd) -> int:
    stats = await channel_stats(nsqd, "t", CHANNEL)
    return 0 if stats is None else int(stats["in_flight_count"])


def possible_duplicates(tool: Program) -> int:
    said = re.search(r" possible_duplicates=(\d+)", tool.told)
    assert said is not None, tool.told
    return int(said[1])


async def until_held(nsqd: Nsqd, count: int) -> None:
    async with asyncio.timeout(20):
        while await held(nsqd) != count:  # noqa: ASYNC110 - nsqd has no event
            await asyncio.sleep(0.02)


async def test_it_ends_in_order_while_the_store_is_away(
    nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tool: Program, flags: list[str]
) -> None:
    """What is not in the store goes back, at once and with a word."""
    proxy.fail("reset", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=100ms")
    await tool.says("an object cannot be uploaded")
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert " requeued=10 " in tool.told
    assert archive.keys() == []


async def test_an_outage_longer_than_nsqd_waits(
    start_nsqd: StartNsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """What nsqd has taken back is not uploaded: it comes again."""
    nsqd = await start_nsqd(msg_timeout="1s", max_msg_timeout="2s")
    flags[2] = f"--nsqd-tcp-address={nsqd.tcp_address}"
    proxy.fail("reset", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=100ms")
    await until(lambda: tool.told.count("given up: nsqd has taken the messages back") >= 2, tool)
    proxy.heal()
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    bodies = archive.all_bodies(tmp_path)
    assert sorted(set(bodies)) == sorted(TEN)
    # What is taken back while it is on its way stands there twice, and that is told: two seconds are
    # not always enough on a busy machine.
    assert len(bodies) - len(TEN) <= possible_duplicates(tool)


async def test_what_is_taken_back_while_it_is_uploaded_is_told(
    start_nsqd: StartNsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands in the bucket, and comes again: twice there, and counted."""
    nsqd = await start_nsqd(msg_timeout="1s", max_msg_timeout="2s")
    flags[2] = f"--nsqd-tcp-address={nsqd.tcp_address}"
    pass_on, delays_s = proxy._pass_on, [4.0]

    def late(request: Any, *, is_corrupt: bool) -> bytes:
        if request.line.startswith("PUT ") and delays_s:
            time.sleep(delays_s.pop())
        return pass_on(request, is_corrupt=is_corrupt)

    monkeypatch.setattr(proxy, "_pass_on", late)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=100ms")
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    bodies = archive.all_bodies(tmp_path)
    assert sorted(set(bodies)) == sorted(TEN)
    assert len(TEN) <= len(bodies) - len(TEN) <= possible_duplicates(tool)


async def test_a_connection_that_is_lost_before_the_upload(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    """What it brought comes again by another one, and stands in the object once."""
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=1h")
    await until_held(nsqd, 10)
    await asyncio.sleep(0.3)  # until the output has them
    await nsqd.restart()
    await until_held(nsqd, 10)

    def is_there() -> bool:
        tool.send(signal.SIGHUP)  # again and again: they may be on their way to the output
        return archive.archives() != []

    await until(is_there, tool)
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert sorted(archive.all_bodies(tmp_path)) == sorted(TEN)


@pytest.mark.parametrize("more", ["--format=lines", "--format=jsonl", "--format=framed", "--gzip"])
async def test_an_answer_that_is_lost(
    more: str,
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """The object is made again for the second try, and is the same: it stands there once."""
    proxy.fail("lose-answer", "PUT")
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--max-messages=10", more)
    assert await tool.end(None) == 0, tool.told
    assert "an object cannot be uploaded" in tool.told
    assert len(archive.archives()) == 1
    assert archive.all_bodies(tmp_path) == TEN


async def test_a_kill_leaves_nothing_for_ever(
    nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    """The file that an object is while it is uploaded."""
    proxy.fail("stall", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=100ms")
    await until(lambda: list((tmp_path / "spool").glob("nsq_to_s3-*")) != [], tool)
    await tool.kill()
    (tmp_path / "spool" / "nsq_to_s3-notes.txt").write_text("somebody's")
    proxy.heal()
    await tool.start(*flags, "--ack=upload", "--rotate-interval=100ms")
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["nsq_to_s3-notes.txt"]
    assert archive.all_bodies(tmp_path) == TEN
