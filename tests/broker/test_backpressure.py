"""What a session does with a client that sends more than it takes, or never what it began."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import ERROR, OK, RESPONSE, RawClient

from nsqtools.broker import budget, connection, session
from nsqtools.broker.block import STRETCH_BYTES
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nsqtools.broker.session import Session

ID = b"0123456789abcdef"


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedNsqd]:
    """Ours: what is asserted is how it holds back, which no client can see."""
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    yield nsqd
    await nsqd.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def only(nsqd: EmbeddedNsqd) -> Session:
    (found,) = nsqd.broker.sessions
    return found


def unsent(found: Session) -> int:
    assert found._transport is not None
    return found._transport.get_write_buffer_size()


# Replies


@pytest.mark.parametrize("bad", range(6))
async def test_each_publish_gets_its_own_answer(embedded: EmbeddedNsqd, bad: int) -> None:
    names = [f"t{number}" for number in range(6)]
    # Whatever order topics are committed in, only this one fails.
    embedded.broker.topic(names[bad]).exiting = True
    async with RawClient(embedded.tcp_address) as client:
        client.send(*[commands.pub(name, b"x") for name in names])
        assert await client.frames(bad) == [OK] * bad
        assert await client.frame() == (ERROR, b"E_PUB_FAILED PUB failed exiting")
        assert await client.ended() == b""
    embedded.broker.topic(names[bad]).exiting = False


async def test_a_topic_that_cannot_be_made_is_answered_in_its_turn(
    embedded: EmbeddedNsqd,
) -> None:
    (embedded.data_path / "bad.topic").write_bytes(b"a file where a folder should be")
    async with RawClient(embedded.tcp_address) as client:
        client.send(commands.pub("t", b"x"), commands.pub("bad", b"x"), commands.pub("t", b"y"))
        assert await client.frame() == OK
        kind, text = await client.frame()
        assert (kind, text.startswith(b"E_PUB_FAILED PUB failed ")) == (ERROR, True)
        assert await client.ended() == b""


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (commands.identify(b'{"feature_negotiation":true,"heartbeat_interval":-1}'), RESPONSE),
        (commands.fin([ID]), ERROR),
    ],
)
async def test_who_does_not_read_is_not_listened_to_until_it_does(
    embedded: EmbeddedNsqd, command: bytes, kind: int
) -> None:
    # More than the buffers of two sockets take.
    count = 60_000 if kind == RESPONSE else 250_000
    async with RawClient(embedded.tcp_address) as client:
        if kind == ERROR:
            await client.subscribe("t", "c", rdy=0)
        client.send(command * count)
        await until(lambda: bool(embedded.broker.sessions) and not only(embedded).is_listening)
        await asyncio.sleep(0.1)
        # One command more than the mark at the most, and a command is bounded.
        assert unsent(only(embedded)) < 2 * connection.WRITE_HIGH_WATER_BYTES
        for _ in range(count):
            assert (await client.frame())[0] == kind
        assert only(embedded).is_listening
        assert await client.ask(commands.pub("t", b"x")) == OK


async def test_who_does_not_read_is_sent_no_more_messages(embedded: EmbeddedNsqd) -> None:
    # Several blocks make a run, and all of them more than the buffers of two sockets take.
    block = [b"x" * 10_000] * 20
    async with RawClient(embedded.tcp_address) as client:
        for _ in range(100):
            await client.publish("t", *block)
        await client.subscribe("t", "c", rdy=2500)
        channel = embedded.broker.topics["t"].channels["c"]
        await until(lambda: channel.in_flight > 0)
        assert channel.depth > 0
        # One run more than the mark at the most, and a run is bounded but for its last block.
        bound = connection.WRITE_HIGH_WATER_BYTES + STRETCH_BYTES + 20 * 10_100
        assert unsent(only(embedded)) < bound
        assert len(await client.messages(2000)) == 2000


async def test_a_client_that_takes_nothing_is_cut(
    embedded: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "STALL_TIMEOUT_S", 0.2)
    async with RawClient(embedded.tcp_address) as client:
        assert await client.identify(b'{"heartbeat_interval":-1}') == OK
        client.send(commands.identify(b'{"feature_negotiation":true}') * 60_000)
        await until(lambda: not embedded.broker.sessions)
    assert "took nothing of" in caplog.text


async def test_a_client_that_ends_its_side_and_reads_late_gets_everything(
    embedded: EmbeddedNsqd,
) -> None:
    count = 20_000
    async with RawClient(embedded.tcp_address) as client:
        client.send(commands.identify(b'{"feature_negotiation":true}') * count)
        client.send(commands.pub("t", b"last"))
        client.end()
        await until(lambda: bool(embedded.broker.sessions) and not only(embedded).is_listening)
        frames = await client.frames(count + 1)
        assert frames[-1] == OK
        assert await client.ended() == b""


# Bodies


def begun(body_bytes: int, sent_bytes: int) -> bytes:
    return b"PUB t\n" + struct.pack(">i", body_bytes) + b"x" * sent_bytes


async def test_bodies_that_do_not_end_are_bounded_and_all_finish(embedded: EmbeddedNsqd) -> None:
    bodies = embedded.broker.bodies
    bodies.bytes_max = 1 << 20
    size = 400_000
    async with contextlib.AsyncExitStack() as exits:
        clients = [
            await exits.enter_async_context(RawClient(embedded.tcp_address)) for _ in range(20)
        ]
        for client in clients:
            client.send(begun(size, size - 1))
        await until(lambda: bodies.waiting_count > 10)
        # The whole of one body, and two small reads of each, beyond the budget.
        bound = bodies.bytes_max + size + 40 * session.SMALL_READ_BYTES
        assert bodies.held_bytes <= bound
        # Who sends whole messages is not concerned.
        async with RawClient(embedded.tcp_address) as other:
            assert await other.ask(commands.pub("t", b"x")) == OK
        for client in clients:
            client.send(b"x")
        for client in clients:
            assert await client.frame() == OK
        assert (bodies.held_bytes, bodies.waiting_count) == (0, 0)


async def test_who_holds_bytes_that_others_need_is_cut(
    embedded: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(budget, "IDLE_S", 0.0)
    bodies = embedded.broker.bodies
    bodies.bytes_max = 100_000
    async with (
        RawClient(embedded.tcp_address) as idle,
        RawClient(embedded.tcp_address) as turn,
        RawClient(embedded.tcp_address) as waits,
    ):
        for number, client in enumerate((idle, turn), 1):
            client.send(begun(100_000, 90_000))
            await until(lambda: bodies.held_bytes >= 90_000 * number)  # noqa: B023
        waits.send(begun(100_000, 100_000))
        assert await waits.frame() == OK
        for client in (idle, turn):
            with contextlib.suppress(ConnectionResetError):
                assert await client.ended() == b""
    assert "others wait for their room" in caplog.text


@pytest.mark.parametrize("sizes", [(2,), (1, 2, 3)])
async def test_a_batch_of_very_many_is_written_in_slices_and_answered_once(
    embedded: EmbeddedNsqd, sizes: tuple[int, ...]
) -> None:
    count = 100_000
    messages = [b"abc"[: sizes[number % len(sizes)]] for number in range(count)]
    async with RawClient(embedded.tcp_address) as client:
        client.send(commands.mpub("t", messages), commands.pub("t", b"behind"))
        assert await client.frames(2) == [OK, OK]
        assert await client.is_quiet()
        topic = embedded.broker.topics["t"]
        assert topic.message_count == topic.depth == count + 1
        assert only(embedded).pub_counts == {"t": count + 1}
        # What is kept of it in memory is no more than a few blocks.
        assert topic.log.end - topic.log.memory_start < 2 * 16384


async def test_a_long_batch_that_fails_is_answered_once(embedded: EmbeddedNsqd) -> None:
    embedded.broker.topic("t").exiting = True
    async with RawClient(embedded.tcp_address) as client:
        client.send(commands.mpub("t", [b"x"] * 40_000), commands.pub("t", b"behind"))
        assert await client.frame() == (ERROR, b"E_MPUB_FAILED MPUB failed exiting")
        assert await client.ended() == b""
    embedded.broker.topic("t").exiting = False
