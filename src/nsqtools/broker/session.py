"""One client's TCP connection to the broker (spec: tcp-protocol).

Theory of operation. A read is decoded into commands, pulled one by one. FIN and publishing commands
go on at once; what answers in order with a publish (anything but another publish) waits until the
publishes before it are answered, because replies are sent strictly in command order. While something
waits, and when a client sends more than it takes, reading is paused.

All connections share one receive buffer: `get_buffer` and `buffer_updated` come in pairs, and the
decoder keeps its unfinished tail, so that ten thousand idle connections cost no buffers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from nsqtools.errors import NsqToolsError, ProtocolError, StorageError
from nsqtools.wire import decoder as command
from nsqtools.wire.decoder import ClientState, CommandDecoder, ConnectionDropped
from nsqtools.wire.frames import CLOSE_WAIT, ERROR, HEARTBEAT, OK, RESPONSE, encode_frame
from nsqtools.wire.identify import default_settings, identify_response, parse_identify

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.broker.channel import Channel
    from nsqtools.broker.topic import Topic
    from nsqtools.wire.decoder import Command, CommandLimits
    from nsqtools.wire.identify import ClientSettings, ServerLimits

log = logging.getLogger("nsqtools.broker.session")

RECEIVE_BUFFER_BYTES = 1 << 20
# Above this many unsent bytes a consumer gets no more messages until it has taken some.
WRITE_HIGH_WATER_BYTES = 1 << 20
# Publishes of one connection that may wait for their write before reading is paused.
UNANSWERED_MAX = 1024
UNANSWERED_BYTES_MAX = 8 << 20
# nsqd closes a client that was silent for two heartbeats.
SILENT_HEARTBEATS_MAX = 2
PUB_COUNTS_MAX = 1024

OK_FRAME = encode_frame(RESPONSE, OK)
HEARTBEAT_FRAME = encode_frame(RESPONSE, HEARTBEAT)
CLOSE_WAIT_FRAME = encode_frame(RESPONSE, CLOSE_WAIT)


class Server(Protocol):
    """What a session needs of the broker."""

    command_limits: CommandLimits
    server_limits: ServerLimits
    receive_buffer: memoryview
    max_channel_consumers: int

    def topic(self, name: str) -> Topic:
        """The topic of that name, made when it is missing. Raises StorageError."""

    def put(
        self, topic: Topic, bodies: list[bytes], delay_ms: int, answer: Callable[[str | None], None]
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


class Session(asyncio.BufferedProtocol):
    """See the module; also the `Subscriber` of its channel."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._decoder = CommandDecoder(server.command_limits)
        self._transport: asyncio.Transport | None = None
        self._writable = True
        self._ended = False
        self._unanswered: deque[tuple[str, int]] = deque()
        self._unanswered_bytes = 0
        self._stashed: Command | NsqToolsError | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._heard_s = server.now_s()
        self.settings: ClientSettings = default_settings(server.server_limits)
        self.remote_address = ""
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
        self.client_id = self.hostname = ""

    @property
    def state(self) -> ClientState:
        return self._decoder.state

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        is_ip = isinstance(peer, tuple)
        self.remote_address = join_address(peer[0], peer[1]) if is_ip else "@"
        self.client_id = self.hostname = peer[0] if is_ip else "@"
        self._server.joined(self)
        self._arm_heartbeat()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.receive_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._decoder.receive(self._server.receive_buffer[:nbytes])
        self._run()

    def eof_received(self) -> bool:
        """The client sends no more; what it has sent is answered before the connection ends."""
        self._ended = True
        if self._unanswered or self._stashed is not None:
            return True
        self._end()
        return False

    def _end(self) -> None:
        failure = self._decoder.receive_eof()
        if failure is not None:
            self._error(failure)
        self.disconnect()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self.channel is not None and self.topic is not None:
            self.channel.unsubscribe(self)
            self._server.release(self.topic, self.channel)
        self._server.left(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self.channel is not None and self.topic is not None:
            self.channel.ready(self)
            self._server.touched(self.topic)

    # Subscriber

    def budget(self) -> int:
        return self.ready_count - self.in_flight if self._writable else 0

    def deliver(self, frames: bytes, count: int) -> None:
        self.message_count += count
        self._send(frames)

    def disconnect(self) -> None:
        """Close, after what was written is sent; no error frame (spec: tcp-protocol, part 7)."""
        self.ready_count = 0
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, with what was not sent yet."""
        self.ready_count = 0
        if self._transport is not None:
            self._transport.abort()

    # Commands

    def _run(self) -> None:
        """Carry out what has been received, as far as it may go now."""
        served = False
        while self._transport is not None and not self._transport.is_closing():
            # A command without parameters is an empty tuple, and false.
            item = self._pull() if self._stashed is None else self._stashed
            if item is None:
                break
            self._stashed = None
            served = True
            if self._unanswered and self._must_wait(item):
                self._stashed = item
                break
            self._carry_out(item)
        if served:
            self._heard_s = self._server.now_s()
            if self.topic is not None:
                self._server.touched(self.topic)
        self._pace_reading()

    def _pull(self) -> Command | NsqToolsError | None:
        try:
            return self._decoder.next_command()
        except (ProtocolError, ConnectionDropped) as failure:
            return failure

    def _must_wait(self, item: Command | NsqToolsError) -> bool:
        publishing = isinstance(item, command.Pub | command.Mpub)
        full = (
            len(self._unanswered) >= UNANSWERED_MAX or self._unanswered_bytes > UNANSWERED_BYTES_MAX
        )
        return full or not publishing

    def _pace_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._stashed is not None:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _carry_out(self, item: Command | NsqToolsError) -> None:
        match item:
            case command.Fin(ids):
                self._finish(ids)
            case command.Mpub(topic, bodies):
                self._publish("MPUB", topic, bodies, 0)
            case command.Pub(topic, body, delay_ms):
                self._publish("PUB" if delay_ms is None else "DPUB", topic, [body], delay_ms or 0)
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

    def _finish(self, ids: bytes) -> None:
        channel = self._channel()
        before = self.in_flight
        refused = channel.finish(self, ids)
        self.finish_count += before - self.in_flight
        self._refuse("FIN", refused)
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

    def _publish(self, name: str, topic_name: str, bodies: list[bytes], delay_ms: int) -> None:
        try:
            topic = self._server.topic(topic_name)
        except StorageError as failure:
            self._error(ProtocolError(f"E_{name}_FAILED", f"{name} failed {failure}"))
            return
        if topic_name in self.pub_counts or len(self.pub_counts) < PUB_COUNTS_MAX:
            self.pub_counts[topic_name] = self.pub_counts.get(topic_name, 0) + len(bodies)
        size_bytes = sum(map(len, bodies))
        self._unanswered.append((name, size_bytes))
        self._unanswered_bytes += size_bytes
        self._server.put(topic, bodies, delay_ms, self._published)

    def _published(self, reason: str | None) -> None:
        """The answer to the publish that has waited longest."""
        name, size_bytes = self._unanswered.popleft()
        self._unanswered_bytes -= size_bytes
        if reason is None:
            self._send(OK_FRAME)
        else:
            self._error(ProtocolError(f"E_{name}_FAILED", f"{name} failed {reason}"))
        if not self._unanswered and self._stashed is not None:
            self._run()
        if self._ended and not self._unanswered and self._stashed is None:
            self._end()

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
        for message_id, reason in refused:
            text = f"{name} {message_id.decode('utf-8', 'replace')} failed {reason}"
            self._error(ProtocolError(f"E_{name}_FAILED", text, fatal=False))

    def _error(self, failure: ProtocolError) -> None:
        log.warning("client(%s) - %s", self.remote_address, failure)
        self._send(encode_frame(ERROR, str(failure).encode()))
        if failure.fatal:
            self.disconnect()

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # Heartbeats (spec: tcp-protocol, 6.8)

    def _arm_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        if self.settings.heartbeat_interval_ms > 0:
            interval_s = self.settings.heartbeat_interval_ms / 1000
            self._heartbeat = self._loop.call_later(interval_s, self._beat)

    def _beat(self) -> None:
        silent_s = self._server.now_s() - self._heard_s
        interval_s = self.settings.heartbeat_interval_ms / 1000
        if silent_s >= SILENT_HEARTBEATS_MAX * interval_s and self._stashed is None:
            log.info("client(%s) closed: silent for %.1fs", self.remote_address, silent_s)
            if self._transport is not None:
                self._transport.abort()
            return
        self._send(HEARTBEAT_FRAME)
        self._arm_heartbeat()


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
