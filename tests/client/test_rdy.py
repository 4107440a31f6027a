from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsqtools.client.rdy import (
    REDISTRIBUTE_INTERVAL_S,
    STRICT_PLACES_MIN,
    STRICT_PROBE_S,
    ConnectionRdy,
    LowRdyTiming,
    share_rdy,
)

TIMING = LowRdyTiming()


def connection(key: str, **fields: float | bool) -> ConnectionRdy:
    idle = ConnectionRdy(key=key, max_rdy_count=2500, rdy=0, in_flight=0, rdy_changed_at=0.0)
    return replace(idle, **fields)  # type: ignore[arg-type]


def share(
    *connections: ConnectionRdy,
    max_in_flight: int,
    now: float = 0.0,
    seed: int = 1,
    strictly: bool = False,
) -> dict[str, int]:
    rng = random.Random(seed)
    return share_rdy(connections, max_in_flight=max_in_flight, now=now, rng=rng, strictly=strictly)


def test_equal_shares_with_the_remainder_spread() -> None:
    connections = [connection(key) for key in "abc"]
    assert share(*connections, max_in_flight=200) == {"a": 67, "b": 67, "c": 66}


def test_the_survivor_is_raised_at_once() -> None:
    assert share(connection("a", rdy=100), max_in_flight=200) == {"a": 200}


def test_what_a_small_nsqd_cannot_take_goes_to_the_others() -> None:
    shares = share(
        connection("a"), connection("b", max_rdy_count=10), connection("c"), max_in_flight=200
    )
    assert shares == {"a": 95, "b": 10, "c": 95}


def test_rdy_goes_where_messages_are() -> None:
    idle = [connection(f"idle-{n}", rdy=250) for n in range(9)]
    busy = connection("busy", rdy=250, rate_per_s=200_000.0)
    shares = share(busy, *idle, max_in_flight=2500)
    assert shares["busy"] >= 2200
    assert {shares[c.key] for c in idle} == {31}


def after(decisions: int, crowd: dict[str, int], *, max_in_flight: int) -> dict[str, int]:
    """The shares of nsqds that all send as much as they are asked for, when RDY was shared so often."""
    for _ in range(decisions):
        each = [
            connection(key, rdy=rdy, in_flight=rdy, rate_per_s=100.0 * rdy, was_exhausted=True)
            for key, rdy in crowd.items()
        ]
        crowd = share(*each, max_in_flight=max_in_flight)
    return crowd


def test_one_that_was_held_back_has_its_part_after_a_few_decisions() -> None:
    busy = {f"busy-{n}": 800 for n in range(3)}
    shares = after(5, busy | {"waking": 1}, max_in_flight=2500)
    assert shares["waking"] * 1.25 >= max(shares.values())


def test_all_that_are_busy_share_alike_whatever_came_of_each() -> None:
    """Who had more RDY could show more: to go by that alone would give them ever more."""
    crowd = {f"{n}": 10 + n for n in range(50)}
    shares = after(3, crowd, max_in_flight=2500)
    assert min(shares.values()) * 1.25 >= max(shares.values())


def test_those_that_one_message_fills_take_nothing_from_a_busy_one() -> None:
    """A message now and then is all that RDY 1 lets come."""
    few = [
        connection(f"few-{n}", rdy=1, in_flight=1, rate_per_s=50.0, was_exhausted=True)
        for n in range(19)
    ]
    busy = connection("busy", rdy=180, rate_per_s=30_000.0, was_exhausted=True)
    shares = share(busy, *few, max_in_flight=200)
    assert shares["busy"] >= 150
    assert min(shares.values()) >= 1


def test_rdy_does_not_follow_every_wave() -> None:
    connections = [
        connection("a", rdy=120, rate_per_s=1000.0),
        connection("b", rdy=80, rate_per_s=900.0),
    ]
    assert share(*connections, max_in_flight=200) == {"a": 120, "b": 80}
    assert share(*connections, max_in_flight=190) != {"a": 120, "b": 80}, "the sum would be passed"


@given(
    rates=st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    limits=st.lists(st.integers(1, 3000), min_size=12, max_size=12),
    max_in_flight=st.integers(12, 3000),
)
def test_shares_by_weight_use_all_there_is(
    rates: list[float], limits: list[int], max_in_flight: int
) -> None:
    crowd = [
        connection(f"{n}", rate_per_s=rate, max_rdy_count=limits[n]) for n, rate in enumerate(rates)
    ]
    shares = share(*crowd, max_in_flight=max_in_flight)
    assert sum(shares.values()) == min(max_in_flight, sum(limits[: len(rates)]))
    assert all(1 <= shares[c.key] <= c.max_rdy_count for c in crowd)


def test_no_connections_no_shares() -> None:
    assert share(max_in_flight=10) == {}


def test_a_pause_is_rdy_0_for_all() -> None:
    shares = share(connection("a", rdy=5), connection("b", rdy=5), max_in_flight=0)
    assert shares == {"a": 0, "b": 0}


def test_lowered_ones_come_first() -> None:
    shares = share(connection("a"), connection("b", rdy=10), max_in_flight=10)
    assert list(shares.items()) == [("b", 5), ("a", 5)]


def test_too_many_connections_get_rdy_1_for_some() -> None:
    connections = [connection(f"{n}") for n in range(10)]
    shares = share(*connections, max_in_flight=3)
    assert sorted(shares.values()) == [0] * 7 + [1] * 3
    assert len({tuple(share(*connections, max_in_flight=3, seed=s).items()) for s in range(9)}) > 1


@pytest.mark.parametrize(
    ("holder", "keeps"),
    [
        ({"rdy_changed_at": 99.6, "last_message_at": 5.0}, True),
        ({"rdy_changed_at": 80.0, "last_message_at": 99.6}, True),
        ({"rdy_changed_at": 80.0, "last_message_at": 99.4}, False),
        ({"rdy_changed_at": 99.4}, False),
        ({"rdy_changed_at": 71.0, "last_message_at": 75.0, "in_flight": 1}, True),
        ({"rdy_changed_at": 70.0, "last_message_at": 99.0}, False),
    ],
)
def test_when_a_holder_gives_up(holder: dict[str, float], keeps: bool) -> None:
    shares = share(connection("a", rdy=1, **holder), connection("b"), max_in_flight=1, now=100.0)
    assert shares == {"a": int(keeps), "b": int(not keeps)}


def test_a_message_in_flight_keeps_the_place_of_the_one_that_gave_up() -> None:
    busy = connection("a", rdy=1, in_flight=1)
    assert share(busy, connection("b"), max_in_flight=1, now=30.0) == {"a": 0, "b": 0}
    answered = connection("a", rdy=0, rdy_changed_at=30.0)
    assert share(answered, connection("b"), max_in_flight=1, now=31.0)["a"] in (0, 1)


def test_lowering_max_in_flight_leaves_one_holder() -> None:
    connections = [connection(key, rdy=50, last_message_at=0.0) for key in "abc"]
    assert sorted(share(*connections, max_in_flight=1, now=1.0).values()) == [0, 0, 1]


@st.composite
def crowds(draw: st.DrawFn) -> list[ConnectionRdy]:
    one = st.builds(
        ConnectionRdy,
        key=st.text("abcdef", min_size=1, max_size=3),
        max_rdy_count=st.integers(0, 3000),
        rdy=st.integers(0, 3000),
        in_flight=st.integers(0, 3000),
        rdy_changed_at=st.floats(0, 100),
        last_message_at=st.none() | st.floats(0, 100),
        rdy_before=st.integers(0, 3000),
    )
    return draw(st.lists(one, max_size=12, unique_by=lambda c: c.key))


@given(crowd=crowds(), max_in_flight=st.integers(-1, 3000), seed=st.integers(0, 9))
def test_the_sum_and_the_limits_hold(
    crowd: list[ConnectionRdy], max_in_flight: int, seed: int
) -> None:
    shares = share(*crowd, max_in_flight=max_in_flight, now=100.0, seed=seed)
    limits = {c.key: c.max_rdy_count for c in crowd}
    assert shares.keys() == limits.keys()
    assert sum(shares.values()) <= max(0, max_in_flight)
    assert all(0 <= shares[key] <= limit for key, limit in limits.items())
    usable = [limit for limit in limits.values() if limit]
    if 0 < len(usable) <= max_in_flight:
        assert sum(shares.values()) == min(max_in_flight, sum(usable))
        assert all(shares[key] for key, limit in limits.items() if limit)
        unlimited = [shares[key] for key, limit in limits.items() if shares[key] < limit]
        assert max(unlimited, default=0) - min(unlimited, default=0) <= 1


def test_what_one_was_asked_for_is_not_asked_of_others_when_strict() -> None:
    """Of three nsqds the first to be connected was asked for all 9, the others for 3 each on top."""
    first = connection("a", rdy=9)
    assert share(first, connection("b"), connection("c"), max_in_flight=9, strictly=True) == {
        "a": 3,
        "b": 0,
        "c": 0,
    }
    lowered = connection("a", rdy=3, rdy_before=9)
    assert share(lowered, connection("b"), max_in_flight=9, strictly=True)["b"] == 0
    holding = connection("a", rdy=3, in_flight=5)
    shares = share(holding, connection("b"), connection("c"), max_in_flight=9, strictly=True)
    assert shares == {"a": 3, "b": 3, "c": 1}
    assert share(lowered, connection("b", rdy=4), max_in_flight=9, strictly=True)["b"] == 0


@given(crowd=crowds(), max_in_flight=st.integers(-1, 3000), seed=st.integers(0, 9))
def test_strictly_no_more_can_come_than_there_are_places(
    crowd: list[ConnectionRdy], max_in_flight: int, seed: int
) -> None:
    shares = share(*crowd, max_in_flight=max_in_flight, now=100.0, seed=seed, strictly=True)
    certain = sum(c.brings for c in crowd)
    usable = sum(c.max_rdy_count > 0 for c in crowd)
    places = max_in_flight
    if 0 < max_in_flight < usable:
        places = min(max(max_in_flight, STRICT_PLACES_MIN), usable)
    assert sum(max(c.brings, shares[c.key]) for c in crowd) <= max(0, places, certain)
    assert all(0 <= shares[c.key] <= c.max_rdy_count for c in crowd)
    quiet = [replace(c, rdy=0, in_flight=0, rdy_before=0) for c in crowd]
    shares = share(*quiet, max_in_flight=max_in_flight, now=100.0, seed=seed)
    again = share(*quiet, max_in_flight=max_in_flight, now=100.0, seed=seed, strictly=True)
    if max_in_flight >= usable:
        assert again == shares, "where nothing is on its way it is the same"


@pytest.mark.parametrize("places", [1, 3, 9, 14])
def test_strictly_everybody_has_a_turn_soon(places: int) -> None:
    """Nothing comes, and whoever has the last messages must be asked, the last in line as well."""
    crowd = {f"{number:02d}": connection(f"{number:02d}") for number in range(16)}
    asked: set[str] = set()
    for step in range(60):
        now = 100.0 + step * STRICT_PROBE_S
        shares = share(*crowd.values(), max_in_flight=places, now=now, strictly=True)
        for key, rdy in shares.items():
            was = crowd[key]
            crowd[key] = replace(was, rdy_before=0)
            if rdy != was.rdy:
                crowd[key] = replace(was, rdy=rdy, rdy_changed_at=now, rdy_before=was.rdy)
            asked |= {key} if rdy else set()
    assert len(asked) == 16


@given(crowd=crowds(), max_in_flight=st.integers(1, 12), seed=st.integers(0, 9))
def test_the_same_seed_decides_the_same(
    crowd: list[ConnectionRdy], max_in_flight: int, seed: int
) -> None:
    first = share(*crowd, max_in_flight=max_in_flight, now=100.0, seed=seed)
    again = share(*reversed(crowd), max_in_flight=max_in_flight, now=100.0, seed=seed)
    assert first == again


@settings(max_examples=25)
@given(
    count=st.integers(2, 12),
    places=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    traffic=st.floats(0, 1),
)
def test_nobody_starves(count: int, places: int, seed: int, traffic: float) -> None:
    """Two rounds bound the wait for RDY, whatever the traffic; a message takes a tick here."""
    rng = random.Random(seed)
    crowd = {f"{n}": connection(f"{n}") for n in range(count)}
    served_at = dict.fromkeys(crowd, 0.0)
    rounds = -(-count // places)
    bound_s = 2 * rounds * (TIMING.low_rdy_timeout_s + 3 * REDISTRIBUTE_INTERVAL_S)
    now = 0.0
    while now < 6 * bound_s:
        shares = share_rdy(crowd.values(), max_in_flight=places, now=now, rng=rng)
        assert sum(shares.values()) <= places
        for key, rdy in shares.items():
            before = crowd[key]
            if rdy:
                served_at[key] = now
            changed_at = before.rdy_changed_at if rdy == before.rdy else now
            delivered = bool(rdy) and rng.random() < traffic
            crowd[key] = replace(
                before,
                rdy=rdy,
                rdy_changed_at=changed_at,
                in_flight=int(delivered),
                last_message_at=now if delivered else before.last_message_at,
            )
        if count > places:
            assert sum(max(c.rdy, c.in_flight) for c in crowd.values()) <= places
        assert all(now - at <= bound_s for at in served_at.values())
        now += REDISTRIBUTE_INTERVAL_S
