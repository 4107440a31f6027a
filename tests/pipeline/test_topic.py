"""One topic from a real broker into real files: what is acknowledged, and when."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import threading
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.pipeline.helpers import (
    GatedOutput,
    archived,
    finished_files,
    in_flight,
    pipeline_of,
    publish,
    running,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.disks import small_filesystem
from tests.support.nsqd import PATIENCE_S

from nsqtools import durable
from nsqtools.archive.recovery import recover
from nsqtools.outputs import trouble as trouble_module
from nsqtools.pipeline import topic as topic_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

TEN = [b"message %d" % number for number in range(10)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(topic_module, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr(trouble_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(trouble_module, "RETRY_MAX_S", 0.02)


@pytest.fixture
def gated() -> type[GatedOutput]:
    """An output whose gate is closed."""

    class Gated(GatedOutput):
        gate = asyncio.Event()
        reached = asyncio.Event()

    return Gated


# FIN only after durable


async def test_nothing_is_acknowledged_before_it_is_durable(
    nsqd: Nsqd, tmp_path: Path, gated: type[GatedOutput]
) -> None:
    folder = tmp_path / "archive"
    async with running(pipeline_of(nsqd, folder, output=gated)):
        await publish(nsqd, *TEN)
        await gated.reached.wait()
        await until_stats(
            nsqd, lambda now: (now["in_flight_count"], now["message_count"]) == (10, 10)
        )
        gated.gate.set()
        await until_settled(nsqd, 10)
    assert archived(folder) == TEN


async def test_what_is_acknowledged_is_in_the_file_already(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with running(pipeline_of(nsqd, folder)):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        (part,) = folder.glob("*.part")
        assert part.read_bytes() == b"".join(body + b"\n" for body in TEN)


async def test_a_refusing_output_stops_the_flow_and_keeps_what_it_holds(
    start_nsqd: StartNsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsqd = await start_nsqd(msg_timeout="1s")
    broken = FailingOs(0, failures=1 << 30, only={"pwrite"})
    folder = tmp_path / "archive"
    pipeline = pipeline_of(nsqd, folder)
    async with running(pipeline):
        await until_stats(nsqd, lambda now: bool(now.get("client_count")))
        monkeypatch.setattr(durable, "os", broken)
        await publish(nsqd, *TEN)
        await until(lambda: bool(pipeline.trouble))
        await until(lambda: pipeline.totals()["failures"] > 3)
        await publish(nsqd, b"comes later")
        # Longer than the message timeout: what is held is touched, so nothing times out.
        await asyncio.sleep(1.5)
        now = await stats(nsqd)
        assert (now["in_flight_count"], now["depth"], now["timeout_count"]) == (10, 1, 0)
        assert [client["ready_count"] for client in now["clients"]] == [0]  # type: ignore[attr-defined]
        broken.heal()
        await until_settled(nsqd, 11)
        assert not pipeline.trouble
    assert archived(folder) == [*TEN, b"comes later"]
    assert pipeline.counts.unsettled == 0


async def test_a_disk_that_fails_at_any_call_loses_and_doubles_nothing(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some calls of each commit fail, with different errors."""
    folder = tmp_path / "archive"
    total = 1
    codes = itertools.cycle([errno.ENOSPC, errno.EIO, errno.EDQUOT])
    flags = ("--compress=zstd", "--rotate-records=10")
    pipeline = pipeline_of(nsqd, folder, *flags)
    async with running(pipeline):
        await publish(nsqd, b"0")
        await until_settled(nsqd, 1)
        for fail_at in range(20):
            monkeypatch.setattr(durable, "os", FailingOs(fail_at, failures=2, code=next(codes)))
            await publish(nsqd, *[b"%d" % number for number in range(total, total + 10)])
            total += 10
            await until_settled(nsqd, total)
        monkeypatch.setattr(durable, "os", os)
    assert pipeline.totals()["failures"] > 10
    assert sorted(archived(folder), key=int) == [b"%d" % number for number in range(total)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_filesystem(tmp_path / "small", "256k")


async def test_a_full_disk_waits_for_room(nsqd: Nsqd, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (200 << 10))
    bodies = [os.urandom(20_000).hex().encode() for _ in range(3)]
    pipeline = pipeline_of(nsqd, small_disk)
    async with running(pipeline):
        await publish(nsqd, bodies[0])
        await until_settled(nsqd, 1)
        await publish(nsqd, *bodies[1:])
        await until(lambda: bool(pipeline.trouble))
        assert await in_flight(nsqd) == 2
        ballast.unlink()
        await until_settled(nsqd, 3)
    assert archived(small_disk) == bodies
    assert pipeline.totals()["failures"]


# Files


@pytest.mark.parametrize(
    ("flag", "files"),
    [
        ("--rotate-records=4", [4, 4, 2]),
        ("--rotate-size=1", [2, 2, 2, 2, 2]),
        ("--rotate-size=1MiB", [10]),
    ],
)
async def test_rotation_by_content(flag: str, files: list[int], nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with running(pipeline_of(nsqd, folder, flag, "--sync-interval=10ms")):
        for at in range(0, 10, 2):
            await publish(nsqd, *TEN[at : at + 2])
            await until_settled(nsqd, at + 2)
    assert [path.read_bytes().count(b"\n") for path in finished_files(folder)] == files
    assert archived(folder) == TEN


@pytest.mark.parametrize("flag", ["--rotate-idle=50ms", "--rotate-interval=100ms"])
async def test_rotation_by_time(flag: str, nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with running(pipeline_of(nsqd, folder, flag)):
        for number, body in enumerate(TEN[:2], 1):
            await publish(nsqd, body)
            await until(lambda number=number: len(finished_files(folder)) == number)  # type: ignore[misc]
        assert archived(folder) == TEN[:2]
        # Files come with messages only.
        await asyncio.sleep(0.15)
        assert len(list(folder.glob("[!.]*"))) == 2


async def test_a_file_is_finished_when_asked_to(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    pipeline = pipeline_of(nsqd, folder, "--compress=gzip")
    async with running(pipeline):
        pipeline.rotate()  # there is none
        await publish(nsqd, b"one")
        await until_settled(nsqd, 1)
        pipeline.rotate()
        await until(lambda: finished_files(folder))
        await publish(nsqd, b"two")
        await until_settled(nsqd, 2)
        assert archived(folder) == [b"one"]
    assert archived(folder) == [b"one", b"two"]
    assert pipeline.totals()["files"] == 2


async def test_sync_interval_bounds_how_long_a_message_waits(nsqd: Nsqd, tmp_path: Path) -> None:
    """A trickle that never becomes quiet is committed all the same."""
    pipeline = pipeline_of(nsqd, tmp_path / "archive", "--sync-interval=100ms")
    async with running(pipeline):
        published = 0
        async with asyncio.timeout(PATIENCE_S):
            while pipeline.counts.deliveries < 2:
                await publish(nsqd, b"x")
                published += 1
                await asyncio.sleep(0.02)
        assert pipeline.counts.messages < published + 1
        # What nsqd has not handed out yet would be left to the next run.
        await until_stats(nsqd, lambda now: (now["message_count"], now["depth"]) == (published, 0))
    assert len(archived(tmp_path / "archive")) == published


async def test_a_newline_in_a_body_is_warned_of_once(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "nsqtools")
    pipeline = pipeline_of(nsqd, tmp_path / "archive")
    async with running(pipeline):
        for count, body in enumerate([b"a\nb", b"plain", b"c\nd"], 1):
            await publish(nsqd, body)
            await until_settled(nsqd, count)
    warnings = [record.getMessage() for record in caplog.records if "newline" in record.msg]
    assert len(warnings) == 1
    assert "framed or jsonl" in warnings[0]
    assert pipeline.totals()["ambiguous_messages"] == 2


# The end


async def test_the_end_waits_for_the_commit_and_acknowledges_it(
    nsqd: Nsqd, tmp_path: Path, gated: type[GatedOutput]
) -> None:
    folder = tmp_path / "archive"
    pipeline = pipeline_of(nsqd, folder, output=gated)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pipeline.run())
        await publish(nsqd, *TEN)
        await gated.reached.wait()
        await until_stats(nsqd, lambda now: now["in_flight_count"] == 10)
        pipeline.stop()
        await until(lambda: pipeline.consumer.ended)
        assert await in_flight(nsqd) == 10
        gated.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await task
    await until_settled(nsqd, 10)
    assert archived(folder) == TEN
    assert not list(folder.glob("*.part"))
    assert pipeline.counts.unsettled == 0


async def test_what_is_published_after_the_end_waits_in_the_channel(
    nsqd: Nsqd, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    async with running(pipeline_of(nsqd, folder)):
        await publish(nsqd, b"first")
        await until_settled(nsqd, 1)
    await publish(nsqd, b"second")
    await until_stats(nsqd, lambda now: now["depth"] == 1)
    async with running(pipeline_of(nsqd, folder)):
        await until_settled(nsqd, 2)
    assert sorted(archived(folder)) == [b"first", b"second"]


async def test_what_a_cancelled_run_leaves_is_recovered(
    start_nsqd: StartNsqd, tmp_path: Path, gated: type[GatedOutput]
) -> None:
    # The real nsqd keeps what a lost connection held until its time is over.
    nsqd = await start_nsqd(msg_timeout="1s")
    folder = tmp_path / "archive"
    gated.gate.set()
    task = asyncio.create_task(pipeline_of(nsqd, folder, output=gated).run())
    await publish(nsqd, *TEN[:5])
    await until_settled(nsqd, 5)
    gated.gate.clear()
    gated.reached.clear()
    await publish(nsqd, *TEN[5:])
    await gated.reached.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    (found,) = recover(folder)
    assert found.records == 5
    gated.gate.set()
    async with running(pipeline_of(nsqd, folder, output=gated)):
        await until_settled(nsqd, 10)
    assert sorted(archived(folder)) == TEN


async def test_a_file_that_cannot_be_finished_is_tried_again(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    broken = FailingOs(0, failures=6, only={"link", "fdatasync"})
    pipeline = pipeline_of(nsqd, folder, "--compress=zstd")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        broken.install(monkeypatch)
    assert len(broken.failed) == 6
    assert archived(folder) == TEN
    assert not list(folder.glob("*.part"))


async def test_a_run_that_is_cut_while_its_file_is_finished_leaves_no_thread(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    pipeline = pipeline_of(nsqd, folder)
    task = asyncio.create_task(pipeline.run())
    await publish(nsqd, *TEN)
    await until_settled(nsqd, 10)
    with monkeypatch.context() as patched:
        FailingOs(0, failures=1_000_000, only={"link"}).install(patched)
        pipeline.stop()
        await until(lambda: pipeline.totals()["failures"] > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: "archive-t" not in {thread.name for thread in threading.enumerate()})
    (found,) = recover(folder)
    assert found.records == 10
