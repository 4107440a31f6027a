"""The player against a scripted nsqd: every message answered, whatever nsqd does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.replay.support import (
    CUT,
    DEADLINE_S,
    OK_FRAME,
    HastyClock,
    ScriptedNsqd,
    refusal,
    until,
)

from nsqtools.client.options import ProducerOptions
from nsqtools.errors import ServerError
from nsqtools.replay.player import RETRY_S, Player

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BAD_MESSAGE = refusal("E_BAD_MESSAGE MPUB invalid message(0) body size 9 > 8")
CHUNKS = [[b"%d-%d" % (chunk, at) for at in range(10)] for chunk in range(20)]
ALL = sorted(body for chunk in CHUNKS for body in chunk)


def player(*addresses: str, in_flight: int = 4, clock: HastyClock | None = None) -> Player:
    return Player(
        "t", addresses, ProducerOptions(), in_flight=in_flight, clock=clock or HastyClock()
    )


@contextlib.asynccontextmanager
async def playing(*addresses: str, in_flight: int = 4) -> AsyncIterator[Player]:
    async with asyncio.timeout(DEADLINE_S), player(*addresses, in_flight=in_flight) as made:
        yield made


async def play_all(made: Player) -> None:
    for chunk in CHUNKS:
        await made.play(chunk)
    await made.finish()


async def test_ok_to_everything() -> None:
    async with ScriptedNsqd(lambda _: OK_FRAME).listening() as nsqd, playing(nsqd.address) as made:
        await play_all(made)
    assert nsqd.asked == CHUNKS
    assert (made.counts.messages, made.counts.mpubs) == (200, 20)
    assert made.counts.body_bytes == sum(map(len, ALL))
    assert (made.counts.sent_again, made.counts.refused, made.counts.unanswered) == (0, 0, 0)
    assert made.counts.sent == 0


async def test_one_at_a_time_keeps_the_order_even_when_a_connection_is_lost() -> None:
    seen: list[list[bytes]] = []

    def script(bodies: list[bytes]) -> bytes:
        seen.append(bodies)
        return CUT if len(seen) in (3, 8) else OK_FRAME

    async with (
        ScriptedNsqd(script).listening() as nsqd,
        playing(nsqd.address, in_flight=1) as made,
    ):
        await play_all(made)
    assert sorted(nsqd.messages) == ALL
    assert nsqd.connections == 3
    assert made.counts.sent_again == 20


async def test_a_lost_connection_before_the_answer_sends_again_what_was_on_its_way() -> None:
    nsqd = ScriptedNsqd(lambda _: OK_FRAME)
    nsqd.script = lambda _: CUT if len(nsqd.asked) == 2 else OK_FRAME
    async with nsqd.listening(), playing(nsqd.address) as made:
        await play_all(made)
    assert sorted(nsqd.messages) == ALL
    assert made.counts.messages == 200
    assert made.counts.sent_again in (10, 20, 30, 40)  # as many as were on their way
    assert (made.counts.unanswered, made.counts.sent) == (0, 0)


@pytest.mark.parametrize("culprits", [{b"7-3"}, {b"0-0"}, {b"3-9", b"3-8", b"19-9"}])
async def test_a_refused_message_stands_alone_in_the_end(culprits: set[bytes]) -> None:
    def script(bodies: list[bytes]) -> bytes:
        return BAD_MESSAGE if culprits & set(bodies) else OK_FRAME

    async with ScriptedNsqd(script).listening() as nsqd, playing(nsqd.address) as made:
        await play_all(made)
    assert sorted(nsqd.messages) == sorted(set(ALL) - culprits)
    assert made.counts.refused == len(culprits)
    assert made.counts.messages == 200 - len(culprits)
    assert (made.counts.unanswered, made.counts.sent) == (0, 0)
    assert [bodies for bodies in nsqd.asked if len(bodies) == 1 and set(bodies) <= culprits]


async def test_a_failing_nsqd_is_asked_again_after_a_pause() -> None:
    nsqd = ScriptedNsqd(lambda _: OK_FRAME)
    nsqd.script = lambda _: (
        refusal("E_MPUB_FAILED MPUB failed disk") if len(nsqd.asked) <= 3 else OK_FRAME
    )
    clock = HastyClock()
    async with (
        asyncio.timeout(DEADLINE_S),
        nsqd.listening(),
        player(nsqd.address, in_flight=1, clock=clock) as made,
    ):
        await play_all(made)
    assert sorted(nsqd.messages) == ALL
    assert made.counts.sent_again == 30
    assert clock.slept == [RETRY_S] * 3


async def test_two_nsqds_share() -> None:
    one, two = ScriptedNsqd(lambda _: OK_FRAME), ScriptedNsqd(lambda _: OK_FRAME)
    async with (
        one.listening(),
        two.listening(),
        playing(one.address, two.address, one.address) as made,
    ):
        await until(lambda: one.connections + two.connections == 2)
        await play_all(made)
    assert sorted(one.messages + two.messages) == ALL
    assert one.messages
    assert two.messages
    assert one.connections == 1


async def test_of_two_nsqds_the_one_that_is_up_gets_everything() -> None:
    async with ScriptedNsqd(lambda _: OK_FRAME).listening() as gone:
        address = gone.address
    async with (
        ScriptedNsqd(lambda _: OK_FRAME).listening() as nsqd,
        playing(address, nsqd.address) as made,
    ):
        await play_all(made)
    assert sorted(nsqd.messages) == ALL
    assert made.counts.sent_again == 0


async def test_what_a_dying_nsqd_held_goes_to_the_other() -> None:
    """It takes MPUBs, answers none, and goes for good, when the other has nothing left to do."""
    dying, other = ScriptedNsqd(lambda _: OK_FRAME), ScriptedNsqd(lambda _: OK_FRAME)
    dying.silence = asyncio.Event()
    async with (
        dying.listening(),
        other.listening(),
        playing(dying.address, other.address, in_flight=2) as made,
    ):
        await until(lambda: dying.connections + other.connections == 2)
        for chunk in CHUNKS:
            await made.play(chunk)
        await until(lambda: made.counts.messages == 180)
        assert made.counts.unanswered == 20
        dying.refuse_connections()
        dying.silence.set()
        await made.finish()
    assert sorted(other.messages) == ALL
    assert made.counts.sent_again == 20


async def test_play_waits_while_nothing_is_answered() -> None:
    nsqd = ScriptedNsqd(lambda _: OK_FRAME)
    nsqd.silence = asyncio.Event()
    async with nsqd.listening(), playing(nsqd.address, in_flight=2) as made:
        reading = asyncio.ensure_future(play_all(made))
        await until(lambda: made.counts.unanswered == 40)  # two senders, and two read ahead
        for _ in range(50):
            await asyncio.sleep(0)
        assert (made.counts.unanswered, made.counts.sent) == (40, 20)
        reading.cancel()
        nsqd.silence.set()
    assert made.counts.messages == 0


@pytest.mark.parametrize("code", ["E_BAD_TOPIC", "E_UNAUTHORIZED", "E_INVALID"])
async def test_what_no_retry_cures_ends_it(code: str) -> None:
    async with ScriptedNsqd(lambda _: refusal(f"{code} no")).listening() as nsqd:
        with pytest.raises(ExceptionGroup) as caught:
            async with playing(nsqd.address) as made:
                await play_all(made)
    errors = caught.value.exceptions
    assert [error.code for error in errors if isinstance(error, ServerError)] == [code] * len(
        errors
    )
    assert nsqd.messages == []


async def test_a_refused_handshake_ends_it() -> None:
    nsqd = ScriptedNsqd(lambda _: OK_FRAME)
    nsqd.welcome = refusal("E_AUTH_FAILED AUTH failed")
    async with nsqd.listening():
        with pytest.raises(ExceptionGroup) as caught:
            async with playing(nsqd.address) as made:
                await play_all(made)
    assert {str(error) for error in caught.value.exceptions} == {"E_AUTH_FAILED AUTH failed"}
    assert nsqd.asked == []
    assert made.counts.unanswered > 0


async def test_leaving_gives_up_what_is_not_answered_and_warns_of_nothing() -> None:
    async with ScriptedNsqd(lambda _: OK_FRAME).listening() as gone:
        address = gone.address
    async with playing(address) as made:
        for chunk in CHUNKS[:5]:
            await made.play(chunk)
    assert (made.counts.unanswered, made.counts.sent) == (50, 0), "no nsqd can have them"
