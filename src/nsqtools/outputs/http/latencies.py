"""How long requests take now: for whoever looks at the run."""

from __future__ import annotations

from nsqtools.outputs.http.status_lines import percentile

# Beyond this the first so many since the last look tell.
LATENCIES_MAX = 20_000


class Latencies:
    """Of all topics together, since the last look."""

    def __init__(self) -> None:
        self._taken_s: list[float] = []

    def note(self, latency_s: float) -> None:
        if len(self._taken_s) < LATENCIES_MAX:
            self._taken_s.append(latency_s)

    def take(self, *parts: float) -> list[float]:
        """The percentiles at these parts (0.99), in seconds, and begin anew; nothing without a
        request."""
        taken_s, self._taken_s = sorted(self._taken_s), []
        return [percentile(taken_s, part) for part in parts] if taken_s else []
