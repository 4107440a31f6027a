"""Frames from nsqd, whole and in every possible piece (spec: tcp-protocol, parts 1 and 5.1)."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.errors import ProtocolError, ServerError
from nsqtools.wire.frames import (
    BODY_SIZE_MAX_BYTES,
    ERROR,
    FRAME_SIZE_MAX_BYTES,
    MESSAGE,
    RESPONSE,
    FrameDecoder,
    Oversized,
    Response,
    encode_frame,
    parse_error,
    refused_fin,
)
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nsqtools.wire.frames import Event

ID = b"18a1f03149269000"
# As nsqd 1.3.0 wrote it.
RECORDED = bytes.fromhex("18e9c4dc774acaa2 0001") + ID + b"x"
EVERYTHING = (
    encode_frame(RESPONSE, b"OK")
    + encode_frame(MESSAGE, RECORDED)
    + encode_frame(MESSAGE, encode_payload(5, 65535, ID, b""))
    + encode_frame(RESPONSE, b"_heartbeat_")
    + encode_frame(ERROR, b"E_FIN_FAILED FIN x failed ID not in flight")
    + encode_frame(MESSAGE, encode_payload(6, 2, ID, b"long " * 50))
    + encode_frame(ERROR, b"E_INVALID ")
    + encode_frame(RESPONSE, b"")
)


def flat(events: Iterable[Event]) -> list[object]:
    """Events without regard to how messages were gathered."""
    found: list[object] = []
    for event in events:
        if isinstance(event, Messages):
            found += event.payloads
        elif isinstance(event, Response):
            found.append(event.data)
        else:
            found.append(str(event))
    return found


EXPECTED = [
    b"OK",
    RECORDED,
    encode_payload(5, 65535, ID, b""),
    b"_heartbeat_",
    "E_FIN_FAILED FIN x failed ID not in flight",
    encode_payload(6, 2, ID, b"long " * 50),
    "E_INVALID",
    b"",
]


def decode(pieces: Iterable[bytes]) -> list[object]:
    decoder = FrameDecoder()
    return flat(event for piece in pieces for event in decoder.receive(piece))


@pytest.mark.parametrize(
    ("description", "refused"),
    [
        ("FIN 0123456789abcdef failed ID not in flight", b"0123456789abcdef"),
        ("FIN 0123456789abcde\ufffd failed", None),
        ("FIN 0123456789abcde\n failed", None),
        ("FIN 0123 failed", None),
        ("", None),
    ],
)
def test_the_message_of_a_refused_fin(description: str, refused: bytes | None) -> None:
    assert refused_fin("E_FIN_FAILED", description) == refused
    assert refused_fin("E_REQ_FAILED", description) is None


def test_whole() -> None:
    assert decode([EVERYTHING]) == EXPECTED


def test_byte_by_byte() -> None:
    assert decode(EVERYTHING[at : at + 1] for at in range(len(EVERYTHING))) == EXPECTED


def test_cut_at_every_offset() -> None:
    for at in range(len(EVERYTHING) + 1):
        assert decode([EVERYTHING[:at], EVERYTHING[at:]]) == EXPECTED


def test_with_trailing_bytes() -> None:
    decoder = FrameDecoder()
    assert flat(decoder.receive(EVERYTHING + b"\0\0\0")) == EXPECTED
    assert decoder.unfinished_bytes == 3


def test_columns_of_a_recorded_message() -> None:
    (messages,) = FrameDecoder().receive(encode_frame(MESSAGE, RECORDED))
    assert isinstance(messages, Messages)
    assert messages.timestamps == [0x18E9C4DC774ACAA2]
    assert (messages.attempts, messages.ids, messages.bodies) == ([1], [ID], [b"x"])
    assert messages.size_bytes == 1
    assert messages.time_range_ns() == (0x18E9C4DC774ACAA2,) * 2


sizes = st.lists(st.sampled_from([0, 1, 7, 7, 7, 7, 7, 90]), max_size=200)


@given(sizes, st.lists(st.integers(0, 20_000), max_size=6), st.booleans())
def test_runs_of_messages_survive_any_cut(lengths: list[int], cuts: list[int], mixed: bool) -> None:
    """Runs of one size take another way through the decoder than mixed ones."""
    payloads = [
        encode_payload(number, number % 7, b"%016x" % number, bytes([number % 256]) * length)
        for number, length in enumerate(lengths * 3)
    ]
    frames = [encode_frame(MESSAGE, payload) for payload in payloads]
    expected: list[object] = list(payloads)
    if mixed:
        frames.insert(len(frames) // 2, encode_frame(RESPONSE, b"_heartbeat_"))
        expected.insert(len(expected) // 2, b"_heartbeat_")
    raw = b"".join(frames)
    places = sorted({0, len(raw), *(min(at, len(raw)) for at in cuts)})
    pieces = [raw[start:stop] for start, stop in pairwise(places)]
    assert decode(pieces) == expected


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_only_the_documented_error_escapes(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    try:
        for piece in pieces:
            decoder.receive(piece)
    except ProtocolError as failure:
        with pytest.raises(ProtocolError) as again:
            decoder.receive(encode_frame(RESPONSE, b"OK"))
        # It stays failed, whatever comes.
        assert again.value is failure  # noqa: PT017


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (struct.pack(">ii", 3, 0), "frame size 3 out of range"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is this the HTTP port?"),
        (struct.pack(">ii", -1, 0), "frame size -1 out of range"),
        (struct.pack(">ii", FRAME_SIZE_MAX_BYTES + 1, 0), "out of range"),
        (struct.pack(">ii", FRAME_SIZE_MAX_BYTES + 1, 1), "out of range"),
        (struct.pack(">ii", FRAME_SIZE_MAX_BYTES + 1, 3), "out of range"),
        (struct.pack(">ii", (1 << 30) + 1, 2), "out of range"),
        (struct.pack(">ii", 6, 3), "unknown frame type 3"),
        (struct.pack(">ii", 6, -1), "unknown frame type -1"),
        (struct.pack(">ii", 29, 2), "message frame of 29 bytes is shorter than 30"),
    ],
)
def test_violations_are_told_before_their_data_comes(raw: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        FrameDecoder().receive(encode_frame(RESPONSE, b"OK") + raw)


@pytest.mark.parametrize("cut", range(1, 8))
@pytest.mark.parametrize("frame_type", [RESPONSE, ERROR, 3])
def test_no_size_is_waited_for_that_was_not_checked(cut: int, frame_type: int) -> None:
    header = struct.pack(">ii", FRAME_SIZE_MAX_BYTES, frame_type)
    decoder = FrameDecoder()
    assert decoder.receive(header[:cut]) == []
    with pytest.raises(ProtocolError):
        decoder.receive(header[cut:] + bytes(100))


def test_few_messages_do_not_keep_a_large_read() -> None:
    noise = encode_frame(RESPONSE, bytes(50_000)) * 4
    reads = [noise + encode_frame(MESSAGE, RECORDED) * count + noise for count in (1, 3, 10, 100)]
    tracemalloc.start()
    try:
        held = [
            event
            for read in reads * 10
            for event in FrameDecoder().receive(memoryview(read))
            if isinstance(event, Messages)
        ]
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(messages) for messages in held] == [1, 3, 10, 100] * 10
    assert held_bytes < len(reads[0]), "forty reads of that size"


@pytest.mark.parametrize("step", [1, 7, 30, 33, 34, 35, 64, 1 << 20])
def test_a_message_that_is_too_large_is_passed_over(step: int) -> None:
    small = encode_frame(MESSAGE, encode_payload(1, 1, ID, b"small"))
    large = encode_frame(MESSAGE, encode_payload(2, 7, b"too large a body", bytes(5000)))
    raw = small + large + small + large
    decoder = FrameDecoder(frame_size_max_bytes=1000)
    events = []
    for at in range(0, len(raw), step):
        events += decoder.receive(raw[at : at + step])
        assert decoder.unfinished_bytes < 1100, "its body is not kept"
    found = [event for event in events if isinstance(event, Oversized)]
    bodies = [body for event in events if isinstance(event, Messages) for body in event.bodies]
    assert found == [Oversized(b"too large a body", 7, 5000)] * 2, "however it came"
    assert bodies == [b"small"] * 2


@pytest.mark.parametrize(("more", "kind"), [(0, Messages), (1, Oversized)])
def test_what_is_documented_of_a_body_is_taken_and_no_more(more: int, kind: type) -> None:
    raw = encode_frame(MESSAGE, encode_payload(1, 1, ID, bytes(BODY_SIZE_MAX_BYTES + more)))
    decoder = FrameDecoder()
    half = len(raw) // 2
    (found,) = decoder.receive(raw[:half]) + decoder.receive(raw[half:])
    assert isinstance(found, kind)


def test_a_large_frame_that_trickles_is_not_copied_each_time() -> None:
    body = bytes(1 << 20)
    raw = encode_frame(MESSAGE, encode_payload(1, 1, ID, body))
    decoder = FrameDecoder()
    events = [
        event for at in range(0, len(raw), 64) for event in decoder.receive(raw[at : at + 64])
    ]
    (messages,) = events
    assert isinstance(messages, Messages)
    assert messages.bodies == [body]


@pytest.mark.parametrize(
    ("data", "code", "description", "fatal"),
    [
        (
            b"E_INVALID cannot SUB in current state",
            "E_INVALID",
            "cannot SUB in current state",
            True,
        ),
        (b"E_BAD_PROTOCOL", "E_BAD_PROTOCOL", "", True),
        (b"E_FIN_FAILED FIN \xff failed", "E_FIN_FAILED", "FIN \ufffd failed", False),
        (b"E_REQ_FAILED x", "E_REQ_FAILED", "x", False),
        (b"E_TOUCH_FAILED x", "E_TOUCH_FAILED", "x", False),
        (b"", "", "", True),
    ],
)
def test_error_frames(data: bytes, code: str, description: str, fatal: bool) -> None:
    error = parse_error(data)
    assert isinstance(error, ServerError)
    assert (error.code, error.description, error.fatal) == (code, description, fatal)
