"""A command of the operator's for each published file (`--on-publish`).

It runs beside everything else, on threads of its own: at most COMMANDS_MAX at a time, each for no longer
than its limit, and at most WAITING_MAX files wait for their turn. The file is published and its messages
are acknowledged, whatever becomes of the command: what fails is told and counted, and that is all. It
gets the path as its last argument and facts in its environment; no shell is in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsqtools.archive.destination import About, FileFacts

log = get_log("on-publish")

COMMANDS_MAX = 2
WAITING_MAX = 1000
# What is over its time is asked to end (SIGTERM), and killed after this.
KILL_AFTER_S = 5.0
# The same at the end of the run, whose time is over.
KILL_AT_END_AFTER_S = 0.5
# What a command's end takes to be told, unless something hangs.
TELLING_S = 2.0
# Those of the service manager are for us alone.
_NOT_HANDED_ON = {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """What the command is told; times in ns since the epoch, None where nobody knows them."""

    path: str
    topic: str
    channel: str
    host: str
    record_format: str
    compression: str
    records: int
    stored_bytes: int
    first_ts_ns: int | None
    last_ts_ns: int | None

    def variables(self) -> dict[str, str]:
        """The facts as variables of the environment."""
        facts = {
            "PATH": self.path,
            "TOPIC": self.topic,
            "CHANNEL": self.channel,
            "HOST": self.host,
            "FORMAT": self.record_format,
            "COMPRESSION": self.compression,
            "RECORDS": self.records,
            "STORED_BYTES": self.stored_bytes,
            "FIRST_TS": self.first_ts_ns,
            "LAST_TS": self.last_ts_ns,
        }
        return {
            f"NSQTOOLS_{name}": "" if fact is None else str(fact).replace("\0", "")
            for name, fact in facts.items()
        }


def published_file(path: str, about: About, facts: FileFacts) -> PublishedFile:
    """What the command is told of a file."""
    return PublishedFile(
        path=path,
        topic=about.topic,
        channel=about.channel,
        host=about.host,
        record_format=about.record_format,
        compression=about.compression,
        records=facts.records,
        stored_bytes=facts.size_bytes,
        first_ts_ns=facts.first_ts_ns,
        last_ts_ns=facts.last_ts_ns,
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    file: PublishedFile
    done: Callable[[bool], None]


class PublishHook:
    """See the module; of one process, for all of its topics. Thread-safe.

    `secret_prefix` is what variables begin with that the command does not inherit: our own options.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        timeout_s: float,
        secret_prefix: str,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith(secret_prefix) and name not in _NOT_HANDED_ON
        }
        self._lock = threading.Lock()
        # All under the lock.
        self._waiting: deque[_Turn] = deque()
        self._pending: Counter[str] = Counter()
        self._idle: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._running: set[subprocess.Popen[bytes]] = set()
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def published(self, file: PublishedFile, done: Callable[[bool], None]) -> None:
        """Have the command run for a file. `done` is called in some thread, with whether it went well."""
        with self._lock:
            is_taken = not self._closed and len(self._waiting) < WAITING_MAX
            if is_taken:
                self._waiting.append(_Turn(file, done))
                self._pending[file.topic] += 1
                is_taken = self._start_thread()
        if not is_taken:
            _failed(file, "left out: too many wait already, or the run ends")
            done(False)

    def _start_thread(self) -> bool:
        if len(self._threads) >= COMMANDS_MAX:
            return True
        thread = threading.Thread(target=self._work, name=f"on-publish-{len(self._threads) + 1}")
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:  # the system gives none
            if not self._threads:
                self._pending[self._waiting.pop().file.topic] -= 1
            return bool(self._threads)
        self._threads.add(thread)
        return True

    async def idle(self, topic: str, timeout_s: float) -> int:
        """Return when nothing waits or runs for a topic, or when the time is over: how many still do."""
        event = asyncio.Event()
        with self._lock:
            if not self._pending[topic]:
                return 0
            self._idle.append((topic, asyncio.get_running_loop(), event))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await event.wait()
        with self._lock:
            return self._pending[topic]

    def close(self) -> None:
        """Let go of what waits, end what runs, and have all of it told. Takes a moment when something
        does."""
        with self._lock:
            self._closed = True
            left, self._waiting = list(self._waiting), deque()
            running, threads = list(self._running), list(self._threads)
        for turn in left:
            self._over(turn, "not begun: the run has ended")
        for process in running:
            _end(process, KILL_AT_END_AFTER_S)
        for thread in threads:
            thread.join(TELLING_S)

    # In threads of our own

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            try:
                failure = self._run(turn.file)
            except Exception as fault:  # noqa: BLE001 - the next file gets its turn
                failure = f"{type(fault).__name__}: {fault}"
            self._over(turn, failure)

    def _next(self) -> _Turn | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads.discard(threading.current_thread())
            return None

    def _run(self, file: PublishedFile) -> str:
        """Why the command failed; nothing when it did not."""
        try:
            process = subprocess.Popen(  # noqa: S603 - what the operator asked for
                [*self._command, file.path],
                stdin=subprocess.DEVNULL,
                stdout=2,  # ours may be data
                env={**self._environ, **file.variables()},
                start_new_session=True,
            )
        except (OSError, ValueError) as cause:
            return getattr(cause, "strerror", None) or str(cause)
        with self._lock:
            self._running.add(process)
            closed = self._closed
        try:
            code = process.wait(0 if closed else self._timeout_s)
        except subprocess.TimeoutExpired:
            _end(process, KILL_AFTER_S)
            return f"ended after {self._timeout_s:g} s, which is its limit"
        finally:
            with self._lock:
                self._running.discard(process)
        if code < 0:
            return f"ended by signal {-code}"
        return f"it exited with {code}" if code else ""

    def _over(self, turn: _Turn, failure: str) -> None:
        topic = turn.file.topic
        if failure:
            _failed(turn.file, failure)
        else:
            log.debug("the command for a finished file is done", topic=topic, path=turn.file.path)
        turn.done(not failure)
        with self._lock:
            self._pending[topic] -= 1
            if self._pending[topic]:
                return
            del self._pending[topic]
            idle = [one for one in self._idle if one[0] == topic]
            self._idle = [one for one in self._idle if one[0] != topic]
        for _, loop, event in idle:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)


def _failed(file: PublishedFile, reason: str) -> None:
    log.warning(
        "the command for a finished file failed; the file is published all the same",
        topic=file.topic,
        channel=file.channel,
        path=file.path,
        reason=reason,
    )


def _end(process: subprocess.Popen[bytes], kill_after_s: float) -> None:
    """End the command and what it has started, as far as that stayed with it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill_after_s)
            return
