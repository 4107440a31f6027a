"""When a file is finished: pure decisions on (policy, state, now)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPolicy:
    """What ends a file besides a change of its name; 0 switches a rule off.

    `rotate_size_bytes` is the size on disk, compressed or not. A commit goes into one file, so a
    file may exceed the size and the number of records by one commit.
    """

    rotate_interval_s: float = 0.0
    rotate_size_bytes: int = 0
    rotate_records: int = 0
    rotate_idle_s: float = 0.0

    @property
    def is_on(self) -> bool:
        """Whether a name may be used for more than one file."""
        return any(
            (
                self.rotate_interval_s > 0,
                self.rotate_size_bytes > 0,
                self.rotate_records > 0,
                self.rotate_idle_s > 0,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What a decision needs to know of the open file.

    `opened_at` and `last_commit_at` are seconds on a clock that never goes back: the machine's
    clock may be set, and must end no file early or keep one open.
    """

    stem: str
    opened_at: float
    last_commit_at: float
    size_bytes: int
    records: int
    frames: int
    closes_at: float | None = None
    """When the file ends though its name stays: its period is over, and what came late is in it."""


def reason_to_rotate(
    policy: RotationPolicy, state: FileState, *, stem: str, frames_max: int, now: float
) -> str | None:
    """Why the open file is to be finished before anything is added; None to go on with it.

    `stem` is the name by the machine's clock; `now` is on the clock of the state's times.
    """
    if stem != state.stem:
        return "name"
    if state.closes_at is not None and now >= state.closes_at:
        return "period"
    if policy.rotate_interval_s > 0 and now - state.opened_at >= policy.rotate_interval_s:
        return "interval"
    if policy.rotate_size_bytes > 0 and state.size_bytes >= policy.rotate_size_bytes:
        return "size"
    if policy.rotate_records > 0 and state.records >= policy.rotate_records:
        return "records"
    if policy.rotate_idle_s > 0 and now - state.last_commit_at >= policy.rotate_idle_s:
        return "idle"
    return "frames" if state.frames >= frames_max else None


def next_rotation(
    policy: RotationPolicy, state: FileState, *, now: float, name_change_s: float | None
) -> float | None:
    """In how many seconds time alone may end the file, at the earliest; None for never.

    `name_change_s` is in how many seconds the name may change.
    """
    delays = [] if name_change_s is None else [name_change_s]
    if state.closes_at is not None:
        delays.append(state.closes_at - now)
    if policy.rotate_interval_s > 0:
        delays.append(state.opened_at + policy.rotate_interval_s - now)
    if policy.rotate_idle_s > 0:
        delays.append(state.last_commit_at + policy.rotate_idle_s - now)
    return max(0.0, min(delays)) if delays else None
