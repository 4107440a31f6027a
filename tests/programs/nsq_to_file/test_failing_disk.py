"""A disk that fails at call N, under a whole run of nsq_to_file: lost 0, twice 0, for every N.

Each run begins on what a dead one has left: a file with messages that nsqd delivers again. So calls of
recovery fail, too, those of commits, rotation, compaction, manifests and the watermark, and those of
the end. Where a start is refused somebody starts it again, as systemd does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import COUNTED, FailingLocks, FailingOs
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import CHANNEL, archive_options, publish, until_settled
from tests.support.nsqd import PATIENCE_S
from tests.support.raw import RawClient

from nsqtools import durable
from nsqtools.archive.files import BESIDE
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs.file import leftovers as leftovers_module
from nsqtools.outputs.file import output as output_module
from nsqtools.pipeline import topic as topic_module
from nsqtools.programs.nsq_to_file import run as program
from nsqtools.programs.nsq_to_file.run import archive_spec, run
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

    from nsqtools.programs.nsq_to_file.options import NsqToFileOptions

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
# Of those the dead run has written as many.
LEFT = 2
CODES = (errno.EIO, errno.ENOSPC, errno.ENOLCK)
PAIRS = (("lines", "zstd"), ("framed", "gzip"), ("jsonl", "none"))
CALLS = COUNTED | {"listdir", "utime", "fchmod", "dup"}
# Far beyond the last call of a run.
CALLS_MAX = 2000
# A part of all N for `make test`, a prime so that it comes by all kinds of calls.
STEP = 23


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        program, "Lifecycle", lambda timeout_s: Lifecycle(timeout_s, handle_signals=False)
    )
    for module in (topic_module, output_module):
        monkeypatch.setattr(module, "RETRY_FIRST_S", 0.01)
        monkeypatch.setattr(module, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr(leftovers_module, "AGAIN_S", 0.05)


def options_of(nsqd: Nsqd, folder: Path, topic: str, pair: tuple[str, str]) -> NsqToFileOptions:
    """Two messages in flight: so there are several commits, and several files."""
    return archive_options(
        folder,
        *(f"--topic={topic}", f"--nsqd-tcp-address={nsqd.tcp_address}", "--max-in-flight=2"),
        *(f"--format={pair[0]}", f"--compress={pair[1]}", "--rotate-records=4"),
        *("--manifest", "--watermark", "--exit-when-idle=80ms", "--progress=never"),
    )


async def leave_behind(nsqd: Nsqd, options: NsqToFileOptions, topic: str) -> None:
    """What a run leaves that is killed when it has written some messages, and answered none."""
    options.output_dir.mkdir()
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe(topic, CHANNEL, LEFT)
        taken = await client.messages(LEFT)
    payloads = [
        encode_payload(each.timestamp_ns, each.attempts, each.id, each.body) for each in taken
    ]
    writer = ArchiveWriter(archive_spec(options, topic))
    assert writer.once is not None
    writer.once.open()
    writer.commit([Messages(payloads, nsqd=nsqd.tcp_address)])
    writer.abandon()


async def until_done(options: NsqToFileOptions, starts_max: int) -> int:
    """Start the run until it ends in order; gives how often it was."""
    for starts in range(1, starts_max + 1):
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(StorageError):
                assert await run(options) == 0
                return starts
    raise AssertionError(f"refused {starts_max} times")


async def archive_with(
    failing: FailingOs, nsqd: Nsqd, options: NsqToFileOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a disk that fails once, and one on a disk that works, for what the first one left."""
    with monkeypatch.context() as patched:
        failing.install(patched)
        patched.setattr(durable, "fcntl", FailingLocks(failing))
        await until_done(options, 2)
    assert await until_done(options, 1) == 1


def assert_whole(folder: Path, compression: str, what: str) -> None:
    """Each message stands there once, and nothing is unfinished."""
    files = [path for path in folder.glob("t*") if not path.name.endswith(BESIDE)]
    bodies = itertools.chain.from_iterable(map(bodies_of, files))
    assert sorted(bodies) == SIX, what
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    others = [name for name in names if not name.startswith("t") and not name.endswith(".keys")]
    assert others == [], what
    assert not [name for name in names if ".part" in name], what
    assert sum(name.endswith(".keys") for name in names) <= 1, what
    if compression != "none":
        done = subprocess.run([compression, "-tq", *files], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), what


async def fails_once(
    nsqd: Nsqd,
    tmp_path: Path,
    pair: tuple[str, str],
    places: range,
    codes: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Run with each N; gives how many did fail."""
    code = itertools.cycle(codes)
    for count, fail_at in enumerate(places):
        topic, folder = f"t{fail_at}-{codes[0]}", tmp_path / f"archive-{fail_at}-{codes[0]}"
        options = options_of(nsqd, folder, topic, pair)
        await publish(nsqd, *SIX, topic=topic)
        await leave_behind(nsqd, options, topic)
        failing = FailingOs(fail_at, code=next(code), only=CALLS, below=folder)
        await archive_with(failing, nsqd, options, monkeypatch)
        what = f"N={fail_at} {failing.failed} of {len(failing.calls)}"
        assert_whole(folder, pair[1], what)
        await until_settled(nsqd, 6, topic)
        print(what)
        if not failing.failed:
            return count
    raise AssertionError("CALLS_MAX is too small")


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_a_disk_that_fails_at_call_n(
    pair: tuple[str, str], nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = range(PAIRS.index(pair) * STEP // len(PAIRS), CALLS_MAX, STEP)
    failed = await fails_once(nsqd, tmp_path, pair, places, CODES, monkeypatch)
    assert failed > 100 // STEP
