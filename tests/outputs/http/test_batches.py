"""Bodies of several messages."""

from __future__ import annotations

import json
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.outputs.http.batches import compressor, is_json, join

BODIES = st.lists(st.binary(), min_size=1, max_size=20)


@given(BODIES)
def test_length_prefixed_holds_any_bytes(bodies: list[bytes]) -> None:
    data, found = join(bodies, "length-prefixed"), []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    assert found == bodies


def test_lines() -> None:
    assert join([b"a", b"", b"b"], "lines") == b"a\n\nb\n"


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=9))
def test_an_array_of_json(values: list[object]) -> None:
    bodies = [json.dumps(value).encode() for value in values]
    assert all(map(is_json, bodies))
    assert json.loads(join(bodies, "json")) == values


@pytest.mark.parametrize(
    "body",
    [b"", b"1,2", b"[1", b"2]", b'"a', b"{", b"NaN", b"\xff", b"[" * 100_000, b"x", b"1 2", b"'a'"],
)
def test_what_would_change_an_array_is_no_json(body: bytes) -> None:
    assert not is_json(body)


def test_a_number_may_be_of_any_length() -> None:
    assert is_json(b"9" * 5000)
    assert is_json(b"-1.5e3")


@given(st.binary())
def test_compressed_bodies_are_what_they_say(body: bytes) -> None:
    gzip, zstd = compressor("gzip"), compressor("zstd")
    assert compressor("none") is None
    assert gzip is not None
    assert zstd is not None
    assert zlib.decompress(gzip(body), 31) == body
    assert zstandard.ZstdDecompressor().decompress(zstd(body)) == body
