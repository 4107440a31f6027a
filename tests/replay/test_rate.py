"""The rate limit: even, never above what was asked for, and no debt of pauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.replay.rate import BURST_S, Rate


def test_no_rate_is_no_limit() -> None:
    rate = Rate(0, 5.0)
    assert rate.largest_batch(500) == 500
    assert [rate.reserve(10**6, 5.0) for _ in range(3)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("per_s", "batch_size", "largest"),
    [(0.5, 500, 1), (5, 500, 1), (100, 500, 10), (10_000, 500, 500), (10_000, 3, 3)],
)
def test_a_slow_rate_is_not_sent_in_whole_batches(
    per_s: float, batch_size: int, largest: int
) -> None:
    assert Rate(per_s, 0.0).largest_batch(batch_size) == largest


def test_what_was_taken_is_waited_for() -> None:
    rate = Rate(10, 100.0)
    assert rate.reserve(1, 100.0) == 0.0
    assert rate.reserve(1, 100.0) == pytest.approx(0.1)
    assert rate.reserve(5, 100.1) == pytest.approx(0.1)
    assert rate.reserve(1, 100.2) == pytest.approx(0.5)


@given(
    st.floats(0.5, 10_000),
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_no_more_than_the_rate_and_one_burst(per_s: float, calls: list[tuple[int, float]]) -> None:
    """Whoever waits as told has at any time sent no more than rate x time, a burst, and a batch."""
    now_s = began_s = 1000.0
    rate = Rate(per_s, now_s)
    sent = 0
    for messages, pause_s in calls:
        now_s += rate.reserve(messages, now_s)
        allowed = per_s * (now_s - began_s + BURST_S)
        assert sent <= allowed * (1 + 1e-9)
        sent += messages
        now_s += pause_s


@given(st.floats(1, 10_000), st.integers(1, 200))
def test_the_rate_is_reached(per_s: float, batches: int) -> None:
    now_s = began_s = 1000.0
    rate = Rate(per_s, now_s)
    for _ in range(batches):
        now_s += rate.reserve(10, now_s)
    assert now_s - began_s == pytest.approx(10 * (batches - 1) / per_s)
