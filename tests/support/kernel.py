"""A kernel that refuses a program's call N: strace injects the error, and the program runs whole, from
where it is loaded.

What strace refuses is not carried out at all. That is how disks fail, but for `close`: there the
descriptor is gone whatever it says, which no test can have from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FAULTS
from tests.support import stopped
from tests.support.programs import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

# What writers of archives ask of a disk, by all the names that machines have for it.
WRITING = (
    "openat",
    "newfstatat,statx",
    "pwrite64",
    "fdatasync",
    "fsync",
    "unlink,unlinkat",
    "flock",
    "close",
)
ERRORS = [errno.errorcode[code] for code in FAULTS]
# So many calls of one kind are refused, each in a run of its own; of more a part.
RUNS_MAX = 25
STOPPED = Path(stopped.__file__)
_PATH = re.compile(r'[<"](/[^<>"]*)[>"]')
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True)
class Refusal:
    """Call `number` of each thread of a program that runs on the files of a folder.

    `calls` are the names that one call has on several machines, with commas between them.
    """

    folder: Path
    calls: str
    number: int
    error: str

    @property
    def trace(self) -> Path:
        return self.folder.with_name(f"trace-{self.folder.name}")

    @property
    def flags(self) -> list[str]:
        """What strace is to do."""
        fault = f"inject={self._known}:error={self.error}:when={self.number}"
        return [*self.recording, "-e", fault]

    @property
    def recording(self) -> list[str]:
        """The same, with nothing refused."""
        return recording(self.trace, self._known)

    @property
    def came(self) -> bool:
        """Whether the program made so many of these calls, and one of them on the folder."""
        return any(self.is_on_the_folder(call) for call in self._refused)

    @property
    def is_of_the_folder(self) -> bool:
        """Whether nothing else was refused, such as what Python reads."""
        return all(self.is_on_the_folder(call) for call in self._refused)

    def is_on_the_folder(self, call: str) -> bool:
        """Whether a recorded call was on the folder, on what is in it, or on what it is in."""
        paths = map(Path, _PATH.findall(call))
        return any(
            path.is_relative_to(self.folder) or self.folder.is_relative_to(path) for path in paths
        )

    @property
    def _known(self) -> str:
        """The calls, for strace: those that it knows on this machine."""
        return ",".join(f"?{name}" for name in self.calls.split(","))

    @property
    def _refused(self) -> list[str]:
        return [line for line in whole_lines(self.trace) if "(INJECTED)" in line]

    def __str__(self) -> str:
        return f"{self.calls} {self.number} {self.error}: {self._refused}"


def refusal_of(folder: Path, calls: str, number: int) -> Refusal:
    """One, with a new folder for its run in this one; the errors take turns."""
    own = folder / f"{calls.partition(',')[0]}-{number}"
    own.mkdir()
    return Refusal(own, calls, number, ERRORS[number % len(ERRORS)])


async def refuse_those_of(
    recorded: Refusal, attempt: Callable[[Refusal], Awaitable[object]]
) -> None:
    """`attempt` with each call refused that the recorded run made on its folder, or a part of them."""
    numbers = recorded_numbers(recorded)
    assert numbers, f"a run makes no {recorded.calls}"
    came = 0
    for number in numbers[:: len(numbers) // RUNS_MAX + 1]:
        refusal = refusal_of(recorded.folder.parent, recorded.calls, number)
        await attempt(refusal)
        came += refusal.came
    assert came, f"none of {recorded.calls} {numbers}"


def recorded_numbers(recorded: Refusal) -> list[int]:
    """Which calls of a thread were on the folder, by their number."""
    counts: Counter[tuple[str, str]] = Counter()
    found: set[int] = set()
    for line in whole_lines(recorded.trace):
        thread, _, call = line.partition(" ")
        name = call.lstrip().partition("(")[0]
        if name in recorded.calls.split(","):
            counts[thread, name] += 1
            if recorded.is_on_the_folder(call):
                found.add(counts[thread, name])
    return sorted(found)


def whole_lines(trace: Path) -> list[str]:
    """The calls in the order in which they ended: those that others came between are put together."""
    begun: dict[str, str] = {}
    whole = []
    for line in trace.read_text().splitlines():
        thread = line.partition(" ")[0]
        if line.endswith(_UNFINISHED):
            begun[thread] = line.removesuffix(_UNFINISHED)
        else:
            whole.append(begun.pop(thread) + line if " resumed>" in line else line)
    return whole


def recording(trace: Path, calls: str) -> list[str]:
    """The flags by which strace writes down these calls, with the paths of files."""
    return ["-y", "-s", "200", "-o", str(trace), "-e", f"trace={calls}"]


@contextlib.asynccontextmanager
async def traced(pid: int, flags: Sequence[str]) -> AsyncIterator[None]:
    """Trace a process that stops itself (`STOPPED`) from its first call to its end, for which is waited
    when the block is left; the test is skipped where that is not possible."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    async with asyncio.timeout(PATIENCE_S):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-p", str(pid), *flags), stderr=asyncio.subprocess.PIPE
    )
    assert strace.stderr is not None
    told = (await strace.stderr.readline()).decode()
    os.kill(pid, signal.SIGCONT)
    if "not permitted" in told:
        pytest.skip("strace may not trace here")
    assert "attached" in told, told
    yield
    async with asyncio.timeout(PATIENCE_S):
        await strace.communicate()


async def run_traced(flags: Sequence[str], *words: str) -> tuple[int, str]:
    """Exit status of `nsqtools` with these words, and what it said; under strace if that has flags."""
    if not flags:
        async with _running("-m", "nsqtools", *words) as process:
            return await _ended(process)
    async with _running(str(STOPPED), *words) as process, traced(process.pid, flags):
        return await _ended(process)


@contextlib.asynccontextmanager
async def _running(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of Python's, which is killed if it has not ended when the block is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE_S):
        told, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode("utf-8", "replace")
