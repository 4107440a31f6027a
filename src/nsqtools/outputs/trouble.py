"""What fails again and again: how long an output waits before it tries once more, and what it says."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated

if TYPE_CHECKING:
    from nsqtools.errors import NsqToolsError
    from nsqtools.observe.log import Log

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0


class Trouble:
    """One thing that can fail for a while: how long to wait, and what is said of it."""

    def __init__(self, log: Log, what: str, again: str = "it works again") -> None:
        self._again = again
        self.retry_s = 0.0
        self.reason = ""
        self._told = Repeated(log, what, clock=SystemClock())

    @property
    def wait_s(self) -> float:
        """How long to wait at least, also before anything has failed."""
        return max(RETRY_FIRST_S, self.retry_s)

    def failed(self, failure: NsqToolsError) -> float:
        """How many seconds to wait until the next try."""
        self.reason = f"{failure} ({failure.hint})" if failure.hint else str(failure)
        self._told.failed(failure, **({"hint": failure.hint} if failure.hint else {}))
        self.retry_s = min(max(RETRY_FIRST_S, self.retry_s * 2), RETRY_MAX_S)
        return self.retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def over(self) -> None:
        if self.retry_s:
            self.retry_s = 0.0
            self.reason = ""
            self._told.recovered(self._again)
