"""Where an object is, and what a key may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.stores.location import Location, check_key, is_location, parse_location


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("S3://b-u.c/a/b.zst", "b-u.c", "a/b.zst"),
        ("s3://bucket//a//b", "bucket", "/a//b"),
        ("s3://bucket/../a/./b", "bucket", "../a/./b"),
        ("s3://bucket/a?b#c%20d e", "bucket", "a?b#c%20d e"),
        ("s3://bucket/s3://c", "bucket", "s3://c"),
    ],
)
def test_a_key_is_what_it_is(text: str, bucket: str, key: str) -> None:
    location = parse_location(text)
    assert location == Location(bucket, key)
    assert parse_location(location.url) == location


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bucket/key", "should be s3://"),
        ("/s3://bucket/key", "should be s3://"),
        ("s3://", "3 to 63"),
        ("s3:///key", "3 to 63"),
        ("s3://Bucket/key", "3 to 63"),
        ("s3://b..c/key", "dot beside"),
        ("s3://127.0.0.1/key", "IP address"),
        ("s3://AKID:secret@bucket/key", "credentials"),
        ("s3://bucket/" + "k" * 1025, "at most 1024 bytes"),
        ("s3://bucket/" + "é" * 513, "at most 1024 bytes"),
        ("s3://bucket/a\0b", "NUL"),
        ("s3://bucket/a\udc80b", "UTF-8"),
    ],
)
def test_what_is_no_location(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_location(text)
    assert "secret" not in str(caught.value)


def test_a_key_is_shown_on_one_line_and_cut() -> None:
    assert str(Location("bucket", "a\x1b[31m\nb")) == "s3://bucket/a\\x1b[31m\\nb"
    assert str(Location("bucket", "a\udc80")) == "s3://bucket/a\\udc80"
    assert len(str(Location("bucket", "k" * 1024))) < 400


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200))
def test_any_key_comes_back(key: str) -> None:
    assert check_key(key) == key
    assert is_location(Location("bucket", key).url)
    assert parse_location(Location("bucket", key).url).key == key
    assert str(Location("bucket", key)).isprintable()
