"""The commands that a client writes, byte by byte (spec: tcp-protocol, part 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.wire import commands

IDS = [b"0123456789abcdef", b"fedcba9876543210"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (commands.identify(b"{}"), b"IDENTIFY\n\0\0\0\2{}"),
        (commands.auth(b"se\ncret"), b"AUTH\n\0\0\0\7se\ncret"),
        (commands.sub("t", "c#ephemeral"), b"SUB t c#ephemeral\n"),
        (commands.rdy(0), b"RDY 0\n"),
        (commands.rdy(2500), b"RDY 2500\n"),
        (commands.fin(IDS[:1]), b"FIN 0123456789abcdef\n"),
        (commands.fin(IDS), b"FIN 0123456789abcdef\nFIN fedcba9876543210\n"),
        (commands.touch(IDS), b"TOUCH 0123456789abcdef\nTOUCH fedcba9876543210\n"),
        (commands.req(IDS, 90), b"REQ 0123456789abcdef 90\nREQ fedcba9876543210 90\n"),
        (commands.pub("t", b"body"), b"PUB t\n\0\0\0\4body"),
        (commands.dpub("t", b"body", 1500), b"DPUB t 1500\n\0\0\0\4body"),
        (
            commands.mpub("t", [b"a", b"bcd"]),
            b"MPUB t\n\0\0\0\x10\0\0\0\2\0\0\0\1a\0\0\0\3bcd",
        ),
        (commands.NOP + commands.CLS, b"NOP\nCLS\n"),
        (commands.MAGIC_V2, b"  V2"),
    ],
)
def test_bytes(written: bytes, expected: bytes) -> None:
    assert written == expected


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1))
def test_the_size_that_is_promised_is_the_size_that_is_written(bodies: list[bytes]) -> None:
    written = commands.mpub("topic", bodies)
    head = len(b"MPUB topic\n") + commands.SIZE_BYTES
    size = commands.mpub_size_bytes(bodies)
    assert len(written) == head + size
    assert int.from_bytes(written[head - 4 : head], "big") == size
