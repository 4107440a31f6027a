"""The thread of an output: calls in order, outcomes where they are awaited, nothing kept."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import TYPE_CHECKING

import pytest
from tests.support.clients import until

from nsqtools.outputs.thread import OutputThread

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def thread() -> Iterator[OutputThread]:
    thread = OutputThread("output-of-a-test")
    yield thread
    thread.end()


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "output-of-a-test"]


async def test_calls_run_in_order_in_one_other_thread(thread: OutputThread) -> None:
    seen: list[tuple[int, int]] = []

    def call(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number * 2

    calls = [thread.call(lambda number=number: call(number)) for number in range(20)]  # type: ignore[misc]
    assert await asyncio.gather(*calls) == [number * 2 for number in range(20)]
    assert [number for number, _ in seen] == list(range(20))
    assert {ident for _, ident in seen} == {running()[0].ident} != {threading.get_ident()}


async def test_what_is_raised_is_raised_where_it_is_awaited(thread: OutputThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)
    assert await thread.call(lambda: "still at work") == "still at work"


async def test_a_cancelled_call_is_finished_before_the_next(thread: OutputThread) -> None:
    gate = threading.Event()
    done: list[str] = []

    def first() -> None:
        gate.wait()
        done.append("first")

    waiting = asyncio.create_task(thread.call(first))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await thread.call(lambda: done.append("second"))
    assert done == ["first", "second"]


async def test_nothing_of_a_call_is_kept(thread: OutputThread) -> None:
    class Messages:
        pass

    messages = Messages()
    gone = weakref.ref(messages)
    await thread.call(lambda kept=messages: id(kept))  # type: ignore[misc]
    del messages

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    await until(is_gone)


async def test_it_ends_after_the_calls_that_were_made() -> None:
    thread = OutputThread("output-of-a-test")
    gate = threading.Event()
    last = asyncio.create_task(thread.call(gate.wait))
    await asyncio.sleep(0)
    thread.end()
    gate.set()
    assert await last
    await until(lambda: not running())
    with pytest.raises(RuntimeError, match="has been ended"):
        await thread.call(gate.wait)


def test_it_outlives_a_loop_that_was_closed() -> None:
    thread = OutputThread("output-of-a-test")
    gate = threading.Event()

    async def leave_it_at_work() -> None:
        task = asyncio.create_task(thread.call(gate.wait))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave_it_at_work())
    gate.set()
    assert asyncio.run(thread.call(lambda: "in another loop")) == "in another loop"
    thread.end()
