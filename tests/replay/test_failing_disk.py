"""A disk that fails at call N while file_to_nsq reads a folder: what it says is what was published."""

from __future__ import annotations

import asyncio
import errno
from itertools import count
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import EVERY, FAULTS, FailingOs
from tests.archive.helpers import COMPRESSIONS, FORMATS, PAIRS
from tests.replay.support import DEADLINE_S, bodies_of, embedded
from tests.replay.test_run import archive

from nsqtools.errors import OptionsError
from nsqtools.options import load
from nsqtools.replay import run as program
from nsqtools.replay.options import FileToNsqOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nsqtools.broker.server import Broker

pytestmark = pytest.mark.slow

STEP = 5
FILES = 3
BODIES = [[b"%d of %d" % (number, file) for number in range(400)] for file in range(FILES)]
CALLS_MAX = 2000


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with embedded(tmp_path / "broker") as running:
        yield running


async def replayed(broker: Broker, folder: Path, topic: str) -> int:
    words = [f"--topic={topic}", f"--nsqd-tcp-address={broker.tcp_address}", str(folder)]
    async with asyncio.timeout(DEADLINE_S):
        try:
            return await program.run(load(FileToNsqOptions, "file_to_nsq", words, {}))
        except OptionsError as refusal:
            return refusal.exit_code


async def fails(
    broker: Broker,
    folder: Path,
    fail_at: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> bool:
    topic, code = f"n-{fail_at}", FAULTS[fail_at % len(FAULTS)]
    failing = FailingOs(fail_at, code=code, only=EVERY, below=folder)
    with monkeypatch.context() as patched:
        failing.install_everywhere(patched)
        status = await replayed(broker, folder, topic)
    report = capsys.readouterr().out
    bodies = set(await bodies_of(broker, topic)) if topic in broker.topics else set()
    what = f"N={fail_at} {failing.failed} {errno.errorcode[code]}: {status} {report}"
    whole = [set(each) <= bodies for each in BODIES]
    if status == 2:  # a name that is nothing, and nothing was sent
        assert not bodies, what
    elif status == 0:
        assert all(whole), what
    else:
        assert status == 5, what
        assert "not read to its end" in report, what
        assert sum(whole) >= FILES - 1, what
    assert failing.failed or status == 0, what
    return bool(failing.failed)


async def run_all(
    step: int,
    pair: tuple[str, str],
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "archive"
    for number, bodies in enumerate(BODIES):
        archive(folder / str(number), bodies, *pair)
    for fail_at in count(0, step):
        assert fail_at < CALLS_MAX
        if not await fails(broker, folder, fail_at, monkeypatch, capsys):
            assert fail_at > 10
            return


@pytest.mark.parametrize("pair", list(zip(FORMATS, COMPRESSIONS, strict=True)), ids="-".join)
async def test_a_disk_that_fails_at_call_n(
    pair: tuple[str, str],
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await run_all(STEP, pair, broker, tmp_path, monkeypatch, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_a_disk_that_fails_at_every_call(
    pair: tuple[str, str],
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await run_all(1, pair, broker, tmp_path, monkeypatch, capsys)
