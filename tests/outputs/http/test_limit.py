"""A limit that follows how quick an endpoint is, played against one that is known."""

from __future__ import annotations

import heapq

import pytest

from nsqtools.outputs.http.limit import LIMIT_FIRST, AdaptiveLimit

WORK_S = 0.01


def play(limit: AdaptiveLimit, workers: int, seconds: float, start_s: float = 0.0) -> list[float]:
    """An endpoint with so many workers, each of which takes WORK_S, and a queue before them; as many
    requests are sent as the limit allows. Gives the limit after each answer."""
    now_s, free = start_s, [start_s] * workers
    under_way: list[tuple[float, float]] = []
    seen = []
    while now_s < start_s + seconds:
        while not limit.is_full:
            limit.began()
            done_s = max(now_s, heapq.heappop(free)) + WORK_S
            heapq.heappush(free, done_s)
            heapq.heappush(under_way, (done_s, now_s))
        now_s, sent_s = heapq.heappop(under_way)
        limit.answered(now_s - sent_s, now_s, is_overloaded=False)
        seen.append(limit.limit)
    for _ in under_way:
        limit.answered(WORK_S, now_s, is_overloaded=False)
    return seen


@pytest.mark.parametrize("workers", [2, 10, 40])
def test_it_finds_what_an_endpoint_takes(workers: int) -> None:
    """All workers have work, and few requests wait for one."""
    last = play(AdaptiveLimit(1000), workers, 5.0)[-200:]
    assert workers <= min(last)
    assert max(last) <= workers + 12


def test_it_never_exceeds_what_is_allowed() -> None:
    assert max(play(AdaptiveLimit(16), 1000, 2.0)) == 16
    assert AdaptiveLimit(2).limit == 2 < LIMIT_FIRST


def test_it_follows_a_change() -> None:
    limit = AdaptiveLimit(1000)
    play(limit, 40, 5.0)
    assert max(play(limit, 5, 5.0, start_s=6.0)[-100:]) <= 17
    assert min(play(limit, 40, 8.0, start_s=12.0)[-100:]) >= 35


def test_too_much_makes_it_shrink_once_a_round_trip_and_never_to_nothing() -> None:
    limit = AdaptiveLimit(100)
    play(limit, 100, 5.0)
    before = limit.limit
    for _ in range(20):
        limit.began()
        limit.answered(0.0, 100.0, is_overloaded=True)
    assert limit.limit == pytest.approx(before * 0.8)
    for at in range(100):
        limit.began()
        limit.answered(0.0, 200.0 + at, is_overloaded=True)
    assert limit.limit == 1
    assert not limit.is_full
