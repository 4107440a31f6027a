"""What metrics, health and the terminal say of spool and store."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, cast

import pytest
from tests.support.clients import until

from nsqtools.clock import ManualClock
from nsqtools.errors import StoreError
from nsqtools.observe.counters import Registry
from nsqtools.observe.health import Health
from nsqtools.outputs.s3.backlog import Backlog
from nsqtools.outputs.s3.destination import StoreDestination
from nsqtools.outputs.s3.spool import LOOK_INTERVAL_S, Spool
from nsqtools.outputs.workers import Workers
from nsqtools.programs.nsq_to_s3 import run
from nsqtools.programs.nsq_to_s3 import watch as module
from nsqtools.programs.nsq_to_s3.watch import SpoolWatch

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.stores.client import Store


class Away:
    """A store that cannot be reached, until it can."""

    bucket = "archive"
    part_bytes = 0
    is_away = True

    def is_taken(self, key: str) -> bool:
        if self.is_away:
            raise StoreError("look at", key, "connection refused", is_passing=True)
        return False


class Watched:
    """A watch over a folder, and what it says."""

    def __init__(self, folder: Path, *, with_spool: bool) -> None:
        self.store = Away()
        self.destination = StoreDestination(cast("Store", self.store))
        self.workers = Workers()
        self.clock = ManualClock()
        self.backlog = Backlog(
            folder,
            self.workers,
            self.destination,
            open_destination=lambda _: self.destination,
        )
        self.registry, self.health = Registry(), Health()
        self.watch = SpoolWatch(
            Spool(folder, 1 << 30, clock=self.clock) if with_spool else None,
            self.destination,
            self.backlog,
            self.workers.strand("spool"),
        )

        self.watch.register(self.registry)

    def value(self, name: str) -> float | None:
        for sample in self.registry.snapshot():
            if sample.name == name:
                return sample.value
        return None


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)


async def test_the_spool_and_the_store_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(bytes(3 << 20))
    os.utime(tmp_path / "a.part", (1000.0, 1000.0))
    watched = Watched(tmp_path, with_spool=True)
    task = asyncio.create_task(watched.watch.run(watched.health))
    await until(lambda: watched.value("nsqtools_spool_held_files") == 1)
    assert watched.value("nsqtools_spool_held_bytes") == 3 << 20
    assert (watched.value("nsqtools_spool_oldest_age_seconds") or 0) > 1e9
    assert watched.value("nsqtools_spool_backlog_files") == 0
    assert watched.watch.told() == ["3.0 MiB in the spool"]
    watched.backlog.left("t", tmp_path / "claim")
    await until(lambda: watched.health.notes != {})
    assert watched.health.notes == {"spool": "1 complete files wait for upload"}
    assert watched.value("nsqtools_spool_backlog_files") == 1
    assert watched.value("nsqtools_spool_set_aside_files") == 0
    (tmp_path / "b.part.bad").write_bytes(bytes(1 << 20))
    watched.clock.jump(10 * LOOK_INTERVAL_S)
    await until(lambda: "damaged files" in watched.health.notes)
    assert watched.health.notes["damaged files"].startswith("1 (1.0 MiB) are kept in the spool")
    assert watched.value("nsqtools_spool_set_aside_files") == 1
    assert watched.value("nsqtools_spool_set_aside_bytes") == 1 << 20
    assert watched.value("nsqtools_spool_held_bytes") == 3 << 20

    with pytest.raises(StoreError):
        watched.destination.is_taken("key")
    assert watched.value("nsqtools_store_failures_total") == 1
    await until(lambda: "object store" in watched.health.failures)
    assert "connection refused" in watched.health.failures["object store"]
    watched.store.is_away = False
    await asyncio.sleep(watched.destination.opens_in_s + 0.01)
    assert not watched.destination.is_taken("key")
    await until(lambda: "object store" not in watched.health.failures)
    task.cancel()
    watched.workers.close()


async def test_a_folder_that_is_no_spool_is_not_told_of(tmp_path: Path) -> None:
    """With --ack=upload it is that of all temporary files, somebody's download among them."""
    (tmp_path / "download.part").write_bytes(bytes(3 << 20))
    watched = Watched(tmp_path, with_spool=False)
    task = asyncio.create_task(watched.watch.run(watched.health))
    with pytest.raises(StoreError):
        watched.destination.is_taken("key")
    await until(lambda: "object store" in watched.health.failures)
    assert watched.value("nsqtools_store_failures_total") == 1
    assert watched.value("nsqtools_spool_held_files") is None
    assert watched.watch.told() == []
    task.cancel()
    watched.workers.close()


async def test_a_chore_that_fails_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or spool and store would be without metrics and uploads, and nobody knew."""
    watched = Watched(tmp_path, with_spool=True)
    monkeypatch.setattr(Spool, "state", None)
    chore = run._chore("watch", watched.watch.run(watched.health))
    await asyncio.wait([chore])
    assert "a chore has failed, and is not done any more chore=watch" in caplog.text
    assert "NoneType" in caplog.text
    watched.workers.close()
