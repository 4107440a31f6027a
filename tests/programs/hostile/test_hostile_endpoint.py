"""nsq_to_http against a hostile endpoint: it stays small and quiet, ends, and loses nothing.

What its client makes of single replies stands in tests/outputs/http/test_pool.py.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from tests.programs.hostile.helpers import attacked, check_sound
from tests.support import hostile_http as attacks
from tests.support.endpoints import saying
from tests.support.hostile_http import RAW, answering, chunked, speaking_first, status
from tests.support.programs import PATIENCE_S
from tests.support.raw import RawClient
from tests.support.web import channel_stats, until_channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.endpoints import Script
    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow
BODIES = [b"message %d" % number for number in range(20)]
HEAD = b"HTTP/1.1 200 OK\r\n"
IMPATIENT = "--http-client-request-timeout=500ms"
LONG = b"x" * (1 << 18)

# How it answers, the flags that are needed, and the word for it.
ATTACKS: dict[str, tuple[Script, Sequence[str], str]] = {
    "a header without end": (answering(HEAD + b"X: ", LONG), (), "the head of a reply has more"),
    "100,000 headers": (answering(HEAD + attacks.HEADERS), (), "the head of a reply has more"),
    "headers byte by byte": (
        answering(HEAD + b"X: ", b"x", pause_s=0.01),
        (IMPATIENT,),
        "no reply within 0.5 s",
    ),
    "interim replies without end": (
        answering(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (),
        "the head of a reply has more",
    ),
    "a body that never comes": (
        answering(HEAD + b"Content-Length: 10\r\n\r\n"),
        (IMPATIENT,),
        "no reply within 0.5 s",
    ),
    "an error without end": (
        answering(chunked(b"500 Error"), attacks.CHUNK),
        (),
        "got status code 500",
    ),
    "an error of terminal escapes without end": (
        answering(chunked(b"500 Error"), attacks.TERMINAL_CHUNK),
        (),
        "got status code 500: \\\\x1b[2J",
    ),
    "a bomb": (answering(attacks.bomb()), (), "got status code 500"),
    "no answer": (answering(b""), (IMPATIENT,), "no reply within 0.5 s"),
    "redirects in a circle": (
        answering(status(b"307 Again", b"Location: /again")),
        ("--follow-redirects=5",),
        "more than 5 redirects",
    ),
    "a redirect of escapes": (
        answering(status(b"307 Again", b"Location: " + RAW)),
        ("--follow-redirects=5",),
        "a reply that is not HTTP",
    ),
    "a Location without end": (
        answering(status(b"307 Again", b"Location: /" + b"x" * 200_000)),
        ("--follow-redirects=5",),
        "its Location has more than 8192 bytes",
    ),
    "a status line that is none": (answering(RAW * 100), (), "a reply that is not HTTP"),
    "a status that is none": (
        answering(status(b"99999999999999999999 OK")),
        (),
        "a reply that is not HTTP",
    ),
    "escapes as its reason": (
        answering(status(b"500 " + RAW, b"X-" + RAW + b": " + RAW)),
        (),
        "a reply that is not HTTP",
    ),
    "a pause of escapes": (
        answering(status(b"503 Busy", b"Retry-After: " + RAW)),
        (),
        "a reply that is not HTTP",
    ),
    "a pause without end": (
        answering(status(b"429 Busy", b"Retry-After: 999999999")),
        (),
        "endpoint asks for a pause",
    ),
    "a pause that is no number": (
        answering(status(b"429 Busy", b"Retry-After: " + b"9" * 200_000)),
        (),
        "got status code 429",
    ),
    "an answer before the request": (
        speaking_first(status(b"500 Error") * 1000),
        (),
        "endpoint is in trouble",
    ),
    "replies without end": (
        answering(status(b"500 Error"), status(b"200 OK") * 1000),
        (),
        "got status code 500",
    ),
}


async def with_messages(nsqd: Nsqd) -> list[str]:
    """Where they are to be had."""
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish("t", *BODIES)
    return ["--topic=t", "--channel=c", f"--nsqd-tcp-address={nsqd.tcp_address}"]


async def left_of(nsqd: Nsqd) -> int:
    """How many messages of the channel nobody has acknowledged."""
    now = await channel_stats(nsqd, "t", "c")
    return int(now["depth"] + now["in_flight_count"] + now["deferred_count"])


@pytest.mark.parametrize("attack", ATTACKS)
async def test_nsq_to_http_survives_and_keeps_its_messages(attack: str, nsqd: Nsqd) -> None:
    script, flags, word = ATTACKS[attack]
    source = await with_messages(nsqd)
    async with saying(script) as address:
        post = [f"--post=http://{address}/", "--shutdown-timeout=2s"]
        async with attacked("nsq_to_http", *source, *post, *flags) as tool:
            await tool.says(word)
            await asyncio.sleep(0.5)  # of the attack
            await check_sound(tool)
    assert await left_of(nsqd) == len(BODIES)


async def test_a_success_whose_body_does_not_end_is_one(nsqd: Nsqd) -> None:
    source = await with_messages(nsqd)
    async with (
        saying(answering(chunked(b"200 OK"), attacks.CHUNK)) as address,
        attacked("nsq_to_http", *source, f"--post=http://{address}/") as tool,
    ):
        await until_channel(nsqd, "t", "c", message_count=len(BODIES), depth=0, in_flight_count=0)
        await check_sound(tool)


async def test_it_ends_though_the_endpoint_holds_its_connections(nsqd: Nsqd) -> None:
    """Neither an answer comes nor an end, and the request may take a minute."""
    source = await with_messages(nsqd)
    flags = ["--http-client-request-timeout=1m", "--shutdown-timeout=1s"]
    asked = asyncio.Event()

    async def holds(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            asked.set()

    async with (
        saying(holds) as address,
        attacked("nsq_to_http", *source, *flags, f"--post=http://{address}/") as tool,
    ):
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
        assert await tool.end(signal.SIGTERM) is not None
    assert await left_of(nsqd) == len(BODIES)
