"""What the endpoints of nsqd's HTTP API do: checks in the spec's order, and their answers.

An endpoint gets a `Request` and returns `Text`, `Json` or None (an empty answer); it raises
`HttpError` for every other status (spec: nsqd-http, part 2). How that looks on the wire, and which
path leads here, is `http`'s.

Publishing answers after the write, as it does over TCP.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from nsqtools.broker import config
from nsqtools.broker.stats import StatsQuery, stats, stats_text
from nsqtools.errors import NsqToolsError, ProtocolError, StorageError
from nsqtools.options import parse_time_ns
from nsqtools.wire.bodies import measured
from nsqtools.wire.mpub import Lines, long_line, read_mpub
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nsqtools.broker.channel import Channel
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.view import BrokerView
    from nsqtools.wire.bodies import Bodies
    from nsqtools.wire.mpub import Batch

log = logging.getLogger("nsqtools.broker.http")

INVALID_REQUEST = "INVALID_REQUEST"
INTERNAL_ERROR = "INTERNAL_ERROR"
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SIGNED = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class HttpError(NsqToolsError):
    """An answer that is not 200; `close` ends the connection behind it."""

    def __init__(self, status: int, text: str, *, close: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.close = close


class Text(NamedTuple):
    """A string result; `plain` for an endpoint outside of the V1 style (/ping)."""

    text: str
    plain: bool = False


class Json(NamedTuple):
    """A structure."""

    value: object


Answer = Text | Json | None


class Body(Protocol):
    """A request's body."""

    @property
    def declared_bytes(self) -> int | None:
        """The Content-Length."""

    async def read(self, limit_bytes: int) -> bytes:
        """The body, but no more than one byte above the limit.

        Raises HttpError when the client does not send it.
        """


class Request(NamedTuple):
    """A request as far as an endpoint needs it; `name` is the last part of /config/<name>."""

    method: str
    query: str
    body: Body
    name: str = ""


def parse_query(raw: str) -> dict[str, str]:
    """The parameters of a query string, by Go's rules; of equal names the first one.

    Raises HttpError: a bad escape and `;` are malformed.
    """
    found: dict[str, str] = {}
    for part in raw.split("&"):
        if not part:
            continue
        if ";" in part or _BAD_ESCAPE.search(part):
            raise HttpError(400, INVALID_REQUEST)
        name, _, value = part.partition("=")
        found.setdefault(_unescape(name), _unescape(value))
    return found


def _unescape(text: str) -> str:
    raw = text.replace("+", " ").encode("utf-8", "surrogateescape")
    return unquote_to_bytes(raw).decode("utf-8", "replace")


class Api:
    """The endpoints of one broker."""

    def __init__(self, broker: BrokerView) -> None:
        self._broker = broker

    # What the broker is

    async def ping(self, request: Request) -> Answer:
        health = self._broker.health
        if health != "OK":
            raise HttpError(500, health)
        return Text(health, plain=True)

    async def info(self, request: Request) -> Answer:
        broker, options = self._broker, self._broker.options
        return Json(
            {
                "version": broker.server_limits.version,
                "broadcast_address": options.effective_broadcast_address,
                "hostname": socket.gethostname(),
                "http_port": broker.http_port,
                "tcp_port": broker.tcp_port,
                "start_time": broker.start_time_s,
                "max_heartbeat_interval": config.nanoseconds(options.max_heartbeat_interval_s),
                "max_output_buffer_size": options.max_output_buffer_size_bytes,
                "max_output_buffer_timeout": config.nanoseconds(
                    options.max_output_buffer_timeout_s
                ),
                "max_deflate_level": broker.server_limits.max_deflate_level,
                "topology_zone": broker.server_limits.topology_zone,
                "topology_region": broker.server_limits.topology_region,
            }
        )

    async def stats(self, request: Request) -> Answer:
        params = parse_query(request.query)
        query = StatsQuery(
            topic=params.get("topic", ""),
            channel=params.get("channel", ""),
            include_clients=_BOOLEANS.get(params.get("include_clients", "true"), True),
            include_mem=_BOOLEANS.get(params.get("include_mem", "true"), True),
        )
        version = self._broker.server_limits.version
        if params.get("format") == "json":
            return Json(stats(self._broker, query, version))
        return Text(stats_text(self._broker, query, version, time.time()))

    # Publishing

    async def pub(self, request: Request) -> Answer:
        limit = self._broker.options.max_msg_size_bytes
        body = await _whole_body(request.body, limit, "MSG_TOO_BIG")
        if not body:
            raise HttpError(400, "MSG_EMPTY")
        params = parse_query(request.query)
        topic = self._publish_topic(params)
        delay_ms = self._delay_ms(params.get("defer"))
        await self._publish(topic, measured([body]), delay_ms)
        return Text("OK")

    async def mpub(self, request: Request) -> Answer:
        limit = self._broker.options.max_body_size_bytes
        _check_declared(request.body, limit, "BODY_TOO_BIG")
        params = parse_query(request.query)
        topic = self._publish_topic(params)
        body = await request.body.read(limit)
        if self._is_binary(params.get("binary")):
            if len(body) > limit:
                raise HttpError(413, "BODY_TOO_BIG", close=True)
            batch: Batch | Lines = self._binary_batch(body)
        else:
            batch = self._text_batch(body, limit)
        # A very long one goes a slice at a time, and others have their turn in between.
        while bodies := batch.take():
            await self._publish(topic, bodies, 0)
        return Text("OK")

    def _publish_topic(self, params: dict[str, str]) -> Topic:
        name = _param(params, "topic", "MISSING_ARG_TOPIC", "INVALID_TOPIC")
        try:
            return self._broker.topic(name)
        except StorageError as failure:
            raise HttpError(503, "EXITING") from failure

    def _delay_ms(self, text: str | None) -> int:
        if text is None:
            return 0
        limit_ms = self._broker.command_limits.max_req_timeout_ms
        if not _SIGNED.fullmatch(text) or not 0 <= int(text) <= limit_ms:
            raise HttpError(400, "INVALID_DEFER")
        return int(text)

    def _is_binary(self, text: str | None) -> bool:
        if text is None:
            return False
        if text not in _BOOLEANS:
            log.warning("deprecated value %r used for /mpub binary param", text)
        return _BOOLEANS.get(text, True)

    def _binary_batch(self, body: bytes) -> Batch:
        try:
            return read_mpub(body, self._broker.command_limits)
        except ProtocolError as failure:
            raise HttpError(413, failure.code.removeprefix("E_")) from failure

    def _text_batch(self, body: bytes, limit: int) -> Lines:
        """nsqd reads line by line, so that the first thing wrong is what it says."""
        too_long = long_line(body, self._broker.options.max_msg_size_bytes)
        is_above = len(body) > limit
        if is_above and (too_long is None or too_long + 1 > limit):
            raise HttpError(413, "BODY_TOO_BIG", close=True)
        if too_long is not None:
            raise HttpError(413, "MSG_TOO_BIG")
        return Lines(body)

    async def _publish(self, topic: Topic, bodies: Bodies, delay_ms: int) -> None:
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def answered(reason: str | None) -> None:
            if not answer.done():
                answer.set_result(reason)

        self._broker.put(topic, bodies, delay_ms, answered)
        if await answer is not None:
            raise HttpError(503, "EXITING")

    # Topics

    async def create_topic(self, request: Request) -> Answer:
        name = _param(parse_query(request.query), "topic", "MISSING_ARG_TOPIC", "INVALID_TOPIC")
        await self._broker.keep(self._broker.topic(name))
        return None

    async def delete_topic(self, request: Request) -> Answer:
        self._broker.delete_topic(self._topic(request, checked=False).name)
        return None

    async def empty_topic(self, request: Request) -> Answer:
        topic = self._topic(request, checked=True)
        topic.empty()
        await self._broker.keep(topic)
        return None

    async def pause_topic(self, request: Request) -> Answer:
        topic = self._topic(request, checked=False)
        topic.pause(paused=True)
        await self._broker.keep(topic)
        return None

    async def unpause_topic(self, request: Request) -> Answer:
        topic = self._topic(request, checked=False)
        topic.pause(paused=False)
        self._broker.touched(topic)
        await self._broker.keep(topic)
        return None

    def _topic(self, request: Request, *, checked: bool) -> Topic:
        """The topic that is named; only some endpoints look at what the name is made of."""
        params = parse_query(request.query)
        name = _param(params, "topic", "MISSING_ARG_TOPIC", "INVALID_TOPIC" if checked else "")
        return self._existing(name)

    def _existing(self, name: str) -> Topic:
        topic = self._broker.topics.get(name)
        if topic is None:
            raise HttpError(404, "TOPIC_NOT_FOUND")
        return topic

    # Channels

    async def create_channel(self, request: Request) -> Answer:
        topic, name = self._channel_name(request)
        topic.channel(name)
        self._broker.touched(topic)
        await self._broker.keep(topic)
        return None

    async def delete_channel(self, request: Request) -> Answer:
        topic, channel = self._channel(request)
        self._broker.delete_channel(topic, channel.name)
        await self._broker.keep(topic)
        return None

    async def empty_channel(self, request: Request) -> Answer:
        topic, channel = self._channel(request)
        channel.empty()
        self._settle(topic, channel)
        return None

    async def pause_channel(self, request: Request) -> Answer:
        topic, channel = self._channel(request)
        channel.pause(paused=True)
        self._settle(topic, channel)
        return None

    async def unpause_channel(self, request: Request) -> Answer:
        topic, channel = self._channel(request)
        channel.pause(paused=False)
        channel.deliver()
        self._settle(topic, channel)
        return None

    async def seek_channel(self, request: Request) -> Answer:
        """Not nsqd's: move a channel to another place of what is retained."""
        topic, channel = self._channel(request)
        to = parse_query(request.query).get("to")
        if to is None:
            raise HttpError(400, "MISSING_ARG_TO")
        number = await self._place(topic, to)
        if topic.channels.get(channel.name) is not channel:
            raise HttpError(404, "CHANNEL_NOT_FOUND")
        channel.seek(number)
        channel.deliver()
        self._settle(topic, channel)
        await self._broker.keep(topic)
        return Json({"cursor": f"{channel.cursor:016x}", "depth": channel.depth})

    async def _place(self, topic: Topic, to: str) -> int:
        if to == "oldest":
            return topic.log.start
        if to == "newest":
            return topic.pumped
        try:
            time_ns = parse_time_ns(to)
        except ValueError as error:
            raise HttpError(400, "INVALID_ARG_TO") from error
        number = await self._broker.number_at(topic, time_ns)
        return topic.pumped if number is None else number

    def _settle(self, topic: Topic, channel: Channel) -> None:
        """Have it in the journal before it is answered."""
        topic.flush()
        channel.journal.check()
        self._broker.touched(topic)

    def _channel_name(self, request: Request) -> tuple[Topic, str]:
        params = parse_query(request.query)
        topic = _param(params, "topic", "MISSING_ARG_TOPIC", "INVALID_ARG_TOPIC")
        name = _param(params, "channel", "MISSING_ARG_CHANNEL", "INVALID_ARG_CHANNEL")
        return self._existing(topic), name

    def _channel(self, request: Request) -> tuple[Topic, Channel]:
        topic, name = self._channel_name(request)
        channel = topic.channels.get(name)
        if channel is None:
            raise HttpError(404, "CHANNEL_NOT_FOUND")
        return topic, channel

    # Configuration

    async def get_config(self, request: Request) -> Answer:
        try:
            return Json(config.value_of(self._broker, request.name))
        except KeyError as error:
            raise HttpError(400, "INVALID_OPTION") from error

    async def put_config(self, request: Request) -> Answer:
        limit = self._broker.options.max_msg_size_bytes
        body = await request.body.read(limit)
        if not 0 < len(body) <= limit:
            raise HttpError(413, "INVALID_VALUE", close=len(body) > limit)
        try:
            config.change(self._broker, request.name, body)
        except KeyError as error:
            raise HttpError(400, "INVALID_OPTION") from error
        except ValueError as error:
            raise HttpError(400, "INVALID_VALUE") from error
        return await self.get_config(request)


def _param(params: dict[str, str], name: str, missing: str, invalid: str) -> str:
    """A parameter; with `invalid` it has to be a name of NSQ's."""
    value = params.get(name)
    if value is None:
        raise HttpError(400, missing)
    if invalid and not is_valid_name(value):
        raise HttpError(400, invalid)
    return value


def _check_declared(body: Body, limit_bytes: int, text: str) -> None:
    if body.declared_bytes is not None and body.declared_bytes > limit_bytes:
        raise HttpError(413, text, close=True)


async def _whole_body(body: Body, limit_bytes: int, text: str) -> bytes:
    _check_declared(body, limit_bytes, text)
    read = await body.read(limit_bytes)
    if len(read) > limit_bytes:
        raise HttpError(413, text, close=True)
    return read


CONFIG_PATH = "/config/"
# Path, or the beginning of one that ends with a name; then what each method does.
ROUTES: dict[str, dict[str, Callable[[Api, Request], Awaitable[Answer]]]] = {
    "/ping": {"GET": Api.ping},
    "/info": {"GET": Api.info},
    "/stats": {"GET": Api.stats},
    "/pub": {"POST": Api.pub},
    "/mpub": {"POST": Api.mpub},
    "/topic/create": {"POST": Api.create_topic},
    "/topic/delete": {"POST": Api.delete_topic},
    "/topic/empty": {"POST": Api.empty_topic},
    "/topic/pause": {"POST": Api.pause_topic},
    "/topic/unpause": {"POST": Api.unpause_topic},
    "/channel/create": {"POST": Api.create_channel},
    "/channel/delete": {"POST": Api.delete_channel},
    "/channel/empty": {"POST": Api.empty_channel},
    "/channel/pause": {"POST": Api.pause_channel},
    "/channel/unpause": {"POST": Api.unpause_channel},
    "/channel/seek": {"POST": Api.seek_channel},
    CONFIG_PATH: {"GET": Api.get_config, "PUT": Api.put_config},
}
