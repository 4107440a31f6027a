"""Rotation: pure decisions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nsqtools.archive.rotation import FileState, RotationPolicy, next_rotation, reason_to_rotate

STATE = FileState(
    stem="a", opened_at=1000.0, last_commit_at=1010.0, size_bytes=500, records=50, frames=5
)
OFF = RotationPolicy()


def reason(policy: RotationPolicy, state: FileState = STATE, now: float = 1020.0) -> str | None:
    return reason_to_rotate(policy, state, stem="a", frames_max=6, now=now)


def test_everything_off() -> None:
    assert not OFF.is_on
    assert reason(OFF, now=1e12) is None
    assert next_rotation(OFF, STATE, now=1020.0, name_change_s=None) is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RotationPolicy(rotate_interval_s=20), "interval"),
        (RotationPolicy(rotate_interval_s=20.1), None),
        (RotationPolicy(rotate_size_bytes=500), "size"),
        (RotationPolicy(rotate_size_bytes=501), None),
        (RotationPolicy(rotate_records=50), "records"),
        (RotationPolicy(rotate_records=51), None),
        (RotationPolicy(rotate_idle_s=10), "idle"),
        (RotationPolicy(rotate_idle_s=10.1), None),
    ],
)
def test_each_rule(policy: RotationPolicy, expected: str | None) -> None:
    assert policy.is_on
    assert reason(policy) == expected


def test_the_name_comes_first() -> None:
    assert reason_to_rotate(OFF, STATE, stem="b", frames_max=6, now=0) == "name"


def test_the_index_is_bounded() -> None:
    assert reason(OFF, replace(STATE, frames=6)) == "frames"


def test_the_earliest_time_counts() -> None:
    policy = RotationPolicy(rotate_interval_s=20, rotate_idle_s=5)
    assert next_rotation(policy, STATE, now=1011.0, name_change_s=None) == 4
    assert next_rotation(policy, STATE, now=1011.0, name_change_s=1.5) == 1.5
    assert next_rotation(OFF, STATE, now=1011.0, name_change_s=1.5) == 1.5
    assert next_rotation(policy, STATE, now=1100.0, name_change_s=None) == 0
