"""What a reply means for a message, and how long to wait before the next try. Decisions only."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TYPE_CHECKING

from nsqtools.options import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
_DOUBLINGS_MAX = 16
_RETRIED = frozenset({408, 425, 429})
_SERVER_ERROR = 500
_STATUSES = re.compile(r"([1-5])xx|([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)


class Outcome(Enum):
    """What becomes of a message."""

    DONE = "done"
    RETRY = "retry"
    REJECTED = "rejected"


class StatusKind(Kind[range]):
    """Statuses: `404`, `500-504`, or `4xx`."""

    metavar = "STATUS"
    explain = "404, 500-504, or 4xx for all from 400 to 499"

    def parse(self, text: str) -> range:
        match = _STATUSES.fullmatch(text)
        if match is None:
            raise ValueError("should be a status such as 404, 500-504 or 4xx")
        if match[1]:
            return range(int(match[1]) * 100, int(match[1]) * 100 + 100)
        found = range(int(match[2]), int(match[3] or match[2]) + 1)
        if not found:
            raise ValueError("the first status should be the smaller one")
        return found

    def render(self, value: range) -> str:
        return f"{value.start}-{value.stop - 1}"


STATUS = StatusKind()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which statuses mean what; what is named here goes before the rest."""

    ok: tuple[range, ...] = ()
    retry: tuple[range, ...] = ()
    reject: tuple[range, ...] = ()

    def judge(self, status: int) -> Outcome:
        """A status of 0 is that of a request without a reply."""
        for named, outcome in (
            (self.ok, Outcome.DONE),
            (self.retry, Outcome.RETRY),
            (self.reject, Outcome.REJECTED),
        ):
            if any(status in one for one in named):
                return outcome
        if 200 <= status < 300:
            return Outcome.DONE
        if status in _RETRIED or status >= _SERVER_ERROR or not status:
            return Outcome.RETRY
        return Outcome.REJECTED


def backoff_s(tries: int, rng: Callable[[float, float], float] = random.uniform) -> float:
    """How long to wait after so many failed tries: exponential, with full jitter."""
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(tries - 1, _DOUBLINGS_MAX))
    return rng(0.0, ceiling_s)


def retry_after_s(value: str, now_s: float) -> float:
    """The seconds that a header Retry-After asks for, 0 when it says nothing that can be read.

    `now_s` is in seconds since the epoch.
    """
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        aware = at if at.tzinfo else at.replace(tzinfo=UTC)
        return max(0.0, aware.timestamp() - datetime.fromtimestamp(now_s, UTC).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0.0
