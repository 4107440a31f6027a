"""Threads that do not keep the process from ending: a store may never answer.

Python waits at its end for those of `concurrent.futures`, whoever started them.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class DaemonThreads:
    """At most `threads_max`, started as they are needed. Leaving the block waits for what was begun."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._threads_max = threads_max
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have `function` called; raises RuntimeError when the system gives no thread at all."""
        future: Future[T] = Future()
        if len(self._threads) < self._threads_max:
            self._start_thread()
        self._calls.put((future, partial(function, *arguments)))
        return future

    def _start_thread(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        while (wanted := self._calls.get()) is not None:
            future, call = wanted
            del wanted
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - raised where it is asked for
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call
