"""Mutated bytes towards the client: whatever comes, it ends one connection and nothing else.

A whole consumer is connected, again and again, to an nsqd that says what a real one would, with faults.
Afterwards a sound nsqd is on the same address, and its message comes through.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.client.helpers import SOON, bodies, receive
from tests.support.clients import consumer_options
from tests.support.hostile import Attacker, hostile
from tests.support.peer import frame, message, messages
from tests.support.raw import ERROR, RESPONSE

from nsqtools.ask import ANSWER_BYTES_MAX
from nsqtools.client.consumer import Consumer
from nsqtools.client.memory import ConsumerMemory
from nsqtools.errors import ProtocolError
from nsqtools.wire.compression import Deflate, Snappy
from nsqtools.wire.lookup import parse_names, parse_producers
from nsqtools.wire.stats import parse_channel_clients

if TYPE_CHECKING:
    from collections.abc import Callable

HELD_BYTES_MAX = 8 << 20
SEED = 20261122
COUNTS = [600, pytest.param(33_400, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
_AFTER_RDY = b"".join(
    [
        frame(RESPONSE, b"_heartbeat_"),
        messages(1, 2, 3),
        frame(ERROR, b"E_FIN_FAILED FIN 0000000000000001 failed ID not in flight"),
        message(4, b"x" * 300),
        frame(RESPONSE, b"CLOSE_WAIT"),
    ]
)
_EXTREMES = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\xff\xff"]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The data with one to three faults."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(found) + 1)
        length = rng.randint(1, 40)
        fault = rng.randrange(6)
        if fault == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif fault == 1:
            del found[at : at + length]
        elif fault == 2:
            found[at:at] = found[at : at + length]
        elif fault == 3:
            found[at:at] = rng.randbytes(length)
        elif fault == 4:
            found[at : at + 4] = rng.choice(_EXTREMES)
        else:
            del found[at:]
    return bytes(found)


def conversation(codec_of: type[Deflate | Snappy] | None) -> list[bytes]:
    """All that an nsqd says; between two of these it listens."""
    granted = "" if codec_of is None else codec_of.__name__.lower()
    answer = {"version": "1.3.0", "max_rdy_count": 2500} | ({granted: True} if granted else {})
    said = [frame(RESPONSE, json.dumps(answer).encode())]
    ok = frame(RESPONSE, b"OK")
    if codec_of is None:
        return [*said, ok, _AFTER_RDY]
    codec = codec_of()
    return [*said, codec.compress(ok), codec.compress(ok), codec.compress(_AFTER_RDY)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("codec_of", [None, Deflate, Snappy], ids=["plain", "deflate", "snappy"])
async def test_mutated_bytes_end_a_connection_and_nothing_else(
    codec_of: type[Deflate | Snappy] | None, count: int
) -> None:
    rng = random.Random(SEED)
    sound = conversation(codec_of)
    said = 0
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

    async def script(nsqd: Attacker) -> None:
        nonlocal said
        await nsqd.magic()
        await nsqd.expect(b"IDENTIFY")
        said += 1
        if said > count:
            nsqd.respond(b"OK")
            await nsqd.expect(b"SUB t c")
            nsqd.respond()
            await nsqd.command()
            nsqd.send(message(9, b"sound"))
            await nsqd.listen()
        faulty = rng.randrange(len(sound))
        for part in sound[:faulty]:
            nsqd.send(part)
            if not (part is sound[0] and codec_of is not None):  # behind which its OK comes unasked
                await nsqd.read_some()
        await nsqd.say_all(mutated(sound[faulty], rng) + b"".join(sound[faulty + 1 :]))

    memory = ConsumerMemory(HELD_BYTES_MAX)
    settings = {} if codec_of is None else {codec_of.__name__.lower(): "true"}
    async with hostile(script) as address:
        options = replace(consumer_options(100, **(SOON | settings)), connections_per_nsqd=16)
        async with Consumer("t", "c", options, nsqd_addresses=[address], memory=memory) as consumer:
            while b"sound" not in bodies(await receive(consumer, 1)):
                assert memory.held_bytes <= HELD_BYTES_MAX
    assert said > count
    assert memory.held_bytes == 0
    assert faults == []


def producers() -> bytes:
    entries = [
        {"broadcast_address": f"host{n}", "tcp_port": 4150 + n, "http_port": n} for n in range(3)
    ]
    return json.dumps({"channels": ["c"], "producers": entries}).encode()


CLIENTS = [{"hostname": "h", "user_agent": "u/1"}]
CHANNELS = [{"channel_name": "c", "clients": CLIENTS}]
STATS = json.dumps({"topics": [{"topic_name": "t", "channels": CHANNELS}]}).encode()


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("sound", "parse"),
    [
        (producers(), parse_producers),
        (b'{"topics":["a","b","c"]}', lambda body: parse_names(body, "topics")),
        (
            STATS,
            lambda body: parse_channel_clients(body, "t", "c"),
        ),
    ],
    ids=["lookup", "topics", "stats"],
)
def test_mutated_answers_by_http_are_read_or_refused(
    sound: bytes, parse: Callable[[bytes], object], count: int
) -> None:
    rng = random.Random(SEED)
    refused = 0
    parse(sound)
    for _ in range(count):
        try:
            parse(mutated(sound, rng))
        except ProtocolError:
            refused += 1
    assert 0 < refused < count


@pytest.mark.parametrize("one", [b"[", b'{"a":', b'{"producers":[', b'"\\u0000'])
def test_an_answer_by_http_that_is_deep_is_refused(one: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_producers(one * (ANSWER_BYTES_MAX // len(one)))
