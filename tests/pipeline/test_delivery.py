"""Answers of an output, put together by what they say."""

from __future__ import annotations

import pytest

from nsqtools.outputs.contract import DONE, Again, Answer, Refused, Removed
from nsqtools.pipeline.delivery import _grouped, check_answer, distinct, longest_stand


def test_equal_answers_are_one_group_though_they_are_several_objects() -> None:
    answers: list[Answer] = [Again(1.0, "a"), DONE, Again(1.0, "a"), Again(2.0, "a"), DONE]
    answers += [Again(1.0, "a"), answers[0], Removed("grep")]
    assert _grouped(answers) == {
        Again(1.0, "a"): [0, 2, 5, 6],
        DONE: [1, 4],
        Again(2.0, "a"): [3],
        Removed("grep"): [7],
    }


def test_each_object_is_looked_at_once() -> None:
    refused = Refused("too large")
    assert list(distinct([DONE, refused, DONE, DONE, refused])) == [DONE, refused]
    assert list(distinct([])) == []


def test_one_wrong_answer_among_many_is_told() -> None:
    with pytest.raises(ValueError, match="an answer that is none: 'yes'"):
        check_answer([DONE] * 1000 + ["yes"] + [DONE], 1002)  # type: ignore[arg-type]
    check_answer([DONE] * 1000, 1000)


def test_the_longest_stand_of_many_answers() -> None:
    stands = [Again(1.0, "a", stands=True), Again(3.0, "b", stands=True), Again(9.0, "c")]
    assert longest_stand([DONE, *stands, DONE]) == stands[1]
    assert longest_stand([DONE, DONE]) is None
