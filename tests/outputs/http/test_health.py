"""A circuit that opens, probes and closes."""

from __future__ import annotations

from nsqtools.outputs.http.health import (
    FAILURES_TO_OPEN,
    OPEN_FIRST_S,
    OPEN_MAX_S,
    PAUSE_MAX_S,
    Circuit,
)


def circuit() -> Circuit:
    return Circuit(rng=lambda _, most: most)


def opened(now_s: float = 100.0) -> Circuit:
    made = circuit()
    for _ in range(FAILURES_TO_OPEN - 1):
        made.began()
        assert not made.failed(now_s)
        assert made.available_s(now_s) <= now_s
    made.began()
    assert made.failed(now_s)
    return made


def test_it_opens_after_failures_in_a_row() -> None:
    assert opened().available_s(100.0) == 100.0 + OPEN_FIRST_S
    mixed = circuit()
    for _ in range(10 * FAILURES_TO_OPEN):
        assert not mixed.failed(1.0)
        mixed.answered()
    assert not mixed.is_open


def test_there_is_one_probe_at_a_time() -> None:
    made = opened()
    later_s = 100.0 + OPEN_FIRST_S
    assert made.available_s(later_s) <= later_s
    made.began()
    assert made.available_s(later_s) > later_s


def test_a_probe_that_is_answered_closes_it() -> None:
    made = opened()
    made.began()
    assert made.answered()
    assert not made.is_open
    assert made.available_s(100.0) <= 100.0
    assert not made.answered(), "told once"


def test_a_probe_that_fails_keeps_it_open_for_longer_up_to_a_bound() -> None:
    made, now_s, waits = opened(), 100.0, []
    for _ in range(8):
        now_s = made.available_s(now_s)
        made.began()
        assert not made.failed(now_s), "it was open before"
        waits.append(made.available_s(now_s) - now_s)
    assert waits[:3] == [2 * OPEN_FIRST_S, 4 * OPEN_FIRST_S, 8 * OPEN_FIRST_S]
    assert waits[-1] == OPEN_MAX_S
    assert made.times == 1


def test_requests_from_before_it_opened_change_nothing() -> None:
    made = opened()
    until_s = made.available_s(100.0)
    for _ in range(50):
        assert not made.failed(100.5)
    assert made.available_s(100.5) == until_s


def test_a_pause_is_as_long_as_was_asked_and_bounded() -> None:
    made = circuit()
    made.pause(100.0, 7.0)
    assert made.available_s(100.0) == 107.0
    made.pause(100.0, 1.0)
    assert made.available_s(100.0) == 107.0
    made.pause(100.0, 1e9)
    assert made.available_s(100.0) == 100.0 + PAUSE_MAX_S
    assert not made.is_open
