"""What is told of a spool goes on being told, also after it could not be looked at."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING

from tests.support.clients import until

from nsqtools import durable
from nsqtools.errors import StorageError
from nsqtools.observe.counters import Registry
from nsqtools.observe.health import Health
from nsqtools.options import load
from nsqtools.outputs.s3.backlog import Backlog
from nsqtools.outputs.s3.destination import Destinations
from nsqtools.outputs.s3.spool import Spool
from nsqtools.outputs.workers import Workers
from nsqtools.programs.nsq_to_s3 import watch as module
from nsqtools.stores import StoreOptions

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_folder_that_cannot_be_listed_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr("nsqtools.outputs.s3.spool.LOOK_INTERVAL_S", 0.01)
    real = durable.names_in

    def fail(folder: Path) -> list[str]:
        raise StorageError("list", folder, OSError(24, "Too many open files"))

    (tmp_path / "t.part").write_bytes(b"x")
    workers, health = Workers(), Health()
    options = load(StoreOptions, "nsq_to_s3", ["--bucket=bucket"], {})
    with closing(Destinations(options)) as destinations:
        here = destinations.open("s3://bucket")
        backlog = Backlog(tmp_path, workers, here, open_destination=destinations.open)
        watch = module.SpoolWatch(Spool(tmp_path, 1 << 20), here, backlog, workers.strand("spool"))
        monkeypatch.setattr(durable, "names_in", fail)
        watching = asyncio.create_task(watch.run(Registry(), health))
        await until(lambda: "Too many open files" in health.failures.get("spool", ""))
        monkeypatch.setattr(durable, "names_in", real)
        await until(lambda: health.is_ok and watch.told() == ["0 MiB in the spool"])
        watching.cancel()
    workers.close()
