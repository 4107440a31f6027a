"""A producer for one nsqd: publishes are pipelined, and each is answered in its turn.

nsqd answers in order, so the oldest unanswered publish is the one that an answer is for. When the
connection ends, everything unanswered fails with ConnectionFailed: it may or may not have been taken,
and only the caller knows whether to send it again. Connecting goes on by itself, with jitter, for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import TYPE_CHECKING, Self

from nsqtools.client.backoff import ReconnectDelay
from nsqtools.client.connection import connect
from nsqtools.errors import ConnectionFailed, HandshakeRefused, NsqToolsError, ServerError
from nsqtools.observe.log import get_log
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from nsqtools.client.connection import Connection
    from nsqtools.client.options import ProducerOptions
    from nsqtools.wire.frames import Oversized
    from nsqtools.wire.messages import Messages

# For answers, which are short.
ANSWER_BUFFER_BYTES = 1 << 16

log = get_log("client")


class Producer:
    """See the module. Use as `async with`; leaving it fails what is unanswered."""

    def __init__(
        self, address: str, options: ProducerOptions, *, rng: random.Random | None = None
    ) -> None:
        self.address = address
        self.options = options
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._connection: Connection | None = None
        self._connected = asyncio.Event()
        self._turn = asyncio.Lock()
        self._unanswered: deque[asyncio.Future[None]] = deque()
        self._refused = False
        self._last_failure: NsqToolsError = ConnectionFailed(address, "not connected yet")

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(bytearray(ANSWER_BUFFER_BYTES))
        self._keeper = self._loop.create_task(self._keep_connected())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._keeper.cancel()
        connection = self._connection
        if connection is not None:
            await connection.close()
        await asyncio.wait([self._keeper])

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    @property
    def last_failure(self) -> NsqToolsError:
        """Why the last connection ended, or was not made."""
        return self._last_failure

    @property
    def is_refused(self) -> bool:
        """Whether nsqd is there and the handshake failed, for the reason in `last_failure`."""
        return self._refused

    async def connected(self, timeout_s: float | None = None) -> None:
        """Wait for a connection. Raises the last failure when there is none after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise self._last_failure from None

    async def publish(self, topic: str, body: bytes) -> None:
        """PUB, and wait for the answer; see `send`."""
        await self.send(commands.pub(topic, body))

    async def publish_many(self, topic: str, bodies: Sequence[bytes]) -> None:
        """MPUB, and wait for the answer; all are taken or none. See `send`."""
        await self.send(commands.mpub(topic, bodies))

    async def publish_deferred(self, topic: str, body: bytes, delay_s: float) -> None:
        """DPUB, and wait for the answer; see `send`."""
        await self.send(commands.dpub(topic, body, round(delay_s * 1000)))

    async def send(self, command: bytes) -> None:
        """Send a publishing command and wait until nsqd has answered OK.

        While nsqd takes less than is sent, those who come next wait for their turn, unsent.

        Raises ServerError when nsqd refused it, ConnectionFailed when the connection ended before the
        answer (the outcome is not known) or there is none. Cancelling it leaves the publish on its
        way, or unsent when its turn had not come.
        """
        answer = self._loop.create_future()
        try:
            async with self._turn:
                connection = self._connection
                if connection is None:
                    raise self._last_failure
                self._unanswered.append(answer)
                connection.send(command)
                await connection.drain()
            await answer
        finally:
            answer.cancel()  # of a caller that gave up: nobody is left to hear of a failure

    # Receiver

    def messages_received(self, connection: Connection, messages: Messages) -> None:
        """A producer is subscribed to nothing."""
        connection.abort(ConnectionFailed(self.address, f"{len(messages)} unexpected messages"))

    def oversized_received(self, connection: Connection, message: Oversized) -> None:
        """The same."""
        connection.abort(ConnectionFailed(self.address, "an unexpected message"))

    def response_received(self, connection: Connection, data: bytes) -> None:
        if not self._unanswered:
            connection.abort(ConnectionFailed(self.address, "nsqd answers what nobody asked"))
            return
        answer = self._unanswered.popleft()
        if not answer.done():
            answer.set_result(None)

    def error_received(self, connection: Connection, error: ServerError) -> None:
        closing = ConnectionFailed(self.address, f"nsqd closes after {error}")
        if not self._unanswered:
            connection.abort(closing)
            return
        answer = self._unanswered.popleft()
        if not answer.done():
            answer.set_exception(error)
        # Every error that a producer can get is fatal (spec: tcp-protocol, part 2): what is sent from
        # here on nsqd will not read. Answers that came in the same read still count.
        self._disconnected(error)
        self._loop.call_soon(connection.abort, closing)

    def connection_lost(self, connection: Connection, cause: NsqToolsError) -> None:
        if self._connected.is_set():
            self._disconnected(cause)
        while self._unanswered:
            answer = self._unanswered.popleft()
            if not answer.done():
                answer.set_exception(ConnectionFailed(self.address, f"unanswered: {cause}"))

    def _disconnected(self, cause: NsqToolsError) -> None:
        self._connection = None
        self._connected.clear()
        self._last_failure = cause

    # Connecting

    async def _keep_connected(self) -> None:
        delay = ReconnectDelay(self._rng)
        while True:
            began_s = self._loop.time()
            try:
                connection = await connect(self.address, self.options, self, self._buffer)
            except NsqToolsError as failure:
                self._last_failure = failure
                self._refused = isinstance(failure, ServerError | HandshakeRefused)
                log.error("not connected", nsqd=self.address, error=failure)
                await asyncio.sleep(delay.after(0.0))
                continue
            self._refused = False
            if failed := connection.failure:  # right behind the handshake: it has told nobody
                self._last_failure = failed
                log.error("not connected", nsqd=self.address, error=failed)
            if connection.is_open and not failed:
                self._connection = connection
                self._connected.set()
                log.info("connected", nsqd=self.address)
                await connection.ended()
            await asyncio.sleep(delay.after(self._loop.time() - began_s))
