"""The budget of what clients have begun to send: who waits, who has the turn, who is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nsqtools.broker.budget import IDLE_S, TURN_S, BodyBudget


class Client:
    """Sends a body of so many bytes, a piece at a time, when it may."""

    def __init__(self, budget: BodyBudget, size_bytes: int) -> None:
        self.budget = budget
        self.size_bytes = size_bytes
        self.sent = 0
        self.may_read = True
        self.cut_reason = ""

    def go_on(self) -> None:
        assert not self.may_read, "was not told to wait"
        self.may_read = True

    def cut(self, reason: str) -> None:
        self.cut_reason = reason
        self.budget.hold(self, 0)

    @property
    def is_done(self) -> bool:
        return self.sent == self.size_bytes

    def send(self, size_bytes: int) -> None:
        self.sent = min(self.size_bytes, self.sent + size_bytes)
        self.may_read = self.budget.hold(self, 0 if self.is_done else self.sent)


class Time:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_who_comes_when_it_is_spent_waits_in_order() -> None:
    budget = BodyBudget(10, Time())
    first, second, third, fourth = (Client(budget, 20) for _ in range(4))
    first.send(8)
    second.send(8)
    assert second.may_read, "one has the turn"
    third.send(8)
    fourth.send(1)
    assert (third.may_read, fourth.may_read, budget.waiting_count) == (False, False, 2)
    second.send(12)
    assert (third.may_read, fourth.may_read) == (True, False)
    third.send(12)
    assert fourth.may_read
    assert budget.held_bytes == 9


def test_whoever_fits_is_let_in_together() -> None:
    budget = BodyBudget(10, Time())
    large, *small = (Client(budget, 20) for _ in range(4))
    large.send(11)
    for one in small:
        one.send(2)
    assert budget.waiting_count == 3
    large.send(9)
    assert [one.may_read for one in small] == [True] * 3


def test_who_keeps_others_waiting_is_cut() -> None:
    time = Time()
    budget = BodyBudget(10, time)
    idle, turn, waiting, ours = (Client(budget, 20) for _ in range(4))
    idle.send(4)
    assert budget.hold(ours, 1, is_ours=True)
    turn.send(8)
    time.now_s += 2 * TURN_S
    budget.sweep()
    assert not idle.cut_reason, "nobody waits"
    turn.send(1)
    waiting.send(1)
    assert not waiting.may_read
    budget.sweep()
    assert "others wait" in idle.cut_reason
    assert "others wait" in turn.cut_reason, "its time is over, however busy it is"
    assert (waiting.cut_reason, ours.cut_reason, waiting.may_read) == ("", "", True)
    time.now_s += 2 * IDLE_S
    budget.sweep()
    assert not waiting.cut_reason


@given(
    st.integers(1, 50),
    st.lists(st.integers(1, 60), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 20)), max_size=80),
)
def test_everybody_finishes_and_nothing_is_left(
    bytes_max: int, sizes: list[int], steps: list[tuple[int, int]]
) -> None:
    budget = BodyBudget(bytes_max, Time())
    clients = [Client(budget, size) for size in sizes]
    for which, piece in steps:
        client = clients[which % len(clients)]
        if client.may_read and not client.is_done:
            client.send(piece)
    for _ in range(sum(sizes)):
        for client in clients:
            if client.may_read and not client.is_done:
                client.send(1)
    assert all(client.is_done for client in clients)
    assert (budget.held_bytes, budget.waiting_count) == (0, 0)
