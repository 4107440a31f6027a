"""What the broker does by itself never takes the last copy of a message."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.disks import open_files
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import OK, RawClient
from tests.support.web import POLL_S, request

from nsqtools.broker import files, journal, recovery, upkeep
from nsqtools.broker.journal import Journal, Rewrite
from nsqtools.broker.log import DiskLog
from nsqtools.errors import StorageError
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nsqtools.broker.log import Found

HOUR_MS = 3_600_000


class WatchedOs:
    """The module `os`; writes fail while `is_full`, and who syncs is remembered."""

    def __init__(self) -> None:
        self.is_full = False
        self.syncing: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def writev(self, fd: int, parts: list[bytes]) -> int:
        if self.is_full:
            raise OSError(28, os.strerror(28))
        return os.writev(fd, parts)

    def fdatasync(self, fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().suffix == ".channel":
            self.syncing.add(threading.current_thread().name)
        os.fdatasync(fd)


@pytest.fixture
async def nsqd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddedNsqd]:
    monkeypatch.setattr(upkeep, "PASS_INTERVAL_S", 0.02)
    made = EmbeddedNsqd(tmp_path / "data", {"max_bytes_per_file": 4096, "sync_timeout": "20ms"})
    made.data_path.mkdir()
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_copy_is_on_the_disk_before_the_original_goes(
    nsqd: EmbeddedNsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool
) -> None:
    """Also where the journal can be written no more while the copy is made."""
    disk, gone = WatchedOs(), asyncio.Event()
    loop = asyncio.get_running_loop()
    topic = nsqd.broker.topic("t")
    channel = topic.channel("c")
    real_find, real_remove = DiskLog.find, recovery.remove

    def break_journal() -> None:
        disk.is_full = True
        channel.pause(paused=False)
        with contextlib.suppress(StorageError):
            topic.flush()
        disk.is_full = False

    def find(log: DiskLog, numbers: Sequence[int], bytes_max: int) -> Found | None:
        if breaks:
            loop.call_soon_threadsafe(break_journal)
            while not channel.journal.wants_rewrite:
                pass
        return real_find(log, numbers, bytes_max)

    def remove(path: Path) -> None:
        if not (tmp_path / "killed.channel").exists():
            shutil.copyfile(path.with_name("c.channel"), tmp_path / "killed.channel")
        real_remove(path)
        loop.call_soon_threadsafe(gone.set)

    monkeypatch.setattr(files, "os", disk)
    monkeypatch.setattr(DiskLog, "find", find)
    monkeypatch.setattr(recovery, "remove", remove)
    async with RawClient(nsqd.tcp_address) as client:
        assert await client.ask(commands.dpub("t", b"later", HOUR_MS)) == OK
        for _ in range(20):
            await client.publish("t", b"x" * 500)
        await client.subscribe("t", "c", 100)
        client.finish(*await client.messages(20))
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    state, _ = Journal(tmp_path / "killed.channel", open_files()).load()
    assert [frame[-5:] for frame in state.carried.values()] == [b"later"]
    assert not {name for name in disk.syncing if not name.startswith("nsqd-sync")}


async def test_a_copy_that_a_killed_broker_made_is_on_the_disk_before_the_original_goes(
    nsqd: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, gone = WatchedOs(), asyncio.Event()
    loop, real_remove = asyncio.get_running_loop(), recovery.remove
    synced_before: list[bool] = []

    def remove(path: Path) -> None:
        synced_before.append(bool(disk.syncing))
        real_remove(path)
        loop.call_soon_threadsafe(gone.set)

    async def rest(*_: object) -> None:
        """It was killed before it came to that."""

    with monkeypatch.context() as patch:
        patch.setattr(upkeep.Upkeep, "_trim", rest)
        topic = nsqd.broker.topic("t")
        channel = topic.channel("c")
        async with RawClient(nsqd.tcp_address) as client:
            assert await client.ask(commands.dpub("t", b"later", HOUR_MS)) == OK
            for _ in range(20):
                await client.publish("t", b"x" * 500)
        assert channel.carry_over(topic.log.end)
        topic.flush()
        await nsqd.restart(kill=True)
    monkeypatch.setattr(files, "os", disk)
    monkeypatch.setattr(recovery, "remove", remove)
    async with asyncio.timeout(PATIENCE_S):
        await gone.wait()
    assert synced_before[0]


@pytest.mark.parametrize("path", ["/channel/empty?", "/channel/seek?to=newest&", "/topic/empty?"])
async def test_what_a_journal_does_not_keep_is_not_answered_for(
    nsqd: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The journal cannot be written; it is made anew when the disk has room."""
    target, disk = f"{path}topic=t&channel=c", WatchedOs()
    monkeypatch.setattr(files, "os", disk)
    topic = nsqd.broker.topic("t")
    channel = topic.channel("c")
    if path.startswith("/topic"):
        topic.pause(paused=True)
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish("t", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(Rewrite, "write", refuse)
        disk.is_full = True
        channel.pause(paused=False)
        with pytest.raises(StorageError):
            topic.flush()
        disk.is_full = False
        assert (await request(nsqd, "POST", target)).status == 500
    async with asyncio.timeout(PATIENCE_S):
        while (await request(nsqd, "POST", target)).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
    await nsqd.restart(kill=True)
    topic = nsqd.broker.topic("t")
    assert (topic.depth, topic.channels["c"].depth) == (0, 0)


def refuse(rewrite: Rewrite) -> None:
    raise StorageError("write", "journal", OSError(28, os.strerror(28)))


async def test_a_journal_that_keeps_nothing_gets_no_copies(
    nsqd: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be held in memory for nothing, and make the journal larger that waits for room."""
    disk, refused = WatchedOs(), 0

    def count_and_refuse(rewrite: Rewrite) -> None:
        nonlocal refused
        refused += 1
        refuse(rewrite)

    topic = nsqd.broker.topic("t")
    channel = topic.channel("c")
    async with RawClient(nsqd.tcp_address) as client:
        assert await client.ask(commands.dpub("t", b"later", HOUR_MS)) == OK
        for _ in range(20):
            await client.publish("t", b"x" * 500)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", disk)
            patch.setattr(Rewrite, "write", count_and_refuse)
            disk.is_full = True
            await client.subscribe("t", "c", 100)
            client.finish(*await client.messages(20))
            async with asyncio.timeout(PATIENCE_S):
                while refused < 5 or channel.in_flight:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
            assert channel.journal.is_broken
            assert not channel.frozen().carried
            disk.is_full = False
        async with asyncio.timeout(PATIENCE_S):
            while not channel.frozen().carried:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)


async def test_a_rewrite_that_cannot_be_cleaned_up_does_not_hold_the_end(
    nsqd: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ending = threading.Event(), threading.Event()

    def write(rewrite: Rewrite) -> None:
        begun.set()
        ending.wait()

    monkeypatch.setattr(Rewrite, "write", write)
    monkeypatch.setattr(Rewrite, "clean_up", refuse)
    monkeypatch.setattr(journal, "COMPACT_BYTES", 1)
    channel = nsqd.broker.topic("t").channel("c")
    for _ in range(9):
        channel.pause(paused=False)
    nsqd.broker.topic("t").flush()
    await asyncio.to_thread(begun.wait)
    stopping = asyncio.create_task(nsqd.stop())
    await asyncio.sleep(0)
    ending.set()
    async with asyncio.timeout(PATIENCE_S):
        await stopping
