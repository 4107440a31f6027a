"""What NSQ's own nsq_to_file loses, and ours does not (spec: tools, 7.1): a test for each row."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import (
    CHANNEL,
    archived,
    finished_files,
    publish,
    stats,
    until_settled,
    until_stats,
)
from tests.programs.nsq_to_file.helpers import (
    NOBODY,
    TEN,
    archiver,
    flags_of,
    run_to_end,
)
from tests.support.kernel import recording, run_traced
from tests.support.raw import RawClient
from tests.support.web import until_channel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

pytestmark = pytest.mark.slow

TRACED = "openat,pwrite64,fdatasync,fsync,link,unlink,write,writev,sendto,sendmsg"


async def test_l1_a_message_that_failed_many_times_is_archived_not_given_up(
    nsqd: Nsqd, folder: Path
) -> None:
    """Somebody requeues it far beyond the five attempts after which NSQ's tool finishes it unseen."""
    await publish(nsqd, b"unlucky")
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", CHANNEL)
        for attempt in range(1, 9):
            message = await client.message()
            assert message.attempts == attempt
            client.requeue(message)
    flags = ("--format=jsonl", "--max-messages=1")
    status, told = await run_to_end(folder, *flags, nsqd=nsqd)
    assert status == 0, told
    (record,) = jsonl_in(folder)
    assert record["body"] == "unlucky"
    assert int(str(record["attempts"])) > 8


def jsonl_in(folder: Path) -> list[dict[str, object]]:
    lines = [line for path in finished_files(folder) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


async def test_l2_a_late_sync_acknowledges_nothing_that_a_crash_would_lose(
    start_nsqd: StartNsqd, folder: Path
) -> None:
    """Messages wait for a sync three times as long as nsqd waits for them, and then we are killed: what
    nsqd has let go of is on the disk, and the rest is with nsqd, at its first attempt."""
    nsqd = await start_nsqd(msg_timeout="1s")
    async with archiver(folder, "--sync-interval=3500ms", "--format=jsonl", nsqd=nsqd) as tool:
        published = 0
        while not await has_acknowledged(nsqd):
            await publish(nsqd, b"%d" % published)  # a trickle that never becomes quiet
            published += 1
            await asyncio.sleep(0.05)
        assert (await stats(nsqd))["timeout_count"] == 0
        await tool.kill()
        await until_stats(
            nsqd, lambda now: (now["message_count"], now["in_flight_count"]) == (published, 0)
        )
        acknowledged = published - (await stats(nsqd))["depth"]
        (part,) = folder.glob("*.part")
        assert 0 < acknowledged <= part.read_bytes().count(b"\n")
        await tool.start(*flags_of(folder, "--format=jsonl", nsqd=nsqd))
        await tool.says("subscribed")
        await until_settled(nsqd, published)
        assert await tool.end(signal.SIGTERM) == 0
    records = jsonl_in(folder)
    assert sorted(int(str(record["body"])) for record in records) == list(range(published))


async def has_acknowledged(nsqd: Nsqd) -> bool:
    """Whether the channel has not got any more what it had; seen twice, because nsqd does not take all
    these numbers in one moment."""
    for _ in range(2):
        now = await stats(nsqd)
        if now["message_count"] == now["depth"] + now["in_flight_count"]:
            return False
    return True


async def test_l3_the_name_of_a_file_is_durable_before_its_messages_are_acknowledged(
    nsqd: Nsqd, tmp_path: Path, folder: Path
) -> None:
    """The calls of the program as the kernel saw them, in order."""
    trace = tmp_path / "trace"
    await publish(nsqd, b"one")
    flags = flags_of(folder, "--max-messages=1", nsqd=nsqd)
    status, told = await run_traced(recording(trace, TRACED), "nsq_to_file", *flags)
    assert status == 0, told
    lines = trace.read_text().splitlines()
    calls = [line for line in lines if str(folder) in line or "FIN " in line]
    part, final = f"{folder}/t.log.part", f"{folder}/t.log"
    assert_in_order(
        calls,
        rf'openat\(.*"{part}", .*O_CREAT',
        rf"pwrite64\(\d+<{part}>",
        rf"fdatasync\(\d+<{part}>",
        rf"fsync\(\d+<{folder}>",
        r'(write|send).*"FIN ',
        rf'link\("{part}", "{final}"',
        rf"fsync\(\d+<{folder}>",
        rf'unlink\("{part}"',
        rf"fsync\(\d+<{folder}>",
    )
    assert sum("FIN " in call for call in calls) == 1


def assert_in_order(calls: list[str], *patterns: str) -> None:
    """Each of them is found behind the one before, and went well."""
    rest = iter(calls)
    for pattern in patterns:
        found = next((call for call in rest if re.search(pattern, call)), None)
        assert found is not None, f"no {pattern} in its place among:\n" + "\n".join(calls)
        assert "= -1" not in found, found


async def test_l4_a_file_in_the_work_dir_of_a_killed_run_is_published(
    nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    async with archiver(folder, f"--work-dir={work}", "--gzip", nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        await tool.kill()
        assert finished_files(folder) == []
        await tool.start(*flags_of(folder, f"--work-dir={work}", "--gzip", nsqd=nsqd))
        await tool.says("recovered a file of a run that did not end")
        assert archived(folder) == TEN
        assert list(work.glob("*.part")) == []
        assert await tool.end(signal.SIGTERM) == 0


async def test_l5_a_torn_record_is_cut_off_and_merges_with_none(nsqd: Nsqd, folder: Path) -> None:
    """A kill within a write leaves half a line; the next run does not append to it."""
    async with archiver(folder, nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        await tool.kill()
        (part,) = folder.glob("*.part")
        with part.open("ab") as file:
            file.write(b"half a mess")
        await publish(nsqd, b"after the kill")
        await tool.start(*flags_of(folder, nsqd=nsqd))
        await until_settled(nsqd, 11)
        assert await tool.end(signal.SIGTERM) == 0
        assert any("recovered" in line and "cut_bytes=11" in line for line in tool.log)
    contents = {path.read_bytes() for path in finished_files(folder)}
    assert contents == {b"".join(body + b"\n" for body in TEN), b"after the kill\n"}


async def test_l6_topics_and_processes_with_one_name_never_share_a_file(
    nsqd: Nsqd, folder: Path
) -> None:
    """Four writers want `all.log` at once: two topics in each of two processes."""
    flags = ("--topic=t", "--topic=u", "--filename-format=all<REV>.log", "--rotate-records=40")
    async with (
        archiver(folder, *flags, "--channel=one", nsqd=nsqd) as one,
        archiver(folder, *flags, "--channel=two", nsqd=nsqd) as two,
    ):
        for topic, channel in itertools.product(("t", "u"), ("one", "two")):
            await until_channel(nsqd, topic, channel, message_count=0)  # which would come too late
        for round_ in range(4):
            for topic in ("t", "u"):
                await publish(
                    nsqd, *[f"{topic} {round_} {at}".encode() for at in range(50)], topic=topic
                )
            for topic, channel in itertools.product(("t", "u"), ("one", "two")):
                count = 50 * (round_ + 1)
                await until_channel(
                    nsqd, topic, channel, message_count=count, depth=0, in_flight_count=0
                )
        assert await one.end(signal.SIGTERM) == 0
        assert await two.end(signal.SIGTERM) == 0
    every = [
        f"{topic} {round_} {at}".encode()
        for topic in "tu"
        for round_ in range(4)
        for at in range(50)
    ]
    assert sorted(archived(folder)) == sorted(2 * every)
    assert len(finished_files(folder)) == 16
    for path in finished_files(folder):
        assert len({line[:1] for line in path.read_bytes().splitlines()}) == 1, "two topics in one"


async def test_l7_an_nsqd_that_is_down_at_the_start_stops_nothing_and_is_tried_again(
    start_nsqd: StartNsqd, folder: Path
) -> None:
    nsqd, late = await start_nsqd(), await start_nsqd()
    await publish(late, b"from the late one")
    await late.stop()
    address = f"--nsqd-tcp-address={late.tcp_address}"
    both = (f"--nsqd-tcp-address={nsqd.tcp_address}", address)
    async with (
        archiver(folder, *both) as tool,
        archiver(folder / "alone", address, says=late.tcp_address) as alone,
    ):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        await late.start()
        await until_stats(late, lambda now: now["message_count"] == 1)
        await until_settled(late, 1)
        for each in (tool, alone):
            assert await each.end(signal.SIGTERM) == 0
    assert sorted(archived(folder)) == sorted([*TEN, b"from the late one"])


async def test_l8_a_misspelt_consumer_option_is_refused(folder: Path) -> None:
    status, told = await run_to_end(folder, "--consumer-opt=max_attempst,0", nsqd=NOBODY)
    assert status == 2
    assert "max_attempst" in told
    assert list(folder.iterdir()) == [], "nothing was begun"
