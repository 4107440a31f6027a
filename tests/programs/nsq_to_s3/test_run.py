"""nsq_to_s3 as a program: what comes into the bucket, and what happens while that cannot be reached."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import opened_by_stock_tool
from tests.pipeline.helpers import CHANNEL, publish
from tests.support.nsqd import PATIENCE_S
from tests.support.programs import Program
from tests.support.web import channel_stats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd

TEN = [b"message %d" % number for number in range(10)]


@pytest.fixture
def flags(nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tmp_path: Path) -> list[str]:
    return [
        "--topic=t",
        f"--channel={CHANNEL}",
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        f"--bucket={archive.name}",
        f"--endpoint-url={proxy.endpoint_url}",
        f"--spool-dir={tmp_path / 'spool'}",
        "--sync-interval=20ms",
        "--store-timeout=5s",
        "--host-identifier=host",
    ]


@pytest.fixture
async def tool() -> AsyncIterator[Program]:
    async with Program("nsq_to_s3") as program:
        yield program


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


async def until(condition: Callable[[], bool], tool: Program) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - a store has no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(tool.told)


async def until_acknowledged(nsqd: Nsqd, tool: Program) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                stats = await channel_stats(nsqd, "t", CHANNEL)
                if stats and stats["depth"] + stats["in_flight_count"] == 0:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(tool.told)


@pytest.mark.parametrize(
    ("more", "suffix", "content_type"),
    [
        ([], ".log.zst", "application/zstd"),
        (["--format=jsonl", "--gzip", "--manifest"], ".jsonl.gz", "application/gzip"),
        (["--compress=none"], ".log", "text/plain; charset=utf-8"),
        (["--format=framed", "--compress=none"], ".nsq", "application/octet-stream"),
    ],
)
async def test_a_topic_goes_to_a_bucket(
    more: list[str],
    suffix: str,
    content_type: str,
    nsqd: Nsqd,
    archive: Bucket,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--max-messages=10", *more)
    assert await tool.end(None) == 0, tool.told
    (key,) = archive.archives()
    assert key.startswith("t/dt=")
    name = key.rpartition("/")[2]
    assert name.startswith("t.host.")
    assert name.endswith(f".000000{suffix}")
    assert archive.bodies(tmp_path, key) == TEN
    told_type, told = archive.head(key)
    assert told_type == content_type
    assert {
        "topic": "t",
        "channel": CHANNEL,
        "host": "host",
        "records": "10",
    }.items() <= told.items()
    assert 0 < int(told["first-ts"]) <= int(told["last-ts"])
    assert len(told["sha256"]) == 64
    assert parts(tmp_path / "spool") == []
    if "--manifest" in more:
        said = json.loads(archive.read(f"{key}.manifest.json"))
        assert (said["records"], said["sha256"]) == (10, told["sha256"])


async def test_what_is_in_the_bucket_opens_with_the_stock_tool(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--max-messages=10")
    assert await tool.end(None) == 0, tool.told
    path = tmp_path / "object.zst"
    path.write_bytes(archive.read(archive.archives()[0]))
    content = await asyncio.to_thread(opened_by_stock_tool, path, "zstd")
    assert content.splitlines() == TEN


async def test_the_store_is_away(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """Messages are durable in the spool and acknowledged; when the store is back it gets them all."""
    proxy.fail("reset", times=10_000)
    await tool.start(*flags, "--rotate-records=10")
    for _ in range(8):
        await publish(nsqd, *TEN)
        await until_acknowledged(nsqd, tool)
    assert archive.keys() == []
    assert len(parts(tmp_path / "spool")) == 8
    proxy.heal()
    tool.send(signal.SIGHUP)
    await until(lambda: len(archive.archives()) == 8, tool)
    assert sorted(archive.all_bodies(tmp_path)) == sorted(TEN * 8)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert parts(tmp_path / "spool") == []


async def test_a_run_that_ends_while_the_store_is_away(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """It ends in order, and says what stays; the next run uploads it."""
    proxy.fail("reset", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--max-messages=10", "--shutdown-timeout=6s")
    assert await tool.end(None) == 0, tool.told
    assert "files stay in the spool" in tool.told
    assert "it is closed" not in tool.told, "by the run itself, which is no failure"
    assert len(parts(tmp_path / "spool")) == 1
    proxy.heal()
    await tool.start(*flags)
    await until(lambda: archive.archives() != [], tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert archive.all_bodies(tmp_path) == TEN
    assert parts(tmp_path / "spool") == []


async def test_an_end_that_is_cut_short_says_what_stays(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """By a second Ctrl-C, while the last file is tried again and again."""
    proxy.fail("reset", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--shutdown-timeout=60s")
    await until_acknowledged(nsqd, tool)
    tool.send(signal.SIGINT)
    await tool.says("stopping")
    assert await tool.end(signal.SIGINT) == 130, tool.told
    assert "files stay in the spool, for the next start to upload files=1" in tool.told
    assert len(parts(tmp_path / "spool")) == 1


async def test_what_nobody_may_write_stops_the_topic(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """Said with the permission that is missing; nothing more is taken from nsqd, and all is well when
    somebody has mended it."""
    proxy.fail_with(403, "AccessDenied", "PUT", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--rotate-records=10")
    await until_acknowledged(nsqd, tool)
    await publish(nsqd, b"seals the first")
    await tool.says("s3:PutObject on arn:aws:s3:::")
    await tool.says("the topic waits until the store takes its files again")
    await publish(nsqd, b"waits")
    proxy.heal()
    await until(lambda: archive.archives() != [], tool)
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert sorted(archive.all_bodies(tmp_path)) == sorted([*TEN, b"seals the first", b"waits"])


async def test_what_an_earlier_run_left_names_the_permission_too(
    nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tool: Program, flags: list[str]
) -> None:
    proxy.fail_with(403, "AccessDenied", "PUT", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--max-messages=10", "--shutdown-timeout=1s")
    assert await tool.end(None) == 0, tool.told
    await tool.start(*flags)
    await tool.says("a file of the spool cannot be uploaded now")
    assert "s3:PutObject on arn:aws:s3:::" in tool.told.partition("cannot be uploaded now")[2]
    proxy.heal()
    assert await tool.end(signal.SIGTERM) == 0, tool.told


async def test_a_full_spool_takes_nothing_more(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    proxy.fail("reset", times=10_000)
    large = [b"%d " % number + b"x" * 100_000 for number in range(30)]
    await tool.start(*flags, "--max-spool-bytes=1MiB", "--compress=none", "--max-in-flight=5")
    await tool.says("subscribed")
    await publish(nsqd, *large)
    await tool.says("the spool is full")
    stats = await channel_stats(nsqd, "t", CHANNEL)
    assert stats is not None
    assert stats["depth"] > 5
    proxy.heal()
    tool.send(signal.SIGHUP)
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert sorted(archive.all_bodies(tmp_path)) == sorted(large)


async def test_nothing_is_acknowledged_before_the_store_has_it(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    proxy.fail_with(503, "SlowDown", "PUT", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=200ms")
    await tool.says("an object cannot be uploaded")
    stats = await channel_stats(nsqd, "t", CHANNEL)
    assert stats is not None
    assert stats["in_flight_count"] == 10
    proxy.heal()
    await until_acknowledged(nsqd, tool)
    assert archive.all_bodies(tmp_path) == TEN
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert sorted((tmp_path / "spool").iterdir()) == []


@pytest.mark.parametrize("ack", ["spool", "upload"])
async def test_a_store_that_forgets_what_it_took(
    ack: str,
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """It is asked whether it has the object, and gets it again: nothing is lost, nothing is untold."""
    proxy.fail("forget", "PUT", times=2)
    await publish(nsqd, *TEN)
    await tool.start(*flags, f"--ack={ack}", "--manifest", "--max-messages=10")
    assert await tool.end(None) == 0, tool.told
    assert "the store took it, and does not have it" in tool.told
    assert "Traceback" not in tool.told
    assert archive.all_bodies(tmp_path) == TEN
    (key,) = archive.archives()
    assert set(archive.keys()) == {key, f"{key}.manifest.json"}


async def test_a_full_window_is_an_object(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    """No more can come: it does not wait for its time."""
    await publish(nsqd, *TEN)
    more = ["--ack=upload", "--max-in-flight=5", "--rotate-interval=1h", "--max-messages=10"]
    await tool.start(*flags, *more)
    assert await tool.end(None) == 0, tool.told
    assert len(archive.archives()) == 2
    assert sorted(archive.all_bodies(tmp_path)) == sorted(TEN)


async def test_an_end_without_a_spool_while_the_store_is_away(
    nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tool: Program, flags: list[str]
) -> None:
    """What was not uploaded goes back to nsqd, and the run ends in order."""
    proxy.fail_with(503, "SlowDown", "PUT", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--rotate-interval=200ms")
    await tool.says("an object cannot be uploaded")
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    stats = await channel_stats(nsqd, "t", CHANNEL)
    assert stats is not None
    assert (stats["depth"], stats["in_flight_count"]) == (10, 0)
    assert archive.keys() == []


@pytest.mark.parametrize(
    "words",
    [("GET", "uploads"), ("PUT", "partNumber"), ()],
    ids=["unfinished-uploads", "parts", "all"],
)
async def test_a_store_that_does_not_answer_when_the_run_ends(
    words: tuple[str, ...],
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """All is durable and acknowledged: it ends in time, and in order."""
    if words:
        proxy.fail("stall", *words, times=10_000)
    for _ in range(6):
        await publish(nsqd, *[b"x" * 100_000 for _ in range(10)])
    more = ["--shutdown-timeout=4s", "--store-timeout=60s", "--watermark", "--compress=none"]
    await tool.start(*flags, *more, "--multipart-threshold=5MiB", "--part-size=5MiB")
    await until_acknowledged(nsqd, tool)
    proxy.fail("stall", *words, times=10_000)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert len(parts(tmp_path / "spool")) + len(archive.archives()) == 1


async def test_a_file_that_somebody_takes_out_of_the_spool(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """The topic waited for it; there is nothing to wait for any more."""
    proxy.fail_with(403, "AccessDenied", "PUT", times=10_000)
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--rotate-records=10")
    await until_acknowledged(nsqd, tool)
    await publish(nsqd, b"seals the first")
    await tool.says("the topic waits until the store takes its files again")
    for path in parts(tmp_path / "spool"):
        path.unlink()
    proxy.heal()
    await publish(nsqd, b"more")
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert b"more" in archive.all_bodies(tmp_path)


async def test_two_archivers_with_one_name(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    """Nothing is overwritten: what has the key of another gets the next revision."""
    more = ["--key-format=<TOPIC>.<REV>.<EXT>", "--max-messages=10", "--compress=none"]
    await publish(nsqd, *TEN, *TEN)
    await tool.start(*flags, *more)
    assert await tool.end(None) == 0, tool.told
    flags[5] = f"--spool-dir={tmp_path / 'other'}"
    await tool.start(*flags, *more)
    assert await tool.end(None) == 0, tool.told
    assert archive.keys() == ["t.000000.log", "t.000001.log"]
    assert sorted(archive.all_bodies(tmp_path)) == sorted(TEN + TEN)


async def test_manifests_watermarks_and_commands(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    """A job that waits for an hour finds all of it, in the store as in a folder."""
    told = tmp_path / "told"
    told.mkdir()
    await publish(nsqd, *TEN)
    command = f"--on-publish=sh -c 'echo \"$1 $NSQTOOLS_RECORDS\" > {told}/one' hook"
    await tool.start(*flags, "--watermark", "--manifest", command)
    await until_acknowledged(nsqd, tool)
    tool.send(signal.SIGHUP)
    await until(lambda: archive.archives() != [], tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    (key,) = archive.archives()
    mark = f"t/t.{CHANNEL}.host.watermark.json"
    assert set(archive.keys()) == {key, f"{key}.manifest.json", mark}
    said = json.loads(archive.read(mark))
    _, known = archive.head(key)
    assert (said["topic"], said["host"]) == ("t", "host")
    assert said["until"] >= int(known["last-ts"]) // 10**9 - 2
    assert (told / "one").read_text() == f"s3://{archive.name}/{key} 10\n"


async def test_a_manifest_without_a_spool(
    nsqd: Nsqd, archive: Bucket, tool: Program, flags: list[str]
) -> None:
    await publish(nsqd, *TEN)
    await tool.start(*flags, "--ack=upload", "--manifest", "--max-messages=10")
    assert await tool.end(None) == 0, tool.told
    (key,) = archive.archives()
    said = json.loads(archive.read(f"{key}.manifest.json"))
    _, known = archive.head(key)
    assert (said["records"], said["sha256"]) == (10, known["sha256"])
    assert said["content_bytes"] == int(known["raw-bytes"]) == sum(map(len, TEN)) + 10


@pytest.mark.parametrize("ack", ["spool", "upload"])
async def test_a_store_that_takes_and_forgets(
    ack: str,
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
) -> None:
    """Nothing is let go of before the store has shown that it is there."""
    proxy.fail("forget", "PUT", times=2)
    await publish(nsqd, *TEN)
    await tool.start(*flags, f"--ack={ack}", "--rotate-interval=200ms")
    await tool.says("the store took it, and does not have it")
    await until(lambda: archive.archives() != [], tool)
    await until_acknowledged(nsqd, tool)
    assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert archive.all_bodies(tmp_path) == TEN
