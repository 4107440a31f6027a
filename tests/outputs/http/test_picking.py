"""NSQ's modes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nsqtools.outputs.http.picking import (
    BUCKET_S,
    BUCKETS,
    DEAD_FIRST_S,
    DEAD_MAX_S,
    EpsilonGreedy,
    HostPool,
    Latency,
    RoundRobin,
)

ALL = (0, 1, 2)


@pytest.mark.parametrize("kind", [RoundRobin, HostPool])
def test_one_after_the_other(kind: type[RoundRobin]) -> None:
    picker = kind(3)
    assert Counter(picker.pick(ALL, 1.0) for _ in range(9)) == {0: 3, 1: 3, 2: 3}
    assert {picker.pick((0, 2), 1.0) for _ in range(4)} == {0, 2}
    assert [picker.pick((1,), 1.0) for _ in range(2)] == [1, 1]


def test_a_dead_host_is_left_alone_for_longer_and_longer() -> None:
    pool, now_s = HostPool(2), 1000.0
    waits = []
    for _ in range(7):
        pool.failed(1, now_s)
        pool.failed(1, now_s)  # others that were on their way
        began_s = now_s
        while 1 not in {pool.pick((0, 1), now_s) for _ in range(2)}:
            now_s += DEAD_FIRST_S / 2
        waits.append(now_s - began_s)
    assert waits[:3] == [DEAD_FIRST_S, 2 * DEAD_FIRST_S, 4 * DEAD_FIRST_S]
    assert waits[-1] == DEAD_MAX_S


def test_a_host_that_answers_is_alive_again() -> None:
    pool = HostPool(2)
    pool.failed(1, 0.0)
    pool.succeeded(1, 0.1, 1.0)
    assert {pool.pick((0, 1), 1.0) for _ in range(2)} == {0, 1}


def test_when_all_are_dead_all_are_tried() -> None:
    pool = HostPool(2)
    pool.failed(0, 0.0)
    pool.failed(1, 0.0)
    assert {pool.pick((0, 1), 1.0) for _ in range(2)} == {0, 1}


def test_the_quicker_is_asked_more_often() -> None:
    rng = random.Random(7)
    picker, now_s = EpsilonGreedy(2, rng.random), 1000.0
    asked: Counter[int] = Counter()
    for _ in range(20_000):
        at = picker.pick((0, 1), now_s)
        asked[at] += 1
        picker.succeeded(at, 0.010 if at else 0.090, now_s)
        now_s += 0.01
    assert 0.85 < asked[1] / asked.total() < 0.95, "by the inverse of what they take, 9 to 1"


def test_latency_forgets_what_is_old() -> None:
    latency = Latency()
    assert latency.mean_s(0.0) == 0
    latency.add(1.0, 10.0)
    assert latency.mean_s(10.0) == pytest.approx(1.0)
    later_s = 10.0 + BUCKET_S * (BUCKETS - 2)
    latency.add(0.1, later_s)
    assert latency.mean_s(later_s + BUCKET_S) < 0.12, "the old one counts little"
    assert latency.mean_s(later_s + BUCKET_S * (BUCKETS + 1)) == 0
