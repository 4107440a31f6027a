from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nsqtools.broker.flight import (
    NO_ID,
    NOT_IN_FLIGHT,
    NOT_OWNED,
    Flight,
    Lease,
    fins_of,
    number_of,
)


class Consumer:
    def __init__(self) -> None:
        self.in_flight = 0


def lease(
    holder: Consumer,
    numbers: range | list[int],
    timeout_s: float = 60.0,
    *,
    attempts: int = 1,
    now_s: float = 0.0,
) -> Lease:
    return Lease(
        holder, numbers, fins_of(numbers), attempts=attempts, now_s=now_s, timeout_s=timeout_s
    )


def id_of(number: int) -> bytes:
    return b"%016x" % number


def fins(*numbers: int) -> bytes:
    return b"".join(b"FIN %016x\n" % number for number in numbers)


@given(st.integers(0, 2**64 - 1))
def test_ids_are_numbers(number: int) -> None:
    assert number_of(id_of(number)) == number
    assert fins_of([number]) == fins(number)


@pytest.mark.parametrize(
    "raw", [b"0123456789ABCDEF", b"0123456789abcdeg", b"\xff" * 16, b" " * 16, b"-000000000000001"]
)
def test_what_is_no_id_of_ours(raw: bytes) -> None:
    assert number_of(raw) is None
    assert Flight().find(Consumer(), raw) == NOT_IN_FLIGHT


def test_a_run_is_settled_at_once_and_only_once() -> None:
    flight, consumer = Flight(), Consumer()
    flight.take(lease(consumer, range(10), 60.0))
    assert consumer.in_flight == 10
    settled = flight.settle(consumer, fins(*range(4)))
    assert (settled.runs, settled.numbers, settled.refused) == ([(0, 4)], [], [])
    settled = flight.settle(consumer, fins(3, 4, 4, 99))
    assert list(settled) == [4]
    assert settled.refused == [(id_of(number), NOT_IN_FLIGHT) for number in (3, 4, 99)]
    assert (len(flight), consumer.in_flight) == (5, 5)


def test_a_run_ends_with_what_is_no_id() -> None:
    flight, consumer = Flight(), Consumer()
    flight.take(lease(consumer, range(3), 60.0))
    settled = flight.settle(consumer, fins(0) + b"FIN nonsense-and-all\n" + fins(2))
    assert list(settled) == [0, 2]
    assert settled.refused == [(b"nonsense-and-all", NOT_IN_FLIGHT)]
    settled = flight.settle(consumer, b"FIN ends at a space!\n" + fins(1))
    assert (list(settled), settled.refused) == ([], [(b"ends at a space!", NO_ID)])
    assert list(flight.numbers()) == [1]


def test_another_consumer_settles_nothing() -> None:
    flight, holder, other = Flight(), Consumer(), Consumer()
    flight.take(lease(holder, range(2), 60.0))
    flight.take(lease(other, range(2, 4), 60.0))
    settled = flight.settle(other, fins(0, 2, 1))
    assert list(settled) == [2]
    assert settled.refused == [(id_of(0), NOT_OWNED), (id_of(1), NOT_OWNED)]
    assert (holder.in_flight, other.in_flight) == (2, 1)


def test_time_runs_out_for_what_is_left() -> None:
    flight, consumer = Flight(), Consumer()
    flight.take(lease(consumer, range(3), 10.0, attempts=2))
    flight.settle(consumer, fins(1))
    assert flight.expired(9.9) == []
    (over,) = flight.expired(10.0)
    assert (list(over.numbers), over.attempts) == ([0, 2], 2)
    assert (len(flight), consumer.in_flight) == (0, 0)
    assert flight.expired(99.0) == []


def test_touch_moves_one_deadline_and_never_beyond_the_maximum() -> None:
    flight, consumer = Flight(), Consumer()
    flight.take(lease(consumer, range(2), 10.0))
    assert flight.find(consumer, id_of(0)) == 0
    flight.touch(0, 8.0, 10.0, 15.0)
    assert [list(over.numbers) for over in flight.expired(10.0)] == [[1]]
    assert flight.find(consumer, id_of(0)) == 0
    flight.touch(0, 12.0, 10.0, 15.0)
    assert flight.expired(14.9) == []
    assert [list(over.numbers) for over in flight.expired(15.0)] == [[0]]
    assert consumer.in_flight == 0


def test_a_consumer_that_goes_gives_back_what_it_held() -> None:
    flight, one, two = Flight(), Consumer(), Consumer()
    flight.take(lease(one, range(3), 10.0))
    flight.take(lease(two, range(3, 6), 10.0))
    flight.settle(one, fins(1))
    assert [list(over.numbers) for over in flight.release(one)] == [[0, 2]]
    assert (one.in_flight, two.in_flight) == (0, 3)
    assert flight.release(one) == []
    flight.clear()
    assert (len(flight), two.in_flight) == (0, 0)
    assert flight.expired(99.0) == []


def test_a_consumer_that_never_answers_costs_no_memory() -> None:
    flight, consumer = Flight(), Consumer()
    for turn in range(100):
        flight.take(lease(consumer, range(turn * 10, turn * 10 + 10), 1.0, now_s=turn))
        assert len(flight.expired(turn + 1.0)) == 1
    assert (len(flight), consumer.in_flight) == (0, 0)
    assert not flight._by_deadline
    assert sum(map(len, flight._in_order.values())) == 0


def test_what_is_held_by_others_is_found_without_disturbing_them() -> None:
    flight, one, two = Flight(), Consumer(), Consumer()
    flight.take(lease(one, range(3)))
    flight.take(lease(two, range(3, 6)))
    flight.take(lease(two, [1_000, 7]))
    assert flight.find(one, id_of(4)) == NOT_OWNED
    assert flight.find(one, id_of(7)) == NOT_OWNED
    assert flight.find(one, id_of(8)) == NOT_IN_FLIGHT
    settled = flight.settle(two, fins(3, 4, 5))
    assert (settled.runs, settled.numbers) == ([(3, 6)], [])
    assert list(flight.settle(two, fins(1_000, 7))) == [1_000, 7]


def test_what_the_log_must_keep_for_it() -> None:
    flight, consumer = Flight(), Consumer()
    kept: set[int] = set()
    flight.take(lease(consumer, range(10, 14)))
    flight.take(lease(consumer, [40, 3, 20]))
    assert (flight.lowest(kept), flight.below(20, kept, 5)) == (3, [3, 10, 11, 12, 13])
    assert flight.below(20, kept, 4) is None
    kept.update((3, 10, 11))
    assert (flight.lowest(kept), flight.below(13, kept, 5)) == (12, [12])
    flight.settle(consumer, fins(10, 11, 12, 13))
    assert flight.lowest(kept) == 20
    kept.update((20, 40))
    assert flight.lowest(kept) is None


class FlightMachine(RuleBasedStateMachine):
    """Against a dictionary of number -> (holder, deadline)."""

    def __init__(self) -> None:
        super().__init__()
        self.flight = Flight()
        self.consumers = [Consumer(), Consumer()]
        self.model: dict[int, tuple[Consumer, float]] = {}
        self.next = 0
        self.now_s = 0.0
        self.kept: set[int] = set()

    @rule(who=st.integers(0, 1), count=st.integers(1, 6), timeout_s=st.integers(1, 9))
    def hand_out(self, who: int, count: int, timeout_s: int) -> None:
        numbers = range(self.next, self.next + count)
        self.next += count
        consumer = self.consumers[who]
        self.flight.take(lease(consumer, numbers, timeout_s, now_s=self.now_s))
        self.model.update(dict.fromkeys(numbers, (consumer, self.now_s + timeout_s)))

    @rule(who=st.integers(0, 1), count=st.integers(1, 12))
    def settle_in_order(self, who: int, count: int) -> None:
        consumer = self.consumers[who]
        held = [number for number, (holder, _) in self.model.items() if holder is consumer]
        if held:
            settled = self.flight.settle(consumer, fins(*held[:count]))
            assert (sorted(settled), settled.refused) == (sorted(held[:count]), [])
            for number in held[:count]:
                del self.model[number]

    @rule(who=st.integers(0, 1), back=st.lists(st.integers(0, 12), min_size=1, max_size=6))
    def settle(self, who: int, back: list[int]) -> None:
        consumer = self.consumers[who]
        asked = [max(0, self.next - one) for one in back]
        settled = self.flight.settle(consumer, fins(*asked))
        expected = []
        for number in asked:
            if self.model.get(number, (None, 0))[0] is consumer:
                del self.model[number]
                expected.append(number)
        assert sorted(settled) == sorted(expected)
        assert len(list(settled)) + len(settled.refused) == len(asked)

    @rule(back=st.integers(1, 6), timeout_s=st.integers(1, 9))
    def touch(self, back: int, timeout_s: int) -> None:
        number = self.next - back
        if number in self.model:
            consumer, _ = self.model[number]
            assert self.flight.find(consumer, id_of(number)) == number
            self.flight.touch(number, self.now_s, timeout_s, 1000.0)
            self.model[number] = (consumer, self.now_s + timeout_s)

    @rule(passed_s=st.integers(0, 4))
    def expire(self, passed_s: int) -> None:
        self.now_s += passed_s
        found = sorted(n for over in self.flight.expired(self.now_s) for n in over.numbers)
        expected = sorted(n for n, (_, due_s) in self.model.items() if due_s <= self.now_s)
        assert found == expected
        for number in expected:
            del self.model[number]

    @rule(back=st.integers(1, 12))
    def keep(self, back: int) -> None:
        if self.next - back in self.model:
            self.kept.add(self.next - back)

    @rule(back=st.integers(0, 12), count_max=st.integers(0, 6))
    def below(self, back: int, count_max: int) -> None:
        found = self.flight.below(self.next - back, self.kept, count_max)
        needed = sorted(n for n in self.model.keys() - self.kept if n < self.next - back)
        assert found is None if len(needed) > count_max else sorted(found or []) == needed

    @rule(data=st.data(), who=st.integers(0, 1))
    def hand_out_again(self, data: st.DataObject, who: int) -> None:
        """What was settled or is over, in any order."""
        free = sorted(set(range(self.next)) - self.model.keys() - self.kept)
        if free:
            numbers = data.draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
            consumer = self.consumers[who]
            self.flight.take(lease(consumer, numbers, 5, now_s=self.now_s))
            self.model.update(dict.fromkeys(numbers, (consumer, self.now_s + 5)))

    @rule(who=st.integers(0, 1))
    def leave(self, who: int) -> None:
        consumer = self.consumers[who]
        found = sorted(n for over in self.flight.release(consumer) for n in over.numbers)
        expected = sorted(n for n, (holder, _) in self.model.items() if holder is consumer)
        assert found == expected
        for number in expected:
            del self.model[number]

    @invariant()
    def agrees(self) -> None:
        assert sorted(self.flight.numbers()) == sorted(self.model)
        assert len(self.flight) == len(self.model)
        assert self.flight.lowest(self.kept) == min(self.model.keys() - self.kept, default=None)
        for consumer in self.consumers:
            held = sum(holder is consumer for holder, _ in self.model.values())
            assert consumer.in_flight == held


test_flight_machine = FlightMachine.TestCase
