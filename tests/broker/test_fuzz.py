"""Mutated conversations at a broker: whatever comes, it answers or closes, and keeps nothing.

Most inputs go straight into a decoder, which costs microseconds; some of them over sockets, into
sessions. Each input is made from its number alone, so that a failure names the one to run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import OK, RawClient
from tests.support.web import encode_request, request

from nsqtools.errors import ProtocolError
from nsqtools.wire import commands
from nsqtools.wire.decoder import ClientState, Cls, CommandDecoder, ConnectionDropped, Mpub, Sub
from nsqtools.wire.limits import CommandLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

ID = b"0123456789abcdef"
LIMITS = CommandLimits(max_msg_size_bytes=100, max_body_size_bytes=1000)
COMMANDS = [
    commands.NOP,
    commands.identify(b'{"heartbeat_interval":1000,"feature_negotiation":true}'),
    commands.auth(b"secret"),
    commands.pub("t", b"body"),
    commands.dpub("t", b"later", 1500),
    commands.mpub("t", [b"same", b"size"]),
    commands.mpub("u", [b"not", b"of", b"one size"]),
    commands.sub("t", "c"),
    commands.rdy(3),
    commands.fin([ID, ID]),
    commands.req([ID], 90),
    commands.touch([ID]),
    commands.CLS,
]
SPICE = [b"\n", b" ", b"\r\n", b"\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"#"]
REQUESTS = [
    encode_request("POST", "/pub?topic=t", b"body"),
    encode_request("POST", "/mpub?topic=t&binary=1", struct.pack(">iii", 1, 2, 3) + b"abc"),
    encode_request("POST", "/mpub?topic=t", b"a\nb\n\nc"),
    encode_request("GET", "/stats?format=json&topic=t"),
    encode_request("PUT", "/config/nsqlookupd_tcp_addresses", b"[]"),
    encode_request("POST", "/channel/create?topic=t&channel=c%20"),
    encode_request(
        "POST", "/pub?topic=t", b"4\r\nbody\r\n0\r\n\r\n", {"Transfer-Encoding": "chunked"}
    ),
]


def mutated(rng: random.Random, whole: bytes) -> bytes:
    """The same with up to four changes: a byte, a cut, a repetition, something put in."""
    data = bytearray(whole)
    for _ in range(rng.randrange(5)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1:
                del data[at : min(end, at + 8)]
            case 2:
                data[at:at] = data[at:end][:64]
            case 3:
                data[at:at] = rng.choice(SPICE)
            case _:
                del data[rng.randrange(len(data) // 2, len(data) + 1) :]
    return bytes(data)


def conversation(rng: random.Random) -> bytes:
    whole = b"  V2" + b"".join(rng.choices(COMMANDS, k=rng.randrange(1, 9)))
    return mutated(rng, whole)


def pieces(rng: random.Random, raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        size = rng.choice((1, 3, 20, 1000))
        yield raw[at : at + size]
        at += size


def decode(rng: random.Random, raw: bytes) -> None:
    """As a session does; only the two documented errors come out, and nothing is held for ever."""
    decoder = CommandDecoder(LIMITS)
    decoder.state = rng.choice(list(ClientState))
    for piece in pieces(rng, raw):
        try:
            decoder.receive(piece)
            while (found := decoder.next_command()) is not None:
                if isinstance(found, Sub):
                    decoder.state = ClientState.SUBSCRIBED
                elif isinstance(found, Cls):
                    decoder.state = ClientState.CLOSING
                elif isinstance(found, Mpub):
                    assert 0 < len(found.bodies) <= 200
                    assert found.rest is None
        except (ProtocolError, ConnectionDropped):
            continue
        assert decoder.held_bytes <= len(raw)
    end = decoder.receive_eof()
    assert end is None or isinstance(end, ProtocolError)


def run_decoder(count: int) -> None:
    for number in range(count):
        rng = random.Random(number)
        raw = conversation(rng)
        try:
            decode(rng, raw)
        except Exception as error:
            raise AssertionError(f"input {number}: {raw!r}") from error


async def speak(address: str, raw: bytes) -> bytes:
    """Say all of it, end, and read to the end, which has to come."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    with contextlib.suppress(ConnectionError):
        writer.write(raw)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return answer


def frame_types(raw: bytes) -> set[int]:
    """The types of the frames; a frame that is not whole is a failure."""
    found = set()
    while raw:
        size, kind = struct.unpack_from(">ii", raw)
        assert 4 <= size <= len(raw) - 4, raw
        found.add(kind)
        raw = raw[4 + size :]
    return found


async def run_broker(tmp_path: Path, tcp_count: int, http_count: int) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {"max_msg_size": 100, "max_body_size": 1000})
    await nsqd.start()
    broker = nsqd.broker

    async def over_tcp(number: int) -> None:
        raw = conversation(random.Random(number))
        answer = await speak(nsqd.tcp_address, raw)
        assert frame_types(answer) <= {0, 1, 2}, f"input {number}: {raw!r}"

    async def over_http(number: int) -> None:
        rng = random.Random(number)
        raw = mutated(rng, rng.choice(REQUESTS))
        answer = await speak(nsqd.http_address, raw)
        assert not answer or answer.startswith(b"HTTP/1."), f"input {number}: {raw!r}"

    try:
        await batches(over_tcp, tcp_count)
        await batches(over_http, http_count)
        async with asyncio.timeout(PATIENCE_S):
            while broker.sessions:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (broker.bodies.held_bytes, broker.bodies.waiting_count) == (0, 0)
        async with RawClient(nsqd.tcp_address) as client:
            assert await client.ask(commands.pub("after", b"x")) == OK
        assert (await request(nsqd, "GET", "/ping")).body == b"OK"
    finally:
        await nsqd.stop()


async def batches(speaks: Callable[[int], Coroutine[None, None, None]], count: int) -> None:
    for start in range(0, count, 20):
        await asyncio.gather(*(speaks(number) for number in range(start, min(count, start + 20))))


@pytest.mark.slow
def test_mutated_commands_do_not_break_a_decoder() -> None:
    run_decoder(5000)


@pytest.mark.slow
async def test_mutated_conversations_do_not_break_a_broker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await run_broker(tmp_path, 300, 100)
    assert "Traceback" not in caplog.text
    assert "unexpected error" not in caplog.text


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_mutated_inputs_leave_no_memory_behind() -> None:
    run_decoder(1000)
    tracemalloc.start()
    try:
        run_decoder(100_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1 << 20


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_thousands_of_mutated_conversations_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await run_broker(tmp_path, 10_000, 4000)
    assert "Traceback" not in caplog.text
    assert "unexpected error" not in caplog.text
