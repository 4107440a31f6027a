"""Which endpoint gets a message: NSQ's modes. Decisions only; they take `now_s`.

All of them pass over endpoints whose circuit is open. `hostpool` and `epsilon-greedy` do as
go-hostpool does (spec: tools, part 2): a host is dead after one failure, for 30 s and twice as long each
time, up to 15 minutes; when all are dead, all are tried again.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEAD_FIRST_S = 30.0
DEAD_MAX_S = 900.0
EPSILON_FIRST = 0.3
EPSILON_MIN = 0.01
EPSILON_DECAY = 0.9
BUCKETS = 120
BUCKET_S = 2.5  # 5 minutes in all


class Picker(Protocol):
    """Endpoints are known by their numbers."""

    def pick(self, available: Sequence[int], now_s: float) -> int:
        """One of those that are available; there is at least one."""

    def succeeded(self, at: int, latency_s: float, now_s: float) -> None:
        """It answered a request well."""

    def failed(self, at: int, now_s: float) -> None:
        """It did not."""


class RoundRobin:
    """One after the other."""

    def __init__(self, endpoints: int) -> None:
        self._endpoints = endpoints
        self._next = 0

    def pick(self, available: Sequence[int], now_s: float) -> int:
        if len(available) == self._endpoints:
            self._next = (self._next + 1) % self._endpoints
            return self._next
        at = next((one for one in available if one > self._next), available[0])
        self._next = at
        return at

    def succeeded(self, at: int, latency_s: float, now_s: float) -> None:
        """All are alike."""

    def failed(self, at: int, now_s: float) -> None:
        """All are alike."""


class HostPool(RoundRobin):
    """One after the other of those that are not dead."""

    def __init__(self, endpoints: int) -> None:
        super().__init__(endpoints)
        self._dead_s = [0.0] * endpoints
        self._retry_s = [0.0] * endpoints
        self._dead = 0

    def pick(self, available: Sequence[int], now_s: float) -> int:
        return super().pick(self._alive(available, now_s), now_s)

    def _alive(self, available: Sequence[int], now_s: float) -> Sequence[int]:
        if not self._dead:
            return available
        alive = [at for at in available if self._retry_s[at] <= now_s]
        if not alive:
            self._retry_s = [0.0] * self._endpoints
            self._dead_s = [0.0] * self._endpoints
            self._dead = 0
            return available
        return alive

    def succeeded(self, at: int, latency_s: float, now_s: float) -> None:
        if self._dead_s[at]:
            self._dead_s[at] = self._retry_s[at] = 0.0
            self._dead -= 1

    def failed(self, at: int, now_s: float) -> None:
        if self._retry_s[at] > now_s:
            return  # a request that was on its way when it died
        self._dead += not self._dead_s[at]
        self._dead_s[at] = min(max(DEAD_FIRST_S, self._dead_s[at] * 2), DEAD_MAX_S)
        self._retry_s[at] = now_s + self._dead_s[at]


class EpsilonGreedy(HostPool):
    """The quicker, the more often; now and then any of them, to learn how quick the others are."""

    def __init__(self, endpoints: int, rng: Callable[[], float] = random.random) -> None:
        super().__init__(endpoints)
        self._rng = rng
        self._epsilon = EPSILON_FIRST
        self._latencies = [Latency() for _ in range(endpoints)]
        self._decay_s = 0.0

    def pick(self, available: Sequence[int], now_s: float) -> int:
        if now_s - self._decay_s >= BUCKET_S:
            self._decay_s = now_s
            self._epsilon = max(EPSILON_MIN, self._epsilon * EPSILON_DECAY)
        alive = self._alive(available, now_s)
        known = [(at, self._latencies[at].mean_s(now_s)) for at in alive]
        scores = [(at, 1.0 / mean_s) for at, mean_s in known if mean_s > 0]
        if not scores or self._rng() < self._epsilon:
            return RoundRobin.pick(self, alive, now_s)
        place = self._rng() * sum(score for _, score in scores)
        for at, score in scores:
            place -= score
            if place <= 0:
                return at
        return scores[-1][0]

    def succeeded(self, at: int, latency_s: float, now_s: float) -> None:
        super().succeeded(at, latency_s, now_s)
        self._latencies[at].add(latency_s, now_s)


class Latency:
    """The mean of the last 5 minutes; what is older counts less."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._sums_s = [0.0] * BUCKETS
        self._bucket = 0
        self._mean_s = 0.0

    def add(self, latency_s: float, now_s: float) -> None:
        self._advance(now_s)
        place = self._bucket % BUCKETS
        self._counts[place] += 1
        self._sums_s[place] += latency_s
        if not self._mean_s:
            self._mean_s = self._mean()

    def mean_s(self, now_s: float) -> float:
        """0 when nothing is known; worked out once a bucket."""
        self._advance(now_s)
        return self._mean_s

    def _advance(self, now_s: float) -> None:
        bucket = int(now_s / BUCKET_S)
        if bucket == self._bucket:
            return
        for passed in range(min(bucket - self._bucket, BUCKETS)):
            place = (bucket - passed) % BUCKETS
            self._counts[place], self._sums_s[place] = 0, 0.0
        # The bucket that has just ended is in it.
        self._bucket = bucket
        self._mean_s = self._mean()

    def _mean(self) -> float:
        weighed = total = 0.0
        for age in range(BUCKETS):
            place = (self._bucket - age) % BUCKETS
            if count := self._counts[place]:
                weight = (BUCKETS - age) / BUCKETS
                weighed += weight * self._sums_s[place] / count
                total += weight
        return weighed / total if total else 0.0
