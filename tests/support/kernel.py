"""A kernel that refuses a program's call N: strace injects the error, and the program runs whole.

What strace refuses is not carried out at all. That is how disks fail, but for `close`: there the
descriptor is gone whatever it says, which no test can have from outside.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FAULTS
from tests.support.programs import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

ERRORS = [errno.errorcode[code] for code in FAULTS]
# Of one kind, by one thread, in a run on a few messages; more means that it does not end.
CALLS_MAX = 40
_PATH = re.compile(r'[<"](/[^<>"]*)[>"]')


def strace_or_skip(*options: str) -> list[str]:
    """The command before a program and its threads; the test is skipped where strace cannot do it."""
    command = ["strace", "-f", *options]
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here, or knows no such call")
    return command


@dataclass(frozen=True)
class Refusal:
    """Call `number` of each thread of a program; of `paths` alone, where any are named.

    `calls` are the names that one call has on several machines, with commas between them.
    """

    trace: Path
    calls: str
    number: int
    error: str
    paths: Sequence[Path] = ()

    @property
    def before(self) -> list[str]:
        """What stands before the program's command; it stays a child of whoever starts it."""
        names = ",".join(f"?{name}" for name in self.calls.split(","))
        fault = f"inject={names}:error={self.error}:when={self.number}"
        only = [word for path in self.paths for word in ("-P", str(path))]
        return strace_or_skip(
            "-D", "-o", str(self.trace), "-e", f"trace={names}", "-e", fault, *only
        )

    @property
    def came(self) -> bool:
        """Whether the program made so many of these calls."""
        return "INJECTED" in self.trace.read_text()

    def __str__(self) -> str:
        return f"{self.calls} {self.number} {self.error}: {self.trace.read_text()}"


async def refuse_in_turn(
    folder: Path,
    calls: str,
    attempt: Callable[[Refusal, Path], Awaitable[object]],
    names: Sequence[str] = (),
) -> None:
    """`attempt` with call 1 refused, then call 2, until there are no so many; each has its folder.

    `names` are what is in that folder when only calls on these paths are to be refused.
    """
    for number in range(1, CALLS_MAX + 1):
        refusal, own = refusal_of(folder, calls, number, names)
        await attempt(refusal, own)
        if not refusal.came:
            assert number > 1, f"a run makes no {calls}"
            return
    raise AssertionError(f"more than {CALLS_MAX} {calls}")


def refusal_of(
    folder: Path, calls: str, number: int, names: Sequence[str] = ()
) -> tuple[Refusal, Path]:
    """One of them, and a new folder for its run; the errors take turns."""
    own = folder / f"{calls.partition(',')[0]}-{number}"
    own.mkdir()
    trace, error = folder / f"trace-{own.name}", ERRORS[number % len(ERRORS)]
    return Refusal(trace, calls, number, error, [own / name for name in names]), own


def recording(trace: Path, calls: str = "file,desc") -> list[str]:
    """What stands before a program of which these calls are recorded, with the paths of its files."""
    return strace_or_skip("-D", "-y", "-s", "200", "-o", str(trace), "-e", f"trace={calls}")


def names_asked_for(trace: Path, folder: Path) -> list[str]:
    """The names in a folder, itself included, that a recorded run asked for: those that the next run
    will have, too."""
    found = {path for path in _PATH.findall(trace.read_text()) if path.startswith(str(folder))}
    names = sorted(os.path.relpath(path, folder) for path in found)
    return [name for name in names if not name.endswith(".tmp")]


async def run_behind(before: Sequence[str], *words: str) -> tuple[int, str]:
    """Exit status of `nsqtools` with these words, and all that it said."""
    process = await asyncio.create_subprocess_exec(
        *(*before, sys.executable, "-m", "nsqtools", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            told, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, told.decode("utf-8", "replace")
