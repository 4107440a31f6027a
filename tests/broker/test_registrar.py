from __future__ import annotations

import asyncio
import json
import logging
import random
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsqtools.broker.registrar import Registrar, RegistrarTiming, plan_registrations
from nsqtools.errors import OptionsError
from nsqtools.wire import lookup
from nsqtools.wire.lookup import CommandReader, PeerInfo, Register, Unregister

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nsqtools.broker.registrar import Registration
    from nsqtools.wire.lookup import LookupCommand

NSQD = PeerInfo(broadcast_address="h", hostname="h", tcp_port=4150, http_port=4151, version="1.3.0")
OK = b"\x00\x00\x00\x02OK"
# PINGs are out of the way, and reconnecting is quick.
TIMING = RegistrarTiming(
    connect_timeout_s=5, reply_timeout_s=5, ping_interval_s=3600, reconnect_max_s=0.01
)
# For those who let us wait.
IMPATIENT = replace(TIMING, reply_timeout_s=0.2)

names = st.sampled_from(["a", "b", "c#ephemeral"])
registrations = st.sets(st.tuples(names, st.none() | names), max_size=8)


class Database:
    """What an nsqlookupd makes of one nsqd's commands (spec: lookupd, A2)."""

    def __init__(self) -> None:
        self.held: set[Registration] = set()

    def apply(self, command: LookupCommand) -> None:
        if isinstance(command, Register):
            self.held |= {(command.topic, None), (command.topic, command.channel)}
        elif isinstance(command, Unregister):
            if command.channel is None:
                self.held = {held for held in self.held if held[0] != command.topic}
            self.held.discard((command.topic, command.channel))


class FakeLookupd:
    """An nsqlookupd; `reply` decides what it says, `None` for nothing and `b""` to hang up."""

    def __init__(self) -> None:
        self.commands: list[LookupCommand] = []
        self.database = Database()
        self.connections = 0
        self.address = ""
        self.http_port = 0
        self.http_answer = (200, b'{"channels":[]}')
        self.reply: Callable[[LookupCommand], bytes | None] = self.usual_reply
        self._writers: set[asyncio.StreamWriter] = set()

    def usual_reply(self, command: LookupCommand) -> bytes | None:
        if isinstance(command, lookup.Identify):
            me = PeerInfo(
                broadcast_address="127.0.0.1", tcp_port=1, http_port=self.http_port, version="1"
            )
            return lookup.encode_reply(lookup.identify_reply(me))
        return OK

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.database = Database()
        self._writers.add(writer)
        try:
            with suppress(ConnectionError):
                await self._converse(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = CommandReader()
        while data := await reader.read(65_536):
            commands.receive_data(data)
            while (command := commands.next_command()) is not None:
                self.commands.append(command)
                self.database.apply(command)
                reply = self.reply(command)
                if reply == b"":
                    return
                writer.write(reply or b"")
            await writer.drain()

    async def serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert request.startswith("GET /channels?topic=t%23ephemeral HTTP/1.1\r\n")
                status, body = self.http_answer
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        finally:
            writer.close()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def lookupds(count: int = 1) -> AsyncIterator[list[FakeLookupd]]:
    fakes = [FakeLookupd() for _ in range(count)]
    servers = []
    for fake in fakes:
        tcp = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
        http = await asyncio.start_server(fake.serve_http, "127.0.0.1", 0)
        fake.address = f"127.0.0.1:{tcp.sockets[0].getsockname()[1]}"
        fake.http_port = http.sockets[0].getsockname()[1]
        servers += [tcp, http]
    try:
        yield fakes
    finally:
        for fake in fakes:
            fake.hang_up()
        for server in servers:
            server.close()
        # Let the handlers end.
        await asyncio.sleep(0.005)


class Broker:
    """What the registrar sees of one: the topics and channels it has."""

    def __init__(self, *held: Registration) -> None:
        self.held: set[Registration] = set(held)

    def registrar(self, *fakes: FakeLookupd, timing: RegistrarTiming = TIMING) -> Registrar:
        addresses = [fake.address for fake in fakes]
        return Registrar(addresses, NSQD, lambda: self.held, rng=random.Random(1), timing=timing)


@asynccontextmanager
async def running(registrar: Registrar) -> AsyncIterator[Registrar]:
    task = asyncio.create_task(registrar.run())
    await asyncio.sleep(0)
    try:
        yield registrar
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to that")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What an operator read so far."""
    caplog.set_level(logging.INFO, "nsqtools.registrar")
    return lambda: [record.getMessage() for record in caplog.records]


@given(before=registrations, after=registrations, again=st.sets(names))
def test_the_plan_leads_from_one_state_to_the_other(
    before: set[Registration], after: set[Registration], again: set[str]
) -> None:
    reader = CommandReader()
    reader.receive_data(lookup.MAGIC_V1 + lookup.encode_identify(NSQD))
    database = Database()
    first, told = plan_registrations(set(), before, set())
    second, told_then = plan_registrations(told, after, again)
    for command in first:
        database.apply(read_one(reader, command))
    assert database.held == told
    # Somebody else may have removed these.
    database.held = {held for held in database.held if held[0] not in again}
    for command in second:
        database.apply(read_one(reader, command))
    assert database.held == told_then
    assert told_then == after | {(topic, None) for topic, _ in after}
    assert plan_registrations(told_then, after, set())[0] == []


def read_one(reader: CommandReader, data: bytes) -> LookupCommand:
    reader.receive_data(data)
    found = None
    while (command := reader.next_command()) is not None:
        found = command
    assert found is not None
    return found


async def test_the_exchange_byte_for_byte() -> None:
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        expected = len(lookup.MAGIC_V1 + lookup.encode_identify(NSQD))
        received.extend(await reader.readexactly(expected))
        reply = b'{"broadcast_address":"l","http_port":4161,"tcp_port":4160,"version":"1.3.0"}'
        writer.write(len(reply).to_bytes(4, "big") + reply)
        received.extend(await reader.readexactly(len(b"REGISTER t c\nREGISTER u\n")))
        writer.write(OK + OK)
        received.extend(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        fake = FakeLookupd()
        fake.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        broker = Broker(("t", None), ("t", "c"), ("u", None))
        async with running(broker.registrar(fake)) as registrar:
            await until(lambda: registrar.lookupd_http_addresses() == ["l:4161"])
            await until(lambda: received.endswith(b"REGISTER u\n"))
        await asyncio.sleep(0.005)
    assert received == (
        b'  V1IDENTIFY\n\x00\x00\x00\x83{"version":"1.3.0","tcp_port":4150,"http_port":4151,'
        b'"hostname":"h","broadcast_address":"h","topology_zone":"","topology_region":""}'
        b"REGISTER t c\nREGISTER u\n"
    )


async def test_changes_are_told() -> None:
    broker = Broker(("t", None))
    async with lookupds(2) as fakes, running(broker.registrar(*fakes)) as registrar:
        await until(lambda: all(fake.database.held == {("t", None)} for fake in fakes))
        broker.held = {("t", "c"), ("u", None)}
        registrar.changed("t")
        wanted = {("t", None), ("t", "c"), ("u", None)}
        await until(lambda: all(fake.database.held == wanted for fake in fakes))
        broker.held = {("t", None)}
        registrar.changed("u")
        await until(lambda: all(fake.database.held == {("t", None)} for fake in fakes))
        assert all(fake.connections == 1 for fake in fakes)


async def test_a_topic_deleted_and_created_again_is_told_again() -> None:
    broker = Broker(("t", "c"), ("u", "c"))
    async with lookupds() as [fake], running(broker.registrar(fake)) as registrar:
        await until(lambda: len(fake.database.held) == 4)
        fake.commands.clear()
        fake.database.held -= {("t", "c"), ("t", None)}
        registrar.changed("t")
        await until(lambda: len(fake.database.held) == 4)
        assert fake.commands == [Register(topic="t", channel="c")]


async def test_thousands_of_channels_are_pipelined() -> None:
    held: list[Registration] = [("t", f"c{n}") for n in range(1_234)]
    async with lookupds() as [fake], running(Broker(*held).registrar(fake)):
        await until(lambda: len(fake.database.held) == 1_235)


async def test_a_hung_one_delays_nobody(said: Callable[[], list[str]]) -> None:
    broker = Broker(("t", None))
    async with lookupds(2) as [hung, good]:
        hung.reply = lambda _: None
        async with running(broker.registrar(hung, good, timing=IMPATIENT)) as registrar:
            await until(lambda: good.database.held == {("t", None)})
            await until(lambda: registrar.status()[0].failures >= 2)
            assert registrar.status()[1].failures == 0
            hung.reply = hung.usual_reply
            await until(lambda: hung.database.held == {("t", None)})
            await until(
                lambda: said()[-1].startswith(f"registered with lookupd address={hung.address}")
            )
            assert len(registrar.lookupd_http_addresses()) == 2
    about_hung = [line for line in said() if hung.address in line]
    assert len(about_hung) == 2
    assert about_hung[0].endswith(f"error={hung.address}: no reply in time")


async def test_after_a_cut_everything_is_registered_again_at_once() -> None:
    broker = Broker(("t", "c"))
    async with lookupds() as [fake], running(broker.registrar(fake)):
        for connection in range(1, 4):
            await until(lambda: len(fake.database.held) == 2)
            assert fake.connections == connection
            fake.hang_up()
            await until(lambda: fake.connections > connection)  # noqa: B023


async def test_pings_keep_the_registration_fresh() -> None:
    timing = RegistrarTiming(ping_interval_s=0.005)
    async with lookupds() as [fake], running(Broker().registrar(fake, timing=timing)):
        await until(lambda: fake.commands.count(lookup.Ping()) >= 3)
        assert fake.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        OK,
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x0eE_BAD_PROTOCOL",
        OK + OK,
        b"\x00\x00",
        b"",
    ],
)
async def test_one_that_answers_nonsense_is_left_and_tried_again(
    reply: bytes, said: Callable[[], list[str]]
) -> None:
    async with lookupds() as [fake]:
        fake.reply = lambda _: reply
        async with running(Broker().registrar(fake, timing=IMPATIENT)) as registrar:
            await until(lambda: registrar.status()[0].failures >= 2)
            assert registrar.lookupd_http_addresses() == []
            fake.reply = fake.usual_reply
            await until(lambda: len(registrar.lookupd_http_addresses()) == 1)
    assert len([line for line in said() if line.startswith("lookupd failed")]) == 1


async def test_an_error_reply_is_what_the_operator_reads(said: Callable[[], list[str]]) -> None:
    async with lookupds() as [fake]:

        def refuse(command: LookupCommand) -> bytes | None:
            if isinstance(command, Register):
                return lookup.encode_reply(b"E_BAD_TOPIC no")
            return fake.usual_reply(command)

        fake.reply = refuse
        async with running(Broker(("t", None)).registrar(fake)) as registrar:
            await until(lambda: registrar.status()[0].failures >= 1)
    assert said()[0].endswith("error=E_BAD_TOPIC no")


async def test_a_reply_to_nothing_ends_the_connection() -> None:
    async with lookupds() as [fake], running(Broker().registrar(fake)) as registrar:
        await until(lambda: len(registrar.lookupd_http_addresses()) == 1)
        for writer in fake._writers:
            writer.write(OK)
        await until(lambda: fake.connections == 2)


async def test_addresses_come_and_go() -> None:
    async with lookupds(2) as [one, two], running(Broker(("t", None)).registrar(one)) as registrar:
        await until(lambda: one.database.held == {("t", None)})
        registrar.set_addresses([one.address, two.address])
        await until(lambda: two.database.held == {("t", None)})
        with pytest.raises(OptionsError, match="missing port"):
            registrar.set_addresses(["h"])
        assert registrar.addresses == [one.address, two.address]
        registrar.set_addresses([two.address])
        await until(lambda: not one._writers)
        assert (one.connections, two.connections) == (1, 1)
        assert [status.address for status in registrar.status()] == [two.address]


async def test_stopping_closes_the_connections() -> None:
    async with lookupds() as [fake]:
        async with running(Broker().registrar(fake)) as registrar:
            await until(lambda: len(registrar.lookupd_http_addresses()) == 1)
        await until(lambda: not fake._writers)
        assert registrar.lookupd_http_addresses() == []


async def test_channels_are_merged_without_ephemeral_ones() -> None:
    async with lookupds(2) as [one, two]:
        one.http_answer = (200, b'{"channels":["a","b","e#ephemeral"]}')
        two.http_answer = (200, b'{"channels":["b","c","not a name"]}')
        async with running(Broker().registrar(one, two)) as registrar:
            # At once: it waits for the first connections by itself.
            assert await registrar.channels("t#ephemeral") == {"a", "b", "c"}


@pytest.mark.parametrize(
    "answer",
    [(500, b'{"channels":["x"]}'), (200, b"<html>"), (200, b'{"channels":[1]}'), (302, b"")],
)
async def test_channels_of_one_that_fails_are_a_warning(
    answer: tuple[int, bytes], said: Callable[[], list[str]]
) -> None:
    async with lookupds(2) as [bad, good]:
        bad.http_answer = answer
        good.http_answer = (200, json.dumps({"channels": ["c"]}).encode())
        async with running(Broker().registrar(bad, good)) as registrar:
            registrar.set_addresses([bad.address, good.address, "127.0.0.1:1"])
            assert await registrar.channels("t#ephemeral") == {"c"}
    lines = [line for line in said() if line.startswith("channels not")]
    assert len(lines) == 2
    assert lines[0] == "channels not asked for topic=t#ephemeral lookupd=127.0.0.1:1"
    assert f"lookupd=127.0.0.1:{bad.http_port}" in lines[1]


async def test_without_lookupds_there_are_no_channels() -> None:
    assert await Broker().registrar().channels("t") == set()


@pytest.mark.parametrize("address", ["h", "h:0", "h:x", "::1:4160", "http://h:1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(OptionsError, match="lookupd address"):
        Registrar([address], NSQD, set, rng=random.Random(1))
