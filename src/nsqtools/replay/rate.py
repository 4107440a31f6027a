"""A rate limit: a decision, without clock or sleep."""

from __future__ import annotations

# How much of a second may come at once after a pause.
BURST_S = 0.1


class Rate:
    """At most `per_s` messages a second; 0 is no limit. Times are seconds of the caller's clock.

    A reservation is always granted, at a time: what was taken too early is paid for by the next.
    """

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._free_at_s = now_s

    def largest_batch(self, batch_size: int) -> int:
        """Messages to send at once, so that a slow rate is even and not bursts of whole batches."""
        if not self._per_s:
            return batch_size
        return max(1, min(batch_size, int(self._per_s * BURST_S)))

    def reserve(self, messages: int, now_s: float) -> float:
        """How many seconds to wait before sending that many."""
        if not self._per_s:
            return 0.0
        start_s = max(self._free_at_s, now_s - BURST_S)
        self._free_at_s = start_s + messages / self._per_s
        return max(0.0, start_s - now_s)
