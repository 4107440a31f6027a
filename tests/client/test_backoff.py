from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.client.backoff import Backoff, BackoffOptions, ReconnectDelay

OPTIONS = BackoffOptions(failures_to_enter=1)


def backoff(options: BackoffOptions = OPTIONS) -> Backoff:
    return Backoff(options, random.Random(1))


def fail_test_after_test(state: Backoff, times: int) -> list[float]:
    """Let every test message fail; the pauses, in seconds."""
    now, pauses = 0.0, []
    for _ in range(times):
        assert state.failed(received_at=now, now=now)
        assert state.pause_ends_at is not None
        pauses.append(state.pause_ends_at - now)
        now = state.pause_ends_at
    return pauses


def test_pauses_double_up_to_the_last_level_that_fits() -> None:
    state = backoff()
    assert fail_test_after_test(state, 8) == [2, 4, 8, 16, 32, 64, 64, 64]
    assert state.level == 6


def test_in_a_pause_nothing_is_allowed_and_after_it_one_message() -> None:
    state = backoff()
    state.failed(received_at=0, now=0)
    assert state.allowance(200, now=1.9) == 0
    assert state.allowance(200, now=2.0) == 1
    assert state.allowance(0, now=2.0) == 0


def test_one_bad_message_does_not_stop_the_flow() -> None:
    state = backoff(BackoffOptions())
    for second in range(20):
        assert not state.failed(received_at=second, now=second)
        assert not state.succeeded(received_at=second)
        assert state.allowance(200, now=second) == 200
    assert not state.failed(received_at=20, now=20)
    assert state.failed(received_at=20, now=20)
    assert state.allowance(200, now=20) == 0


def test_recovery_takes_as_many_messages_as_levels() -> None:
    state = backoff()
    now = sum(fail_test_after_test(state, 6))
    allowed = []
    while state.level:
        allowed.append(state.allowance(200, now))
        assert state.succeeded(received_at=now)
    assert allowed == [1, 2, 4, 8, 16, 32]
    assert state.allowance(200, now) == 200
    assert state.pause_ends_at is None
    assert not state.succeeded(received_at=now)


def test_a_failure_while_recovering_pauses_one_level_up() -> None:
    state = backoff()
    now = sum(fail_test_after_test(state, 3))
    state.succeeded(received_at=now)
    assert (state.level, state.allowance(200, now)) == (2, 2)
    assert state.failed(received_at=now, now=now)
    assert state.level == 3
    assert state.allowance(200, now + 7.9) == 0
    assert state.allowance(200, now + 8.0) == 1


def test_what_was_in_flight_together_fails_once() -> None:
    state = backoff()
    assert [state.failed(received_at=0, now=1) for _ in range(200)].count(True) == 1
    assert state.level == 1
    assert not state.succeeded(received_at=2.9)
    assert state.level == 1
    assert state.succeeded(received_at=3.0)
    assert state.level == 0


@pytest.mark.parametrize("off", [{"max_backoff_duration_s": 0.0}, {"multiplier_s": 0.0}])
def test_zero_switches_backoff_off(off: dict[str, float]) -> None:
    state = backoff(replace(OPTIONS, **off))  # type: ignore[arg-type]
    assert not state.failed(received_at=0, now=0)
    assert state.allowance(7, now=0) == 7


def test_a_multiplier_beyond_the_longest_pauses_for_the_longest() -> None:
    state = backoff(replace(OPTIONS, multiplier_s=300.0))
    assert fail_test_after_test(state, 3) == [120, 120, 120]
    assert state.level == 1


def test_full_jitter_stays_below_the_scale() -> None:
    pauses = fail_test_after_test(backoff(replace(OPTIONS, strategy="full_jitter")), 6)
    assert all(pause <= 2.0 ** (n + 1) for n, pause in enumerate(pauses))
    assert len(set(pauses)) == 6


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 300), st.floats(0, 300)), max_size=60))
def test_whatever_happens_it_ends_and_stays_in_bounds(
    events: list[tuple[bool, float, float]],
) -> None:
    state = backoff()
    now = 0.0
    for good, step, age in events:
        now += step
        if good:
            state.succeeded(received_at=now - age)
        else:
            state.failed(received_at=now - age, now=now)
        assert 0 <= state.level <= 6
        assert 0 <= state.allowance(200, now) <= 200
        assert state.pause_ends_at is None or state.pause_ends_at <= now + 120
    now += 121
    for _ in range(state.level):
        assert state.allowance(200, now) > 0
        state.succeeded(received_at=now)
    assert state.allowance(200, now) == 200


@given(st.integers(0, 10_000))
def test_reconnects_grow_to_the_cap_and_never_end(seed: int) -> None:
    delay = ReconnectDelay(random.Random(seed))
    ceilings = [1, 2, 4, 8, 16, 32, 60, 60] + [60] * 60
    assert all(ceiling / 2 <= delay.after(0.0) <= ceiling for ceiling in ceilings)


def test_a_connection_that_lived_starts_the_row_anew() -> None:
    delay = ReconnectDelay(random.Random(1))
    for _ in range(5):
        delay.after(9.9)
    assert delay.after(9.9) > 8
    assert delay.after(10.0) <= 1
    assert 1 <= delay.after(0.0) <= 2
