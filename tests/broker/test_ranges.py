from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nsqtools.broker.ranges import Ranges

NUMBERS_MAX = 60
numbers = st.integers(0, NUMBERS_MAX)


def numbers_of(ranges: list[tuple[int, int]]) -> list[int]:
    return [number for first, end in ranges for number in range(first, end)]


def test_what_touches_becomes_one() -> None:
    ranges = Ranges([(1, 3), (5, 7), (3, 5)])
    assert list(ranges) == [(1, 7)]
    assert ranges.add(0, 9) == [(0, 1), (7, 9)]
    assert ranges.add(2, 4) == []
    assert (list(ranges), len(ranges)) == ([(0, 9)], 1)


def test_an_empty_range_is_none() -> None:
    ranges = Ranges([(3, 3), (5, 4)])
    assert not ranges
    assert ranges == Ranges()
    assert ranges.drop_before(9) == []


def test_dropped_places_are_given_back() -> None:
    ranges = Ranges()
    for number in range(0, 10_000, 2):
        ranges.add(number, number + 1)
        ranges.drop_before(number - 3)
    assert list(ranges) == [(9996, 9997), (9998, 9999)]
    assert len(ranges._firsts) < 200


@given(st.lists(st.tuples(numbers, numbers)), numbers, numbers)
def test_gaps_are_what_is_not_in_it(pairs: list[tuple[int, int]], first: int, end: int) -> None:
    ranges = Ranges(pairs)
    gaps = list(ranges.gaps(first, end))
    assert numbers_of(gaps) == [n for n in range(first, end) if n not in ranges]
    assert all(one < other for (_, one), (other, _) in pairwise(gaps))


class RangesMachine(RuleBasedStateMachine):
    """Against a set of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges = Ranges()
        self.model: set[int] = set()

    @rule(first=numbers, end=numbers)
    def add(self, first: int, end: int) -> None:
        new = set(range(first, end)) - self.model
        assert numbers_of(self.ranges.add(first, end)) == sorted(new)
        self.model |= new

    @rule(number=numbers)
    def drop_before(self, number: int) -> None:
        dropped = {one for one in self.model if one < number}
        assert numbers_of(self.ranges.drop_before(number)) == sorted(dropped)
        self.model -= dropped

    @rule()
    def clear(self) -> None:
        self.ranges.clear()
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        pairs = list(self.ranges)
        assert numbers_of(pairs) == sorted(self.model)
        assert len(self.ranges) == len(pairs)
        assert all(end < first for (_, end), (first, _) in pairwise(pairs))
        for number in range(NUMBERS_MAX):
            assert (number in self.ranges) == (number in self.model)
        if pairs:
            assert self.ranges.lowest == pairs[0]


test_ranges_machine = RangesMachine.TestCase
