"""The bounded end; `tests/cli/test_signals.py` has it in whole programs."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nsqtools import ending

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    event = threading.Event()
    ending.arm(event.set)
    yield event
    ending.arm(None)


def test_an_end_comes_in_time(ended: threading.Event) -> None:
    ending.end_within(0.01)
    assert ended.wait(5)


def test_an_end_that_is_asked_for_twice_comes_once() -> None:
    ends: list[float] = []
    done = threading.Event()
    ending.arm(lambda: ends.append(time.monotonic()))
    try:
        for _ in range(3):
            ending.end_within(0.01)
        threading.Timer(0.2, done.set).start()
        assert done.wait(5)
        assert len(ends) == 1
    finally:
        ending.arm(None)


def test_a_program_that_embeds_us_is_left_alone(ended: threading.Event) -> None:
    ending.arm(None)
    before = threading.active_count()
    ending.end_within(0.0)
    assert threading.active_count() == before
    assert not ended.is_set()


def test_signals_are_remembered_until_they_are_taken() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        ending.remember_signals()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert ending.take_signals() == [signal.SIGTERM]
        assert ending.take_signals() == []
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGHUP, handlers[1])
