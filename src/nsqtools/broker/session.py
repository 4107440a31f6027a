"""One client's TCP connection to the broker (spec: tcp-protocol).

Theory of operation. A read is decoded into commands, pulled one by one. Publishes go on while others
wait for their write, each with its own slot (`replies`); every other command waits until they are
answered, because replies are sent strictly in command order. Reading is paused while something waits,
while the client does not take what it was sent, and while all connections together hold too much of
what is not all there yet (`budget`). A client that takes nothing at all is cut.

All connections share one receive buffer: `get_buffer` and `buffer_updated` come in pairs, and the
decoder keeps its unfinished tail, so that ten thousand idle connections cost no buffers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from nsqtools.broker.connection import Connection
from nsqtools.broker.flight import NO_ID
from nsqtools.broker.replies import Replies
from nsqtools.errors import NsqToolsError, ProtocolError, StorageError
from nsqtools.wire import decoder as command
from nsqtools.wire.bodies import Bodies
from nsqtools.wire.decoder import ClientState, CommandDecoder, ConnectionDropped
from nsqtools.wire.frames import CLOSE_WAIT, ERROR, OK, RESPONSE, encode_frame
from nsqtools.wire.identify import default_settings, identify_response, parse_identify

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from nsqtools.broker.budget import BodyBudget
    from nsqtools.broker.channel import Channel
    from nsqtools.broker.replies import Slot
    from nsqtools.broker.topic import Topic
    from nsqtools.wire.decoder import Command
    from nsqtools.wire.identify import ServerLimits
    from nsqtools.wire.limits import CommandLimits
    from nsqtools.wire.mpub import Batch

log = logging.getLogger("nsqtools.broker.session")

RECEIVE_BUFFER_BYTES = 1 << 20
# Each message of a batch is looked at: the read of one should not hold up all others.
BATCH_READ_BYTES = 256 << 10
# What is read at a time, and what a connection may hold for nothing, when the budget is spent.
SMALL_READ_BYTES = 16 << 10
PUB_COUNTS_MAX = 1024

OK_FRAME = encode_frame(RESPONSE, OK)
CLOSE_WAIT_FRAME = encode_frame(RESPONSE, CLOSE_WAIT)


class Server(Protocol):
    """What a session needs of the broker."""

    command_limits: CommandLimits
    server_limits: ServerLimits
    receive_buffer: memoryview
    bodies: BodyBudget
    max_channel_consumers: int

    def topic(self, name: str) -> Topic:
        """The topic of that name, made when it is missing. Raises StorageError."""

    def put(
        self, topic: Topic, bodies: Bodies, delay_ms: int, answer: Callable[[str | None], None]
    ) -> None:
        """Publish; `answer` is called once, later, with None or with why not."""

    def touched(self, topic: Topic) -> None:
        """Something was settled: journals are to be written at the end of this turn."""

    def release(self, topic: Topic, channel: Channel) -> None:
        """A consumer has left the channel."""

    def joined(self, session: Session) -> None:
        """A connection was made."""

    def left(self, session: Session) -> None:
        """A connection has ended."""

    def now_s(self) -> float:
        """Monotonic time."""

    def now_ns(self) -> int:
        """Wall time."""


class Session(Connection):
    """See the module; also the `Subscriber` of its channel."""

    def __init__(self, server: Server) -> None:
        super().__init__(default_settings(server.server_limits), server.now_s)
        self._server = server
        self._decoder = CommandDecoder(server.command_limits)
        self._writable = True
        self._may_read = True
        self._in_batch = False
        self._ended = False
        self._replies = Replies(self._answered, self._drained)
        self._charged_bytes = 0
        self._stashed: Command | NsqToolsError | None = None
        self.connected_at_s = server.now_ns() // 1_000_000_000
        self.topic: Topic | None = None
        self.channel: Channel | None = None
        self.ready_count = 0
        self.in_flight = 0
        self.message_count = 0
        self.finish_count = 0
        self.requeue_count = 0
        self.pub_counts: dict[str, int] = {}
        self.msg_timeout_s = self.settings.msg_timeout_ms / 1000
        self.sample_rate = 0

    @property
    def state(self) -> ClientState:
        return self._decoder.state

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.joined(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        server, bodies = self._server, self._server.bodies
        room = bodies.bytes_max - bodies.held_bytes
        if room >= RECEIVE_BUFFER_BYTES and not self._decoder.is_in_batch:
            return server.receive_buffer
        size = BATCH_READ_BYTES if self._decoder.is_in_batch else RECEIVE_BUFFER_BYTES
        return server.receive_buffer[: min(size, max(SMALL_READ_BYTES, bodies.room_bytes(self)))]

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.receive(self._server.receive_buffer[:nbytes])
        self._run()
        is_more = nbytes == BATCH_READ_BYTES and self._decoder.is_in_batch
        if is_more and self._transport is not None:
            # uvloop would read on up to 32 times before it serves anyone else.
            self._transport.pause_reading()
            self._loop.call_soon(self._pace_reading)

    def eof_received(self) -> bool:
        """The client sends no more; what it has sent is answered before the connection ends."""
        self._ended = True
        if self._is_busy:
            return True
        self._end()
        return False

    @property
    def _is_busy(self) -> bool:
        """Whether there is something that was sent and is not answered."""
        return bool(self._replies) or self._stashed is not None or not self._writable

    def _end(self) -> None:
        failure = self._decoder.receive_eof()
        if failure is not None:
            self._error(failure)
        self.disconnect()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._replies.forget()
        self._server.bodies.hold(self, 0)
        if self.channel is not None and self.topic is not None:
            self.channel.unsubscribe(self)
            self._server.release(self.topic, self.channel)
        self._server.left(self)

    def pause_writing(self) -> None:
        self._writable = False
        self._pace_reading()
        self._watch_unsent()

    def resume_writing(self) -> None:
        self._writable = True
        if self.channel is not None and self.topic is not None:
            self.channel.ready(self)
            self._server.touched(self.topic)
        self._run()

    # Holder of what is not all there yet

    def go_on(self) -> None:
        self._may_read = True
        self._pace_reading()

    def _charge(self) -> None:
        """Tell the budget what is held; what anyone may have is not worth a call."""
        held = self._decoder.held_bytes + self._replies.size_bytes
        if held > SMALL_READ_BYTES or self._charged_bytes:
            held = held if held > SMALL_READ_BYTES else 0
            self._charged_bytes = held
            is_ours = len(self._replies) > 0
            self._may_read = self._server.bodies.hold(self, held, is_ours=is_ours)

    # Subscriber

    def budget(self) -> int:
        return self.ready_count - self.in_flight if self._writable else 0

    def deliver(self, frames: Sequence[bytes], count: int) -> None:
        self.message_count += count
        # Not `writelines`: asyncio's (of 3.12.1 and 3.13.0, say) never tells that too much is unsent.
        self._send(b"".join(frames))

    def disconnect(self) -> None:
        self.ready_count = 0
        super().disconnect()

    def abort(self) -> None:
        self.ready_count = 0
        super().abort()

    # Commands

    def _run(self) -> None:
        """Carry out what has been received, as far as it may go now."""
        served = False
        while self._writable:
            # A command without parameters is an empty tuple, and false.
            item = self._pull() if self._stashed is None else self._stashed
            if item is None or self._is_ending:
                break
            self._stashed = item
            served = True
            if self._replies and self._must_wait(item):
                break
            self._stashed = None
            self._carry_out(item)
        if served:
            self._heard_s = self._now_s()
            if self.topic is not None:
                self._server.touched(self.topic)
        self._charge()
        self._pace_reading()
        if self._ended and not self._is_busy:
            self._end()

    def _pull(self) -> Command | NsqToolsError | None:
        try:
            return self._decoder.next_command()
        except (ProtocolError, ConnectionDropped) as failure:
            return failure

    def _must_wait(self, item: Command | NsqToolsError) -> bool:
        publishing = isinstance(item, command.Pub | command.Mpub)
        return self._in_batch or self._replies.is_full or not publishing

    def _pace_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        wants = self._writable and self._may_read and self._stashed is None
        if not wants:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            # Meanwhile it could not be heard.
            self._heard_s = self._now_s()
            self._transport.resume_reading()

    def _carry_out(self, item: Command | NsqToolsError) -> None:
        match item:
            case command.Fin(lines):
                self._finish(lines)
            case command.Mpub(topic, bodies, rest):
                self._publish("MPUB", topic, bodies, 0, rest)
            case command.Pub(topic, body, delay_ms):
                bodies = Bodies([body], len(body), len(body))
                self._publish("PUB" if delay_ms is None else "DPUB", topic, bodies, delay_ms or 0)
            case command.Rdy(count):
                self.ready_count = count
                self._channel().ready(self)
            case command.Req(message_id, delay_ms):
                self._requeue(message_id, delay_ms)
            case command.Touch(message_id):
                reason = self._channel().touch(self, message_id, self._server.now_s())
                self._refuse("TOUCH", [(message_id, reason)] if reason else [])
            case command.Sub(topic, channel):
                self._subscribe(topic, channel)
            case command.Identify(body):
                self._identify(body)
            case command.Cls():
                self._decoder.state = ClientState.CLOSING
                self.ready_count = 0
                self._send(CLOSE_WAIT_FRAME)
            case command.Auth():
                self._error(ProtocolError("E_AUTH_DISABLED", "AUTH disabled"))
            case command.Nop():
                pass
            case ProtocolError() as failure:
                self._error(failure)
            case _:
                self.disconnect()

    def _finish(self, lines: bytes) -> None:
        channel = self._channel()
        before = self.in_flight
        refused = channel.finish(self, lines)
        self.finish_count += before - self.in_flight
        is_bad = bool(refused) and refused[-1][1] == NO_ID
        self._refuse("FIN", refused[:-1] if is_bad else refused)
        if is_bad:
            self._error(ProtocolError("E_INVALID", NO_ID))
        else:
            channel.deliver()

    def _requeue(self, message_id: bytes, delay_ms: int) -> None:
        channel = self._channel()
        delay_ms = min(delay_ms, self._server.command_limits.max_req_timeout_ms)
        due_ns = self._server.now_ns() + delay_ms * 1_000_000 if delay_ms else 0
        reason = channel.requeue(self, message_id, due_ns)
        if reason is None:
            self.requeue_count += 1
        self._refuse("REQ", [(message_id, reason)] if reason else [])
        channel.deliver()

    def _publish(
        self,
        name: str,
        topic_name: str,
        bodies: Bodies,
        delay_ms: int,
        rest: Batch | None = None,
    ) -> None:
        size_bytes = bodies.size_bytes if rest is None else rest.size_bytes
        slot = self._replies.slot(name, size_bytes)
        try:
            topic = self._server.topic(topic_name)
        except StorageError as failure:
            slot.answer(str(failure))
            return
        if topic_name in self.pub_counts or len(self.pub_counts) < PUB_COUNTS_MAX:
            count = len(bodies.each) + (0 if rest is None else rest.left)
            self.pub_counts[topic_name] = self.pub_counts.get(topic_name, 0) + count
        if rest is None:
            self._server.put(topic, bodies, delay_ms, slot.answer)
        else:
            self._publish_slices(topic, bodies, rest, slot)

    def _publish_slices(self, topic: Topic, bodies: Bodies, rest: Batch, slot: Slot) -> None:
        """A very long batch, one slice a turn of the loop; others have theirs in between."""

        def answered(reason: str | None) -> None:
            more = None if reason is not None else rest.take()
            if more is not None:
                self._server.put(topic, more, 0, answered)
            else:
                self._in_batch = False
                slot.answer(reason)

        self._in_batch = True
        self._server.put(topic, bodies, 0, answered)

    def _answered(self, name: str, reason: str | None) -> None:
        """The reply to a publish, when it is its turn."""
        if reason is None:
            self._send(OK_FRAME)
        elif not self._is_ending:
            self._error(ProtocolError(f"E_{name}_FAILED", f"{name} failed {reason}"))

    def _drained(self) -> None:
        if self._transport is None:
            return
        if self._stashed is not None or self._ended:
            self._run()
        elif self._charged_bytes:
            self._charge()
            self._pace_reading()

    def _subscribe(self, topic_name: str, channel_name: str) -> None:
        limit = self._server.max_channel_consumers
        try:
            topic = self._server.topic(topic_name)
            channel = topic.channel(channel_name)
        except StorageError as failure:
            self._error(ProtocolError("E_SUB_FAILED", f"SUB failed {failure}"))
            return
        if limit and len(channel.subscribers) >= limit:
            text = f"consumers for {topic_name}:{channel_name} exceeds limit of {limit}"
            self._error(ProtocolError("E_SUB_FAILED", f"SUB failed {text}"))
            return
        self.topic, self.channel = topic, channel
        channel.subscribe(self)
        self._decoder.state = ClientState.SUBSCRIBED
        self._send(OK_FRAME)

    def _identify(self, body: bytes) -> None:
        limits = self._server.server_limits
        try:
            settings = parse_identify(body, limits, self.settings)
        except ProtocolError as failure:
            self._error(failure)
            return
        self.settings = settings
        self.client_id, self.hostname = settings.client_id, settings.hostname
        self.msg_timeout_s = settings.msg_timeout_ms / 1000
        self.sample_rate = settings.sample_rate
        self._decoder.heartbeats = settings.heartbeat_interval_ms > 0
        self._arm_heartbeat()
        self._send(encode_frame(RESPONSE, identify_response(settings, limits)))

    # Answers

    def _channel(self) -> Channel:
        if self.channel is None:  # the decoder lets no such command through before SUB
            raise RuntimeError("command for a channel before SUB")
        return self.channel

    def _refuse(self, name: str, refused: list[tuple[bytes, str]]) -> None:
        """Answer each; anyone can have thousands refused, so that the log gets one line."""
        if not refused:
            return
        texts = [
            f"E_{name}_FAILED {name} {message_id.decode('utf-8', 'replace')} failed {reason}"
            for message_id, reason in refused
        ]
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        log.warning("client(%s) - %s%s", self.remote_address, texts[0], more)
        self._send(b"".join([encode_frame(ERROR, text.encode()) for text in texts]))

    def _error(self, failure: ProtocolError) -> None:
        log.warning("client(%s) - %s", self.remote_address, failure)
        self._send(encode_frame(ERROR, str(failure).encode()))
        if failure.fatal:
            self.disconnect()
