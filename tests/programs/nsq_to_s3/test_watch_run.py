"""What is told of a spool goes on being told, also after it could not be looked at."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import closing
from typing import TYPE_CHECKING

from tests.pipeline.helpers import publish
from tests.programs.nsq_to_s3.test_run import TEN, flags, tool, until_acknowledged
from tests.support.clients import until
from tests.support.nsqd import PATIENCE_S

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
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd
    from tests.support.programs import Program

__all__ = ["flags", "tool"]


async def test_metrics_and_health_tell_of_a_store_that_is_away(
    nsqd: Nsqd, proxy: FaultProxy, tool: Program, flags: list[str], tmp_path: Path
) -> None:
    socket = tmp_path / "status"
    proxy.fail("reset", times=10_000)
    await tool.start(
        *flags, "--rotate-records=10", f"--status-address={socket}", "--shutdown-timeout=2s"
    )
    for _ in range(2):  # what comes next seals the file
        await publish(nsqd, *TEN)
        await until_acknowledged(nsqd, tool)
    async with asyncio.timeout(PATIENCE_S):
        while "object store" not in (health := await ask(socket, "/health")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while "nsqtools_spool_held_files 2\n" not in (  # noqa: ASYNC110
            told := await ask(socket, "/metrics")
        ):
            await asyncio.sleep(0.05)
    assert "connection reset" in health
    assert "\nnsqtools_spool_held_bytes " in told
    assert re.search(r"^nsqtools_store_failures_total [1-9]", told, re.MULTILINE)
    assert await tool.end(signal.SIGTERM) == 0, tool.told


async def ask(socket: Path, target: str) -> str:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return body.decode()


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
        registry = Registry()
        watch.register(registry)
        watching = asyncio.create_task(watch.run(health))
        await until(lambda: "Too many open files" in health.failures.get("spool", ""))
        monkeypatch.setattr(durable, "names_in", real)
        await until(lambda: health.is_ok and watch.told() == ["0.0 MiB in the spool"])
        told = {sample.name: sample.value for sample in registry.snapshot()}
        assert told["nsqtools_spool_held_files"] == told["nsqtools_spool_held_bytes"] == 1
        watching.cancel()
    workers.close()
