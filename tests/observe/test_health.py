"""What is waited for and what fails."""

from __future__ import annotations

from nsqtools.observe.health import REASON_LENGTH_MAX, SHOWN_MAX, Health


def test_nothing_is_ready_before_it_has_started() -> None:
    health = Health()
    health.waiting("topic orders", "a subscription")
    states = [health.is_ready]
    health.ready("topic orders")
    states.append(health.is_ready)
    health.started()
    assert [*states, health.is_ready] == [False, False, True]
    assert health.summary() == "ok"


def test_waiting_and_failing_are_two_things() -> None:
    health = Health()
    health.started()
    health.failing("disk", OSError())
    assert health.is_ready
    states = [health.is_ok]
    health.waiting("topic a", "nsqd")
    assert health.summary() == "disk fails: OSError; topic a waits for nsqd"
    health.ok("disk")
    health.ok("disk")
    assert [*states, health.is_ok] == [False, True]
    assert health.waits == {"topic a": "nsqd"}


def test_what_is_gone_is_neither_waited_for_nor_failing() -> None:
    health = Health()
    health.started()
    health.waiting("topic a", "nsqd")
    health.failing("topic a", "full")
    health.forget("topic a")
    assert health.summary() == "ok"


def test_only_changes_are_told() -> None:
    health = Health()
    told: list[str] = []
    health.on_change(lambda: told.append(health.summary()))
    health.started()
    for _ in range(3):
        health.failing("disk", "full")
    health.ok("disk")
    health.ok("disk")
    assert told == ["ok", "disk fails: full", "ok"]


def test_texts_and_what_is_shown_are_bounded_but_not_the_truth() -> None:
    health = Health()
    health.started()
    for number in range(SHOWN_MAX + 7):
        health.failing(f"topic {number}", "x" * 2 * REASON_LENGTH_MAX)
    assert len(health.failures) == SHOWN_MAX + 7
    assert health.summary().endswith("; 7 more")
    assert len(health.summary()) < SHOWN_MAX * (REASON_LENGTH_MAX + 50)


def test_what_to_do_stands_at_the_end_and_is_not_cut() -> None:
    """A refusal of a store, with a key as --key-format makes them of a long topic."""
    key = f"{'t' * 64}/dt=2026-11-20/hour=10/{'t' * 64}.web1.{'2' * 40}.000000.log.zst"
    needed = f"It needs s3:GetObject on arn:aws:s3:::archive/{key}."
    health = Health()
    health.failing("topic t", f"look at s3://archive/{key}: 403 Forbidden ({needed})")
    assert health.failures["topic t"].endswith(f"({needed})")
