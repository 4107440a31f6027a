"""Where NSQ's own nsq_to_file crashes or hangs, and ours does not (spec: tools, 7.2): a test for each
row."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.crash.accounting import opened_by_stock_tool
from tests.pipeline.helpers import (
    CHANNEL,
    archive_options,
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
from tests.support.clients import until
from tests.support.kernel import recording, run_traced
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, fins, messages

from nsqtools import durable
from nsqtools.ending import INTERRUPTED
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.run import Run
from nsqtools.programs.nsq_to_file.run import output_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.nsqd import Nsqd

    from nsqtools.programs.nsq_to_file.options import NsqToFileOptions

pytestmark = pytest.mark.slow


async def test_c1_a_hangup_with_a_work_dir_is_followed_by_the_next_file(
    nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    async with archiver(folder, f"--work-dir={tmp_path / 'work'}", nsqd=nsqd) as tool:
        for count in range(1, 4):
            await publish(nsqd, b"%d" % count)
            await until_settled(nsqd, count)
            tool.send(signal.SIGHUP)
            await until(lambda count=count: len(finished_files(folder)) == count)  # type: ignore[misc]
        await publish(nsqd, b"4")
        await until_settled(nsqd, 4)
        assert await tool.end(signal.SIGTERM) == 0
    assert [path.read_bytes() for path in finished_files(folder)] == [
        b"1\n",
        b"2\n",
        b"3\n",
        b"4\n",
    ]


async def test_c2_rotation_by_time_with_a_work_dir_survives_idle_intervals(
    nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    flags = (f"--work-dir={tmp_path / 'work'}", "--skip-empty-files", "--rotate-interval=100ms")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        for count in range(1, 4):
            await publish(nsqd, b"%d" % count)
            await until(lambda count=count: len(finished_files(folder)) == count)  # type: ignore[misc]
            await asyncio.sleep(0.35)  # some intervals in which nothing comes
        assert await tool.end(signal.SIGTERM) == 0
    assert [path.read_bytes() for path in finished_files(folder)] == [b"1\n", b"2\n", b"3\n"]


async def test_c3_a_work_dir_on_another_filesystem_is_as_good(nsqd: Nsqd, folder: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no other filesystem")
    with tempfile.TemporaryDirectory(dir=shm, prefix="nsqtools-test-") as work:
        flags = (f"--work-dir={work}", "--rotate-records=1", "--gzip")
        async with archiver(folder, *flags, nsqd=nsqd) as tool:
            for count in range(1, 4):
                await publish(nsqd, b"%d" % count)
                await until_settled(nsqd, count)
            await until(lambda: len(finished_files(folder)) >= 2)
            assert await tool.end(signal.SIGTERM) == 0
        left = [path for path in Path(work).rglob("*") if path.is_file()]
    assert [path.suffix for path in left] == [".keys"], "both names are there"
    contents = [opened_by_stock_tool(path, "gzip") for path in finished_files(folder)]
    assert contents == [b"1\n", b"2\n", b"3\n"]


@pytest.mark.parametrize(
    "flag", ["--sync-interval=0s", "--sync-interval=-1s", "--topic-refresh=0s"]
)
async def test_c4_an_interval_that_makes_no_sense_is_refused(flag: str, folder: Path) -> None:
    status, told = await run_to_end(folder, flag, nsqd=NOBODY)
    assert status == 2
    assert flag.partition("=")[0] in told
    assert "Traceback" not in told


async def test_c5_a_path_that_cannot_be_looked_at_stops_no_run(nsqd: Nsqd, folder: Path) -> None:
    """The folder of the files is a link to itself, until somebody mends that."""
    loop = folder / "t"
    loop.symlink_to("t")
    flags = ("--filename-format=<TOPIC>/archive<REV>.log",)
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await tool.says("output failed, the topic waits and is not acknowledged")
        assert (await stats(nsqd))["in_flight_count"] == 10
        loop.unlink()
        await until_settled(nsqd, 10)
        assert await tool.end(signal.SIGTERM) == 0
    assert archived(folder) == TEN


@asynccontextmanager
async def running(options: NsqToFileOptions, life: Lifecycle) -> AsyncIterator[asyncio.Task[bool]]:
    """A run in this process; how it ended is for the test to look at."""
    workers = Workers()
    run = Run(options, lambda topic: output_of(options, topic, workers))
    life.on_reload(run.rotate)
    async with life, asyncio.TaskGroup() as group:
        yield group.create_task(run.run(life))
    workers.close()


async def test_c6_a_stop_waits_for_an_nsqd_that_hangs_without_spinning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers no CLS and sends more: few turns of the loop, and few commits."""
    async with Peer() as peer:
        options = archive_options(folder, f"--nsqd-tcp-address={peer.address}")
        life = Lifecycle(PATIENCE_S, handle_signals=False)
        async with running(options, life) as task:
            nsqd = await peer.accept()
            await nsqd.identify()
            await nsqd.expect(f"SUB t {CHANNEL}".encode())
            nsqd.respond()
            assert (await nsqd.command()).startswith(b"RDY ")
            nsqd.send(messages(1))
            await nsqd.until_told(*fins(1))
            syncs, turns = count_syncs(monkeypatch), count_turns(monkeypatch)
            life.stop("test")
            await nsqd.until_told(b"CLS")
            nsqd.send(messages(*range(2, 52)))
            await nsqd.until_told(*fins(*range(2, 52)))
            await asyncio.sleep(1)
            assert not task.done(), "the nsqd has not answered"
            assert len(turns) < 200
            assert len(syncs) < 5, "fifty messages, hardly one by one"
            nsqd.respond(b"CLOSE_WAIT")
            assert await task


def count_turns(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows with each turn of the loop."""
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    turns: list[None] = []
    real = selector.select

    def select(timeout_s: float | None = None) -> Any:
        turns.append(None)
        return real(timeout_s)

    monkeypatch.setattr(selector, "select", select)
    return turns


def count_syncs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each file that is synced."""
    synced: list[Path] = []
    real = durable.sync_data

    def sync(fd: int, path: Path) -> None:
        synced.append(path)
        real(fd, path)

    monkeypatch.setattr(durable, "sync_data", sync)
    return synced


async def test_c7_a_failing_disk_stops_its_topic_alone_and_the_end_is_clean(
    nsqd: Nsqd, folder: Path
) -> None:
    """Where the files of one topic should be there is something else."""
    (folder / "t").write_text("a file, no folder")
    flags = (
        *("--topic=t", "--topic=free", "--filename-format=<TOPIC>/archive<REV>.log"),
        *("--gzip", "--shutdown-timeout=300ms"),
    )
    async with archiver(folder, *flags, nsqd=nsqd, says="subscribed topic=free") as tool:
        await publish(nsqd, *TEN)
        await tool.says("output failed, the topic waits and is not acknowledged")
        await publish(nsqd, *TEN, topic="free")
        await until_settled(nsqd, 10, "free")
        assert await tool.end(signal.SIGTERM) == INTERRUPTED, "ten messages are not archived"
    await until_stats(nsqd, lambda now: (now["depth"], now["in_flight_count"]) == (10, 0))
    (path,) = finished_files(folder / "free")
    assert opened_by_stock_tool(path, "gzip").splitlines() == TEN


async def test_c8_signals_are_heard_while_a_disk_hangs(
    nsqd: Nsqd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hangups and a stop come while an fsync does not return."""
    hangs, goes_on = threading.Event(), threading.Event()
    real = durable.sync_data

    def sync(fd: int, path: Path) -> None:
        hangs.set()
        assert goes_on.wait(PATIENCE_S)
        real(fd, path)

    options = archive_options(folder, f"--nsqd-tcp-address={nsqd.tcp_address}")
    life = Lifecycle(PATIENCE_S)
    async with running(options, life) as task:
        await until(lambda: life.health.is_ready)
        monkeypatch.setattr(durable, "sync_data", sync)
        await publish(nsqd, *TEN)
        await until(hangs.is_set)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await life.stopping.wait()
        assert not task.done()
        goes_on.set()
        assert await task
    assert archived(folder) == TEN


async def test_c9_files_that_were_there_cost_no_descriptors_and_no_search(
    nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    """Three thousand names are taken by files that are larger than --rotate-size."""
    for name in ("t.log", *(f"t-{revision:06}.log" for revision in range(3000))):
        (folder / name).write_bytes(b"x" * 20)
    trace = tmp_path / "trace"
    await publish(nsqd, b"traced")
    flags = flags_of(folder, "--rotate-size=10", "--max-messages=1", nsqd=nsqd)
    status, told = await run_traced(recording(trace, "file"), "nsq_to_file", *flags)
    assert status == 0, told
    asked = [line for line in trace.read_text().splitlines() if f"{folder}/t" in line]
    assert 3 < len(asked) < 200, "calls that name a file of the topic"
    async with archiver(folder, "--rotate-size=1", nsqd=nsqd) as tool:
        counts = []
        for count in range(2, 22):
            await publish(nsqd, b"%d" % count)
            await until_settled(nsqd, count)
            counts.append(tool.open_files())
        assert max(counts[10:]) <= max(counts[:10]) + 1
        assert await tool.end(signal.SIGTERM) == 0
    assert len(finished_files(folder)) == 3001 + 21
