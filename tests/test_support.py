"""What the tests rely on and no broker of ours ever makes them do: the real nsqd does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.nsqd import EmbeddedNsqd, ProcessNsqd, as_built
from tests.support.peer import Peer, message, message_id
from tests.support.raw import ERROR, OK, RawClient
from tests.support.web import parse_answer


async def test_messages_that_overtake_an_answer_are_kept_in_their_order() -> None:
    async with Peer() as peer, RawClient(peer.address) as client:
        asking = asyncio.create_task(client.ask(b"PUB t\n\0\0\0\1x"))
        nsqd = await peer.accept()
        await nsqd.magic()
        await nsqd.expect(b"PUB t")
        nsqd.send(message(1) + message(2))
        nsqd.respond()
        nsqd.send(message(3))
        assert await asking == OK
        assert not await client.is_quiet()
        came = await client.messages(3)
        assert [one.id for one in came] == [message_id(number) for number in (1, 2, 3)]
        assert await client.is_quiet()


async def test_an_error_is_an_answer_and_a_message_nobody_looked_at_is_told() -> None:
    async with Peer() as peer, RawClient(peer.address) as client:
        nsqd = await peer.accept()
        nsqd.send(message(1))
        nsqd.refuse(b"E_INVALID invalid command FOO")
        nsqd.end()
        assert await client.ask(b"FOO\n") == (ERROR, b"E_INVALID invalid command FOO")
        with pytest.raises(AssertionError, match="nobody"):
            await client.ended()


def test_an_answer_in_chunks_is_put_together() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = b"5\r\n[1,\r\n\r\n1A\r\n" + b" " * 25 + b"2\r\n1\r\n]\r\n0\r\n\r\n"
    assert parse_answer(head + chunks).json == [1, 2]
    assert parse_answer(head + b"0\r\n\r\n").body == b""


@pytest.mark.parametrize("cut", [b"", b"5\r\n123", b"3\r\n123\r\n", b"0\r\n"])
def test_chunks_that_break_off_are_no_answer(cut: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises((AssertionError, ValueError)):
        parse_answer(head + cut)


def test_only_a_real_nsqd_may_lack_topology_and_only_all_of_it() -> None:
    ours = EmbeddedNsqd(Path(), {})
    real = ProcessNsqd(("nsqd",), Path(), {}, is_real=True)
    expected = {"version": 1, "topology_zone": 2, "topology_region": 3}
    assert as_built(ours, expected, {"version"}) == expected
    assert as_built(real, expected, {"version", "topology_zone"}) == expected
    assert as_built(real, expected, {"version"}) == {"version": 1}
