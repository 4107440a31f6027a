"""What is known of messages that are not done: how often they were tried, what was said of them, and
requests that hang.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nsqtools.archive.failures import Failure
    from nsqtools.outputs.http.bodies import Row
    from nsqtools.outputs.http.connection import Reply
    from nsqtools.outputs.http.outcome import Outcome
    from nsqtools.outputs.http.sender import Job


class GivenUp(NamedTuple):
    """A message that will never be taken, and why."""

    reason: str
    failure: Failure


@dataclass(slots=True)
class Tries:
    """What was tried for a message."""

    count: int = 0
    done_at: set[int] = field(default_factory=set)
    """Where each goes to all endpoints, those that have it."""
    refused_at: dict[int, GivenUp] = field(default_factory=dict)
    """And those that will never take it."""
    given_up: GivenUp | None = None
    """It is not sent any more: only its dead letter is missing."""


class KnownTries:
    """Of at most `kept_max` messages: of the longest unheard one nothing is known any more."""

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self._tries: dict[tuple[str, bytes, int], Tries] = {}

    def __len__(self) -> int:
        return len(self._tries)

    def get(self, row: Row) -> Tries | None:
        return self._tries.get(key_of(row))

    def of(self, row: Row) -> Tries:
        """Those of a message, made when there are none."""
        key = key_of(row)
        tries = self._tries.pop(key, None) or Tries()
        if len(self._tries) >= self._kept_max:
            del self._tries[next(iter(self._tries))]
        self._tries[key] = tries
        return tries

    def forget(self, row: Row) -> None:
        self._tries.pop(key_of(row), None)


class LateJobs:
    """Requests that hang: their deliveries were answered without them, and the messages come again to
    ask for them. A message whose connection was lost meanwhile may never come, so at most `kept_max`
    are kept, the newest ones.
    """

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self._late: dict[tuple[str, bytes, int, int, int | None], Job] = {}

    def __len__(self) -> int:
        return len(self._late)

    def leave(self, job: Job, row: Row) -> None:
        """Keep a job of this message, which has no answer yet, and its answer when that comes."""
        if len(self._late) >= self._kept_max:
            del self._late[next(iter(self._late))]
        self._late[_late_key(row, job.only)] = job
        job.is_late = True
        job.finish = _keep_answer

    def take(self, row: Row, only: int | None) -> Job | None:
        """The job that this message has under way to that endpoint, if any."""
        return self._late.pop(_late_key(row, only), None)


def _keep_answer(job: Job, reply: Reply, outcome: Outcome) -> None:
    job.answered = reply, outcome


def key_of(row: Row) -> tuple[str, bytes, int]:
    """Which message it is."""
    messages, at = row
    return messages.nsqd, messages.ids[at], messages.parts[at] if messages.parts else 0


def _late_key(row: Row, only: int | None) -> tuple[str, bytes, int, int, int | None]:
    """With the time: the id of a message that is done may come again with another one."""
    messages, at = row
    return (*key_of(row), messages.timestamps[at], only)
