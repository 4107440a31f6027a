"""Columns cut out of the bytes of a read are those of the payloads, message by message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.wire.frames import MESSAGE, FrameDecoder, encode_frame
from nsqtools.wire.messages import Messages, encode_payload
from nsqtools.wire.payloads import PAYLOAD_HEADER

# Runs of one size are cut as one; 32 of them by one call.
runs = st.lists(
    st.tuples(st.integers(0, 9), st.integers(1, 80), st.binary(min_size=26, max_size=26)),
    max_size=4,
)
COLUMNS = (
    *("payloads", "bodies", "ids", "times", "timestamps", "attempts", "same_attempts"),
    *("size_bytes", "body_bytes_max"),
)


def heads_of(payloads: list[bytes]) -> list[bytes]:
    return [payload[:26] for payload in payloads]


@given(runs=runs)
def test_columns_are_those_of_the_payloads(runs: list[tuple[int, int, bytes]]) -> None:
    payloads = [
        (int.from_bytes(head, "big") + at).to_bytes(27, "big")[-26:] + b"b" * size
        for size, count, head in runs
        for at in range(count)
    ]
    frames = b"".join(encode_frame(MESSAGE, payload) for payload in payloads)
    for event in FrameDecoder().receive(frames) or [Messages([])]:
        assert isinstance(event, Messages)
        heads = [PAYLOAD_HEADER.unpack_from(payload) for payload in payloads]
        assert event.timestamps == [timestamp % 2**64 for timestamp, _, _ in heads]
        assert event.attempts == [attempts for _, attempts, _ in heads]
        assert event.ids == [message_id for _, _, message_id in heads]
        assert event.body_bytes_max == max((len(payload) - 26 for payload in payloads), default=0)
        apart = Messages(payloads)
        for column in COLUMNS:
            assert getattr(event, column) == getattr(apart, column)
        if payloads:
            assert event.first_timestamp_ns == apart.first_timestamp_ns
            assert event.time_range_ns() == apart.time_range_ns()
            assert (
                event.ends() == apart.ends() == (min(heads_of(payloads)), max(heads_of(payloads)))
            )
        assert [payload for _, run in event.runs() for payload in run] == payloads
        assert all(
            {len(payload) for payload in run} <= {size} for size, run in event.runs() if size
        )


def test_the_largest_body() -> None:
    assert Messages([]).body_bytes_max == 0
    payloads = [encode_payload(1, 1, b"0" * 16, body) for body in (b"", b"abc", b"a")]
    assert Messages(payloads).body_bytes_max == 3
    assert [Messages(payloads).has_body_of_more(limit) for limit in (0, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("order", [("ids", "times"), ("same_attempts", "ids"), ("times", "ids")])
@pytest.mark.parametrize("count", [0, 1, 31, 100])
def test_columns_of_many_sizes_whatever_is_asked_first(order: tuple[str, ...], count: int) -> None:
    payloads = [encode_payload(at, 1 + at % 2, b"%016d" % at, b"x" * at) for at in range(count)]
    messages = Messages(payloads)
    for name in order:
        getattr(messages, name)
    assert messages.ids == [b"%016d" % at for at in range(count)]
    assert messages.times == b"".join([payload[:8] for payload in payloads])
    assert messages.same_attempts == (1 if count == 1 else None)
    assert messages.bodies == [b"x" * at for at in range(count)]
