"""A scripted nsqd for publishers, and what a broker's topic holds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.client.batch import settle_all
from nsqtools.client.consumer import Consumer
from nsqtools.client.options import ConsumerOptions
from nsqtools.clock import SystemClock
from nsqtools.wire.frames import ERROR, OK, RESPONSE, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

OK_FRAME = encode_frame(RESPONSE, OK)
# An answer that is none: the connection is cut instead.
CUT = b""
DEADLINE_S = 20.0


def refusal(text: str) -> bytes:
    return encode_frame(ERROR, text.encode())


class ScriptedNsqd:
    """Answers each MPUB as `script` says, and closes after an error, as nsqd does."""

    def __init__(self, script: Callable[[list[bytes]], bytes]) -> None:
        self.script = script
        self.welcome = OK_FRAME
        self.taken: list[list[bytes]] = []
        self.asked: list[list[bytes]] = []
        self.connections = 0
        self.address = ""
        self.silence: asyncio.Event | None = None
        """While there is one, MPUBs are not answered; once it is set, their connections are cut."""

    @property
    def messages(self) -> list[bytes]:
        """What was answered with OK."""
        return [body for bodies in self.taken for body in bodies]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[ScriptedNsqd]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.refuse_connections()
            await self._server.wait_closed()

    def refuse_connections(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert await reader.readexactly(4) == b"  V2"
            while await self._answer(reader, writer):
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        command = await reader.readuntil(b"\n")
        if command.startswith(b"NOP"):
            return True
        body = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
        if command.startswith(b"IDENTIFY"):
            writer.write(self.welcome)
            return self.welcome == OK_FRAME
        assert command.startswith(b"MPUB "), command
        bodies = cut_mpub(body)
        self.asked.append(bodies)
        if self.silence is not None:
            await self.silence.wait()
            return False
        answer = self.script(bodies)
        if answer == OK_FRAME:
            self.taken.append(bodies)
        writer.write(answer)
        return answer == OK_FRAME


def cut_mpub(body: bytes) -> list[bytes]:
    bodies, at = [], 4
    while at < len(body):
        size = int.from_bytes(body[at : at + 4], "big")
        bodies.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    assert len(bodies) == int.from_bytes(body[:4], "big")
    return bodies


class HastyClock(SystemClock):
    """Sleeps are over at once; what was asked for is kept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def embedded(folder: Path, tcp_address: str = "127.0.0.1:0") -> AsyncIterator[Broker]:
    folder.mkdir(exist_ok=True)
    options = NsqdOptions(data_path=folder, tcp_address=tcp_address, http_address="")
    async with Broker(options) as broker:
        yield broker


def published(broker: Broker, topic: str) -> int:
    """How many messages the topic has got so far."""
    return broker.topics[topic].message_count if topic in broker.topics else 0


async def bodies_of(broker: Broker, topic: str) -> list[bytes]:
    """Every body of a topic, in the order in which it comes back."""
    wanted = published(broker, topic)
    bodies: list[bytes] = []
    options = ConsumerOptions(max_in_flight=2500)
    async with (
        asyncio.timeout(DEADLINE_S),
        Consumer(topic, "look", options, nsqd_addresses=[broker.tcp_address]) as consumer,
    ):
        while len(bodies) < wanted:
            batches = await consumer.receive()
            bodies += [body for batch in batches for body in batch.messages.bodies]
            settle_all(batches)
        await consumer.stop(1.0)
        await consumer.close()
    return bodies


async def until(true: Callable[[], bool]) -> None:
    """Lets the loop turn until something has happened."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():  # noqa: ASYNC110 - what is watched has no event
            await asyncio.sleep(0.002)
