"""Brokers that tests talk to: the embedded one in this process, or any nsqd as a subprocess.

Both are started with flags as on the command line and found out by what they log, so that a test does
not know which of them it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.options import load

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

T = TypeVar("T")
# Nothing that a test waits for takes this long on a machine that works.
PATIENCE_S = 20.0
LOG_LINES_MAX = 500
OUR_PROGRAM = (sys.executable, "-m", "nsqtools", "nsqd")
_LISTENING = re.compile(r"(TCP|HTTP): listening on \S*:(\d+)$")
Flag = str | int | float | bool


class Nsqd(Protocol):
    """A running broker; its addresses stay the same when it is restarted."""

    tcp_address: str
    http_address: str
    data_path: Path
    is_real: bool

    async def start(self) -> None:
        """Start it, for the first time or again."""

    async def stop(self) -> None:
        """End it in order, if it runs."""

    async def restart(self, *, kill: bool = False) -> None:
        """End it, in order or not, and start it again on what is on its disk."""


# In IDENTIFY's answer, /info and /stats.
TOPOLOGY_KEYS = {"topology_region", "topology_zone", "global_msg_count"}


def as_built(nsqd: Nsqd, expected: dict[str, T], found: Collection[str]) -> dict[str, T]:
    """What to expect of an answer with the keys `found`.

    There are real nsqds 1.3.0 with topology-aware consumption, which the spec describes, and without:
    one that shows none of its keys is taken as one without.
    """
    if not nsqd.is_real or TOPOLOGY_KEYS & set(found):
        return expected
    return {key: value for key, value in expected.items() if key not in TOPOLOGY_KEYS}


def arguments(data_path: Path, addresses: Sequence[str], flags: dict[str, Flag]) -> list[str]:
    tcp, http = addresses
    texts = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in flags.items()
    }
    return [
        f"--data-path={data_path}",
        f"--tcp-address={tcp}",
        f"--http-address={http}",
        *(f"--{name.replace('_', '-')}={text}" for name, text in texts.items()),
    ]


def copy_what_is_there(source: Path, target: Path) -> None:
    """Copy a folder in which files come and go meanwhile."""
    for folder, _, files in os.walk(source):
        copy = target / Path(folder).relative_to(source)
        copy.mkdir(parents=True, exist_ok=True)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(Path(folder) / name, copy / name)


class EmbeddedNsqd:
    """Our broker in the loop of the test."""

    is_real = False

    def __init__(self, data_path: Path, flags: dict[str, Flag]) -> None:
        self.data_path = data_path
        self.tcp_address = self.http_address = "127.0.0.1:0"
        self._flags = flags
        self._broker: Broker | None = None
        self._lives = 0

    @property
    def broker(self) -> Broker:
        assert self._broker is not None, "not started"
        return self._broker

    async def start(self) -> None:
        argv = arguments(self.data_path, (self.tcp_address, self.http_address), self._flags)
        broker = Broker(load(NsqdOptions, "nsqd", argv, {}))
        await broker.__aenter__()
        self._broker = broker
        self.tcp_address, self.http_address = broker.tcp_address, broker.http_address

    async def stop(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            await broker.__aexit__(None, None, None)

    async def restart(self, *, kill: bool = False) -> None:
        """A killed process leaves on its disk what is there now: so the next one gets a copy of that."""
        if kill:
            self._lives += 1
            copy = self.data_path.with_name(f"{self.data_path.name}-{self._lives}")
            copy_what_is_there(self.data_path, copy)
            self.data_path = copy
        await self.stop()
        await self.start()


class Program:
    """A server of NSQ's as a subprocess; it says itself where it listens."""

    def __init__(self, command: Sequence[str]) -> None:
        self.log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self.ports: dict[str, int] = {}
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._told = asyncio.Event()

    async def start(self, flags: Sequence[str]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, *flags, stderr=asyncio.subprocess.PIPE, env=_environment()
        )
        assert self._process.stderr is not None
        self._reading = asyncio.create_task(self._read(self._process.stderr))
        async with asyncio.timeout(PATIENCE_S):
            await self._told.wait()
        assert len(self.ports) == 2, "\n".join(self.log)

    async def end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or self._reading is None:
            return
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()
            await self._reading
        self._told.clear()

    async def _read(self, stderr: asyncio.StreamReader) -> None:
        self.ports = {}
        while raw := await stderr.readline():
            line = raw.decode("utf-8", "replace").rstrip()
            self.log.append(line)
            if found := _LISTENING.search(line):
                self.ports[found[1]] = int(found[2])
            if len(self.ports) == 2:
                self._told.set()
        self._told.set()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class ProcessNsqd:
    """An nsqd, ours or the real one, as a subprocess."""

    def __init__(
        self, command: Sequence[str], data_path: Path, flags: dict[str, Flag], *, is_real: bool
    ) -> None:
        self.is_real = is_real
        self.data_path = data_path
        self.tcp_address = self.http_address = "127.0.0.1:0"
        self._flags = flags
        self.program = Program(command)

    async def start(self) -> None:
        addresses = (self.tcp_address, self.http_address)
        await self.program.start(arguments(self.data_path, addresses, self._flags))
        ports = self.program.ports
        self.tcp_address = f"127.0.0.1:{ports['TCP']}"
        self.http_address = f"127.0.0.1:{ports['HTTP']}"

    async def stop(self) -> None:
        await self.program.end(signal.SIGTERM)

    async def restart(self, *, kill: bool = False) -> None:
        await self.program.end(signal.SIGKILL if kill else signal.SIGTERM)
        await self.start()


class StartNsqd(Protocol):
    """Starts one more broker; flags are named as on the command line, with `_` for `-`."""

    async def __call__(self, **flags: Flag) -> Nsqd: ...
