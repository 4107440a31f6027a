"""When a commit is full enough: a decision without a clock, and the waiting that carries it out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from nsqtools.clock import ManualClock
from nsqtools.pipeline.gather import QUIET_S, GatherPolicy, gather

if TYPE_CHECKING:
    from nsqtools.client.batch import Batch
    from nsqtools.client.consumer import Consumer

POLICY = GatherPolicy(sync_interval_s=30.0, quiet_s=0.5)


@pytest.mark.parametrize(
    ("fill", "first", "last", "now", "expected"),
    [
        pytest.param(1.0, 100.0, 100.0, 100.0, 0.0, id="a full batch does not wait"),
        pytest.param(5.0, 100.0, 100.0, 100.0, 0.0, id="nor does more than one"),
        pytest.param(0.0, 100.0, 100.0, 100.0, 0.5, id="a trickle is gathered"),
        pytest.param(0.0, 100.0, 110.0, 110.2, 0.3, id="from the last message on"),
        pytest.param(0.5, 100.0, 110.0, 110.0, 0.125, id="half a batch waits a quarter of that"),
        pytest.param(0.9, 100.0, 110.0, 110.0, 0.005, id="nearly a batch hardly waits"),
        pytest.param(0.0, 100.0, 129.9, 129.9, 0.1, id="but no longer than sync-interval"),
        pytest.param(0.0, 100.0, 131.0, 131.0, -1.0, id="which may be over"),
    ],
)
def test_policy(fill: float, first: float, last: float, now: float, expected: float) -> None:
    wait_s = POLICY.wait_s(fill=fill, first_arrival_s=first, last_arrival_s=last, now=now)
    assert wait_s == pytest.approx(expected)


def test_a_short_sync_interval_is_kept_however_steady_the_trickle() -> None:
    policy = GatherPolicy(sync_interval_s=0.05)
    assert policy.wait_s(fill=0, first_arrival_s=1, last_arrival_s=1.04, now=1.04) < 0.011
    assert policy.quiet_s == QUIET_S


class ScriptedConsumer:
    """What `gather` needs of a consumer; each wait lets time pass, or brings something."""

    def __init__(self, clock: ManualClock, *script: float | None) -> None:
        self.waits: list[float | None] = []
        self.waiting = 0
        self.fill = 0.0
        self.ended = False
        self.first_arrival_s = self.last_arrival_s = 0.0
        self._clock = clock
        self._script = list(script)

    async def wait(self, timeout_s: float | None = None, *, starved: bool = False) -> None:
        """Next of the script: an int is so many messages, a float so many seconds, None the end."""
        assert starved == (timeout_s is not None)
        self.waits.append(timeout_s)
        step = self._script.pop(0)
        if step is None:
            self.ended = True
        elif isinstance(step, int):
            self.last_arrival_s = self._clock.monotonic()
            if not self.waiting:
                self.first_arrival_s = self.last_arrival_s
            self.waiting += step
            self.fill = self.waiting / 100
        else:
            self._clock.jump(step)

    def take(self) -> list[Batch]:
        taken, self.waiting = self.waiting, 0
        return [cast("Batch", number) for number in range(taken)]


def gathered(*script: float | None) -> tuple[int, list[float | None]]:
    clock = ManualClock()
    consumer = ScriptedConsumer(clock, *script)
    batches = asyncio.run(gather(cast("Consumer", consumer), POLICY, clock))
    return len(batches), consumer.waits


def test_it_waits_for_the_first_message_without_a_timer() -> None:
    assert gathered(100) == (100, [None])


def test_it_takes_what_has_come_when_it_is_quiet() -> None:
    count, waits = gathered(1, 0.6)
    assert (count, waits[0]) == (1, None)
    assert waits[1:] == [pytest.approx(0.5 * 0.99**2)]


def test_it_goes_on_until_a_batch_is_full() -> None:
    count, waits = gathered(1, 49, 50)
    assert count == 100
    assert len(waits) == 3


def test_the_end_hands_out_the_rest_and_then_nothing() -> None:
    assert gathered(3, None)[0] == 3
    assert gathered(None) == (0, [None])
