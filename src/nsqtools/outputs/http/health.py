"""The health of an endpoint: a circuit that opens, probes and closes. Decisions only; they take `now_s`.

    closed ---- FAILURES_TO_OPEN in a row ----> open ---- its time is over ----> half open (one probe)
       ^                                          ^                                   |
       +---------------- any answer --------------+-------------- failure ------------+

An endpoint that answers, even with an error of the message, is alive. `Retry-After` pauses it for as
long as it asked, without counting as a failure of the circuit.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES_TO_OPEN = 5
OPEN_FIRST_S = 1.0
OPEN_MAX_S = 30.0
# Beyond this nobody can have meant it.
PAUSE_MAX_S = 900.0


class Circuit:
    """See the module. `times` counts how often it opened."""

    def __init__(self, rng: Callable[[float, float], float] = random.uniform) -> None:
        self.times = 0
        self._rng = rng
        self._failures = 0
        self._open_s = 0.0  # how long it is open; 0: closed
        self._until_s = 0.0
        self._probes = False
        self._paused_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is open or half open."""
        return self._open_s > 0

    def available_s(self, now_s: float) -> float:
        """When a request may be sent: `now_s` or before, or later. With a probe under way, after the
        time of another one."""
        if self._probes:
            return max(now_s + OPEN_FIRST_S, self._paused_s)
        return max(self._until_s if self._open_s else 0.0, self._paused_s)

    def began(self) -> None:
        """A request is sent; where the circuit is open, it is the probe."""
        self._probes = self._open_s > 0

    def answered(self) -> bool:
        """The endpoint answered; whether that closed the circuit."""
        self._failures = 0
        was_open = self._open_s > 0
        self._open_s = 0.0
        self._probes = False
        return was_open

    def failed(self, now_s: float) -> bool:
        """No answer, or one that says that the endpoint is in trouble; whether that opened it."""
        self._failures += 1
        if self._open_s and not self._probes:
            return False  # a request that was on its way before
        opens = not self._open_s and self._failures >= FAILURES_TO_OPEN
        if opens:
            self.times += 1
        if opens or self._probes:
            self._open_s = min(max(OPEN_FIRST_S, self._open_s * 2), OPEN_MAX_S)
            self._until_s = now_s + self._rng(0.5, 1.0) * self._open_s
            self._probes = False
        return opens

    def pause(self, now_s: float, for_s: float) -> None:
        """Ask for nothing for so long: the endpoint said so."""
        self._paused_s = max(self._paused_s, now_s + min(for_s, PAUSE_MAX_S))
