"""nsq_to_file as a whole: several topics, topics that come and go, and the program itself."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import (
    CHANNEL,
    archive_options,
    archived,
    archiving,
    finished_files,
    publish,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.lookupd import UNKNOWN, listing, lookupds, topic_list
from tests.support.nsqd import PATIENCE_S
from tests.support.programs import NsqdProgram, Program
from tests.support.raw import RawClient
from tests.support.web import post, topic_stats

from nsqtools import __version__
from nsqtools.ending import INTERRUPTED
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs import trouble as trouble_module
from nsqtools.outputs.contract import DONE
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline import topic as topic_module
from nsqtools.pipeline.run import Run
from nsqtools.pipeline.topic import TopicPipeline
from nsqtools.programs.nsq_to_file.run import archive_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.support.nsqd import Nsqd, StartNsqd

    from nsqtools.outputs.contract import Answer
    from nsqtools.wire.messages import Messages

TEN = [b"message %d" % number for number in range(10)]
# The real nsqd keeps what a lost connection held until its time is over; ours takes it back at once.
HELD_BY_NSQD = "2s"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(topic_module, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr(trouble_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(trouble_module, "RETRY_MAX_S", 0.02)


# The end


async def test_a_topic_that_fails_at_the_end_is_not_begun_anew(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a topic that can end no better; and the run says that it did not end in order."""

    async def broken(self: TopicPipeline) -> None:
        await self._stop.wait()
        raise RuntimeError("a fault")

    monkeypatch.setattr(TopicPipeline, "_end_in_order", broken)
    options = archive_options(tmp_path, f"--nsqd-tcp-address={nsqd.tcp_address}")
    workers = Workers()
    made: list[FileOutput] = []

    def output_of(_topic: str) -> FileOutput:
        made.append(FileOutput(archive_spec(options, "t"), workers, sync_interval_s=0.02))
        return made[-1]

    run = Run(options, output_of)
    async with Lifecycle(PATIENCE_S, handle_signals=False) as life, asyncio.TaskGroup() as group:
        task = group.create_task(run.run(life))
        await until(lambda: life.health.is_ready)
        life.stop("test")
        async with asyncio.timeout(PATIENCE_S / 4):
            assert not await asyncio.shield(task)
    assert len(made) == 2, "one to see whether it can be made, and one for the topic"
    assert f'topic stands still topic=t channel={CHANNEL} error="a fault"' in caplog.messages
    workers.close()


@pytest.mark.parametrize("signals", [1, 2])
async def test_faults_of_an_output_at_the_end_do_not_stop_the_end(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture, signals: int
) -> None:
    class Broken(FileOutput):
        def hurry(self) -> None:
            raise RuntimeError("a fault")

        async def deliver(self, messages: Sequence[Messages]) -> Answer:
            return await (super().deliver(messages) if signals == 1 else asyncio.sleep(1000, DONE))

        async def abandon(self) -> None:
            await super().abandon()
            raise RuntimeError("another fault")

    options = archive_options(tmp_path, f"--nsqd-tcp-address={nsqd.tcp_address}")
    workers = Workers()
    run = Run(options, lambda _: Broken(archive_spec(options, "t"), workers, sync_interval_s=0.02))
    async with Lifecycle(PATIENCE_S, handle_signals=False) as life, asyncio.TaskGroup() as group:
        task = group.create_task(run.run(life))
        await until(lambda: life.health.is_ready)
        await publish(nsqd, *TEN)
        await until_stats(nsqd, lambda now: now["message_count"] == 10)
        for _ in range(signals):
            life.stop("test")
        async with asyncio.timeout(PATIENCE_S / 4):
            assert await asyncio.shield(task) == (signals == 1)
    told = [str(one.exc_info[1]) for one in caplog.records if one.exc_info]
    assert told == ["a fault", "another fault"][:signals]
    workers.close()


# Several topics in one process


async def test_topics_do_not_wait_for_each_other(nsqd: Nsqd, tmp_path: Path) -> None:
    """Where the files of one should be there is something else: it waits, and the other flows."""
    folder = tmp_path / "archive"
    folder.mkdir()
    obstacle = folder / "t"
    obstacle.write_text("a file, no folder")
    options = archive_options(
        folder,
        "--topic=t",
        "--topic=free",
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        "--filename-format=<TOPIC>/archive<REV>.log",
        "--sync-interval=20ms",
    )
    async with archiving(options):
        await publish(nsqd, *TEN)
        await until_stats(nsqd, lambda now: now["in_flight_count"] == 10)
        await publish(nsqd, *TEN, topic="free")
        await until_settled(nsqd, 10, "free")
        assert (await stats(nsqd))["in_flight_count"] == 10
        obstacle.unlink()
        await until_settled(nsqd, 10)
    assert archived(folder / "t") == TEN
    assert archived(folder / "free") == TEN


async def test_topics_that_come_and_go(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nsqtools")
    folder = tmp_path / "archive"
    folder.mkdir()
    port = int(nsqd.tcp_address.rpartition(":")[2])
    async with lookupds(listing(("127.0.0.1", port))) as (fake,):
        fake.answers["/topics"] = topic_list("logs", "other", "logs-debug", "logs#ephemeral")
        options = archive_options(
            folder,
            "--topic-pattern=^logs",
            "--topic-exclude=debug$",
            "--topic-refresh=20ms",
            f"--lookupd-http-address={fake.address}",
            "--consumer-opt=lookupd_poll_interval,100ms",
            "--sync-interval=20ms",
        )
        async with archiving(options) as archiver:
            await until(lambda: topics_of(archiver) == {"logs"})
            await publish(nsqd, *TEN, topic="logs")
            fake.answers["/topics"] = topic_list("logs", "logs-new")
            await until(lambda: topics_of(archiver) == {"logs", "logs-new"})
            await publish(nsqd, b"new", topic="logs-new")
            await until(lambda: archiver._sum()["messages"] == 11)
            # nsqlookupd forgets a topic that is deleted; nsqd cuts its consumers.
            fake.answers["/topics"] = topic_list("logs-new")
            fake.answers["/lookup?topic=logs"] = UNKNOWN
            fake.answers["/lookup?topic=logs-new"] = listing(("127.0.0.1", port))
            await post(nsqd, "/topic/delete?topic=logs")
            await until(lambda: topics_of(archiver) == {"logs-new"})
            assert await topic_stats(nsqd, "logs") is None, "it was made again"
            assert archived(folder) == TEN, "its file is finished"
            # It may come back.
            del fake.answers["/lookup?topic=logs"]
            fake.answers["/topics"] = topic_list("logs", "logs-new")
            await publish(nsqd, b"again", topic="logs")
            await until(lambda: archiver._sum()["messages"] == 12)
    assert sorted(archived(folder)) == sorted([*TEN, b"again", b"new"])
    said = [record.getMessage() for record in caplog.records]
    assert "topic is gone topic=logs channel=archive" in said


async def test_a_deleted_topic_is_not_made_anew_though_an_nsqlookupd_is_down(
    nsqd: Nsqd, tmp_path: Path
) -> None:
    """What that one said last is not held against what the other says now."""
    folder = tmp_path / "archive"
    folder.mkdir()
    port = int(nsqd.tcp_address.rpartition(":")[2])
    async with lookupds(listing(("127.0.0.1", port)), listing(("127.0.0.1", port))) as (one, two):
        for fake in (one, two):
            fake.answers["/topics"] = topic_list("logs")
        options = archive_options(
            folder,
            *("--topic-pattern=^logs", "--topic-refresh=1m", "--sync-interval=20ms"),
            *(f"--lookupd-http-address={fake.address}" for fake in (one, two)),
            "--consumer-opt=lookupd_poll_interval,300ms",
        )
        async with archiving(options) as archiver:
            await publish(nsqd, *TEN, topic="logs")
            await until(lambda: archiver._sum()["messages"] == 10)
            one.answers.clear()
            one.answer = (500, b"down")
            await asyncio.sleep(0.7)
            two.answers["/topics"] = topic_list()
            two.answers["/lookup?topic=logs"] = UNKNOWN
            await asyncio.sleep(0.7)
            await post(nsqd, "/topic/delete?topic=logs")
            await asyncio.sleep(1.5)
            assert await topic_stats(nsqd, "logs") is None


async def test_an_nsqlookupd_that_is_down_is_told_once(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    port = int(nsqd.tcp_address.rpartition(":")[2])
    async with lookupds(listing(("127.0.0.1", port))) as (fake,):
        fake.answers["/topics"] = topic_list("logs")
        options = archive_options(
            folder,
            *("--topic-pattern=^logs", "--topic-refresh=20ms"),
            *(f"--lookupd-http-address={fake.address}", "--lookupd-http-address=127.0.0.1:1"),
        )
        async with archiving(options) as archiver:
            await until(lambda: topics_of(archiver) == {"logs"})
            await asyncio.sleep(0.5)
    told = [one for one in caplog.messages if "gives no list of topics" in one]
    assert len(told) == 1


def topics_of(archiver: Run) -> set[str]:
    return set(archiver._tasks)


async def test_one_lookupd_that_is_down_stops_no_discovery(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    port = int(nsqd.tcp_address.rpartition(":")[2])
    async with lookupds(listing(("127.0.0.1", port))) as (fake,):
        fake.answers["/topics"] = topic_list("t")
        options = archive_options(
            folder,
            "--topic-pattern=.",
            "--lookupd-http-address=127.0.0.1:1",
            f"--lookupd-http-address={fake.address}",
        )
        async with archiving(options):
            await publish(nsqd, *TEN)
            await until_settled(nsqd, 10)
    assert archived(folder) == TEN


# The program


@asynccontextmanager
async def program(
    nsqd: NsqdProgram | Nsqd, folder: Path, *flags: str
) -> AsyncIterator[tuple[Program, tuple[str, ...]]]:
    """nsq_to_file, subscribed to topic `t`; also the flags, for another life."""
    address = nsqd.address if isinstance(nsqd, NsqdProgram) else nsqd.tcp_address
    all_flags = (
        "--topic=t",
        f"--channel={CHANNEL}",
        f"--nsqd-tcp-address={address}",
        f"--output-dir={folder}",
        "--filename-format=<TOPIC><REV>.log",
        "--sync-interval=20ms",
        *flags,
    )
    async with Program("nsq_to_file") as tool:
        await tool.start(*all_flags)
        await tool.says("subscribed")
        yield tool, all_flags


@pytest.mark.slow
async def test_a_run_from_the_first_message_to_sigterm(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with program(nsqd, folder, "--compress=zstd", "--format=framed") as (tool, _):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        tool.send(signal.SIGHUP)
        await until(lambda: len(finished_files(folder)) == 1)
        await publish(nsqd, b"after SIGHUP")
        await until_settled(nsqd, 11)
        assert await tool.end(signal.SIGTERM) == 0
        assert "archived messages=11" in tool.log[-1]
    assert sorted(archived(folder)) == sorted([*TEN, b"after SIGHUP"])
    assert len(finished_files(folder)) == 2
    # It has gone in order: what comes now waits.
    await publish(nsqd, b"later")
    await until_stats(nsqd, lambda now: now["depth"] == 1)


@pytest.mark.slow
async def test_a_work_folder_on_another_filesystem(nsqd: Nsqd, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other filesystem")
    folder = tmp_path / "archive"
    with tempfile.TemporaryDirectory(dir=shm, prefix="nsqtools-test-") as work:
        async with program(nsqd, folder, f"--work-dir={work}") as (tool, _):
            await publish(nsqd, *TEN)
            await until_settled(nsqd, 10)
            assert [path.name for path in Path(work).glob("[!.]*")] == ["t-000000.log.part"]
            assert list(folder.iterdir()) == []
            assert await tool.end(signal.SIGTERM) == 0
        left = [path.suffix for path in Path(work).rglob("*") if path.is_file()]
        assert left == [".keys"], "what is known of the messages that may come again"
    assert archived(folder) == TEN


@pytest.mark.slow
async def test_the_file_of_a_dead_run_is_finished_by_the_next(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with program(nsqd, folder, "--gzip") as (tool, flags):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        await tool.kill()
        assert finished_files(folder) == []
        await tool.start(*flags)
        await tool.says("recovered a file of a run that did not end")
        await tool.says("subscribed")
        assert archived(folder) == TEN
        assert await tool.end(signal.SIGTERM) == 0


@pytest.mark.slow
async def test_a_second_signal_does_not_wait_for_the_disk(
    start_nsqd: StartNsqd, tmp_path: Path
) -> None:
    """Under the open file its folder goes away: the commit is tried for as long as it takes."""
    nsqd = await start_nsqd(msg_timeout=HELD_BY_NSQD)
    folder = tmp_path / "archive"
    async with program(nsqd, folder, "--shutdown-timeout=60s") as (tool, _):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        folder.rename(tmp_path / "away")
        folder.write_text("something else")
        await publish(nsqd, b"held")
        await tool.says("output failed")
        tool.send(signal.SIGTERM)
        await tool.says("stopping")
        assert await tool.end(signal.SIGTERM) == INTERRUPTED
        assert any("cut short" in line and "reason=forced" in line for line in tool.log)
    await until_stats(nsqd, lambda now: now["depth"] == 1)
    # What was acknowledged is where the folder is now.
    (part,) = (tmp_path / "away").glob("*.part")
    assert part.read_bytes().splitlines() == TEN


@pytest.mark.slow
async def test_the_time_to_stop_is_bounded(start_nsqd: StartNsqd, tmp_path: Path) -> None:
    nsqd = await start_nsqd(msg_timeout=HELD_BY_NSQD)
    folder = tmp_path / "archive"
    folder.mkdir()
    async with program(nsqd, folder, "--shutdown-timeout=200ms") as (tool, _):
        folder.rmdir()
        folder.write_text("something else")
        await publish(nsqd, b"held")
        await tool.says("output failed")
        assert await tool.end(signal.SIGTERM) == INTERRUPTED
        assert any("cut short" in line and "reason=timeout" in line for line in tool.log)
    await until_stats(nsqd, lambda now: now["depth"] == 1)


def run_program(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nsqtools", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.slow
def test_version() -> None:
    done = run_program("nsq_to_file", "--version")
    assert (done.returncode, done.stdout) == (0, f"nsq_to_file v{__version__}\n")


@pytest.mark.slow
def test_every_wrong_option_is_told_at_once() -> None:
    done = run_program("nsq_to_file", "--topic=no topic", "--gzip-level=12", "--max-inflight=3")
    assert done.returncode == 2
    assert done.stdout == ""
    for word in ("no topic", "--gzip-level", "--max-inflight", "--nsqd-tcp-address"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["--output-dir", "--work-dir"])
def test_a_folder_that_cannot_be_written_is_told_at_the_start(where: str, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    done = run_program(
        "nsq_to_file",
        "--topic=t",
        "--nsqd-tcp-address=127.0.0.1:4150",
        f"--output-dir={tmp_path / 'archive'}",
        f"{where}={in_the_way / 'folder'}",
    )
    assert done.returncode == 5
    assert str(in_the_way) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
async def test_two_brokers_do_not_share_a_data_path(tmp_path: Path) -> None:
    async with NsqdProgram(tmp_path) as first, NsqdProgram(tmp_path) as second:
        await first.serve()
        await second.start()
        assert await second.end(None) == 5
        assert f"{tmp_path}: in use by another process" in second.told
        async with RawClient(first.address) as client:
            await client.publish("t", b"it goes on")
