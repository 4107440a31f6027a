"""A disk of which call N fails: never an OK for what is not there after a restart.

What a failed fsync was for is lost, as Linux may lose it: when the broker has ended, every file of
which a sync has failed is cut to what was synced before, unless it was written anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.archive.failing_os import COUNTED, EVERY, FailingOs
from tests.support.nsqd import PATIENCE_S

from nsqtools import durable
from nsqtools.broker import files, journal, recovery, segment, upkeep
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.errors import StorageError
from nsqtools.options import load
from nsqtools.wire.bodies import measured
from nsqtools.wire.commands import fin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.broker.block import BadBlock

CALLS = (COUNTED | {"writev", "write", "truncate", "listdir", "close"}) - {"fstat", "lstat"}
ROUNDS = 14
# Large enough for a new segment every few rounds.
BODY = b"%04d" + b"x" * 1000
CALLS_MAX = 1000
STEP = 9


class LossyOs(FailingOs):
    """Remembers what of a file was on the disk when a sync of it failed."""

    def __init__(self, fail_at: int, code: int) -> None:
        super().__init__(fail_at, code=code, only=CALLS)
        self._synced: dict[tuple[int, int], int] = {}
        self.lost: dict[tuple[int, int], int] = {}
        self._held: list[int] = []

    def counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        counted = super().counting(name, real)
        if name not in {"fdatasync", "fsync"}:
            return counted
        return lambda fd: self._sync(fd, counted)

    def _sync(self, fd: int, counted: Callable[[int], None]) -> None:
        found = os.fstat(fd)
        file = (found.st_dev, found.st_ino)
        try:
            counted(fd)
        except OSError:
            self.lost[file] = self._synced.get(file, 0)
            # As long as it is open no other file gets its number.
            self._held.append(os.dup(fd))
            raise
        if file not in self.lost:
            self._synced[file] = found.st_size

    def lose(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            found = path.stat()
            size = self.lost.get((found.st_dev, found.st_ino))
            if size is not None and path.is_file():
                os.truncate(path, size)
        while self._held:
            os.close(self._held.pop())


class Reader:
    """A consumer in this process, which acknowledges every second message that it gets."""

    def __init__(self, *, finishes: bool) -> None:
        self.in_flight = 0
        self.msg_timeout_s = 60.0
        self.sample_rate = 0
        self.got: list[tuple[int, bytes]] = []
        self.finishes = finishes
        self.finished: set[int] = set()

    def budget(self) -> int:
        return 2 * ROUNDS - self.in_flight

    def deliver(self, frames: Sequence[bytes], count: int) -> None:
        left = b"".join(frames)
        while left:
            size = 4 + int.from_bytes(left[:4], "big")
            self.got.append((int(left[34:38]), left[18:34]))
            left = left[size:]

    def disconnect(self) -> None:
        pass


@pytest.fixture(params=["durable", "not durable"])
def is_durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "durable")


def options_of(folder: Path, *, is_durable: bool) -> NsqdOptions:
    flags = ["--http-address=", "--tcp-address=127.0.0.1:0", "--max-bytes-per-file=4096"]
    flags += ["--mem-queue-size=5", "--sync-every=4", "--sync-timeout=20ms"]
    return load(
        NsqdOptions, "nsqd", [*flags, f"--data-path={folder}", f"--durable={is_durable}"], {}
    )


async def put(broker: Broker, number: int) -> bool:
    """Publish; whether it was answered with OK."""
    answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    try:
        broker.put(broker.topic("t"), measured([BODY % number]), 0, answer.set_result)
    except StorageError:
        return False
    async with asyncio.timeout(PATIENCE_S):
        return await answer is None


async def live(broker: Broker, reader: Reader) -> set[int]:
    """Publish and acknowledge; gives what was answered with OK."""
    good: set[int] = set()
    for number in range(ROUNDS):
        # A channel gets what comes when it is there.
        with contextlib.suppress(StorageError):
            topic = broker.topic("t")
            channel, _ = topic.channel("read"), topic.channel("unread")
            if reader not in channel.subscribers:
                channel.subscribe(reader)
                channel.ready(reader)
            if await put(broker, number):
                good.add(number)
            for told, message_id in reader.got[number % 2 :: 2]:
                if told not in reader.finished and not channel.finish(reader, fin([message_id])):
                    reader.finished.add(told)
            broker.touched(topic)
        await asyncio.sleep(0.01)
    return good


async def one_life(folder: Path, *, is_durable: bool, disk: LossyOs) -> tuple[set[int], set[int]]:
    """What was answered with OK, and what was acknowledged."""
    reader = Reader(finishes=True)
    good: set[int] = set()
    with contextlib.suppress(StorageError):
        async with Broker(options_of(folder, is_durable=is_durable)) as broker:
            good = await live(broker, reader)
    disk.lose(folder if is_durable else folder / "none")
    return good, reader.finished


async def what_is_there(folder: Path) -> dict[str, list[int]]:
    async with Broker(options_of(folder, is_durable=False)) as broker:
        for name in ("read", "unread"):
            broker.topic("t").channel(name)
        assert await put(broker, 9999), "the disk is well"
        found = {}
        for name in ("read", "unread"):
            reader = Reader(finishes=False)
            channel = broker.topic("t").channel(name)
            channel.subscribe(reader)
            async with asyncio.timeout(PATIENCE_S):
                while not any(number == 9999 for number, _ in reader.got):
                    channel.ready(reader)
                    await asyncio.sleep(0.001)
            found[name] = [number for number, _ in reader.got if number != 9999]
        return found


async def check(folder: Path, call: int, code: int, is_durable: bool) -> bool:
    """One run with call `call` failing; False when there is no such call."""
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = LossyOs(call, code)
        disk.install(patch)
        for module in (files, journal, recovery, segment):
            patch.setattr(module, "os", disk)
        patch.setattr(upkeep, "PASS_INTERVAL_S", 0.02)
        try:
            good, finished = await one_life(folder, is_durable=is_durable, disk=disk)
        except TimeoutError:
            pytest.fail(f"call {call} ({disk.failed}): never answered")
    found = await what_is_there(folder)
    where = f"call {call} ({disk.failed}), {errno.errorcode[code]}"
    assert good <= set(found["unread"]), f"{where}: answered with OK, and lost"
    assert good - finished <= set(found["read"]), f"{where}: answered with OK, and lost"
    assert len(found["unread"]) == len(set(found["unread"])), f"{where}: twice"
    return bool(disk.failed)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE])
async def test_never_ok_for_what_is_lost(
    tmp_path: Path, is_durable: bool, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    for call in itertools.count(code % STEP, STEP):
        if not await check(tmp_path / str(call), call, code, is_durable):
            assert call > 5 * STEP
            return


@pytest.mark.soak
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EROFS])
async def test_never_ok_for_what_is_lost_at_any_call(
    tmp_path: Path, is_durable: bool, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    for call in itertools.count():
        if not await check(tmp_path / str(call), call, code, is_durable):
            return


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
async def test_a_start_on_what_is_there_fails_with_a_name_or_not_at_all(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever call fails of all that Python makes on the folder."""
    caplog.set_level("CRITICAL")
    good, _ = await one_life(tmp_path, is_durable=False, disk=LossyOs(-1, code))
    for call in itertools.count():
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingOs(call, code=code, only=EVERY, below=tmp_path)
            disk.install_everywhere(patch)
            with contextlib.suppress(StorageError):
                async with Broker(options_of(tmp_path, is_durable=False)):
                    pass
        if not disk.failed:
            break
    assert call > 20
    assert good <= set((await what_is_there(tmp_path))["unread"])


@pytest.mark.parametrize("what", ["topic", "channel"])
async def test_what_cannot_be_deleted_goes_on(tmp_path: Path, what: str) -> None:
    """There is one owner of its files all the time, and it is deleted when it is tried again."""
    async with Broker(options_of(tmp_path, is_durable=False)) as broker:
        topic, reader = broker.topic("t"), Reader(finishes=False)
        topic.channel("c").subscribe(reader)

        def delete() -> None:
            if what == "topic":
                broker.delete_topic("t")
            else:
                broker.delete_channel(topic, "c")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tmp_path), "rename", refuse)
            patch.setattr(durable, "unlink", refuse)
            with pytest.raises(StorageError, match="refused"):
                delete()
        assert broker.topic("t") is topic
        assert await put(broker, 1)
        topic.channels["c"].ready(reader)
        assert [number for number, _ in reader.got] == [1]
        delete()
        assert topic.exiting == (what == "topic")
        assert not broker.topic("t").channels
        if what == "channel":
            await broker.keep(topic)
            assert not list(tmp_path.rglob("*.channel"))


async def test_a_topic_that_is_deleted_while_it_is_written_anew_takes_nobodys_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(options_of(tmp_path, is_durable=True)) as broker:
        loop, gone = asyncio.get_running_loop(), threading.Event()
        assert await put(broker, 1)
        real_scan = segment.scan

        def delete() -> None:
            broker.delete_topic("t")
            gone.set()

        def scan(one: segment.Segment) -> BadBlock | None:
            loop.call_soon_threadsafe(delete)
            gone.wait()
            return real_scan(one)

        with pytest.MonkeyPatch.context() as patch:
            disk = FailingOs(0, only={"fdatasync"}, code=errno.EIO)
            patch.setattr(files, "os", disk)
            assert not await put(broker, 2)
        monkeypatch.setattr(segment, "scan", scan)
        answer: asyncio.Future[str | None] = loop.create_future()
        broker.put(broker.topic("other"), measured([b"x"]), 0, answer.set_result)
        await put(broker, 3)
        async with asyncio.timeout(PATIENCE_S):
            assert await answer is None


def refuse(path: Path, *_: object) -> None:
    raise StorageError("change", path, OSError(errno.EIO, "refused"))
