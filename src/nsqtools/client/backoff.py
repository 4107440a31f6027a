"""When to hold back: backoff of a failing consumer, and the delay before a reconnect.

`Backoff` follows NSQ's client (spec: client-behaviour, 4.6): every level doubles a pause in which
no message is taken, and after the pause one message is the test. Differences, each for a weakness
named in part 6:
- One bad message does not stop everything: from level 0, backoff begins with the second failure
  in a row (`failures_to_enter`), not with the first.
- Recovery takes as many messages as levels, not minutes: a success lowers the level without another
  pause and doubles the number of messages allowed (1, 2, 4 ...), until level 0 allows all. The next
  failure ends that and pauses again, one level up.
- Only what was received after the last pause counts as the test. The failures of two hundred
  messages that were in flight together are one failure of the destination, not six levels.
- A multiplier above half of the longest backoff pauses for the longest backoff; in NSQ's client it
  switches backoff off.

`ReconnectDelay` replaces NSQ's constant minute: exponential with jitter and a cap, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random

MAX_BACKOFF_DURATION_S = 120.0
BACKOFF_MULTIPLIER_S = 1.0
FAILURES_TO_ENTER = 2
# Doubling beyond this changes nothing: every option is capped at an hour.
_LEVEL_MAX = 40

RECONNECT_FIRST_S = 1.0
RECONNECT_MAX_S = 60.0
# A connection that lived as long as this was a good one: what ended it is a new trouble.
RECONNECT_GOOD_AFTER_S = 10.0

Strategy = Literal["exponential", "full_jitter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffOptions:
    """`max_backoff_duration_s` 0 or `multiplier_s` 0 switches backoff off."""

    strategy: Strategy = "exponential"
    max_backoff_duration_s: float = MAX_BACKOFF_DURATION_S
    multiplier_s: float = BACKOFF_MULTIPLIER_S
    failures_to_enter: int = FAILURES_TO_ENTER


class Backoff:
    """The state of one consumer. Times are seconds of the driver's clock.

    The driver reports each settled message with the time it was received, shares out
    `allowance()` as its max-in-flight, and asks again when a report returns True and at
    `pause_ends_at`.
    """

    def __init__(self, options: BackoffOptions, rng: random.Random) -> None:
        self._options = options
        self._rng = rng
        self._failures_in_a_row = 0
        self._window = 0
        self.level = 0
        self.pause_ends_at: float | None = None
        self._test_began_at = float("-inf")

    def allowance(self, max_in_flight: int, now: float) -> int:
        """How many messages may be in flight: none in a pause, few in the test, else all."""
        if self.level == 0:
            return max_in_flight
        if self.pause_ends_at is not None and now < self.pause_ends_at:
            return 0
        return min(self._window, max_in_flight)

    def succeeded(self, received_at: float) -> bool:
        """A message received then was delivered. Returns whether the allowance changed."""
        if not self._counts(received_at):
            return False
        self._failures_in_a_row = 0
        if self.level == 0:
            return False
        self.level -= 1
        self._window *= 2
        if self.level == 0:
            self.pause_ends_at = None
        return True

    def failed(self, received_at: float, now: float) -> bool:
        """A message received then failed for a reason that may hit the next one too.

        A message that is itself bad is requeued without a report. Returns whether a pause began.
        """
        longest_s = self._options.max_backoff_duration_s
        if longest_s <= 0 or self._options.multiplier_s <= 0 or not self._counts(received_at):
            return False
        self._failures_in_a_row += 1
        if self.level == 0 and self._failures_in_a_row < self._options.failures_to_enter:
            return False
        if self.level == 0 or self._scale_s(self.level + 1) <= longest_s:
            self.level = min(self.level + 1, _LEVEL_MAX)
        self.pause_ends_at = self._test_began_at = now + self._pause_s()
        self._window = 1
        return True

    def _counts(self, received_at: float) -> bool:
        return received_at >= self._test_began_at

    def _scale_s(self, level: int) -> float:
        return self._options.multiplier_s * 2.0**level

    def _pause_s(self) -> float:
        scale_s = self._scale_s(self.level)
        if self._options.strategy == "full_jitter":
            scale_s = self._rng.uniform(0.0, scale_s)
        return min(scale_s, self._options.max_backoff_duration_s)


class ReconnectDelay:
    """How long to wait before the next attempt to connect; it never gives up."""

    def __init__(
        self,
        rng: random.Random,
        *,
        first_s: float = RECONNECT_FIRST_S,
        max_s: float = RECONNECT_MAX_S,
        good_after_s: float = RECONNECT_GOOD_AFTER_S,
    ) -> None:
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self._good_after_s = good_after_s
        self._failures = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait after an attempt whose connection lived that long (0: never came up).

        Between half and the whole of 1 s, 2 s, 4 s ... up to the cap; a connection that lived for
        `good_after_s` starts the row anew.
        """
        if lived_s >= self._good_after_s:
            self._failures = 0
        ceiling_s = min(self._first_s * 2.0**self._failures, self._max_s)
        self._failures = min(self._failures + 1, _LEVEL_MAX)
        return self._rng.uniform(ceiling_s / 2, ceiling_s)
