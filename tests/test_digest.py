"""Checksums that are taken while a file is written, whatever pieces it is written in."""

from __future__ import annotations

import hashlib
import weakref
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.digest import LATER_BYTES_MAX, Digest

if TYPE_CHECKING:
    import random

PIECES = st.lists(st.binary(max_size=40), max_size=12)


def md5_of(part: bytes) -> str:
    return hashlib.md5(part, usedforsecurity=False).hexdigest()


@given(PIECES, st.integers(min_value=1, max_value=17), st.randoms(use_true_random=False))
def test_parts_are_those_of_the_file(
    pieces: list[bytes], part_bytes: int, chance: random.Random
) -> None:
    digest = Digest(part_bytes)
    for piece in pieces:
        chance.choice([digest.update, digest.later])(piece)
        chance.choice([lambda: None, digest.catch_up])()
    content = b"".join(pieces)
    parts = [content[at : at + part_bytes] for at in range(0, len(content), part_bytes)]
    assert digest.sha256 == hashlib.sha256(content).hexdigest()
    assert digest.parts is not None
    assert digest.parts.part_bytes == part_bytes
    assert digest.parts.md5s == tuple(md5_of(part) for part in parts)


@pytest.mark.parametrize("content", [b"", b"content"])
def test_parts_are_not_there_unless_asked_for(content: bytes) -> None:
    digest = Digest()
    digest.update(bytearray(content))
    assert digest.sha256 == hashlib.sha256(content).hexdigest()
    assert digest.parts is None


class Data(bytearray):
    """Of which is known whether somebody holds it."""


def test_what_is_looked_at_later_is_bounded() -> None:
    digest, held = Digest(), []
    for _ in range(5):
        data = Data(LATER_BYTES_MAX // 2 + 1)
        held.append(weakref.ref(data))
        digest.later(data)
        del data
        assert sum(one() is not None for one in held) <= 1
    digest.catch_up()
    assert [one() for one in held] == [None] * 5
    assert digest.sha256 == hashlib.sha256(bytes(5 * (LATER_BYTES_MAX // 2 + 1))).hexdigest()
