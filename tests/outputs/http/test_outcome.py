"""What a status means, and when to try again."""

from __future__ import annotations

import pytest

from nsqtools.outputs.http.outcome import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    STATUS,
    Outcome,
    Rules,
    backoff_s,
    retry_after_s,
)

RETRIED = {0, 408, 425, 429, *range(500, 600)}


def test_every_status_has_its_meaning() -> None:
    rules = Rules()
    for status in (0, *range(200, 600)):
        expected = Outcome.REJECTED
        if 200 <= status < 300:
            expected = Outcome.DONE
        elif status in RETRIED:
            expected = Outcome.RETRY
        assert rules.judge(status) is expected, status


def test_what_is_named_goes_before_the_rest() -> None:
    rules = Rules(
        ok=(STATUS.parse("409"),), retry=(STATUS.parse("4xx"),), reject=(STATUS.parse("200-204"),)
    )
    assert rules.judge(409) is Outcome.DONE
    assert rules.judge(404) is Outcome.RETRY
    assert rules.judge(204) is Outcome.REJECTED
    assert rules.judge(205) is Outcome.DONE
    assert rules.judge(0) is Outcome.RETRY


@pytest.mark.parametrize("text", ["", "600", "99", "0", "4x", "404-", "500-400", "4xx-5xx", "404 "])
def test_what_is_no_status(text: str) -> None:
    with pytest.raises(ValueError, match="status"):
        STATUS.parse(text)


def test_backoff_doubles_up_to_a_bound_with_full_jitter() -> None:
    ceilings = [backoff_s(tries, lambda _, most: most) for tries in range(1, 40)]
    assert ceilings[:3] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]
    assert ceilings[-1] == BACKOFF_MAX_S
    assert backoff_s(10, lambda least, _: least) == 0.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 3 ", 3.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 9.0),
        ("Fri, 31 Dec 1999 23:59:00 GMT", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("9" * 50, 0.0),
        ("", 0.0),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert retry_after_s(value, 946684790.0) == seconds
