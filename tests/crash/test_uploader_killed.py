"""nsq_to_s3 killed with -9 at random moments while the store fails now and then: lost 0, twice 0.

What counts are the objects in the bucket, when the last life has ended in order and its spool is empty.
"""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import Client, Tally, new_rng, patience_s, unfinished_files
from tests.support.bucket import Bucket
from tests.support.faults import FaultProxy
from tests.support.programs import NsqdProgram, Program
from tests.support.stores import ENVIRONMENT, StoreServer

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine
    from pathlib import Path

TOPIC, CHANNEL = "crash", "archive"
LIFE_MAX_S = 1.0
POLL_S = 0.2
# Parts of 5 MiB are the least that S3 takes: bodies have to be large, and not to be compressed.
IN_PARTS = ("--compress=none", "--multipart-threshold=5MiB", "--part-size=5MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How the tool is run, and how often it is killed."""

    server: str
    flags: tuple[str, ...]
    messages: int
    rounds: int = 0
    kills: int = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(server="moto", flags=("--rotate-records=4000", "--manifest"), messages=40_000),
        Case(server="rclone", flags=("--rotate-records=3000", "--format=jsonl"), messages=27_000),
        Case(server="moto", flags=IN_PARTS, messages=8_000, rounds=66),
    ],
    ids=["zstd", "jsonl", "parts"],
)
async def test_killed_while_it_uploads(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kill_and_account(case, tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("server_name", ["moto", "rclone"])
async def test_killed_a_hundred_times(
    server_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(server=server_name, flags=("--rotate-records=4000",), messages=500_000, kills=100)
    await kill_and_account(case, tmp_path, monkeypatch)


async def kill_and_account(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = new_rng()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "nsqd").mkdir()
    (tmp_path / "store").mkdir()
    spool = tmp_path / "spool"
    async with NsqdProgram(tmp_path / "nsqd", "--msg-timeout=2s") as nsqd:
        await nsqd.serve()
        with (
            StoreServer(case.server, tmp_path / "store") as server,
            Bucket(server, "archive").create() as bucket,
            FaultProxy(server.address).serving() as proxy,
        ):
            flags = [
                f"--topic={TOPIC}",
                f"--channel={CHANNEL}",
                f"--nsqd-tcp-address={nsqd.address}",
                "--max-in-flight=1000",
                "--bucket=archive",
                f"--endpoint-url={proxy.endpoint_url}",
                f"--spool-dir={spool}",
                "--rotate-idle=500ms",
                "--store-timeout=5s",
                *case.flags,
            ]
            async with Program("nsq_to_s3") as tool, Client(nsqd.port) as publisher:
                async with Client(nsqd.port) as first:
                    await first.subscribe(TOPIC, CHANNEL, 0)
                published = 0
                for life in range(case.kills):
                    share = (case.messages - published) // (case.kills - life)
                    _plan_faults(proxy, rng)
                    numbers = range(published, published + share)
                    publishing = _publish(publisher, numbers, rng, case.rounds)
                    await _live_and_die(tool, flags, publishing, rng)
                    published += share
                proxy.heal()
                tally = await _finish(tool, flags, case.messages, bucket, tmp_path, spool)
            print(
                f"kills={case.kills} twice={tally.repeated} lost=0 objects={len(bucket.archives())}"
            )
            assert tally.repeated == 0, _shared_by(bucket, tmp_path) + tool.told
            assert not unfinished_files(spool)
            assert bucket.unfinished_uploads() == []


def _shared_by(bucket: Bucket, scratch: Path) -> str:
    """Which objects hold what another one holds, too."""
    found = {key: set(bucket.bodies(scratch, key)) for key in bucket.archives()}
    return "".join(
        f"{len(found[one] & found[other])} of {one} ({len(found[one])}) are in {other}"
        f" ({len(found[other])})\n"
        for one, other in combinations(found, 2)
        if found[one] & found[other]
    )


def _plan_faults(proxy: FaultProxy, rng: random.Random) -> None:
    """Something of what a store does on a bad day."""
    kind = rng.choice(["reset", "reset-midway", "lose-answer", "cut-answer", "slow", "none"])
    if kind == "slow":
        proxy.fail_with(503, "SlowDown", rng.choice(["PUT", "POST"]), times=rng.randint(1, 3))
    elif kind != "none":
        proxy.fail(kind, rng.choice(["PUT", "POST", "HEAD"]), times=rng.randint(1, 2))  # type: ignore[arg-type]


async def _live_and_die(
    tool: Program,
    flags: list[str],
    publishing: Coroutine[None, None, None],
    rng: random.Random,
) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(publishing)
        await tool.start(*flags)
        if rng.random() < 0.8:
            await tool.says("subscribed")
        await asyncio.sleep(rng.uniform(0, LIFE_MAX_S))
        await tool.kill()


async def _publish(publisher: Client, numbers: range, rng: random.Random, rounds: int) -> None:
    at = numbers.start
    while at < numbers.stop:
        end = min(at + rng.randint(1, 200), numbers.stop)
        await publisher.publish(TOPIC, range(at, end), rounds)
        at = end
        await asyncio.sleep(rng.uniform(0, 0.02))


async def _finish(
    tool: Program,
    flags: list[str],
    messages: int,
    bucket: Bucket,
    scratch: Path,
    spool: Path,
) -> Tally:
    """The last life uploads what is left, and ends in order."""
    await tool.start(*flags)
    await tool.says("subscribed")
    counted: set[str] = set()
    tally = Tally(messages)
    deadline = time.monotonic() + patience_s(messages)
    while True:
        await asyncio.to_thread(_count_new, tally, counted, bucket, scratch)
        if not (lost := tally.missing):
            break
        assert time.monotonic() < deadline, (
            f"lost: {len(lost)} messages, such as {lost[0]}\n{tool.told}"
        )
        await asyncio.sleep(POLL_S)
    while unfinished_files(spool) and time.monotonic() < deadline:  # noqa: ASYNC110 - no event
        await asyncio.sleep(POLL_S)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    _count_new(tally, counted, bucket, scratch)
    return tally


def _count_new(tally: Tally, counted: set[str], bucket: Bucket, scratch: Path) -> None:
    for key in bucket.archives():
        if key not in counted:
            counted.add(key)
            tally.add(bucket.bodies(scratch, key))
