"""Steps that look at ids and bytes, and what is left of a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.options import REGEX
from nsqtools.transform.steps import Grep, Sample, Work
from nsqtools.wire.messages import Messages, PartedMessages, encode_payload


def messages_of(*bodies: bytes, start: int = 0) -> Messages:
    payloads = [
        encode_payload(at, 1, b"%016x" % (at * 7919), body) for at, body in enumerate(bodies, start)
    ]
    return Messages(payloads, nsqd="n:1")


def left(work: Work) -> list[bytes]:
    return work.result()[0].bodies


def test_what_no_step_touches_is_the_batch_itself() -> None:
    work = Work(messages_of(b"a", b"b"))
    Sample(1.0).apply(work)
    Grep(REGEX.parse(".")).apply(work)
    assert work.is_untouched
    assert work.result()[0] is work.messages


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_sample_is_about_its_part_and_the_same_each_time(part: float) -> None:
    batch = messages_of(*[b"x"] * 4000)
    one, other = Work(batch), Work(messages_of(*[b"another body"] * 4000))
    for work in (one, other):
        Sample(part).apply(work)
    assert list(one.places) == list(other.places)
    assert len(one.places) == pytest.approx(4000 * part, abs=150)
    assert set(one.removed.values()) <= {"sample"}
    assert len(one.removed) + len(one.places) == 4000


def test_a_larger_sample_holds_the_smaller_one() -> None:
    small, large = Work(messages_of(*[b"x"] * 500)), Work(messages_of(*[b"x"] * 500))
    Sample(0.1).apply(small)
    Sample(0.2).apply(large)
    assert set(small.places) < set(large.places)


def test_grep_and_its_inverse_part_all_messages() -> None:
    bodies = [b"an error", b"fine", b"\xff\xfe error", b"", b"ERROR"]
    found, others = Work(messages_of(*bodies)), Work(messages_of(*bodies))
    Grep(REGEX.parse("error")).apply(found)
    Grep(REGEX.parse("error"), excludes=True).apply(others)
    assert left(found) == [b"an error", b"\xff\xfe error"]
    assert left(others) == [b"fine", b"", b"ERROR"]
    assert set(found.removed.values()) == {"grep"}
    assert set(others.removed.values()) == {"grep-exclude"}


def test_what_is_changed_keeps_its_time_attempts_and_id() -> None:
    batch = messages_of(b"a", b"b", b"c")
    work = Work(batch)
    work.changed[1] = b"new"
    made, places = work.result()
    assert (made.bodies, list(places)) == ([b"a", b"new", b"c"], [0, 1, 2])
    assert (made.ids, made.timestamps, made.attempts) == (
        batch.ids,
        batch.timestamps,
        batch.attempts,
    )
    assert made.nsqd == "n:1"


def test_several_of_one_stand_together_with_its_id_and_time() -> None:
    batch = messages_of(b"a", b"b", b"c")
    work = Work(batch)
    work.several[1] = [b"b1", b"b2", b"b3"]
    made, places = work.result()
    assert isinstance(made, PartedMessages)
    assert made.bodies == [b"a", b"b1", b"b2", b"b3", b"c"]
    assert (list(places), list(made.parts)) == ([0, 1, 1, 1, 2], [0, 0, 1, 2, 0])
    assert made.are_siblings == [False, False, True, True, False]
    assert made.without_siblings().ids == batch.ids
    assert made.part(2, 4).bodies == [b"b2", b"b3"]
    assert made.part(2, 4).are_siblings == [False, True]
    assert list(made.pick([3, 4]).parts) == [2, 0]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_as_many_stay_as_there_were_messages(counts: list[int]) -> None:
    batch = messages_of(*[b"%d" % count for count in counts])
    work = Work(batch)
    work.places = [at for at, count in enumerate(counts) if count]
    work.several = {at: [b"p"] * count for at, count in enumerate(counts) if count > 1}
    made, places = work.result()
    assert len(made) == sum(counts) == len(places)
    assert made.without_siblings().ids == [batch.ids[at] for at in work.places]
