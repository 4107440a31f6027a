"""A disk that fails at call N, under the dead letters of a run: what the endpoint refused is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
from itertools import count
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.archive.failing_os import EVERY, FAULTS, FailingOs
from tests.programs.nsq_to_http.helpers import options_of, publish, until_settled
from tests.support.clients import until
from tests.support.endpoints import serving
from tests.support.nsqd import PATIENCE_S

from nsqtools.errors import StorageError
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs import trouble as trouble_module
from nsqtools.outputs.file import leftovers as leftovers_module
from nsqtools.outputs.http import breaker as breaker_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.pipeline import topic as topic_module
from nsqtools.programs.nsq_to_http import run as program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.endpoints import Endpoint
    from tests.support.nsqd import Nsqd

    from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
STEP = 13
CALLS_MAX = 2000
# So many calls of a broken disk are in vain before it is mended.
FAILURES = 8

for_good_or_once = pytest.mark.parametrize("for_good", [False, True], ids=["once", "until-mended"])


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
    monkeypatch.setattr(leftovers_module, "AGAIN_S", 0.05)
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.02)
    monkeypatch.setattr(breaker_module, "HELD_S", 0.05)


async def run_to_its_end(options: NsqToHttpOptions, starts_max: int = 2) -> None:
    """Where a start is refused somebody starts it again."""
    for _ in range(starts_max):
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(StorageError):
                assert await program.run(options) == 0
                return
    raise AssertionError(f"refused {starts_max} times")


async def run_until_mended(options: NsqToHttpOptions, failing: FailingOs) -> None:
    """The disk is mended when some calls have been in vain."""
    running = asyncio.create_task(run_to_its_end(options, starts_max=1000))
    await until(lambda: len(failing.failed) > FAILURES or running.done())
    failing.heal()
    await running


async def fails(
    nsqd: Nsqd,
    endpoint: Endpoint,
    folder: Path,
    fail_at: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    for_good: bool,
) -> bool:
    """A run of two topics with one call that fails, or with none that does not; whether any did."""
    topics = [f"a-{fail_at}", f"b-{fail_at}"]
    for topic in topics:
        await publish(nsqd, *SIX, topic=topic)
    options = options_of(
        nsqd,
        *(f"--topic={topic}" for topic in topics),
        *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}"),
        *("--dead-letter-max-ratio=1", "--exit-when-idle=80ms", "--progress=never"),
    )
    folder.mkdir()
    code = FAULTS[fail_at % len(FAULTS)]
    failures = 1 << 30 if for_good else 1
    failing = FailingOs(fail_at, failures=failures, code=code, only=EVERY, below=folder)
    with monkeypatch.context() as patched:
        failing.install_everywhere(patched)
        await (run_until_mended(options, failing) if for_good else run_to_its_end(options))
    await run_to_its_end(options)
    for topic in topics:
        await until_settled(nsqd, len(SIX), topic)
        check(folder, topic, f"N={fail_at} {failing.failed}")
    return bool(failing.failed)


def check(folder: Path, topic: str, what: str) -> None:
    """Each message is there, whole; delivery is at least once."""
    lines = [line for path in folder.glob(f"{topic}.*") for line in path.read_text().splitlines()]
    assert {json.loads(line)["body"] for line in lines} == {each.decode() for each in SIX}, what
    assert not list(folder.glob("*.part*")), what


async def run_all(
    nsqd: Nsqd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    step: int,
    *,
    for_good: bool,
) -> None:
    async with serving(lambda _: web.Response(status=400)) as endpoint:
        for fail_at in count(first, step):
            assert fail_at < CALLS_MAX
            folder = tmp_path / f"dead-{fail_at}"
            if not await fails(nsqd, endpoint, folder, fail_at, monkeypatch, for_good=for_good):
                assert fail_at > 2 * STEP
                return


@for_good_or_once
async def test_a_disk_that_fails_at_call_n(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    await run_all(nsqd, tmp_path, monkeypatch, 3, STEP, for_good=for_good)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@for_good_or_once
async def test_a_disk_that_fails_at_every_call(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    await run_all(nsqd, tmp_path, monkeypatch, 0, 1, for_good=for_good)
