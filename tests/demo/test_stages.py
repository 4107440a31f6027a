"""The digest and the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from nsqtools.demo.stages import BodyDigest, Stage, print_stages

if TYPE_CHECKING:
    import pytest

BODIES = st.lists(st.binary(max_size=8), max_size=12)


def digest(bodies: list[bytes]) -> BodyDigest:
    made = BodyDigest()
    made.add(bodies)
    return made


@given(BODIES, BODIES)
def test_equal_exactly_when_the_same_bodies_came_whatever_their_order(
    one: list[bytes], other: list[bytes]
) -> None:
    assert (digest(one) == digest(other)) == (sorted(one) == sorted(other))
    assert digest(one + other) == digest(other + one)


@given(BODIES, st.integers(0, 12))
def test_batches_do_not_matter(bodies: list[bytes], cut: int) -> None:
    made = digest(bodies[:cut])
    made.add(bodies[cut:])
    assert made == digest(bodies)
    assert len(made.hexdigest()) == 64


def test_a_digest_is_equal_to_nothing_else() -> None:
    assert digest([]) != "0" * 64


def test_plain_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_stages(
        [
            Stage(name="archive", messages=1000, body_bytes=5000, seconds=0.5, disk_bytes=2000),
            Stage(name="replay", messages=0, body_bytes=0, seconds=0.0),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "stage    messages  bytes  on disk  ratio  seconds  messages/s",
        "archive     1,000  5,000    2,000  2.50x    0.500       2,000",
        "replay          0      0        -      -    0.000           0",
    ]
