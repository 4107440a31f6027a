"""A pattern is found in the same bodies, however they are searched."""

from __future__ import annotations

import re2
from hypothesis import example, given
from hypothesis import strategies as st

from nsqtools.options import REGEX
from nsqtools.transform.search import Search

# Pieces of patterns, put together in any order: anchors, classes, groups and flags among them.
PIECES = [
    *("a", "b", "ab", "é", "x", "\\xff", "0", r"\n", "\n", ".", "[^a]", r"\s", r"\S", r"\w", r"\W"),
    *("^", "$", r"\A", r"\z", r"\b", r"\B", "|", "a*", "b+", ".*", "x?", "[ab]{2}", r"\Qa.b\E"),
    *(
        "(a)",
        "(?:b)",
        "(?i)",
        "(?s)",
        "(?m)",
        "(?i:A)",
        "(?s:.)",
        "(?-m)",
        "(?s-i:.)",
        "(?U)",
        r"\C",
    ),
]
patterns = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
letters = st.sampled_from(
    [b"a", b"b", b"A", b"x", b" ", b"0", b"\n", "é".encode(), b"\xff", b"\xc3", b"a.b"]
)
plain = letters.filter(lambda letter: letter != b"\n")
# Batches in which some bodies hold a newline, and such in which none does.
batches = st.one_of(
    *(st.lists(st.lists(some, max_size=5).map(b"".join), max_size=60) for some in (letters, plain))
)


@given(patterns, batches)
@example("^$", [b"", b"a", b""])
@example("(?s)a.b", [b"a\nb", b"a", b"b"])
@example(r"a\nb", [b"a", b"b", b"a\nb"])
@example(r"[^a]", [b"a", b"a", b"b"])
@example(r"b\z", [b"b", b"ba"])
@example("a|", [b"b"] * 50)
@example("a", [b"a"] * 50 + [b"b", b"a"])
@example("a+", [b"a"] * 50 + [b"b", b"a"])
def test_bodies_are_searched_together_as_one_by_one(pattern: str, bodies: list[bytes]) -> None:
    try:
        alone = re2.compile(pattern)
    except re2.error:
        return
    wanted = [at for at, body in enumerate(bodies) if alone.search(body) is not None]
    search = Search(REGEX.parse(pattern))
    for _ in range(2):  # the second time it is known how many match
        assert search.positions(bodies) == wanted
    lines = [line + b"\n" for body in bodies for line in body.split(b"\n")]
    assert list(search.lines(b"".join(lines))) == [
        line for line in lines if alone.search(line[:-1]) is not None
    ]


def test_few_that_match_cost_few_calls() -> None:
    """One for each match, not for each body; where many match, the next are searched one by one."""
    search = Search(REGEX.parse("err.r"))
    together, alone = search._together, search._alone
    calls: list[object] = []

    class Counting:
        def __init__(self, pattern: object) -> None:
            self._pattern = pattern

        def search(self, *args: object) -> object:
            calls.append(self._pattern)
            return self._pattern.search(*args)  # type: ignore[attr-defined]

    search._together, search._alone = Counting(together), Counting(alone)
    assert search.positions([b"fine"] * 1000 + [b"error"] * 5) == [*range(1000, 1005)]
    assert calls == [together] * 5
    for used in (together, alone):
        calls.clear()
        assert search.positions([b"error"] * 10) == [*range(10)]
        assert calls == [used] * 10
    calls.clear()
    assert search.positions([b"fine"] * 10) == search.positions([b"fine"] * 10) == []
    assert calls == [alone] * 10 + [together], "few match again"
