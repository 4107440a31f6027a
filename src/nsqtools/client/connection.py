"""One connection to an nsqd: handshake, upgrades, frames in, commands out.

The handshake (spec: client-behaviour, part 3): magic, IDENTIFY, then TLS, then deflate or snappy, then
AUTH. Heartbeats are answered here and nowhere else, so that nothing a user does can stop them. Frames
go to a `Receiver` as they are decoded; the one who owns the connection decides what they mean. Who is at
the other end may be hostile: `intake` bounds what is taken in, and whoever sends much of what nobody
asked for is given up.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from nsqtools.client.intake import Intake
from nsqtools.client.tls import tls_context
from nsqtools.errors import (
    ConnectionFailed,
    HandshakeRefused,
    NsqToolsError,
    ProtocolError,
    ServerError,
)
from nsqtools.wire import commands
from nsqtools.wire.compression import Deflate, Snappy
from nsqtools.wire.frames import HEARTBEAT, OK, Oversized, Response
from nsqtools.wire.identify import (
    HEARTBEAT_INTERVAL_DEFAULT_MS,
    IdentifyReply,
    IdentifyRequest,
)
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from nsqtools.client.options import ConnectionOptions
    from nsqtools.wire.compression import Codec
    from nsqtools.wire.frames import Event

log = logging.getLogger("nsqtools.client")

# Commands that nsqd has not taken yet, beyond which `drain` waits.
WRITE_HIGH_WATER_BYTES = 4 << 20
# The part of a heartbeat interval for which nothing may be read from a connection.
PAUSED_MAX = 0.8
# How long a peer gets to close its side after we have closed ours.
CLOSE_TIMEOUT_S = 2.0
# Heartbeats, and frames that nobody asked for, within this time: nsqd sends a heartbeat a second at most.
NOISE_MAX = 1000
NOISE_INTERVAL_S = 1.0
# Answers that come at once within the handshake: one was asked for.
HANDSHAKE_FRAMES_MAX = 100
# In nsqd's refusal of output_buffer_size and output_buffer_timeout (spec: tcp-protocol, 4.1).
_OUTPUT_BUFFER = "output buffer"


class Receiver(Protocol):
    """The owner of a connection. Called on the loop; must return soon."""

    def messages_received(self, connection: Connection, messages: Messages) -> None:
        """Messages, in the order they came."""

    def oversized_received(self, connection: Connection, message: Oversized) -> None:
        """A message that is larger than FRAME_SIZE_MAX_BYTES; its body was passed over."""

    def response_received(self, connection: Connection, data: bytes) -> None:
        """A response frame that is neither a heartbeat nor part of the handshake."""

    def error_received(self, connection: Connection, error: ServerError) -> None:
        """An error frame; after a fatal one nsqd closes."""

    def connection_lost(self, connection: Connection, cause: NsqToolsError) -> None:
        """The connection has ended; nothing can be sent any more. Called once."""


class Connection(asyncio.BufferedProtocol):
    """Made by `connect`. Methods that send do nothing once the connection is lost, or `close` began."""

    def __init__(
        self, address: str, options: ConnectionOptions, receiver: Receiver, buffer: memoryview
    ) -> None:
        self.address = address
        self.reply = IdentifyReply()
        self.connected_at_s = 0.0
        self._options = options
        self._receiver = receiver
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._handshake: deque[Response | ServerError] = deque()
        self._intake = Intake(
            self._dispatch,
            self._fail,
            lambda: bool(self._handshake),
            stepwise=options.tls_v1 or options.deflate or options.snappy,
        )
        self._noise = 0
        self._noise_s = 0.0
        self._wanted: asyncio.Future[None] | None = None
        self._established = False
        self._has_sent_all = False
        self._failure: NsqToolsError | None = None
        self._lost = self._loop.create_future()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._heard_s = self._paused_s = 0.0
        self._silence: asyncio.TimerHandle | None = None
        self._unheard: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self._established and not (self._has_sent_all or self._lost.done())

    @property
    def failure(self) -> NsqToolsError | None:
        """Why it has ended, or is ending."""
        return self._failure

    # Sending

    def send(self, data: bytes) -> None:
        """Send command bytes; what nsqd does not take is buffered, see `drain`."""
        if self._transport is not None and not (self._has_sent_all or self._lost.done()):
            codec = self._intake.codec
            self._transport.write(data if codec is None else codec.compress(data))

    async def drain(self) -> None:
        """Wait while nsqd takes less than was sent, as long as bytes flow.

        Cancelling it leaves what was sent on its way. A peer that takes not one byte for
        write_timeout_s is given up.
        """
        await self._may_write.wait()

    def _unsent_bytes(self) -> int:
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        """Leave what comes in the socket until `resume_reading`; nsqd hears from us all the same.

        For a short time only: an nsqd that could not write for a heartbeat interval sends no message
        on this connection any more, though it keeps it (spec: client-behaviour, part 7). So it is
        given up before that.
        """
        if self._transport is not None and not self._intake.is_paused:
            self._intake.pause()
            self._paused_s = self._loop.time()
            self._answer_unheard()

    def resume_reading(self) -> None:
        self._intake.resume()

    async def close(self) -> None:
        """Send what is buffered, end our side, and wait for nsqd to end its own.

        Closing at once would let unread bytes reset the connection, and take our last FINs with it.
        Cancelling it closes at once.
        """
        transport = self._transport
        if transport is None or self._lost.done():
            return
        self._has_sent_all = True  # a heartbeat can still come, and would be answered
        try:
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.shield(self._lost)
        except TimeoutError:
            log.debug("nsqd did not close its side nsqd=%s", self.address)
        finally:
            transport.abort()

    async def ended(self) -> None:
        """Wait until the connection is lost; cancelling it changes nothing."""
        await asyncio.shield(self._lost)

    def abort(self, cause: NsqToolsError) -> None:
        """End the connection now, for this reason."""
        self._fail(cause)

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._intake.transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_s = self._loop.time()
        self._intake.receive(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        self._fail(ConnectionFailed(self.address, "nsqd closed the connection"))
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._fail(ConnectionFailed(self.address, str(exc or "connection closed")))
        self._may_write.set()
        for timer in (self._silence, self._unheard, self._stuck):
            if timer is not None:
                timer.cancel()
        if not self._lost.done():
            self._lost.set_result(None)
            if self._established and self._failure is not None:
                self._receiver.connection_lost(self, self._failure)

    def pause_writing(self) -> None:
        self._may_write.clear()
        self._watch_writing(self._unsent_bytes())

    def resume_writing(self) -> None:
        self._may_write.set()
        if self._stuck is not None:
            self._stuck.cancel()

    def _watch_writing(self, unsent: int) -> None:
        """Look whether less is unsent after write_timeout_s."""

        def look() -> None:
            if self._unsent_bytes() >= unsent:
                self._fail(ConnectionFailed(self.address, "nsqd takes no data"))
            else:
                self._watch_writing(self._unsent_bytes())

        self._stuck = self._loop.call_later(self._options.write_timeout_s, look)

    # Inside

    def _dispatch(self, events: list[Event]) -> None:
        is_answered = False
        for event in events:
            if self._failure is not None:
                return
            if isinstance(event, Messages):
                event.nsqd = self.address
                self._receiver.messages_received(self, event)
            elif isinstance(event, Oversized):
                self._receiver.oversized_received(self, event)
            elif isinstance(event, Response) and event.data == HEARTBEAT:
                self.count_noise("heartbeats")
                if not is_answered:  # one is as good as many
                    self.send(commands.NOP)
                is_answered = True
            elif not self._established:
                self._take_answer(event)
            elif isinstance(event, Response):
                self._receiver.response_received(self, event.data)
            else:
                self._receiver.error_received(self, event)

    def _take_answer(self, event: Response | ServerError) -> None:
        if len(self._handshake) >= HANDSHAKE_FRAMES_MAX:
            self._fail(ConnectionFailed(self.address, "nsqd sends frames that nobody asked for"))
            return
        self._handshake.append(event)
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def count_noise(self, what: str) -> None:
        """One more frame of no use; the connection is given up when there are too many at a time."""
        now_s = self._loop.time()
        if now_s - self._noise_s > NOISE_INTERVAL_S:
            self._noise, self._noise_s = 0, now_s
        self._noise += 1
        if self._noise > NOISE_MAX:
            self._fail(ConnectionFailed(self.address, f"nsqd sends {what} without end"))

    def _fail(self, cause: NsqToolsError) -> None:
        if self._failure is None:
            self._failure = cause
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_exception(self._failure)
        self._intake.close()
        if self._transport is not None:
            self._transport.abort()

    async def _response(self, what: str) -> bytes:
        """The next response of the handshake; an error frame is raised."""
        self._intake.step()
        while not self._handshake:
            if self._failure is not None:
                raise self._failure
            self._wanted = self._loop.create_future()
            await self._wanted
        answer = self._handshake.popleft()
        if isinstance(answer, ServerError):
            raise answer
        log.debug("< nsqd=%s %s %r", self.address, what, answer.data[:200])
        return answer.data

    async def establish(self) -> None:
        """The handshake. Raises ServerError, ProtocolError or ConnectionFailed."""
        request = _identify_request(self._options)
        self.send(commands.MAGIC_V2 + commands.identify(request.to_json()))
        self.reply = IdentifyReply.parse(await self._response("IDENTIFY"), request)
        if self._options.tls_v1 and not self.reply.tls_v1:
            raise HandshakeRefused(self.address, "nsqd does not offer TLS, and we must have it")
        if self.reply.tls_v1:
            await self._start_tls()
            await self._expect_ok("TLS upgrade")
        codec: Codec | None = None
        if self.reply.snappy or self.reply.deflate:
            codec = Snappy() if self.reply.snappy else Deflate(self._options.deflate_level)
        self._intake.end_steps(codec)
        if codec is not None:
            await self._expect_ok("compression upgrade")
        if self.reply.auth_required:
            await self._authenticate()
        self._established = True
        self.connected_at_s = self._heard_s = self._loop.time()
        self._watch_silence()

    async def command(self, data: bytes, what: str) -> bytes:
        """Send one more command of the handshake (SUB) and wait for its answer.

        Raises ServerError when nsqd refuses it, ConnectionFailed when there is no answer within
        read_timeout_s.
        """
        self._established = False
        self.send(data)
        try:
            async with asyncio.timeout(self._options.read_timeout_s):
                answer = await self._response(what)
        except TimeoutError:
            raise ConnectionFailed(self.address, f"no answer to {what} in time") from None
        self._established = True
        # What came in one read with the answer, such as an error.
        behind: list[Event] = [*self._handshake]
        self._handshake.clear()
        self._dispatch(behind)
        return answer

    async def _expect_ok(self, what: str) -> None:
        answer = await self._response(what)
        if answer != OK:
            raise ProtocolError("E_INVALID", f"invalid response from {what}: {answer[:80]!r}")

    async def _authenticate(self) -> None:
        secret = self._options.auth_secret
        if not secret:
            raise HandshakeRefused(self.address, "nsqd asks for AUTH and there is no auth_secret")
        if not (self.reply.tls_v1 or self._options.auth_plaintext):
            # Anybody can ask, and anybody on the way can read it.
            reason = (
                "nsqd asks for AUTH without TLS: use tls_v1, or --auth-plaintext to tell it all"
            )
            raise HandshakeRefused(self.address, reason)
        self.send(commands.auth(secret.encode()))
        await self._response("AUTH")

    async def _start_tls(self) -> None:
        if self._transport is None:
            raise ConnectionFailed(self.address, "closed before TLS")
        if self._intake.has_unread:
            # Whoever is on the way could have put it there.
            raise ProtocolError("E_INVALID", "data between the answer to IDENTIFY and TLS")
        transport = await self._loop.start_tls(
            self._transport,
            self,
            tls_context(self._options),
            server_hostname=self.address.rpartition(":")[0].strip("[]"),
        )
        if transport is None:
            raise ConnectionFailed(self.address, "closed during the TLS handshake")
        self._transport = self._intake.transport = transport

    def _answer_unheard(self) -> None:
        """Answer the heartbeats that lie in the socket: nsqd gives us up after two (spec: 6.8)."""
        if self._unheard is not None:
            self._unheard.cancel()
        # 0 leaves the interval to nsqd.
        interval_s = self._options.heartbeat_interval_s or HEARTBEAT_INTERVAL_DEFAULT_MS / 1000
        if not self._intake.is_paused or interval_s < 0 or self._lost.done():
            return
        if self._loop.time() - self._paused_s >= interval_s * PAUSED_MAX:
            reason = "what it sent could not be taken in time; it will be delivered again"
            self._fail(ConnectionFailed(self.address, reason))
            return
        self.send(commands.NOP)
        self._unheard = self._loop.call_later(interval_s * PAUSED_MAX / 2, self._answer_unheard)

    def _watch_silence(self) -> None:
        """Give the connection up when it was silent for read_timeout_s: heartbeats should come."""
        if self._intake.is_paused or not self._established:
            # It is we who do not listen; or an answer is waited for, which has a time of its own.
            self._heard_s = self._loop.time()
        left_s = self._heard_s + self._options.read_timeout_s - self._loop.time()
        if self._options.heartbeat_interval_s < 0:
            return
        if left_s <= 0:
            self._fail(ConnectionFailed(self.address, "nsqd is silent, not even a heartbeat"))
            return
        self._silence = self._loop.call_later(left_s, self._watch_silence)


async def connect(
    address: str, options: ConnectionOptions, receiver: Receiver, buffer: memoryview
) -> Connection:
    """Connect and shake hands, each within the options' times.

    An nsqd that refuses the output buffer that we ask for is asked again for its own. `buffer` may be
    shared by all connections of a loop. Raises ConnectionFailed, ServerError or ProtocolError;
    cancelling it closes what was opened.
    """
    try:
        return await _connect(address, options, receiver, buffer)
    except ServerError as refusal:
        if _OUTPUT_BUFFER not in refusal.description.lower():
            raise
        log.info("nsqd keeps its own output buffer nsqd=%s refused=%s", address, refusal)
    plain = replace(options, output_buffer_size=0, output_buffer_timeout_s=0.0)
    return await _connect(address, plain, receiver, buffer)


async def _connect(
    address: str, options: ConnectionOptions, receiver: Receiver, buffer: memoryview
) -> Connection:
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    connection = Connection(address, options, receiver, buffer)
    try:
        async with asyncio.timeout(options.dial_timeout_s):
            await loop.create_connection(lambda: connection, host.strip("[]"), int(port))
        async with asyncio.timeout(options.read_timeout_s):
            await connection.establish()
    except BaseException as cause:
        connection.abort(ConnectionFailed(address, "given up during the handshake"))
        raise _as_failure(address, cause) from cause
    return connection


def _as_failure(address: str, cause: BaseException) -> BaseException:
    if isinstance(cause, TimeoutError):
        return ConnectionFailed(address, "no answer in time")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return HandshakeRefused(address, str(cause))
    if isinstance(cause, OSError):
        return ConnectionFailed(address, cause.strerror or str(cause))
    if isinstance(cause, UnicodeError):  # nsqlookupd may name any host
        return ConnectionFailed(address, "not a host name")
    return cause


def _identify_request(options: ConnectionOptions) -> IdentifyRequest:
    return IdentifyRequest(
        client_id=options.effective_client_id,
        hostname=options.effective_hostname,
        user_agent=options.user_agent,
        heartbeat_interval_ms=options.heartbeat_interval_ms,
        sample_rate=getattr(options, "sample_rate", 0),
        output_buffer_size=options.output_buffer_size,
        output_buffer_timeout_ms=options.output_buffer_timeout_ms,
        msg_timeout_ms=getattr(options, "msg_timeout_ms", 0),
        tls_v1=options.tls_v1,
        deflate=options.deflate,
        deflate_level=options.deflate_level,
        snappy=options.snappy,
    )
