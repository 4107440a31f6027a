"""nsq_to_file killed with -9 at random moments while messages are published: lost 0, twice 0.

The broker lives on. What was archived by any life, and published by that one or recovered by a later
one, is counted in the finished files alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.archive.test_manifest import assert_fits, beside
from tests.crash.accounting import (
    Client,
    Tally,
    bodies_of,
    new_rng,
    number_of,
    opened_by_stock_tool,
    patience_s,
    published_files,
    unfinished_files,
)
from tests.support.programs import NsqdProgram, Program

from nsqtools.wire import commands

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

TOPIC = "crash"
CHANNEL = "archive"
MAX_IN_FLIGHT = 1000
MPUB_MAX = 300
# The longest that a killed life goes on after it was found out about, in seconds.
LIFE_MAX_S = 0.7
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How the archiver is run, and how often it is killed."""

    flags: tuple[str, ...]
    compression: str
    kills: int
    messages: int
    separate_work_dir: bool = False
    made_of_one: int = 1


ZSTD = Case(
    flags=("--compress=zstd", "--rotate-records=9000"),
    compression="zstd",
    kills=30,
    messages=200_000,
)
OTHERS = {
    "framed": Case(flags=("--format=framed",), compression="none", kills=4, messages=20_000),
    "gzip-moved-to-another-disk": Case(
        flags=("--gzip", "--rotate-size=30000", "--manifest"),
        compression="gzip",
        kills=6,
        messages=30_000,
        separate_work_dir=True,
    ),
    "lines": Case(flags=("--rotate-records=5000",), compression="none", kills=6, messages=30_000),
    "jsonl-zstd": Case(
        flags=("--format=jsonl", "--compress=zstd", "--rotate-interval=700ms", "--manifest"),
        compression="zstd",
        kills=7,
        messages=35_000,
    ),
    "two-made-of-one": Case(
        flags=(
            "--transform=tests.crash.doubling:two_of_one",
            f"--transform-path={Path(__file__).parents[2]}",
            "--compress=zstd",
        ),
        compression="zstd",
        kills=6,
        messages=30_000,
        made_of_one=2,
    ),
}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Output and work folder; the latter on another filesystem where the machine has one."""
    elsewhere = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=elsewhere, prefix="nsqtools-test-") as work_dir:
        yield tmp_path / "archive", Path(work_dir)


@pytest.mark.slow
async def test_killed_thirty_times(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    await kill_and_account(ZSTD, tmp_path, *folders)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
async def test_killed_whatever_it_writes(
    name: str, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    await kill_and_account(OTHERS[name], tmp_path, *folders)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["zstd", *OTHERS])
async def test_killed_hundreds_of_times(
    name: str, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    case = {"zstd": ZSTD, **OTHERS}[name]
    longer = Case(
        flags=case.flags,
        compression=case.compression,
        kills=200,
        messages=1_000_000,
        separate_work_dir=case.separate_work_dir,
        made_of_one=case.made_of_one,
    )
    await kill_and_account(longer, tmp_path, *folders)


async def kill_and_account(case: Case, tmp_path: Path, output_dir: Path, work_dir: Path) -> None:
    rng = new_rng()
    data_path = tmp_path / "nsqd"
    data_path.mkdir()
    async with NsqdProgram(data_path, "--msg-timeout=2s") as nsqd, Program("nsq_to_file") as tool:
        await nsqd.serve()
        flags = _flags(case, nsqd.address, output_dir, work_dir)
        async with Client(nsqd.port) as publisher:
            # The channel is there before the first message, as it is in an archive that runs.
            async with Client(nsqd.port) as first:
                await first.subscribe(TOPIC, CHANNEL, 0)
            published = 0
            for life in range(case.kills):
                share = (case.messages - published) // (case.kills - life)
                await _live_and_die(
                    tool, flags, publisher, range(published, published + share), rng
                )
                published += share
        tally = await _finish(tool, flags, case, output_dir)
        assert await _unacknowledged(nsqd.port, case.messages) == []
    recovered = sum("recovered a file" in line for line in tool.log)
    print(f"kills={case.kills} recovered={recovered} twice={tally.repeated} lost=0")
    assert recovered >= case.kills // 4, "the kills missed the moments that matter"
    assert tally.repeated == 0
    assert not unfinished_files(output_dir, work_dir)
    _check_with_stock_tools(case, output_dir)


def _flags(case: Case, address: str, output_dir: Path, work_dir: Path) -> list[str]:
    return [
        f"--topic={TOPIC}",
        f"--channel={CHANNEL}",
        f"--nsqd-tcp-address={address}",
        f"--max-in-flight={MAX_IN_FLIGHT}",
        f"--output-dir={output_dir}",
        *([f"--work-dir={work_dir}"] if case.separate_work_dir else []),
        "--filename-format=<TOPIC><REV>.log",
        "--rotate-idle=500ms",
        *case.flags,
    ]


async def _live_and_die(
    tool: Program, flags: list[str], publisher: Client, numbers: range, rng: random.Random
) -> None:
    """One life: killed while it starts, or some time after it has begun to receive."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_publish(publisher, numbers, rng))
        await tool.start(*flags)
        if rng.random() < 0.75:
            await tool.says("subscribed")
        await asyncio.sleep(rng.uniform(0, LIFE_MAX_S))
        await tool.kill()


async def _publish(publisher: Client, numbers: range, rng: random.Random) -> None:
    """MPUBs of all sizes, spread over a life."""
    at = numbers.start
    while at < numbers.stop:
        end = min(at + rng.randint(1, MPUB_MAX), numbers.stop)
        await publisher.publish(TOPIC, range(at, end))
        at = end
        await asyncio.sleep(rng.uniform(0, 0.02))


async def _finish(tool: Program, flags: list[str], case: Case, output_dir: Path) -> Tally:
    """The last life: it archives what is left, and ends in order."""
    await tool.start(*flags)
    await tool.says("subscribed")
    counted: set[Path] = set()
    tally = Tally(case.messages * case.made_of_one)
    deadline = time.monotonic() + patience_s(case.messages)
    while lost := _count_new(tally, counted, output_dir):
        assert time.monotonic() < deadline, f"lost: {len(lost)} messages, such as {lost[0]}"
        await asyncio.sleep(POLL_S)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    _count_new(tally, counted, output_dir)
    return tally


def _count_new(tally: Tally, counted: set[Path], output_dir: Path) -> list[int]:
    """Count what has been published since the last look; gives what is still missing."""
    for path in published_files(output_dir):
        if path not in counted:
            counted.add(path)
            tally.add(bodies_of(path))
    return tally.missing


async def _unacknowledged(port: int, sentinel: int) -> list[int]:
    """What the channel still has. Messages that wait again come before a new one."""
    async with Client(port) as client:
        await client.publish(TOPIC, [sentinel])
        await client.subscribe(TOPIC, CHANNEL, 1)
        found: list[int] = []
        while sentinel not in found:
            for messages in (await client.receive()).messages:
                found += map(number_of, messages.bodies)
                client.send(commands.fin(messages.ids))
        return found[:-1]


def _check_with_stock_tools(case: Case, output_dir: Path) -> None:
    for path in published_files(output_dir):
        content = opened_by_stock_tool(path, case.compression)
        assert content
        assert beside(path).exists() == ("--manifest" in case.flags)
        if "--manifest" in case.flags:
            assert_fits(path)
        if "--format" not in "".join(case.flags):
            assert content.splitlines() == bodies_of(path)


@pytest.mark.slow
async def test_the_broker_killed_and_ended_while_it_is_archived(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """FINs are lost with their connections; some lives of the archiver end, too."""
    messages, kills = 60_000, 12
    rng = new_rng()
    data_path = tmp_path / "nsqd"
    data_path.mkdir()
    async with NsqdProgram(data_path) as nsqd, Program("nsq_to_file") as tool:
        await nsqd.serve()
        async with Client(nsqd.port) as publisher:
            await publisher.subscribe(TOPIC, CHANNEL, 0)
            for start in range(0, messages, 500):
                await publisher.publish(TOPIC, range(start, start + 500))
        case = Case(flags=(), compression="none", kills=kills, messages=messages)
        # Small commits, so that there is something to do for all the lives.
        flags = [*_flags(case, nsqd.address, *folders), "--max-in-flight=100"]
        flags.remove(f"--max-in-flight={MAX_IN_FLIGHT}")
        await tool.start(*flags)
        for life in range(kills):
            await tool.says("subscribed")
            await asyncio.sleep(rng.uniform(0, 0.15))
            if life % 3 == 2:
                nsqd.up.clear()
                assert await nsqd.end(signal.SIGTERM) == 0, nsqd.told
            else:
                await nsqd.kill()
            if life % 4 == 3:
                await tool.kill()
            await nsqd.serve()
            if life % 4 == 3:
                await tool.start(*flags)
        await tool.kill()
        tally = await _finish(tool, flags, case, folders[0])
    print(f"kills={kills} lives={tool.lives} twice={tally.repeated} lost=0")
    assert tally.repeated == 0
