"""A client that sends bytes and reads frames, for conversations that are asserted to the byte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.support.nsqd import PATIENCE_S

from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Sequence

RESPONSE, ERROR, MESSAGE = 0, 1, 2
HEARTBEAT = (RESPONSE, b"_heartbeat_")
OK = (RESPONSE, b"OK")
# Long enough to be sure that something does not come, short enough for many tests.
QUIET_S = 0.15
_HEADER = struct.Struct(">ii")
_MESSAGE = struct.Struct(">qH16s")

Frame = tuple[int, bytes]


class Message(NamedTuple):
    timestamp_ns: int
    attempts: int
    id: bytes
    body: bytes


def parse_message(data: bytes) -> Message:
    timestamp_ns, attempts, message_id = _MESSAGE.unpack_from(data)
    return Message(timestamp_ns, attempts, message_id, data[_MESSAGE.size :])


class RawClient:
    """One connection to an nsqd; `async with RawClient(address) as client`."""

    def __init__(self, address: str, *, magic: bytes = commands.MAGIC_V2) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._magic = magic
        self._early: deque[Frame] = deque()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(self._magic)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """This side's port, which /stats names."""
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    def end(self) -> None:
        """Close this side only."""
        self._writer.write_eof()

    async def frame(self) -> Frame:
        """The next frame, whatever it is."""
        return self._early.popleft() if self._early else await self._next_frame()

    async def _next_frame(self) -> Frame:
        async with asyncio.timeout(PATIENCE_S):
            size, frame_type = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            return frame_type, await self._reader.readexactly(size - 4)

    async def frames(self, count: int) -> list[Frame]:
        return [await self.frame() for _ in range(count)]

    async def message(self) -> Message:
        """The next frame, which has to be a message."""
        frame_type, data = await self.frame()
        assert frame_type == MESSAGE, data
        return parse_message(data)

    async def messages(self, count: int) -> list[Message]:
        return [await self.message() for _ in range(count)]

    async def ended(self) -> bytes:
        """What came, raw, until the other side closed."""
        assert not self._early, "messages came that nobody has looked at"
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.read()

    async def is_quiet(self, quiet_s: float = QUIET_S) -> bool:
        """Whether nothing comes for a while, and the connection stays."""
        if self._early:
            return False
        try:
            async with asyncio.timeout(quiet_s):
                await self._reader.readexactly(1)
        except TimeoutError:
            return True
        return False

    async def ask(self, *parts: bytes) -> Frame:
        """Send, and take the answer; messages that overtake it are kept for `frame`.

        Answers come in the order of commands, but messages come in between as they like (spec:
        tcp-protocol, 2): what a subscriber publishes may be back before its OK.
        """
        self.send(*parts)
        while (found := await self._next_frame())[0] == MESSAGE:
            self._early.append(found)
        return found

    # What many conversations begin with

    async def identify(self, body: bytes) -> Frame:
        return await self.ask(commands.identify(body))

    async def subscribe(self, topic: str, channel: str, rdy: int = 1) -> None:
        assert await self.ask(commands.sub(topic, channel)) == OK
        if rdy:
            self.send(commands.rdy(rdy))

    async def publish(self, topic: str, *bodies: bytes) -> None:
        """MPUB, and its OK."""
        assert await self.ask(commands.mpub(topic, bodies)) == OK

    def finish(self, *messages: Message) -> None:
        self.send(commands.fin([message.id for message in messages]))

    def requeue(self, message: Message, delay_ms: int = 0) -> None:
        self.send(commands.req([message.id], delay_ms))


def bodies(messages: Sequence[Message]) -> list[bytes]:
    return [message.body for message in messages]
