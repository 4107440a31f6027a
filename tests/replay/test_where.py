"""Selecting dead letters."""

from __future__ import annotations

import pytest

from nsqtools.archive.failures import Failure
from nsqtools.archive.stream import Records
from nsqtools.replay.where import CONDITION, select

FAILURES = [
    Failure(status=502, error="bad gateway", tries=1),
    Failure(status=0, error="not connected: refused", tries=9),
    None,
]
BATCH = Records(
    bodies=[b"a", b"b", b"c"],
    offset=0,
    failures=FAILURES,
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["status=502"], [b"a"]),
        (["status=0"], [b"b"]),
        (["status=5xx", "status=0"], [b"a", b"b"]),
        (["status=5xx", "error=refused"], []),
        (["error=refused"], [b"b"]),
        (["error=x=y"], []),
    ],
)
def test_any_of_a_name_and_all_of_the_names(where: list[str], expected: list[bytes]) -> None:
    conditions = [CONDITION.parse(text) for text in where]
    assert [CONDITION.render(one) for one in conditions] == where
    assert select(BATCH, conditions, "f").bodies == expected


@pytest.mark.parametrize("text", ["", "status", "status=", "status=x", "status=6xx", "body=x"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="status=STATUS or error=WORDS"):
        CONDITION.parse(text)
