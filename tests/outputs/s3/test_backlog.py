"""Files of a spool that no output has in hand: uploaded for as long as it takes, whoever else looks."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of
from tests.support.nsqd import PATIENCE_S

from nsqtools.archive.claims import Claim, claim_paths
from nsqtools.archive.object_names import ObjectNaming
from nsqtools.archive.writer import ArchiveSpec, ArchiveWriter
from nsqtools.options import load
from nsqtools.outputs.s3 import backlog as module
from nsqtools.outputs.s3.backlog import Backlog
from nsqtools.outputs.s3.destination import Destinations
from nsqtools.outputs.workers import Workers
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy


@pytest.fixture
def destinations(proxy: FaultProxy, bucket: str) -> Iterator[Destinations]:
    flags = [f"--bucket={bucket}", f"--endpoint-url={proxy.endpoint_url}", "--store-timeout=5s"]
    flags.append("--multipart-threshold=5MiB")
    with closing(Destinations(load(StoreOptions, "nsq_to_s3", flags, {}))) as opened:
        yield opened


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def begun(destinations: Destinations, bucket: str, spool: Path) -> Callable[..., ArchiveWriter]:
    """A file of a topic in the spool, and the writer that has it in hand."""

    def begin(topic: str, body: bytes) -> ArchiveWriter:
        spec = ArchiveSpec(
            topic=topic,
            channel="channel",
            host="host",
            output_dir=spool,
            work_dir=spool,
            naming=ObjectNaming(host="host", record_format="lines"),
        )
        writer = ArchiveWriter(spec, destination=destinations.open(f"s3://{bucket}"))
        writer.commit([batch_of([body])])
        return writer

    return begin


@pytest.fixture
def backlog(
    destinations: Destinations, bucket: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backlog]:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "AGAIN_S", 0.1)
    workers = Workers()
    here = destinations.open(f"s3://{bucket}")
    yield Backlog(spool, workers, here, open_destination=destinations.open)
    workers.close()


@contextlib.asynccontextmanager
async def running(backlog: Backlog) -> AsyncIterator[None]:
    task = asyncio.create_task(backlog.run())
    yield
    assert not task.done(), "it ended"
    task.cancel()
    await asyncio.wait([task])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - a store has no event
            await asyncio.sleep(0.02)


async def test_a_file_that_somebody_else_has_in_hand_for_now(
    backlog: Backlog,
    begun: Callable[..., ArchiveWriter],
    archive: Bucket,
    spool: Path,
    tmp_path: Path,
) -> None:
    """`nsqtools spool upload`, which may fail: it stays ours, and the watermark waits for it."""
    begun("topic", b"body").abandon()
    assert await backlog.finish("topic") == 1
    (path,) = claim_paths(spool)
    claim = Claim.adopt(path)
    assert claim is not None
    async with running(backlog):
        with closing(claim):
            await until(lambda: backlog.trouble_of("topic") != "")
            assert backlog.failed_of("topic") == 1
        await until(lambda: backlog.waiting == 0)
    assert backlog.trouble_of("topic") == ""
    assert archive.all_bodies(tmp_path) == [b"body"]


async def test_a_file_whose_archiver_dies_later(
    backlog: Backlog, begun: Callable[..., ArchiveWriter], archive: Bucket, tmp_path: Path
) -> None:
    """Two archivers on one spool: the one that lives uploads what the other one leaves."""
    living = begun("topic", b"body")
    assert await backlog.finish("topic") == 0
    async with running(backlog):
        await asyncio.sleep(0.2)
        assert archive.keys() == []
        living.abandon()
        await until(lambda: archive.archives() != [])
        await until(lambda: backlog.waiting == 0)
    assert archive.all_bodies(tmp_path) == [b"body"]


async def test_a_store_whose_answers_say_nothing(
    backlog: Backlog,
    begun: Callable[..., ArchiveWriter],
    archive: Bucket,
    proxy: FaultProxy,
) -> None:
    """Something in between says 200 to everything: no more than another failure."""
    begun("large", b"x" * 6_000_000).abandon()
    begun("small", b"body").abandon()
    proxy.fail("status", "POST", "uploads", status=200, times=2)
    await backlog.finish("large")
    async with running(backlog):
        await until(lambda: len(archive.archives()) == 2)
        await until(lambda: backlog.waiting == 0)


async def test_a_fault_costs_one_file_and_not_the_others(
    backlog: Backlog,
    begun: Callable[..., ArchiveWriter],
    archive: Bucket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for topic in ("bad", "good"):
        begun(topic, b"body").abandon()

    await backlog.finish("bad")
    real = Claim.adopt

    def adopt(path: Path) -> Claim | None:
        claim = real(path)
        if claim is not None and claim.facts.topic == "bad":
            claim.close()
            raise KeyError("a fault")
        return claim

    monkeypatch.setattr(Claim, "adopt", adopt)
    async with running(backlog):
        await until(lambda: backlog.trouble_of("bad") != "")
        await until(lambda: backlog.failed_of("good") == 0)
        assert [key.partition("/")[0] for key in archive.archives()] == ["good"]
        monkeypatch.setattr(Claim, "adopt", real)
        await until(lambda: backlog.waiting == 0)
    assert len(archive.archives()) == 2
