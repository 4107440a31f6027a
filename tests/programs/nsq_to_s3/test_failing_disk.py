"""A disk that fails at call N, under the spool of a whole run: what was taken comes into the bucket."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import EVERY, FAULTS, FailingOs
from tests.pipeline.helpers import CHANNEL, publish, until_settled
from tests.support.clients import until
from tests.support.nsqd import PATIENCE_S

from nsqtools.errors import StorageError
from nsqtools.lifecycle import Lifecycle
from nsqtools.options import load
from nsqtools.outputs import trouble as trouble_module
from nsqtools.outputs.s3 import backlog as backlog_module
from nsqtools.pipeline import topic as topic_module
from nsqtools.programs.nsq_to_s3 import run as program
from nsqtools.programs.nsq_to_s3.options import NsqToS3Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.nsqd import Nsqd
    from tests.support.stores import StoreServer

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
# Each run makes requests, too: a larger prime.
STEP = 29
CALLS_MAX = 2000
# So many calls of a broken disk are in vain before it is mended.
FAILURES = 8


@pytest.fixture(autouse=True)
def _no_faults(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a disk says is expected: nothing else than an error with a path comes of it."""
    yield
    told = [record.getMessage() for record in caplog.get_records("call")]
    assert not [each for each in told if "a fault in nsqtools" in each]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        program, "Lifecycle", lambda timeout_s: Lifecycle(timeout_s, handle_signals=False)
    )
    for module in (topic_module, trouble_module):
        monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
        monkeypatch.setattr(module, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr(backlog_module, "LOOK_S", 0.05)
    monkeypatch.setattr(backlog_module, "AGAIN_S", 0.05)


async def run_to_its_end(options: NsqToS3Options, starts_max: int = 2) -> None:
    """Where a start is refused somebody starts it again."""
    for _ in range(starts_max):
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(StorageError):
                assert await program.run(options) == 0
                return
    raise AssertionError(f"refused {starts_max} times")


async def run_until_mended(options: NsqToS3Options, failing: FailingOs) -> None:
    """The disk is mended when some calls have been in vain."""
    running = asyncio.create_task(run_to_its_end(options, starts_max=1000))
    await until(lambda: len(failing.failed) > FAILURES or running.done())
    failing.heal()
    await running


def options_of(
    nsqd: Nsqd, server: StoreServer, bucket: str, folder: Path, topics: list[str], ack: str
) -> NsqToS3Options:
    flags = [
        *(f"--topic={topic}" for topic in topics),
        *(f"--channel={CHANNEL}", f"--nsqd-tcp-address={nsqd.tcp_address}"),
        *(f"--bucket={bucket}", f"--endpoint-url={server.endpoint_url}"),
        *(f"--spool-dir={folder}", f"--ack={ack}", "--sync-interval=20ms", "--rotate-records=4"),
        *("--manifest", "--exit-when-idle=80ms", "--progress=never"),
    ]
    return load(NsqToS3Options, "nsq_to_s3", flags, {})


async def run_all(
    ack: str,
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    step: int,
    *,
    for_good: bool = False,
) -> None:
    """Runs of two topics, each with one call that fails, or with none that does not, until none fails."""
    for fail_at in count(first, step):
        assert fail_at < CALLS_MAX
        topics = [f"a-{fail_at}", f"b-{fail_at}"]
        for topic in topics:
            await publish(nsqd, *SIX, topic=topic)
        folder = tmp_path / f"spool-{fail_at}"
        folder.mkdir()
        options = options_of(nsqd, server, archive.name, folder, topics, ack)
        code = FAULTS[fail_at % len(FAULTS)]
        failures = 1 << 30 if for_good else 1
        failing = FailingOs(fail_at, failures=failures, code=code, only=EVERY, below=folder)
        with monkeypatch.context() as patched:
            failing.install_everywhere(patched)
            await (run_until_mended(options, failing) if for_good else run_to_its_end(options))
        await run_to_its_end(options)
        what = f"N={fail_at} {failing.failed}"
        for topic in topics:
            await until_settled(nsqd, len(SIX), topic)
            keys = [key for key in archive.archives() if key.startswith(f"{topic}/")]
            bodies = [body for key in keys for body in archive.bodies(tmp_path, key)]
            assert set(bodies) == set(SIX), what
            if ack == "spool":
                assert len(bodies) == len(SIX), what
        assert not list(folder.glob("*.part*")), what
        if not failing.failed:
            assert fail_at > STEP
            return


@pytest.mark.parametrize("ack", ["spool", "upload"])
async def test_a_disk_that_fails_at_call_n(
    ack: str,
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await run_all(ack, nsqd, server, archive, tmp_path, monkeypatch, 3, STEP)


async def test_a_disk_that_fails_from_call_n_until_it_is_mended(
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await run_all("spool", nsqd, server, archive, tmp_path, monkeypatch, 7, 2 * STEP, for_good=True)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ack", ["spool", "upload"])
async def test_a_disk_that_fails_at_every_call(
    ack: str,
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await run_all(ack, nsqd, server, archive, tmp_path, monkeypatch, 0, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_disk_that_fails_from_any_call_until_it_is_mended(
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From every third, for each of the two stores."""
    await run_all("spool", nsqd, server, archive, tmp_path, monkeypatch, 0, 3, for_good=True)
