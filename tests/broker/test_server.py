"""What the broker as a whole does beside its conversations: disks that fail, syncs, letting go."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import ERROR, MESSAGE, OK, RawClient, bodies, parse_message
from tests.support.web import channel_stats, request, topic_stats

from nsqtools import durable
from nsqtools.broker import commits as commits_module
from nsqtools.broker import files as files_module
from nsqtools.broker import upkeep as upkeep_module
from nsqtools.broker.log import DiskLog
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.errors import ConnectionFailed, DataPathInUse, StorageError
from nsqtools.wire import commands
from nsqtools.wire.bodies import measured

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.nsqd import Flag


@contextlib.asynccontextmanager
async def running(folder: Path, **flags: Flag) -> AsyncIterator[EmbeddedNsqd]:
    nsqd = EmbeddedNsqd(folder, flags)
    await nsqd.start()
    try:
        yield nsqd
    finally:
        await nsqd.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class FullDisk:
    """The module `os` on a full disk."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def writev(self, *_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_is_answered_and_never_with_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as nsqd, RawClient(nsqd.tcp_address) as consumer:
        await consumer.subscribe("t", "c", rdy=10)
        with monkeypatch.context() as patch:
            patch.setattr(files_module, "os", FullDisk())
            for name, command in (
                (b"PUB", commands.pub("t", b"lost")),
                (b"MPUB", commands.mpub("t", [b"lost", b"too"])),
                (b"DPUB", commands.dpub("t", b"lost", 1)),
            ):
                async with RawClient(nsqd.tcp_address) as client:
                    kind, text = await client.ask(command)
                    assert kind == ERROR
                    assert text.startswith(b"E_%b_FAILED %b failed write " % (name, name))
                    assert text.endswith(b"No space left on device")
                    assert await client.ended() == b""
            answer = await request(nsqd, "POST", "/pub?topic=t", b"lost")
            assert (answer.status, answer.message) == (503, "EXITING")
            ping = await request(nsqd, "GET", "/ping")
            assert ping.status == 500
            assert ping.body.startswith(b"NOK - write ")
        assert (await request(nsqd, "POST", "/pub?topic=t", b"kept")).body == b"OK"
        assert (await request(nsqd, "GET", "/ping")).body == b"OK"
        assert (await consumer.message()).body == b"kept"
        assert await consumer.is_quiet()


async def test_deleting_a_topic_answers_who_still_waits(tmp_path: Path) -> None:
    async with running(tmp_path) as nsqd:
        answers: list[str | None] = []
        topic = nsqd.broker.topic("t")
        nsqd.broker.put(topic, measured([b"x"]), 0, answers.append)
        nsqd.broker.delete_topic("t")
        assert answers == ["exiting"]
        nsqd.broker.put(topic, measured([b"y"]), 0, answers.append)
        await until(lambda: len(answers) == 2)
        assert answers == ["exiting", "exiting"]
        assert (await request(nsqd, "POST", "/pub?topic=t", b"new")).body == b"OK"
        # The files of the old one go in the background, those of the new one stay.
        await until(lambda: not list(tmp_path.glob("*.deleted")))
        assert [path.name for path in tmp_path.iterdir()] == ["t.topic"]


async def test_a_topic_made_anew_has_no_state_of_the_one_that_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one is being synced when it goes, and saves its state where the new one has its folder."""
    async with running(tmp_path, sync_timeout="1h") as nsqd:
        broker, loop, is_anew = nsqd.broker, asyncio.get_running_loop(), threading.Event()
        real = durable.replace_file

        def make_anew() -> None:
            broker.delete_topic("t")
            broker.topic("t")
            is_anew.set()

        def replace_file(path: Path, data: bytes) -> None:
            if not is_anew.is_set():
                loop.call_soon_threadsafe(make_anew)
                assert is_anew.wait(PATIENCE_S)
            real(path, data)

        old = broker.topic("t")
        old.pause(paused=True)
        monkeypatch.setattr(durable, "replace_file", replace_file)
        await broker.keep(old)
        assert old.exiting
        await nsqd.restart(kill=True)
        assert not nsqd.broker.topics["t"].paused


async def test_what_a_cut_deletion_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "gone.topic.17.deleted"
    left.mkdir()
    (left / "file").write_bytes(b"x")
    async with running(tmp_path):
        await until(lambda: not left.exists())


@pytest.mark.parametrize("flush", ["durable", "not durable"])
async def test_durable_answers_come_behind_the_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: str
) -> None:
    order: list[str] = []
    sync = commits_module._sync_each

    def noted(topics: Any) -> Any:
        result = sync(topics)
        order.append("synced")
        return result

    monkeypatch.setattr(commits_module, "_sync_each", noted)
    is_durable = flush == "durable"
    async with (
        running(tmp_path, durable=is_durable, sync_timeout="1h") as nsqd,
        RawClient(nsqd.tcp_address) as client,
    ):
        client.send(*[commands.pub("t", b"%d" % number) for number in range(50)])
        assert await client.frames(50) == [OK] * 50
        assert bool(order) is is_durable
        await client.subscribe("t", "c", rdy=100)
        assert len(await client.messages(50)) == 50


async def test_publishers_have_their_turn_however_much_else_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow disk, where a sync that nobody publishes for is always under way."""
    is_answered = asyncio.Event()
    real = durable.replace_file

    def replace_file(path: Path, data: bytes) -> None:
        time.sleep(0.01)
        real(path, data)

    async def keep(broker: Broker, name: str) -> None:
        while not is_answered.is_set():
            broker.topic(name).pause(paused=True)
            await broker.keep(broker.topic(name))

    monkeypatch.setattr(durable, "replace_file", replace_file)
    async with running(tmp_path, durable=True) as nsqd, RawClient(nsqd.tcp_address) as client:
        await client.publish("t", b"there is a topic")
        async with asyncio.TaskGroup() as keeping:
            for name in ("one", "two", "three"):
                keeping.create_task(keep(nsqd.broker, name))
            await until(lambda: len(nsqd.broker._commits._syncs) == 3)
            await client.publish("t", b"x")
            is_answered.set()


class NoSync:
    """The module `os` of a disk that cannot write back; it tells so once for each file, as Linux does."""

    def __init__(self) -> None:
        self.told: set[tuple[int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fdatasync(self, fd: int) -> None:
        found = os.fstat(fd)
        file = (found.st_dev, found.st_ino)
        if file not in self.told:
            self.told.add(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_what_a_failed_sync_was_for_is_refused_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, durable=True) as nsqd, RawClient(nsqd.tcp_address) as reader:
        await reader.subscribe("t", "waits", rdy=10)
        async with RawClient(nsqd.tcp_address) as client:
            assert await client.ask(commands.pub("t", b"before")) == OK
            reader.finish(await reader.message())
            with monkeypatch.context() as patch:
                patch.setattr(files_module, "os", NoSync())
                kind, text = await client.ask(commands.pub("t", b"lost"))
                assert kind == ERROR
                assert text.startswith(b"E_PUB_FAILED PUB failed fsync ")
        assert (await request(nsqd, "GET", "/ping")).status == 500
        async with RawClient(nsqd.tcp_address) as client:
            assert await client.ask(commands.pub("t", b"behind")) == OK
            assert (await request(nsqd, "GET", "/ping")).status == 200
            assert (await reader.message()).body == b"behind"
        await nsqd.restart(kill=True)
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "waits", rdy=10)
            assert (await client.message()).body == b"behind"
            assert (await channel_stats(nsqd, "t", "waits"))["depth"] == 0


async def test_topics_fail_each_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = DiskLog.sync

    def failing(log: DiskLog) -> None:
        if "bad" in str(log._folder):
            raise StorageError("fsync", log._folder, OSError(errno.EIO, "I/O error"))
        sync(log)

    async with running(tmp_path, durable=True) as nsqd, RawClient(nsqd.tcp_address) as client:
        monkeypatch.setattr(DiskLog, "sync", failing)
        good: list[str | None] = []
        bad: list[str | None] = []
        broker = nsqd.broker
        for _ in range(3):
            broker.put(broker.topic("bad"), measured([b"x"]), 0, bad.append)
            broker.put(broker.topic("good"), measured([b"x"]), 0, good.append)
        await until(lambda: len(good) == len(bad) == 3)
        assert good == [None] * 3
        assert all(reason is not None and "I/O error" in reason for reason in bad)
        await client.subscribe("bad", "c", rdy=1)
        assert (await topic_stats(nsqd, "bad"))["message_count"] == 0
        monkeypatch.undo()
        await client.publish("bad", b"better")
        assert bodies(await client.messages(1)) == [b"better"]


@pytest.mark.slow
async def test_the_log_goes_when_it_is_read_and_one_stuck_message_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "PASS_INTERVAL_S", 0.0)
    async with (
        running(tmp_path, max_bytes_per_file=4096, mem_queue_size=1) as nsqd,
        RawClient(nsqd.tcp_address) as client,
    ):
        await client.publish("t", *[b"%03d" % number + b"x" * 200 for number in range(10)])
        await client.subscribe("t", "c", rdy=10)
        stuck, *others = await client.messages(10)
        client.finish(*others)
        for _ in range(10):
            client.send(commands.mpub("t", [b"y" * 1000] * 5))
            frames = await client.frames(6)
            assert frames.count(OK) == 1
            client.finish(*[parse_message(data) for kind, data in frames if kind == MESSAGE])
        await until(lambda: len(list((tmp_path / "t.topic").glob("*.log"))) <= 2)
        client.requeue(stuck)
        assert await client.message() == stuck._replace(attempts=2)


async def test_a_backlog_beyond_the_memory_comes_from_disk_in_order(tmp_path: Path) -> None:
    async with (
        running(tmp_path, max_bytes_per_file=4096, mem_queue_size=5) as nsqd,
        RawClient(nsqd.tcp_address) as client,
    ):
        everything = [b"%04d" % number for number in range(1000)]
        for start in range(0, 1000, 10):
            client.send(commands.mpub("t", everything[start : start + 10]))
        assert await client.frames(100) == [OK] * 100
        await client.subscribe("t", "c", rdy=50)
        seen: list[bytes] = []
        while len(seen) < 1000:
            messages = await client.messages(min(50, 1000 - len(seen)))
            seen += bodies(messages)
            client.finish(*messages)
        assert seen == everything


@pytest.mark.parametrize("running_on", [True, False])
async def test_what_somebody_took_away_of_a_log_is_told_and_does_not_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, running_on: bool
) -> None:
    async with (
        running(tmp_path, max_bytes_per_file=4096, mem_queue_size=1) as nsqd,
        RawClient(nsqd.tcp_address) as publisher,
    ):
        nsqd.broker.topic("t").channel("c")
        sent = [b"%02d" % number + b"x" * 2000 for number in range(10)]
        for body in sent:
            await publisher.publish("t", body)
        if not running_on:
            await nsqd.stop()
        paths = sorted((tmp_path / "t.topic").glob("*.log"))
        assert len(paths) == 5
        paths[1].unlink()
        if not running_on:
            await nsqd.start()
            assert (await channel_stats(nsqd, "t", "c"))["depth"] == 8
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=10)
            messages = await client.messages(8)
            assert bodies(messages) == sent[:2] + sent[4:]
            client.finish(*messages)
            await until(lambda: nsqd.broker.topics["t"].channels["c"].in_flight == 0)
        assert (await channel_stats(nsqd, "t", "c"))["depth"] == 0
    assert "messages=2" in caplog.text


async def test_a_data_path_serves_one_broker(tmp_path: Path) -> None:
    async with running(tmp_path):
        with pytest.raises(DataPathInUse):
            await EmbeddedNsqd(tmp_path, {}).start()
    with pytest.raises(StorageError, match="open data path"):
        await EmbeddedNsqd(tmp_path / "none", {}).start()
    # And it can be had again.
    async with running(tmp_path):
        pass


async def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with running(tmp_path / "a") as nsqd:
        for taken in ("tcp_address", "http_address"):
            addresses = {"tcp_address": "127.0.0.1:0", "http_address": "127.0.0.1:0"}
            addresses[taken] = getattr(nsqd, taken)
            options = NsqdOptions(data_path=tmp_path / "b", **addresses)  # type: ignore[arg-type]
            with pytest.raises(ConnectionFailed, match="cannot listen"):
                await Broker(options).__aenter__()


async def test_stopping_ends_connections_without_a_word(tmp_path: Path) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c")
        await nsqd.stop()
        assert await client.ended() == b""
    with pytest.raises(OSError, match=r"Connect call failed|refused"):
        async with RawClient(nsqd.tcp_address):
            pass
