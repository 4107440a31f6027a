from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tests.broker.test_growth import steps

from nsqtools.broker.alarms import Times

if TYPE_CHECKING:
    from collections.abc import Callable

names = st.integers(0, 5)
moments = st.integers(0, 30)


@given(
    st.lists(
        st.tuples(st.just("set"), names, moments)
        | st.tuples(st.just("forget"), names, st.just(0))
        | st.tuples(st.just("due"), st.just(0), moments),
        max_size=60,
    )
)
def test_each_is_due_once_at_the_nearest_of_its_times(done: list[tuple[str, int, int]]) -> None:
    times: Times[int] = Times()
    model: dict[int, int] = {}
    for what, who, when in done:
        if what == "set":
            times.set(who, when)
            model[who] = min(when, model.get(who, when))
        elif what == "forget":
            times.forget(who)
            model.pop(who, None)
        else:
            over = [one for one, at in model.items() if at <= when]
            assert sorted(times.due(when)) == sorted(over)
            for one in over:
                del model[one]


def test_times_that_come_nearer_leave_nothing_behind() -> None:
    times: Times[int] = Times()
    times.set(-1, 1e9)
    for when in range(10_000, 0, -1):
        times.set(0, when)
    assert len(times) < 200
    assert times.due(1) == [0]
    for who in range(10_000):
        times.set(who, 5.0)
        times.forget(who)
    assert len(times) < 200


def test_a_look_costs_the_same_however_many_are_not_due() -> None:
    def looking(count: int) -> Callable[[], object]:
        times: Times[int] = Times()
        for who in range(count):
            times.set(who, 10.0)
        return lambda: times.due(1.0)

    assert steps(looking(10_000)) == steps(looking(10))
