"""How many requests an endpoint takes at once without becoming slower: decisions, as TCP Vegas makes
them.

With `limit` requests under way and nobody waiting, each takes `base_s`, the least that was seen. What
they take more is time in a queue: limit * (1 - base_s / latency_s) of them wait. The limit grows while
few wait and all of it is used, and shrinks when many do; when the endpoint says that it is asked too
much, at once by a fifth.
"""

from __future__ import annotations

LIMIT_FIRST = 4.0
QUEUED_FEW = 3.0
QUEUED_MANY = 6.0
SHRINK = 0.8
# By this part the least latency is forgotten each second, so that a change of the network is noticed.
_FORGET_PER_S = 0.02
_WEIGHT = 0.2


class AdaptiveLimit:
    """See the module. Between 1 and `most`."""

    def __init__(self, most: int) -> None:
        self.limit = min(LIMIT_FIRST, float(most))
        self.under_way = 0
        self._most = most
        self._base_s = 0.0
        self._latency_s = 0.0
        self._grows_fast = True
        self._changed_s = self._learned_s = 0.0
        self._was_full = False

    @property
    def is_full(self) -> bool:
        return self.under_way >= int(self.limit)

    def began(self) -> None:
        self.under_way += 1
        self._was_full = self._was_full or self.is_full

    def answered(self, latency_s: float, now_s: float, *, is_overloaded: bool) -> None:
        """A request was answered, or came to its end without an answer."""
        self.under_way -= 1
        if not is_overloaded:
            self._learn(latency_s, now_s)
        if now_s - self._changed_s < self._latency_s:
            return  # what was sent since the last change is not back yet
        if is_overloaded:
            self._change(self.limit * SHRINK, now_s)
            self._grows_fast = False
            return
        queued = self.limit * (1.0 - self._base_s / self._latency_s) if self._latency_s else 0.0
        if queued > QUEUED_MANY:
            self._change(self.limit - 1, now_s)
            self._grows_fast = False
        elif queued < QUEUED_FEW and self._was_full:
            self._change(self.limit * 2 if self._grows_fast else self.limit + 1, now_s)

    def _learn(self, latency_s: float, now_s: float) -> None:
        passed_s, self._learned_s = now_s - self._learned_s, now_s
        forgotten_s = self._base_s * (1.0 + min(1.0, _FORGET_PER_S * passed_s))
        self._base_s = min(latency_s, forgotten_s) if self._base_s else latency_s
        difference_s = latency_s - self._latency_s
        self._latency_s += difference_s * (_WEIGHT if self._latency_s else 1.0)

    def _change(self, limit: float, now_s: float) -> None:
        self.limit = min(max(1.0, limit), float(self._most))
        self._changed_s = now_s
        self._was_full = False
