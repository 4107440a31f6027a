"""Child processes: started, measured, and killed whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
END_TIMEOUT_S = 60.0
POLL_S = 0.01
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one process cost: processor time, and its largest resident size."""

    name: str
    cpu_s: float
    peak_bytes: int


class BenchError(Exception):
    """A figure could not be taken; says which process failed, and what it said."""


class Child:
    """One running process; its output goes to files in the bench's folder."""

    def __init__(
        self, name: str, argv: Sequence[str], folder: Path, *, stdin: Path | None = None
    ) -> None:
        self.name = name
        self._err = folder / f"{name}.err"
        self._out = folder / f"{name}.out"
        source = stdin or Path(os.devnull)
        with source.open("rb") as given, self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                list(argv),
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # this process has one thread
            )
        self.pid = self._process.pid

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    def usage(self) -> Usage:
        """What it has cost so far; the peak counts from the last `reset_peak`."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{self.pid}/status").read_text()
        peak_kib = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
        ticks = int(fields[11]) + int(fields[12])
        return Usage(name=self.name, cpu_s=ticks / _TICKS_PER_S, peak_bytes=int(peak_kib) * 1024)

    def reset_peak(self) -> None:
        with contextlib.suppress(OSError):  # some containers do not allow it
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def is_running(self) -> bool:
        return self._process.returncode is None and self._poll() is None

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> Usage:
        """Wait for its end. Raises BenchError when it fails, or does not end."""
        deadline_s = time.monotonic() + timeout_s
        while (usage := self._poll()) is None:
            if time.monotonic() > deadline_s:
                raise BenchError(f"{self.name} does not end\n{self.stderr[-2000:]}")
            time.sleep(POLL_S)
        if self._process.returncode:
            raise BenchError(
                f"{self.name} exited with {self._process.returncode}\n{self.stderr[-2000:]}"
            )
        return usage

    def terminate(self) -> Usage:
        """SIGTERM, then as `wait`."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
            os.wait4(self.pid, 0)
            self._process.returncode = -signal.SIGKILL

    def _poll(self) -> Usage | None:
        pid, status, used = os.wait4(self.pid, os.WNOHANG)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        # Linux counts in KiB, and from before exec, too: the bench itself stays small.
        return Usage(
            name=self.name,
            cpu_s=used.ru_utime + used.ru_stime,
            peak_bytes=used.ru_maxrss * 1024,
        )


class Children:
    """Every child of a run; leaving the block kills those that are left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[Child] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for child in self._all:
            child.kill()

    def start(self, name: str, argv: Sequence[str], *, stdin: Path | None = None) -> Child:
        self._all = [child for child in self._all if child.is_running()]
        self._count += 1
        folder = self.folder / f"{self._count:04d}"
        folder.mkdir()
        child = Child(name, argv, folder, stdin=stdin)
        self._all.append(child)
        return child

    def traffic(self, name: str, *words: object) -> tuple[int, float, Usage]:
        """One run of `traffic`: what it moved, the seconds it took, and its usage meanwhile."""
        child = self.start_traffic(name, *words)
        return self.end_traffic(child)

    def start_traffic(self, name: str, *words: object) -> Child:
        return self.start(
            name, [sys.executable, "-m", "tests.benchmarks.traffic", *map(str, words)]
        )

    def end_traffic(self, child: Child) -> tuple[int, float, Usage]:
        usage = child.wait()
        told = json.loads(child.stdout)
        measured = Usage(name=child.name, cpu_s=told["cpu_s"], peak_bytes=usage.peak_bytes)
        return told["moved"], told["seconds"], measured


def since(before: Usage, after: Usage) -> Usage:
    """What a process that lives on has cost between two looks."""
    return Usage(name=after.name, cpu_s=after.cpu_s - before.cpu_s, peak_bytes=after.peak_bytes)


def wait_until(true: Callable[[], bool], child: Child, timeout_s: float, what: str) -> None:
    """Poll until it is true. Raises BenchError when `child` ends first, or time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        if not child.is_running():
            raise BenchError(f"{child.name} ended before {what}\n{child.stderr[-2000:]}")
        if time.monotonic() > deadline_s:
            raise BenchError(f"{what}: not within {timeout_s:.0f} s\n{child.stderr[-2000:]}")
        time.sleep(POLL_S)


def _die_with_parent() -> None:
    """Even when the bench is killed with SIGKILL, nothing stays behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
