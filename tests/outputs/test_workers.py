"""The threads of outputs: calls in order, outcomes where they are awaited, nothing kept, in time."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING

import pytest
from tests.support.clients import until

from nsqtools.outputs.workers import THREADS_MAX, Due, Strand, Workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


@pytest.fixture
def strand(workers: Workers) -> Strand:
    return workers.strand("a test")


def running() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name.startswith("output-")}


async def test_calls_run_in_order_in_one_other_thread(strand: Strand) -> None:
    seen: list[tuple[int, int]] = []

    def call(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number * 2

    calls = [strand.call(lambda number=number: call(number)) for number in range(20)]  # type: ignore[misc]
    assert await asyncio.gather(*calls) == [number * 2 for number in range(20)]
    assert [number for number, _ in seen] == list(range(20))
    assert len({ident for _, ident in seen} & running()) == 1
    assert threading.get_ident() not in {ident for _, ident in seen}


async def test_what_is_raised_is_raised_where_it_is_awaited(strand: Strand) -> None:
    with pytest.raises(ZeroDivisionError):
        await strand.call(lambda: 1 // 0)
    assert await strand.call(lambda: "still at work") == "still at work"


async def test_a_cancelled_call_is_finished_before_the_next(strand: Strand) -> None:
    gate = threading.Event()
    done: list[str] = []

    def first() -> None:
        gate.wait()
        done.append("first")

    waiting = asyncio.create_task(strand.call(first))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await strand.call(lambda: done.append("second"))
    assert done == ["first", "second"]


async def test_nothing_of_a_call_is_kept(strand: Strand) -> None:
    class Messages:
        pass

    messages = Messages()
    gone = weakref.ref(messages)
    await strand.call(lambda kept=messages: id(kept))  # type: ignore[misc]
    del messages

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    await until(is_gone)


async def test_many_strands_need_few_threads() -> None:
    workers = Workers(name="many")
    strands = [workers.strand(f"{number}") for number in range(200)]
    gate = threading.Event()
    calls = [asyncio.create_task(strand.call(gate.wait)) for strand in strands]

    def threads() -> int:
        return sum(one.name.startswith("many-") for one in threading.enumerate())

    await until(lambda: threads() >= THREADS_MAX)
    await asyncio.sleep(0.05)  # any more would come now
    assert threads() == THREADS_MAX
    gate.set()
    assert all(await asyncio.gather(*calls))
    workers.close()


async def test_one_that_hangs_holds_nobody_else(workers: Workers) -> None:
    gate = threading.Event()
    hung = asyncio.create_task(workers.strand("hung").call(gate.wait))
    for number in range(20):
        await asyncio.sleep(0)
        strand = workers.strand(f"{number}")
        assert await asyncio.wait_for(strand.call(lambda number=number: number), 5) == number  # type: ignore[misc]
    gate.set()
    await hung


async def test_what_is_due_is_called_without_being_asked(workers: Workers) -> None:
    called: list[float] = []
    wanted: list[Due | None] = [None]

    def call() -> None:
        called.append(time.monotonic())
        wanted[0] = None

    strand = workers.strand("timed", lambda: wanted[0])
    other = workers.strand("other", lambda: Due(60.0, lambda: None))
    await other.call(lambda: None)
    began_s = time.monotonic()
    wanted[0] = Due(0.05, call)
    await strand.call(lambda: None)
    await until(lambda: bool(called))
    assert 0.05 <= called[0] - began_s < 2
    await asyncio.sleep(0.1)
    assert len(called) == 1


async def test_a_due_call_can_be_put_off_and_taken_back(workers: Workers) -> None:
    called: list[float] = []
    in_s: list[float | None] = [0.05]
    strand = workers.strand(
        "timed", lambda: None if in_s[0] is None else Due(in_s[0], lambda: called.append(1.0))
    )
    await strand.call(lambda: None)
    in_s[0] = 60.0
    await strand.call(lambda: None)
    await asyncio.sleep(0.15)
    assert not called
    in_s[0] = 0.05
    await strand.call(lambda: None)
    in_s[0] = None
    await strand.call(lambda: None)
    await asyncio.sleep(0.15)
    assert not called


async def test_what_nobody_waits_for_is_told_when_it_fails(
    strand: Strand, caplog: pytest.LogCaptureFixture
) -> None:
    strand.call_soon(lambda: 1 // 0)
    assert await strand.call(lambda: "still at work") == "still at work"
    assert "a call that nobody waits for failed" in caplog.text


async def test_threads_end_when_they_are_let_go() -> None:
    before = running()
    workers = Workers()
    strand = workers.strand("a test")
    gate = threading.Event()
    last = asyncio.create_task(strand.call(gate.wait))
    await asyncio.sleep(0)
    workers.close()
    gate.set()
    assert await last
    await until(lambda: not running() - before)
    with pytest.raises(RuntimeError, match="have been let go"):
        await strand.call(gate.wait)


def test_it_outlives_a_loop_that_was_closed(strand: Strand) -> None:
    gate = threading.Event()

    async def leave_it_at_work() -> None:
        task = asyncio.create_task(strand.call(gate.wait))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave_it_at_work())
    gate.set()
    assert asyncio.run(strand.call(lambda: "in another loop")) == "in another loop"


async def test_a_thread_that_cannot_be_had_now_stops_nothing_for_ever(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on tasks, for a moment."""
    strand = workers.strand("a test")

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            await strand.call(lambda: 1)
    assert await strand.call(lambda: 2) == 2
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        gate = threading.Event()
        waiting = asyncio.create_task(workers.strand("busy").call(gate.wait))
        other = asyncio.create_task(strand.call(lambda: 3))
        await asyncio.sleep(0.05)
        gate.set()
        assert await waiting
        assert await other == 3, "the thread that there is does it"


async def test_what_takes_long_has_threads_of_its_own(workers: Workers) -> None:
    gate = threading.Event()
    slow = [
        asyncio.create_task(workers.background.strand(f"{number}").call(gate.wait))
        for number in range(THREADS_MAX + 4)
    ]
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(workers.strand("quick").call(lambda: 1), 5) == 1
    gate.set()
    assert all(await asyncio.gather(*slow))
