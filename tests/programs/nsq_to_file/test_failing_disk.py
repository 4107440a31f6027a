"""A disk that fails at call N, under a whole run of nsq_to_file: lost 0, twice 0, for every N.

Each run begins on what a dead one has left: a file with messages that nsqd delivers again. So calls of
recovery fail, too, those of commits, rotation, compaction, manifests and the watermark, and those of
the end. Where a start is refused somebody starts it again, as systemd does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import subprocess
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, cycle, repeat
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import EVERY, FAULTS, FailingLocks, FailingOs
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import CHANNEL, archive_options, publish, stats, until_settled
from tests.support.clients import until
from tests.support.nsqd import PATIENCE_S
from tests.support.raw import RawClient

from nsqtools import durable
from nsqtools.archive.files import BESIDE
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs import trouble as trouble_module
from nsqtools.outputs.file import leftovers as leftovers_module
from nsqtools.outputs.file import output as output_module
from nsqtools.pipeline import topic as topic_module
from nsqtools.programs.nsq_to_file import run as program
from nsqtools.programs.nsq_to_file.run import archive_spec, run
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd

    from nsqtools.programs.nsq_to_file.options import NsqToFileOptions

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
# Of those the dead run has written as many.
LEFT = 2
CODES = (*FAULTS, errno.ENOLCK)
PAIRS = (("lines", "zstd"), ("framed", "gzip"), ("jsonl", "none"))
CALLS = EVERY | {"read", "seek", "tell"}
# A part of all N for `make test`, a prime so that it comes by all kinds of calls.
STEP = 23
# So many calls of a broken disk are in vain before it is mended.
FAILURES = 8
# What each start writes into its folders, to see whether it can.
PROBES = ".nsqtools-[0-9]*-*.tmp"


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
    monkeypatch.setattr(output_module, "MARK_INTERVAL_S", 0.02)
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


def assert_whole(folder: Path, compression: str, what: str) -> None:
    """Each message stands there once, and nothing is unfinished."""
    files = [path for path in folder.glob("t*") if not path.name.endswith(BESIDE)]
    bodies = chain.from_iterable(map(bodies_of, files))
    assert sorted(bodies) == SIX, what
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    others = [name for name in names if not name.startswith("t") and not name.endswith(".keys")]
    assert others == [], what
    assert not [name for name in names if ".part" in name], what
    assert sum(name.endswith(".keys") for name in names) <= 1, what
    if compression != "none":
        done = subprocess.run([compression, "-tq", *files], capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b""), what


@dataclass(frozen=True)
class Disk:
    """Where runs are made, each with its topic and its folder."""

    nsqd: Nsqd
    path: Path
    pair: tuple[str, str]
    monkeypatch: pytest.MonkeyPatch

    async def fails_once(self, fail_at: int, code: int) -> FailingOs:
        """A run with one call that fails, on what a dead one left."""
        topic, options = await self._begin(f"once-{fail_at}-{code}")
        await leave_behind(self.nsqd, options, topic)
        failing = FailingOs(fail_at, code=code, only=CALLS, below=options.output_dir)
        with self._installed(failing):
            await until_done(options, starts_max=2)
        await self._check(options, topic, f"N={fail_at} {failing.failed} {errno.errorcode[code]}")
        return failing

    async def writes_little(self, write_max: int) -> None:
        """A run whose every write is a short one."""
        topic, options = await self._begin(f"short-{write_max}")
        await leave_behind(self.nsqd, options, topic)
        with self._installed(FailingOs(write_max=write_max, below=options.output_dir)):
            await until_done(options, starts_max=1)
        await self._check(options, topic, f"writes of {write_max}")

    async def fails_until_mended(self, fail_at: int, code: int) -> FailingOs:
        """A run with no call that works from this one on, until somebody mends the disk."""
        topic, options = await self._begin(f"ever-{fail_at}-{code}")
        failing = FailingOs(
            fail_at, failures=1 << 30, code=code, only=CALLS, below=options.output_dir
        )
        with self._installed(failing):
            running = asyncio.create_task(until_done(options, starts_max=1000))
            await until(lambda: len(failing.failed) > FAILURES or running.done())
            failing.heal()
            await running
        for probe in options.output_dir.glob(PROBES):  # what could not be removed is nobody's
            assert probe.stat().st_size < 10
            probe.unlink()
        await self._check(options, topic, f"from N={fail_at} {errno.errorcode[code]}")
        return failing

    async def _begin(self, name: str) -> tuple[str, NsqToFileOptions]:
        topic = f"t-{name}"
        await publish(self.nsqd, *SIX, topic=topic)
        return topic, options_of(self.nsqd, self.path / name, topic, self.pair)

    @contextlib.contextmanager
    def _installed(self, failing: FailingOs) -> Iterator[None]:
        with self.monkeypatch.context() as patched:
            failing.install(patched)
            failing.install_reads(patched)
            patched.setattr(durable, "fcntl", FailingLocks(failing))
            yield

    async def _check(self, options: NsqToFileOptions, topic: str, what: str) -> None:
        """One more run, for what the first has left to it; then all is there. A machine that stands still
        for a while makes a run end early."""
        assert await until_done(options, starts_max=1) == 1
        while (await stats(self.nsqd, topic))["depth"]:
            assert await until_done(options, starts_max=1) == 1
        assert_whole(options.output_dir, self.pair[1], what)
        await until_settled(self.nsqd, 6, topic)


@pytest.fixture
def disk(
    pair: tuple[str, str], nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Disk:
    return Disk(nsqd, tmp_path, pair, monkeypatch)


async def until_no_call_fails(
    fails: Callable[[int, int], Awaitable[FailingOs]], codes: Iterable[int], places: Iterable[int]
) -> None:
    """Run with each N, until one is behind the last call."""
    for runs, (fail_at, code) in enumerate(zip(places, codes, strict=False)):
        if not (await fails(fail_at, code)).failed:
            assert runs > 2, "a run makes more calls"
            return
    raise AssertionError("no run is so long")


every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join)


@every_pair
async def test_a_disk_that_fails_at_call_n(disk: Disk) -> None:
    first = PAIRS.index(disk.pair) * STEP // len(PAIRS)
    await until_no_call_fails(disk.fails_once, cycle(CODES), count(first, STEP))


@every_pair
async def test_a_disk_that_fails_from_call_n_until_it_is_mended(disk: Disk) -> None:
    first = PAIRS.index(disk.pair) * STEP // len(PAIRS)
    await until_no_call_fails(disk.fails_until_mended, cycle(CODES), count(first, 2 * STEP))


@every_pair
async def test_a_disk_that_takes_little_at_a_time(disk: Disk) -> None:
    await disk.writes_little(write_max=11)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@every_pair
@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
async def test_a_disk_that_fails_at_every_call(disk: Disk, code: int) -> None:
    """Each call with one of the codes, of each pair with another one: all with all take an hour."""
    first = (CODES.index(code) + PAIRS.index(disk.pair)) % len(CODES)
    places = partial(count, first, len(CODES))
    await until_no_call_fails(disk.fails_once, repeat(code), places())
    await until_no_call_fails(disk.fails_until_mended, repeat(code), places())
