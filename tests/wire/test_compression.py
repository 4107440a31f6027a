from __future__ import annotations

import itertools
import tracemalloc
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.errors import ProtocolError
from nsqtools.wire.compression import SNAPPY_CHUNK_BYTES_MAX, Codec, Deflate, Snappy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

IDENTIFIER = bytes.fromhex("ff060000734e61507059")
# What nsqd 1.3.0 sends after the snappy upgrade: the frame OK in a plain chunk.
OK_FRAME = bytes.fromhex("00000006000000004f4b")
OK_SNAPPY = IDENTIFIER + bytes.fromhex("010e000026982bcf") + OK_FRAME
CODECS = pytest.mark.parametrize("make", [Deflate, Snappy])

messages = st.lists(
    st.binary(max_size=200)
    | st.tuples(st.binary(min_size=1, max_size=3), st.integers(0, 60_000)).map(
        lambda pair: pair[0] * pair[1]
    ),
    max_size=6,
)


def drain(codec: Codec, data: bytes, max_bytes: int = SNAPPY_CHUNK_BYTES_MAX) -> bytes:
    parts = [codec.decompress(data, max_bytes)]
    while codec.pending:
        parts.append(codec.decompress(b"", max_bytes))
    assert all(len(part) <= max_bytes for part in parts)
    return b"".join(parts)


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(position % (len(data) + 1) for position in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@CODECS
@given(sent=messages, at=st.lists(st.integers(0, 1 << 20), max_size=8))
def test_cut_anywhere(make: Callable[[], Codec], sent: list[bytes], at: list[int]) -> None:
    sender, receiver = make(), make()
    wire = b"".join(sender.compress(message) for message in sent)
    received = b"".join(drain(receiver, piece) for piece in cut(wire, at))
    assert received == b"".join(sent)


@CODECS
@given(sent=messages)
def test_every_flush_can_be_read_at_once(make: Callable[[], Codec], sent: list[bytes]) -> None:
    sender, receiver = make(), make()
    for message in sent:
        assert drain(receiver, sender.compress(message)) == message


@CODECS
def test_byte_by_byte(make: Callable[[], Codec]) -> None:
    sender, receiver = make(), make()
    wire = sender.compress(b"a" * 300) + sender.compress(b"b")
    assert b"".join(receiver.decompress(bytes([byte])) for byte in wire) == b"a" * 300 + b"b"


@CODECS
def test_a_bomb_opens_in_bounded_pieces(make: Callable[[], Codec]) -> None:
    bomb = make().compress(bytes(32 << 20))
    receiver = make()
    tracemalloc.start()
    total = len(receiver.decompress(bomb, 1 << 16))
    while receiver.pending:
        total += len(receiver.decompress(b"", 1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 32 << 20
    assert peak < (1 << 20) + 3 * len(bomb)


@CODECS
def test_nothing_is_sent_for_nothing(make: Callable[[], Codec]) -> None:
    assert make().compress(b"") == b""
    with pytest.raises(ValueError, match="max_bytes"):
        make().decompress(b"", 0)


def test_deflate_is_a_raw_stream_with_sync_flushes() -> None:
    codec = Deflate(level=1)
    first, second = codec.compress(b"x" * 100), codec.compress(b"y")
    assert first.endswith(b"\x00\x00\xff\xff")
    assert second.endswith(b"\x00\x00\xff\xff")
    assert zlib.decompressobj(-15).decompress(first + second) == b"x" * 100 + b"y"


def test_deflate_refuses_what_is_no_stream_and_what_follows_its_end() -> None:
    with pytest.raises(ProtocolError, match="damaged deflate stream"):
        Deflate().decompress(b"\xff" * 10)
    ended = zlib.compress(b"x", wbits=-15)
    with pytest.raises(ProtocolError, match="after the end"):
        Deflate().decompress(ended + b"x")
    codec = Deflate()
    assert codec.decompress(ended) == b"x"
    with pytest.raises(ProtocolError, match="after the end"):
        codec.decompress(b"x")


def test_snappy_sends_and_reads_nsqds_bytes() -> None:
    sender = Snappy()
    assert sender.compress(OK_FRAME) == OK_SNAPPY
    assert sender.compress(OK_FRAME) == OK_SNAPPY[len(IDENTIFIER) :]
    assert Snappy().decompress(OK_SNAPPY) == OK_FRAME


def test_snappy_compresses_what_gets_smaller() -> None:
    assert Snappy().compress(b"ab" * 100)[len(IDENTIFIER)] == 0x00


def test_snappy_skips_padding_and_chunks_to_come_without_keeping_them() -> None:
    codec = Snappy()
    length = (1 << 24) - 1
    assert codec.decompress(IDENTIFIER + b"\xfe" + length.to_bytes(3, "little")) == b""
    piece = bytes(1 << 16)
    tracemalloc.start()
    for _ in range(length // len(piece)):
        assert codec.decompress(piece) == b""
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 19
    rest = bytes(length % len(piece))
    assert codec.decompress(rest + b"\x80\x01\x00\x00x" + OK_SNAPPY) == OK_FRAME


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (OK_SNAPPY[len(IDENTIFIER) :], "no stream identifier"),
        (b"\xff\x06\x00\x00sNaPpX", "wrong stream identifier"),
        (b"\xff\x07\x00\x00", "stream identifier of a wrong length"),
        (IDENTIFIER + b"\x02\x00\x00\x00", "unknown chunk type 0x02"),
        (IDENTIFIER + b"\x7f\x00\x00\x00", "unknown chunk type 0x7f"),
        (IDENTIFIER + b"\x01\x03\x00\x00", "chunk of 3 bytes"),
        (IDENTIFIER + b"\x01\x05\x00\x01", "chunk of 65541 bytes"),
        (IDENTIFIER + b"\x00\xff\xff\xff", "chunk of 16777215 bytes"),
        (OK_SNAPPY[:-1] + b"X", "bad checksum"),
        (IDENTIFIER + b"\x00\x09\x00\x00crc!\xff\xff\xff\xff\x0f", "chunk claims"),
        (IDENTIFIER + b"\x00\x09\x00\x00crc!\xff\xff\xff\xff\xff", "damaged snappy stream"),
        (IDENTIFIER + b"\x00\x07\x00\x00crc!\x05\x00\x00", "damaged snappy stream"),
    ],
)
def test_snappy_refuses_damage(wire: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        Snappy().decompress(wire)


def test_snappy_reads_what_another_writer_makes() -> None:
    data = bytes(range(256)) * 2000
    assert drain(Snappy(), bytes(cramjam.snappy.compress(data))) == data


@CODECS
@given(data=st.binary(max_size=300), flip=st.integers(0, 299), value=st.integers(1, 255))
def test_only_the_documented_error_escapes(
    make: Callable[[], Codec], data: bytes, flip: int, value: int
) -> None:
    wire = bytearray(make().compress(data * 3) or b"\x00")
    wire[flip % len(wire)] ^= value
    with suppress(ProtocolError):
        drain(make(), bytes(wire))
    with suppress(ProtocolError):
        drain(make(), IDENTIFIER + data)
