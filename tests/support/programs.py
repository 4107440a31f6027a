"""Our programs as subprocesses that can be killed at any moment and started again."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# Nothing that a test waits for takes this long on a machine that works.
PATIENCE_S = 30.0
LOG_LINES_MAX = 2000
_LISTENING = re.compile(r"TCP: listening on \S*:(\d+)$")


class Program:
    """One of our programs, in any number of lives; leaving the block kills the last one."""

    def __init__(self, name: str, *command: str, hears_output: bool = False) -> None:
        """`command` is what Python is to run in place of the program of this name. With `hears_output`
        its standard output is among its log."""
        self.lives = 0
        self.log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._life: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._told = asyncio.Event()
        self._command = command or ("-m", "nsqtools", name)
        self._hears_output = hears_output
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.end(signal.SIGKILL)

    async def start(self, *flags: str) -> None:
        self.lives += 1
        self._life.clear()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        pipe, both = asyncio.subprocess.PIPE, self._hears_output
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *self._command, *flags),
            stdout=pipe if both else None,
            stderr=asyncio.subprocess.STDOUT if both else pipe,
            env=environment,
        )
        heard = self._process.stdout if both else self._process.stderr
        assert heard is not None
        self._reading = asyncio.create_task(self._read(heard))

    async def kill(self) -> None:
        """SIGKILL to a program that must still be running."""
        assert self._process is not None
        assert self._process.returncode is None, self.told
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL, self.told

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def peak_bytes(self) -> int:
        """The largest that it was in memory so far, as Linux knows it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) * 1024

    def open_files(self) -> int:
        """How many descriptors it has, as Linux knows it."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def limit(self, what: int, most: int) -> None:
        """Set one of its limits, a `resource.RLIMIT_...`."""
        hard = resource.prlimit(self.pid, what)[1]
        resource.prlimit(self.pid, what, (most, hard))

    def bound(self, what: int, most: int) -> None:
        """Set one of its limits for good."""
        assert self._process is not None
        resource.prlimit(self._process.pid, what, (most, most))

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, number: signal.Signals | None) -> int | None:
        """Send a signal, or none, and wait for the end; gives the exit status, None when it did not
        run."""
        process = self._process
        if process is None or self._reading is None:
            return None
        if process.returncode is None and number is not None:
            process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
            await self._reading
        self._process = None  # one that does not end is still there to be killed
        return process.returncode

    @property
    def told(self) -> str:
        """What it has logged, for the message of a failure."""
        return "\n".join(self.log)

    async def says(self, words: str) -> None:
        """Wait until this life has logged a line with these words."""
        async with asyncio.timeout(PATIENCE_S):
            while not any(words in line for line in self._life):
                self._told.clear()
                await self._told.wait()

    def heard(self, line: str) -> None:
        """A line of the log."""
        self.log.append(line)
        self._life.append(line)
        self._told.set()

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        while raw := await stderr.readline():
            self.heard(raw.decode("utf-8", "replace").rstrip())


class NsqdProgram(Program):
    """The embedded broker; the first life picks the port and the others keep it."""

    def __init__(self, data_path: Path, *flags: str, command: Sequence[str] = ()) -> None:
        """`command` is as `Program` has it."""
        super().__init__("nsqd", *command)
        self.port = 0
        self.up = asyncio.Event()
        self._flags = (f"--data-path={data_path}", "--http-address=", *flags)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, *flags: str) -> None:
        """Start it; `up` is set when it listens."""
        await super().start(*self._flags, f"--tcp-address={self.address}", *flags)

    async def serve(self) -> None:
        """Start it and wait until it listens."""
        await self.start()
        async with asyncio.timeout(PATIENCE_S):
            await self.up.wait()

    async def is_up(self) -> bool:
        """Whether it listens, once it does so or has ended."""
        assert self._reading is not None
        up = asyncio.create_task(self.up.wait())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait([up, self._reading], return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        return self.up.is_set()

    async def kill(self) -> None:
        self.up.clear()
        await super().kill()
        self.up.clear()  # its last words may have come only now

    def heard(self, line: str) -> None:
        super().heard(line)
        if found := _LISTENING.search(line):
            self.port = int(found[1])
            self.up.set()
