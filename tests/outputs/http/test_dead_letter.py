"""When messages may be given up."""

from __future__ import annotations

from nsqtools.outputs.http.dead_letter import BREAKER_MIN, BREAKER_WINDOW, Breaker


def note(breaker: Breaker, failed: int, done: int) -> None:
    for at in range(failed + done):
        breaker.note(failed=at < failed)


def test_a_few_bad_messages_are_no_outage() -> None:
    breaker = Breaker(0.5)
    note(breaker, BREAKER_MIN - 1, 0)
    assert not breaker.is_open, "too few to tell"
    note(breaker, 0, 500)
    note(breaker, 40, 60)
    assert not breaker.is_open


def test_when_most_fail_it_is_an_outage_until_they_do_not() -> None:
    breaker = Breaker(0.5)
    seen = []
    for failed, done in (
        (BREAKER_MIN, 0),
        (0, BREAKER_MIN),
        (BREAKER_WINDOW, 0),
        (0, BREAKER_WINDOW // 2),  # what is long ago does not count
    ):
        note(breaker, failed, done)
        seen.append(breaker.is_open)
    assert seen == [True, False, True, False]


def test_a_ratio_of_one_gives_everything_up() -> None:
    breaker = Breaker(1.0)
    note(breaker, 1000, 0)
    assert not breaker.is_open
