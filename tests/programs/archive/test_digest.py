"""The SHA-256 of a file on the way of its reader."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, cast

from hypothesis import given
from hypothesis import strategies as st

from nsqtools.programs.archive.digest import DigestingFile

if TYPE_CHECKING:
    from typing import BinaryIO


@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=12),
)
def test_whatever_is_read_it_is_that_of_the_file(
    content: bytes, reads: list[tuple[int, int]]
) -> None:
    like = io.BytesIO(content)
    file = DigestingFile(cast("BinaryIO", io.BytesIO(content)))
    for at, count in reads:
        assert file.seek(at) == like.seek(at) == file.tell()
        assert file.read(count) == like.read(count)
    assert file.hexdigest() == hashlib.sha256(content).hexdigest()
