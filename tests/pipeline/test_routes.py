"""Answers mapped back to the messages that came."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tests.transform.test_steps import messages_of

from nsqtools.outputs.contract import DONE, Again, Answer, Feeding, Refused, Removed
from nsqtools.pipeline.routes import KnownParts, Route, bounded, joined
from nsqtools.transform.steps import Refusal, Work

if TYPE_CHECKING:
    from random import Random

LATER = Again(1.0, "later")
STANDS = Again(0.5, "stands", stands=True)
REFUSED = Refused("no")
answers: st.SearchStrategy[Answer] = st.sampled_from([DONE, LATER, STANDS, REFUSED])


def work_of(fates: list[int]) -> Work:
    """Of messages that are refused (-1), removed (0), taken (1), or parted into so many."""
    work = Work(messages_of(*[b"m%d" % at for at in range(len(fates))]))
    work.places = [at for at, fate in enumerate(fates) if fate > 0]
    work.removed = {at: "grep" for at, fate in enumerate(fates) if fate == 0}
    work.refused = {at: Refusal("bad", "x") for at, fate in enumerate(fates) if fate < 0}
    work.several = {
        at: [b"m%d.%d" % (at, part) for part in range(fate)]
        for at, fate in enumerate(fates)
        if fate > 1
    }
    return work


@given(st.lists(st.integers(-1, 4), max_size=12), st.data())
def test_each_message_has_the_answer_of_what_was_made_of_it(
    fates: list[int], data: st.DataObject
) -> None:
    route = KnownParts().route(work_of(fates))
    rows = len(route.messages)
    own: list[Answer] = data.draw(st.lists(answers, min_size=rows, max_size=rows))
    mapped = route.answers(own)
    assert len(mapped) == len(fates)
    for at, fate in enumerate(fates):
        parts: list[Answer] = [
            one for place, one in zip(route.places, own, strict=True) if place == at
        ]
        if fate == 0:
            assert mapped[at] == Removed("grep")
        elif fate < 0:
            assert mapped[at] == Refused("bad")
        elif fate == 1:
            assert [mapped[at]] == parts
        else:
            assert (mapped[at] == DONE) == (set(parts) == {DONE})
            assert isinstance(mapped[at], Again) == any(isinstance(one, Again) for one in parts)


@given(st.lists(st.integers(-1, 4), max_size=8), st.randoms())
def test_over_any_number_of_tries_each_part_is_delivered_until_it_is_done_and_not_after(
    fates: list[int], rng: Random
) -> None:
    known = KnownParts()
    times: dict[bytes, int] = {}
    fares: list[Answer] = [DONE, DONE, LATER]
    open_places = list(range(len(fates)))
    while open_places:
        work = work_of(fates)
        again = Work(work.messages.pick(open_places))
        order = {at: row for row, at in enumerate(open_places)}
        again.places = [order[at] for at in work.places if at in order]
        again.removed = {order[at]: by for at, by in work.removed.items() if at in order}
        again.refused = {order[at]: no for at, no in work.refused.items() if at in order}
        again.several = {order[at]: s for at, s in work.several.items() if at in order}
        route = known.route(again)
        own = [rng.choice(fares) for _ in range(len(route.messages))]
        for body, answer in zip(route.messages.bodies, own, strict=True):
            times[body] = times.get(body, 0) + (answer is DONE)
        known.note(route, own)
        mapped = route.answers(own)
        pairs = zip(open_places, mapped, strict=True)
        open_places = [at for at, one in pairs if isinstance(one, Again)]
    assert set(times.values()) <= {1}
    assert len(times) == sum(fate for fate in fates if fate > 0)
    assert not known._done


def test_what_becomes_of_parts_that_fare_differently() -> None:
    assert joined(DONE, DONE) == DONE
    assert joined(DONE, REFUSED) == joined(REFUSED, DONE) == REFUSED
    assert joined(REFUSED, LATER) == LATER
    assert joined(LATER, STANDS) == Again(1.0, "later", stands=True)


def test_a_message_that_becomes_another_number_of_parts_is_delivered_whole() -> None:
    known = KnownParts()
    known.note(known.route(work_of([3])), [DONE, DONE, LATER])
    assert known.route(work_of([3])).messages.bodies == [b"m0.2"]
    assert len(known.route(work_of([2])).messages) == 2


def test_what_is_known_of_parts_is_bounded() -> None:
    known = KnownParts(known_max=2)
    known.note(known.route(work_of([2, 2, 2])), [DONE, LATER] * 3)
    assert len(known.route(work_of([2, 2, 2])).messages) == 4


@given(
    st.lists(st.lists(st.binary(max_size=9), min_size=1, max_size=9), min_size=1, max_size=5),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 20),
)
def test_deliveries_are_as_large_as_the_output_wants(
    bodies: list[list[bytes]], most: int | None, most_bytes: int | None
) -> None:
    batches = [messages_of(*each) for each in bodies]
    feeding = Feeding(wait_s=0.0, messages_max=most, bytes_max=most_bytes)
    pieces = list(bounded(batches, feeding))
    rows = [[body for messages in piece for body in messages.bodies] for piece in pieces]
    assert list(chain(*rows)) == list(chain(*bodies))
    for row in rows:
        assert 0 < len(row) <= (most or len(row))
        assert len(row) == 1 or sum(map(len, row)) <= (most_bytes or sum(map(len, row)))


def test_a_batch_of_which_nothing_is_left() -> None:
    route = KnownParts().route(work_of([0, 0]))
    assert isinstance(route, Route)
    assert (len(route.messages), route.answers([])) == (0, [Removed("grep")] * 2)
