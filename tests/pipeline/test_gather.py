"""When a delivery is full enough: decisions without a clock, and the waiting that carries them out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from nsqtools.clock import ManualClock
from nsqtools.outputs.contract import Feeding
from nsqtools.pipeline.gather import (
    ENOUGH_MESSAGES,
    QUICK_FILL,
    SLOW_FILL,
    GatherPolicy,
    Pace,
    gather,
)

if TYPE_CHECKING:
    from nsqtools.client.batch import Batch
    from nsqtools.client.consumer import Consumer

POLICY = GatherPolicy(wait_s=30.0, quiet_s=0.5)


@pytest.mark.parametrize(
    ("fill", "fullest", "first", "last", "now", "expected"),
    [
        pytest.param(0.4, 0.4, 100.0, 100.0, 100.0, 0.0, id="enough does not wait"),
        pytest.param(5.0, 5.0, 100.0, 100.0, 100.0, 0.0, id="nor does more than enough"),
        pytest.param(0.0, 0.0, 100.0, 100.0, 100.0, 0.5, id="a trickle is gathered"),
        pytest.param(0.0, 0.0, 100.0, 110.0, 110.2, 0.3, id="from the last message on"),
        pytest.param(0.2, 0.2, 100.0, 110.0, 110.0, 0.125, id="half of it waits a quarter"),
        pytest.param(0.36, 0.36, 100.0, 110.0, 110.0, 0.005, id="nearly all of it hardly waits"),
        pytest.param(0.1, 1.0, 100.0, 110.0, 110.0, 0.002, id="one that sends no more, others do"),
        pytest.param(0.0, 0.0, 100.0, 129.9, 129.9, 0.1, id="but no longer than wait_s"),
        pytest.param(0.0, 0.0, 100.0, 131.0, 131.0, -1.0, id="which may be over"),
    ],
)
def test_policy(
    fill: float, fullest: float, first: float, last: float, now: float, expected: float
) -> None:
    wait_s = POLICY.wait_for_more_s(
        fill=fill, fullest=fullest, wanted=0.4, first_s=first, last_s=last, now_s=now
    )
    assert wait_s == pytest.approx(expected)


def test_quick_deliveries_are_small_and_slow_ones_large() -> None:
    pace = Pace()
    assert pace.fill == QUICK_FILL
    for _ in range(5):
        pace.delivered(took_s=0.001, gathered_s=0.002, used=0.6)
    assert pace.fill == QUICK_FILL
    # The window is used up before a delivery ends: everybody waits for it.
    for _ in range(2):
        pace.delivered(took_s=0.010, gathered_s=0.0, used=1.0)
    assert pace.fill == QUICK_FILL, "once or twice says nothing"
    pace.delivered(took_s=0.010, gathered_s=0.0, used=1.0)
    assert pace.fill == SLOW_FILL
    for _ in range(5):
        pace.delivered(took_s=0.010, gathered_s=0.003, used=1.0)
    assert pace.fill == SLOW_FILL
    for _ in range(3):
        pace.delivered(took_s=0.001, gathered_s=0.003, used=1.0)
    assert pace.fill == QUICK_FILL


def test_of_a_large_window_no_more_than_enough_is_waited_for() -> None:
    pace = Pace()
    assert [pace.wanted(window) for window in (0, 200, 2500, 50_000)] == [QUICK_FILL] * 4
    pace.fill = SLOW_FILL
    assert [pace.wanted(window) for window in (0, 200, 2500)] == [SLOW_FILL] * 3
    assert pace.wanted(2 * ENOUGH_MESSAGES) == 0.5
    assert pace.wanted(50_000) == QUICK_FILL


class ScriptedInbox:
    """What `gather` needs of a consumer; each wait lets time pass, or brings something."""

    def __init__(self, clock: ManualClock, *script: float | None) -> None:
        self.waits: list[float | None] = []
        self.messages = self.size_bytes = 0
        self.window = 1000
        self.fill = self.fullest = 0.0
        self.first_s = self.last_s = 0.0
        self.ended = False
        self.is_begun = False
        self.asked: list[tuple[int, int]] = []
        self._clock = clock
        self._script = list(script)

    @property
    def inbox(self) -> ScriptedInbox:
        return self

    async def wait(self, timeout_s: float | None = None, *, fill: float = 0.0) -> None:
        """Next of the script: an int is so many messages, a float so many seconds, None the end."""
        assert (fill > 0) == (timeout_s is not None)
        self.waits.append(timeout_s)
        step = self._script.pop(0)
        if step is None:
            self.ended = True
        elif isinstance(step, int):
            self.last_s = self._clock.monotonic()
            if not self.messages:
                self.first_s = self.last_s
            self.messages += step
            self.fill = self.fullest = self.messages / 1000
        else:
            self._clock.jump(step)

    def take(self) -> list[Batch]:
        taken, self.messages = self.messages, 0
        return [cast("Batch", number) for number in range(taken)]

    def take_some(self, messages_max: int, bytes_max: int) -> list[Batch]:
        self.asked.append((messages_max, bytes_max))
        return self.take()[:messages_max]


def gathered(
    *script: float | None, feeding: Feeding | None = None
) -> tuple[int, list[float | None], ScriptedInbox]:
    clock = ManualClock()
    inbox = ScriptedInbox(clock, *script)
    feeding = feeding or Feeding(wait_s=30.0)
    batches = asyncio.run(gather(cast("Consumer", inbox), feeding, Pace(), clock))
    return len(batches), inbox.waits, inbox


def test_it_waits_for_the_first_message_without_a_timer() -> None:
    assert gathered(350)[:2] == (350, [None])


def test_it_takes_what_has_come_when_it_is_quiet() -> None:
    count, waits, _ = gathered(10, 0.5)
    assert count == 10
    assert waits[0] is None
    assert waits[1] == pytest.approx(0.2 * (1 - 10 / 350) ** 2)


def test_it_goes_on_until_enough_has_come() -> None:
    count, waits, _ = gathered(100, 100, 100, 50)
    assert count == 350
    assert len(waits) == 4


def test_the_end_hands_out_the_rest_and_then_nothing() -> None:
    assert gathered(10, None)[0] == 10
    assert gathered(None)[0] == 0


def test_an_output_with_bounds_gets_no_more_and_waits_for_no_more() -> None:
    feeding = Feeding(wait_s=30.0, messages_max=10)
    count, waits, inbox = gathered(25, feeding=feeding)
    assert (count, waits, inbox.asked) == (10, [None], [(10, 0)])


def test_a_short_wait_is_kept_however_steady_the_trickle() -> None:
    feeding = Feeding(wait_s=0.05)
    count, waits, _ = gathered(1, 0.04, 1, 0.04, feeding=feeding)
    assert count == 2
    assert waits[-1] is not None
    assert waits[-1] <= 0.0101
