"""Records to MPUBs: nothing lost, order kept, limits hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nsqtools.replay.chunks import ChunkLimits, chunks, sort_out
from nsqtools.wire.commands import mpub

BODIES = st.lists(st.binary(max_size=40), max_size=60)
OVERHEAD_BYTES = 8


@st.composite
def limits(draw: st.DrawFn) -> ChunkLimits:
    msg_size = draw(st.integers(1, 40))
    return ChunkLimits(
        messages_max=draw(st.integers(1, 20)),
        msg_size_max_bytes=msg_size,
        body_size_max_bytes=msg_size + OVERHEAD_BYTES + draw(st.integers(0, 200)),
    )


@given(BODIES, limits())
def test_every_record_is_kept_or_told(bodies: list[bytes], limit: ChunkLimits) -> None:
    found = sort_out(bodies, limit)
    size_max = limit.msg_size_max_bytes
    assert list(found.bodies) == [body for body in bodies if 0 < len(body) <= size_max]
    assert found.empty == bodies.count(b"")
    assert all(len(bodies[at]) == size > size_max for at, size in found.too_big)
    assert len(found.bodies) + found.empty + len(found.too_big) == len(bodies)


@given(BODIES, limits())
def test_mpubs_fit_and_hold_every_message_once(bodies: list[bytes], limit: ChunkLimits) -> None:
    kept = sort_out(bodies, limit).bodies
    cut = [list(chunk) for chunk in chunks(kept, limit)]
    assert [body for chunk in cut for body in chunk] == list(kept)
    for chunk in cut:
        assert 0 < len(chunk) <= limit.messages_max
        assert len(mpub("t", chunk)) - len(b"MPUB t\n") - 4 <= limit.body_size_max_bytes


@given(st.integers(1, 30), st.integers(1, 10))
def test_no_mpub_is_smaller_than_it_must_be(count: int, messages_max: int) -> None:
    limit = ChunkLimits(messages_max=messages_max, msg_size_max_bytes=9, body_size_max_bytes=10**6)
    cut = [len(chunk) for chunk in chunks([b"x"] * count, limit)]
    assert cut[:-1] == [messages_max] * (len(cut) - 1)


def test_a_message_of_the_largest_size_goes_alone() -> None:
    limit = ChunkLimits(messages_max=9, msg_size_max_bytes=10, body_size_max_bytes=18)
    assert [list(c) for c in chunks([b"x" * 10, b"y" * 10, b"z"], limit)] == [
        [b"x" * 10],
        [b"y" * 10],
        [b"z"],
    ]
