from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nsqtools.broker.flight import Settled
from nsqtools.broker.memory import Room
from nsqtools.broker.waiting import Carried, Waiting


def taken(waiting: Waiting, cursor: int) -> list[tuple[int, int]]:
    """What has its turn, taken out."""
    found = []
    while (head := waiting.head(cursor)) is not None:
        found.append(head)
        waiting.take()
    return found


def test_what_was_taken_back_comes_first_and_the_tail_when_the_cursor_is_there() -> None:
    waiting = Waiting(())
    waiting.put_last(3, 1, position=10)
    waiting.put_last(1, 2, position=12)
    waiting.put(5, 1)
    waiting.put(4, 0)
    assert taken(waiting, 9) == [(5, 1), (4, 0)]
    assert (waiting.again, waiting.deferred) == (2, 0)
    assert taken(waiting, 10) == [(3, 1)]
    assert taken(waiting, 11) == []
    assert taken(waiting, 12) == [(1, 2)]
    assert waiting.again == 0


def test_deferred_messages_are_due_in_the_order_of_their_times() -> None:
    waiting = Waiting(())
    assert waiting.due(99) == []
    for number, due_ns in ((1, 30), (2, 10), (3, 20)):
        waiting.put(number, number, due_ns)
    assert (waiting.deferred, waiting.next_due_ns) == (3, 10)
    assert waiting.due(9) == []
    assert waiting.due(20) == [(2, 2), (3, 3)]
    assert list(waiting.pending()) == [(1, 1, 30)]


def test_those_of_which_there_are_copies_are_not_needed() -> None:
    carried = Carried({1: b"one"}, Room(10))
    waiting = Waiting(carried)
    for number in (4, 1, 3, 2):
        waiting.put(number, 1)
    assert waiting.lowest() == 2
    assert waiting.below(4, 2) == [2, 3]
    assert waiting.below(5, 2) is None
    carried.add(2, b"")
    assert (waiting.lowest(), waiting.below(4, 2)) == (3, [3])


def test_one_that_comes_and_goes_costs_no_memory() -> None:
    waiting = Waiting(())
    for turn in range(10_000):
        waiting.put_last(1, turn, turn)
        assert taken(waiting, turn) == [(1, turn)]
    assert len(waiting._lowest) < 3000
    assert waiting.lowest() is None


def test_copies_are_counted_in_bytes_and_go_with_their_messages() -> None:
    room = Room(20)
    Carried({1: b"another's"}, room)
    carried = Carried({1: b"1", 2: b"22", 9: b"9"}, room)
    carried.add(2, b"2")
    carried.add(20, b"twenty")
    assert (len(carried), carried.size_bytes, room.held_bytes, room.left_bytes) == (4, 9, 18, 2)
    carried.settle(Settled(runs=[(0, 2), (5, 1_000_000_000)], numbers=[2, 3]))
    assert (len(carried), carried.size_bytes, carried.frames()) == (0, 0, {})


class WaitingMachine(RuleBasedStateMachine):
    """Against dictionaries of number -> (attempts, when)."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: set[int] = set()
        self.waiting = Waiting(self.kept)
        self.again: dict[int, tuple[int, int]] = {}
        self.deferred: dict[int, tuple[int, int]] = {}
        self.free = set(range(50))
        self.position = 0
        self.now_ns = 0

    @rule(data=st.data(), attempts=st.integers(0, 3), how=st.sampled_from(["first", "last", "due"]))
    def put(self, data: st.DataObject, attempts: int, how: str) -> None:
        if not self.free:
            return
        number = data.draw(st.sampled_from(sorted(self.free)))
        self.free.discard(number)
        if how == "first":
            self.waiting.put(number, attempts)
            self.again[number] = attempts, -9
        elif how == "last":
            self.position += 1
            self.waiting.put_last(number, attempts, self.position)
            self.again[number] = attempts, self.position
        else:
            due_ns = self.now_ns + data.draw(st.integers(1, 9))
            self.waiting.put(number, attempts, due_ns)
            self.deferred[number] = attempts, due_ns

    @rule(back=st.integers(0, 3))
    def take(self, back: int) -> None:
        cursor = self.position - back
        head = self.waiting.head(cursor)
        turn = [number for number, (_, position) in self.again.items() if position <= cursor]
        assert (head is None) == (not turn)
        if head is not None:
            assert head[0] in turn
            assert self.again.pop(head[0])[0] == head[1]
            self.waiting.take()
            self.gone(head[0])

    @rule(passed_ns=st.integers(0, 5))
    def time_passes(self, passed_ns: int) -> None:
        self.now_ns += passed_ns
        found = self.waiting.due(self.now_ns)
        expected = {
            n: attempts for n, (attempts, due) in self.deferred.items() if due <= self.now_ns
        }
        assert dict(found) == expected
        for number in expected:
            del self.deferred[number]
            self.gone(number)

    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        there = sorted(self.again.keys() | self.deferred.keys())
        if there:
            self.kept.add(data.draw(st.sampled_from(there)))

    @rule(end=st.integers(0, 50), count_max=st.integers(0, 9))
    def below(self, end: int, count_max: int) -> None:
        needed = sorted(n for n in self.needed() if n < end)
        expected = needed if len(needed) <= count_max else None
        assert self.waiting.below(end, count_max) == expected

    def gone(self, number: int) -> None:
        self.kept.discard(number)
        self.free.add(number)

    def needed(self) -> set[int]:
        return (self.again.keys() | self.deferred.keys()) - self.kept

    @invariant()
    def agrees(self) -> None:
        assert self.waiting.lowest() == min(self.needed(), default=None)
        assert (self.waiting.again, self.waiting.deferred) == (len(self.again), len(self.deferred))
        pending = {n: attempts for n, (attempts, _) in self.again.items()}
        pending.update((n, attempts) for n, (attempts, _) in self.deferred.items())
        assert {n: attempts for n, attempts, _ in self.waiting.pending()} == pending


test_waiting_machine = WaitingMachine.TestCase
