from __future__ import annotations

import itertools
import struct
import tracemalloc
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.broker.block import (
    FRAME_OVERHEAD_BYTES,
    HEADER_BYTES,
    STRETCH_BYTES,
    BadBlock,
    Block,
    Short,
    build_block,
    parse_block,
    with_attempts,
)
from nsqtools.wire.bodies import measured
from nsqtools.wire.commands import fin
from nsqtools.wire.frames import FrameDecoder
from nsqtools.wire.messages import Messages

LENGTH_MAX = 1 << 20
NOW_NS = 1_700_000_000_123_456_789

message_bodies = st.lists(st.binary(max_size=40), min_size=1, max_size=40) | st.integers(
    1, 300
).map(lambda count: [b"same"] * count)
firsts = st.integers(0, 2**64 - 1000)


def on_disk(block: Block) -> bytes:
    return block.header() + block.frames


def all_fins(block: Block) -> bytes:
    return block.slice_fins(block.first, block.end)


def delivered(frames: bytes) -> Messages:
    (messages,) = FrameDecoder().receive(frames)
    assert isinstance(messages, Messages)
    return messages


@given(firsts, message_bodies)
def test_a_client_sees_what_was_put_in(first: int, bodies: list[bytes]) -> None:
    block = build_block(first, measured(bodies), NOW_NS)
    messages = delivered(block.slice(block.first, block.end))
    assert messages.bodies == bodies
    assert messages.ids == [b"%016x" % (first + at) for at in range(len(bodies))]
    assert set(messages.timestamps) == {NOW_NS}
    assert set(messages.attempts) == {1}


@given(
    st.integers(0, 2**40).map(lambda high: high << 16), st.integers(-300, 300), st.integers(1, 600)
)
def test_ids_count_on_where_their_last_digits_begin_again(high: int, away: int, count: int) -> None:
    first = max(0, high + away)
    block = build_block(first, measured([b"x"] * count), NOW_NS)
    assert all_fins(block) == b"".join(b"FIN %016x\n" % (first + at) for at in range(count))


def test_a_block_may_hold_more_messages_than_four_digits_count() -> None:
    block = build_block(5, measured([b"x"] * 140_000), NOW_NS)
    assert all_fins(block) == b"".join(b"FIN %016x\n" % (5 + at) for at in range(140_000))


@pytest.mark.parametrize(("count", "size"), [(1, 4_000_000), (4_000, 1_000)])
def test_large_messages_are_held_once_while_they_are_framed(count: int, size: int) -> None:
    bodies = measured([bytes([number % 256]) * size for number in range(count)])
    tracemalloc.start()
    block = build_block(5, bodies, NOW_NS)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(block.frames) < peak_bytes < 1.5 * len(block.frames)
    messages = delivered(block.slice(block.first, block.end))
    assert messages.bodies == bodies.each
    assert messages.ids == [b"%016x" % (5 + at) for at in range(count)]


@given(firsts, message_bodies, st.data())
def test_slices_are_runs_of_whole_frames(
    first: int, bodies: list[bytes], data: st.DataObject
) -> None:
    block = build_block(first, measured(bodies), NOW_NS)
    start = data.draw(st.integers(0, len(bodies) - 1))
    stop = data.draw(st.integers(start + 1, len(bodies)))
    assert delivered(block.slice(first + start, first + stop)).bodies == bodies[start:stop]


@given(firsts, message_bodies, st.integers(0, 2**64 - 1), st.binary(max_size=50))
def test_what_is_written_is_read(
    first: int, bodies: list[bytes], due_ns: int, behind: bytes
) -> None:
    block = build_block(first, measured(bodies), NOW_NS, due_ns)
    raw = on_disk(block)
    parsed = parse_block(b"before" + raw + behind, 6, LENGTH_MAX)
    assert not isinstance(parsed, BadBlock | Short)
    found, end = parsed
    assert end == 6 + len(raw)
    assert (found.first, found.end, found.due_ns) == (first, first + len(bodies), due_ns)
    assert (found.frames, list(found.starts)) == (block.frames, list(block.starts))


def test_a_block_that_is_cut_says_how_much_it_needs() -> None:
    raw = on_disk(build_block(5, measured([b"one", b"three"]), NOW_NS))
    for size in range(len(raw)):
        parsed = parse_block(raw[:size], 0, LENGTH_MAX)
        assert parsed == Short(0, HEADER_BYTES if size < HEADER_BYTES else len(raw))


def test_every_damaged_byte_is_found() -> None:
    raw = on_disk(build_block(5, measured([b"one", b"three"]), NOW_NS))
    for at in range(len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 0x41
        parsed = parse_block(bytes(damaged), 0, LENGTH_MAX)
        assert isinstance(parsed, BadBlock | Short), at


def reframed(count: int, *sizes: int) -> bytes:
    """A block with a right checksum that says it holds `count` frames, which say such sizes."""
    frames = b"".join(struct.pack(">ii", size, 2) + bytes(30) for size in sizes)
    checked = struct.pack(">QQI", 1, 0, count)
    length = len(checked) + len(frames)
    return struct.pack(">II", length, crc32(frames, crc32(checked))) + checked + frames


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (3, (34, 34)),  # a frame too few
        (1, (34, 34)),  # one too many
        (3, (34, 72, 34)),  # one that reaches into the next
        (3, (34, 34, 35)),  # one that ends behind the block
        (3, (34, -42, 34)),  # one that ends before it begins
        (3, (34, 33, 34)),
    ],
)
def test_frames_that_do_not_match_their_count_are_told(count: int, sizes: tuple[int, ...]) -> None:
    found = parse_block(reframed(count, *sizes), 0, LENGTH_MAX)
    assert isinstance(found, BadBlock)
    assert "do not match" in found.reason


def test_frames_of_many_sizes_are_found() -> None:
    count = 10_000  # more than are looked at together
    bodies = [b"x" * (at % 3) for at in range(count)]
    raw = on_disk(build_block(7, measured(bodies), NOW_NS))
    found = parse_block(raw, 0, LENGTH_MAX)
    assert not isinstance(found, BadBlock | Short)
    block, _ = found
    (messages,) = FrameDecoder().receive(block.slice(7 + 4095, 7 + 4098))
    assert isinstance(messages, Messages)
    assert (len(block), messages.bodies) == (count, bodies[4095:4098])


@pytest.mark.parametrize("length", [0, 20, LENGTH_MAX + 1])
def test_impossible_lengths(length: int) -> None:
    raw = struct.pack(">II", length, 0) + b"\0" * 40
    assert parse_block(raw, 0, LENGTH_MAX) == BadBlock(0, f"impossible block length {length}")


@pytest.mark.parametrize("frames_bytes", [1, 3, 4, FRAME_OVERHEAD_BYTES - 1])
def test_what_has_no_room_for_a_message_is_no_block(frames_bytes: int) -> None:
    checked = struct.pack(">QQI", 7, 0, 1) + bytes(frames_bytes)
    raw = struct.pack(">II", len(checked), crc32(checked)) + checked
    found = parse_block(raw, 0, LENGTH_MAX)
    assert found == BadBlock(0, f"impossible block length {len(checked)}")


@given(message_bodies, st.integers(1, 65535))
def test_attempts_are_counted_in_place(bodies: list[bytes], attempts: int) -> None:
    block = build_block(7, measured(bodies), NOW_NS)
    before = delivered(block.slice(7, 8))
    after = delivered(with_attempts(block.slice(7, 8), attempts))
    assert after.attempts == [attempts]
    assert (after.ids, after.bodies, after.timestamps) == (
        before.ids,
        before.bodies,
        before.timestamps,
    )


def linked(*blocks: Block) -> Block:
    for block, following in itertools.pairwise(blocks):
        block.next = following
    return blocks[0]


def built(first: int, *bodies: bytes, due_ns: int = 0) -> Block:
    return build_block(first, measured(list(bodies)), NOW_NS, due_ns)


def test_a_stretch_goes_on_over_the_blocks_behind() -> None:
    block = linked(built(5, b"a", b"b"), built(7, b"cc"), built(8, b"d", b"ee"))
    end, frames, fins = block.stretch(6, 9)
    assert (end, delivered(b"".join(frames)).bodies) == (9, [b"b", b"cc", b"d"])
    assert fins == fin([b"%016x" % number for number in (6, 7, 8)])
    assert block.stretch(5, 1000).end == 10


@pytest.mark.parametrize(
    "other", [built(8, b"behind a gap"), built(7, b"deferred", due_ns=NOW_NS), built(7, b"gone")]
)
def test_a_stretch_ends_where_something_else_is_due(other: Block) -> None:
    if other.slice(other.first, other.end).endswith(b"gone"):
        other.end = other.first  # as of a block that was taken back
    block = linked(built(5, b"a", b"b"), other)
    assert block.stretch(5, 1000).end == 7


def test_a_stretch_is_bounded_by_bytes() -> None:
    large = b"x" * (STRETCH_BYTES // 2)
    block = linked(*[built(number, large) for number in range(4)])
    assert block.stretch(0, 1000).end == 2
