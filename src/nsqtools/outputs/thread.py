"""A thread that makes an output's blocking calls, one after the other.

A hand-over costs little here: a queue on the way there, one wake-up of the loop on the way back, and
the thread waits for the next call as soon as it has sent it. An executor's futures, with their locks on
both sides, cost a tenth of an archiver's time where commits are small (`--max-in-flight=200`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class OutputThread:
    """Started by the first call; `end` must be called once for the process to be able to end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    async def call(self, function: Callable[[], T]) -> T:
        """What `function` returns or raises. Calls run in the order in which they are made.

        Cancelling it does not stop the function: the thread finishes it before any other.
        """
        if self._ended:
            raise RuntimeError(f"the thread {self._name} has been ended")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name)
            self._thread.start()
        call = _Call(function)
        self._calls.put(call)
        result: T = await call.future
        return result

    def end(self) -> None:
        """Let the thread end after the calls that were made; does not wait for it."""
        self._ended = True
        self._calls.put(None)

    def _work(self) -> None:
        # Nothing of a call may live on in a variable here: messages would be kept until the next one.
        while self._run(self._calls.get()):
            pass

    @staticmethod
    def _run(call: _Call | None) -> bool:
        if call is not None:
            call.run()
        return call is not None


class _Call:
    """A function on its way to the thread, and its outcome on the way back."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
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
        if not self.future.cancelled():
            self.future.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self.future.cancelled():
            self.future.set_exception(error)
