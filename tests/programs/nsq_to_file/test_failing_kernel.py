"""The same as `test_failing_disk`, from outside: strace has the kernel refuse call N of each thread."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FAULTS
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import publish, until_settled
from tests.programs.nsq_to_file.helpers import flags_of
from tests.support.nsqd import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(1800)]

SIX = [b"message %d" % number for number in range(6)]
# What of the kernel's calls is of archives alone, in a process of Python's.
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "link", "linkat", "unlink", "flock")
# Of one kind, by one thread, in a run of six messages.
CALLS_MAX = 12
ERRORS = [errno.errorcode[code] for code in FAULTS if code != errno.EINTR]  # that is tried again


def strace(trace: Path, call: str, error: str, number: int) -> list[str]:
    """The command before a program of which this call fails; the test is skipped where it may not."""
    fault = f"inject={call}:error={error}:when={number}"
    command = ["strace", "-f", "-o", str(trace), "-e", f"trace={call}", "-e", fault]
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here, or knows no such call")
    return command


async def run_to_end(folder: Path, nsqd: Nsqd, topic: str, *before: str) -> tuple[int, str]:
    flags = flags_of(
        folder,
        *(f"--topic={topic}", "--rotate-records=4", "--gzip", "--manifest", "--watermark"),
        *("--max-in-flight=2", "--exit-when-idle=300ms"),
        nsqd=nsqd,
    )
    process = await asyncio.create_subprocess_exec(
        *(*before, sys.executable, "-m", "nsqtools", "nsq_to_file", *flags),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, told = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, told.decode("utf-8", "replace")


@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_call_n(call: str, nsqd: Nsqd, tmp_path: Path) -> None:
    for number in range(1, CALLS_MAX + 1):
        topic, folder = f"{call}-{number}", tmp_path / f"archive-{number}"
        folder.mkdir()
        await publish(nsqd, *SIX, topic=topic)
        trace = tmp_path / f"trace-{number}"
        error = ERRORS[number % len(ERRORS)]
        status, told = await run_to_end(folder, nsqd, topic, *strace(trace, call, error, number))
        assert status in (0, 5), told
        assert "Traceback" not in told
        assert (await run_to_end(folder, nsqd, topic))[0] == 0
        await until_settled(nsqd, len(SIX), topic)
        files = sorted(folder.glob(f"{topic}*.gz"))
        assert sorted(chain.from_iterable(map(bodies_of, files))) == SIX, told
        assert not list(folder.glob("*.part*")), told
        if "INJECTED" not in trace.read_text():
            return
