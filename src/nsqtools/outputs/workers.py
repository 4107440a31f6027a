"""Threads that make the blocking calls of all outputs of a process.

A `Strand` is one output's line of calls: they run one after the other, in the order in which they were
made, on whichever thread is free. So hundreds of topics need few threads, and whoever uses a strand
needs no lock. A strand also keeps time: it makes a call of its own when that is due, without the loop.

A hand-over costs little here: a queue on the way there, one wake-up of the loop on the way back, and a
thread goes on to the next call as soon as it has sent it. An executor's futures, with their locks on
both sides, cost a tenth of an archiver's time where commits are small (`--max-in-flight=200`).

Threads are started when all are busy, up to `threads_max`, and are daemons: one that a dead disk holds
does not keep the process from ending. Whoever wants a call to be finished awaits it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Each hung disk can hold a thread for each of its topics; the topics of other disks need some, too.
THREADS_MAX = 16
BACKGROUND_MAX = 4


class Workers:
    """The threads. For one event loop; `close` lets them go when they have nothing left to do."""

    def __init__(self, threads_max: int = THREADS_MAX, *, name: str = "output") -> None:
        self._threads_max = threads_max
        self._name = name
        self._ready: SimpleQueue[Strand | None] = SimpleQueue()
        self._lock = threading.Lock()
        # All under the lock. A strand is pending from `start` until a thread has noted that it took it.
        self._threads = self._busy = self._pending = 0
        self._timetable: list[tuple[float, int, Strand]] = []
        self._entries = itertools.count()
        self._closed = False
        self._background: Workers | None = None

    @property
    def background(self) -> Workers:
        """A few threads of their own for what may take long, such as a slow destination: what must not
        wait does not wait for that."""
        if self._background is None:
            self._background = Workers(BACKGROUND_MAX, name="finisher")
        return self._background

    def strand(self, name: str, due: Callable[[], Due | None] | None = None) -> Strand:
        """A new line of calls. `due` says, after each call and in its thread, what is to be called
        next without being asked, and when."""
        return Strand(self, name, due)

    def close(self) -> None:
        """Let each thread end when it is free; nothing can be called after this."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._ready.put(None)
        if self._background is not None:
            self._background.close()

    def start(self, strand: Strand) -> None:
        """Have `strand`, which has calls and is on no thread, run."""
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{strand.name}: the threads have been let go")
            if self._pending >= self._threads - self._busy and self._threads < self._threads_max:
                self._start_thread()
            self._pending += 1
        self._ready.put(strand)

    def _start_thread(self) -> None:
        """One more, if the system gives one; raises RuntimeError when there is none at all."""
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._threads + 1}")
        thread.daemon = True
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return  # those that there are do the work
        self._threads += 1

    def keep_time(self, strand: Strand, at_s: float | None) -> None:
        """Have the due call of `strand` made at this monotonic time; None: not at all.

        A time that is put off costs nothing: the entry that is there is looked at when it comes up.
        """
        with self._lock:
            strand.due_s = at_s
            if at_s is None or (strand.entry_s is not None and strand.entry_s <= at_s):
                return
            is_first = not self._timetable or at_s < self._timetable[0][0]
            self._enter(strand, at_s)
            wakes = is_first and self._threads > self._busy
        if wakes:
            self._ready.put(None)  # somebody who sleeps until later looks again

    def _enter(self, strand: Strand, at_s: float) -> None:
        strand.entry_s = at_s
        heapq.heappush(self._timetable, (at_s, next(self._entries), strand))

    def _work(self) -> None:
        # Nothing of a call may live on in a variable here: messages would be kept until the next one.
        while not self._closed:
            strand = self._next()
            if strand is not None:
                strand.run()
                del strand
                with self._lock:
                    self._busy -= 1
        with self._lock:
            self._threads -= 1

    def _next(self) -> Strand | None:
        with self._lock:
            first_s = self._timetable[0][0] if self._timetable else None
        try:
            timeout_s = None if first_s is None else max(0.0, first_s - time.monotonic())
            strand = self._ready.get(timeout=timeout_s)
        except Empty:
            for due in self._take_due():
                due.call_due()
            return None
        if strand is not None:
            with self._lock:
                self._pending -= 1
                self._busy += 1
        return strand

    def _take_due(self) -> list[Strand]:
        now_s = time.monotonic()
        found: list[Strand] = []
        with self._lock:
            while self._timetable and self._timetable[0][0] <= now_s:
                entry_s, _, strand = heapq.heappop(self._timetable)
                if entry_s != strand.entry_s:
                    continue  # there is an earlier one
                strand.entry_s = None
                if strand.due_s is None:
                    continue
                if strand.due_s > now_s:
                    self._enter(strand, strand.due_s)
                else:
                    found.append(strand)
        return found


class Due:
    """A function to call after `in_s` seconds, unless something else is called before."""

    __slots__ = ("function", "in_s")

    def __init__(self, in_s: float, function: Callable[[], object]) -> None:
        self.in_s = in_s
        self.function = function


class Strand:
    """See the module; made by `Workers.strand`."""

    def __init__(
        self, workers: Workers, name: str, due: Callable[[], Due | None] | None = None
    ) -> None:
        self.name = name
        self._workers = workers
        self._due = due
        self._next_due: Due | None = None
        self._calls: deque[_Call] = deque()
        self._lock = threading.Lock()
        self._runs = False
        # Kept by the workers: when the due call is to be made, and when that is looked at.
        self.due_s: float | None = None
        self.entry_s: float | None = None

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises.

        Cancelling it does not stop the function: it is finished before any other of this strand.
        """
        call = _Awaited(function)
        self._put(call)
        result: T = await call.future
        return result

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have `function` called; nobody waits for it, and what it raises is told in the log."""
        self._put(_Call(function))

    def call_due(self) -> None:
        """Called by a worker when the time of `due` has come."""
        due = self._next_due
        if due is not None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._put(_Call(due.function))

    def _put(self, call: _Call) -> None:
        with self._lock:
            self._calls.append(call)
            starts = not self._runs
            self._runs = True
        if not starts:
            return
        try:
            self._workers.start(self)
        except BaseException:
            with self._lock:
                self._runs = False
                self._calls.remove(call)
            raise

    def run(self) -> None:
        """Make the calls that wait; called by a worker."""
        while (call := self._take()) is not None:
            call.run()
            del call

    def _take(self) -> _Call | None:
        if not self._calls and self._due is not None:
            # Before it counts as idle: nobody else may run while `due` looks.
            self._next_due = due = self._due()
            at_s = None if due is None else time.monotonic() + max(0.0, due.in_s)
            self._workers.keep_time(self, at_s)
        with self._lock:
            if self._calls:
                return self._calls.popleft()
            self._runs = False
            return None


class _Call:
    """A function on its way to a thread."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def run(self) -> None:
        try:
            self._function()
        except Exception:
            logging.getLogger("nsqtools.outputs").exception("a call that nobody waits for failed")


class _Awaited(_Call):
    """With its outcome on the way back."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(function)
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def run(self) -> None:
        try:
            result = self._function()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, outcome: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(outcome, value)

    def _succeed(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
