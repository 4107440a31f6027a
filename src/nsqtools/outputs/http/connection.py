"""One connection to an endpoint: a request, its reply, the next request.

Rules. (1) A reply counts when it has come whole: a cut one is a failure, though its status was fine.
(2) What a reply says beside its status is read and thrown away, but for the beginning of an error; a
reply without an end costs its connection. (3) Nothing may come while nothing is asked: a connection that
sends all the same is closed, and so is one whose reply came before the request was sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

# A head, and as much of a body as is read for the sake of keeping the connection.
REPLY_BYTES_MAX = 256 << 10
# How much of an error's text is kept, for whoever takes out of it what is secret.
EXCERPT_BYTES_MAX = 8 << 10
_FIRST_ERROR = 300
_BEGINS = b"HTTP/1."


class Reply(NamedTuple):
    """What became of a request: a status, or 0 and why there is none."""

    status: int
    error: str = ""
    retry_after: str = ""
    excerpt: bytes = b""
    is_early: bool = False
    """It came before the request was sent: whatever it says, the endpoint does not have all of it."""
    location: str = ""
    """Where a redirect leads, as the endpoint wrote it, if anybody asked for it."""


class Exchange:
    """A request on its way; `done` is called once, on the loop, with the exchange and its reply."""

    __slots__ = ("done", "fresh", "request", "sent_s")

    def __init__(self, request: bytes, done: Callable[[Exchange, Reply], None]) -> None:
        self.request = request
        self.done = done
        self.sent_s = 0.0
        self.fresh = False  # on a connection that has answered nothing yet


class Owner:
    """What a connection tells its pool."""

    def idle(self, connection: Connection) -> None:
        """It can take another request."""

    def lost(self, connection: Connection) -> None:
        """It is closed, or must not be used any more."""

    def unanswered(self, exchange: Exchange) -> None:
        """It was closed before it read this request: another connection may take it."""


class Connection(asyncio.Protocol):
    """See the module. Made by a pool, which is its owner."""

    def __init__(self, owner: Owner, now: Callable[[], float]) -> None:
        self.made_s = self.used_s = now()
        self.answered = 0
        self.exchange: Exchange | None = None
        self._owner = owner
        self._now = now
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._received = 0
        self._has_head = self._has_length = self._is_whole = self._keeps = False
        self._retry_after = ""
        self._excerpt = b""

    # Asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self._drop()
            return
        if not self._received and not data.startswith(_BEGINS[: len(data)]):
            self._fail("a reply that is not HTTP/1")  # the parser takes RTSP, too
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the endpoint switched to another protocol")
            return
        except httptools.HttpParserError as error:
            if not self._is_whole:
                self._fail(f"a reply that is not HTTP: {error}")
                return
            self._keeps = False
        if self._is_whole:
            self._answer(exchange)
        elif self._received > REPLY_BYTES_MAX:
            if self._has_head:  # all that counts is known
                self._answer(exchange)
            else:
                self._fail(f"the head of a reply has more than {REPLY_BYTES_MAX} bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if self._has_head and not self._has_length and exc is None:
            exchange.done(exchange, self._reply())  # the end of the connection is that of the reply
        elif not self._received and self.answered:
            self._owner.unanswered(exchange)
        else:
            where = "in the middle of a reply" if self._received else "without a reply"
            reason = f": {exc}" if exc else ""
            exchange.done(exchange, self._failure(f"connection closed {where}{reason}"))

    # The parser's

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        if key == b"content-length" or key == b"transfer-encoding":
            self._has_length = True
        elif key == b"retry-after":
            self._retry_after = value[:100].decode("latin-1")

    def on_headers_complete(self) -> None:
        self._has_head = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        if (
            len(self._excerpt) < EXCERPT_BYTES_MAX
            and self._parser.get_status_code() >= _FIRST_ERROR
        ):
            self._excerpt += body[: EXCERPT_BYTES_MAX - len(self._excerpt)]

    def on_message_begin(self) -> None:
        if self._is_whole:  # a second reply to one request
            self._keeps = False

    def on_message_complete(self) -> None:
        if self._is_whole:
            return
        if not self._has_head:  # 1xx: the reply is still to come
            self._has_length = False
            return
        self._status = self._parser.get_status_code()
        self._is_whole = True
        self._keeps = self._parser.should_keep_alive()

    # The pool's

    @property
    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def send(self, exchange: Exchange) -> None:
        """Send a request; the connection must be idle."""
        self._reset()
        self.exchange = exchange
        exchange.fresh = not self.answered
        self.used_s = exchange.sent_s = self._now()
        self._transport.write(exchange.request)

    def fail(self, error: str) -> None:
        """Give the request up, and the connection."""
        self._fail(error)

    def close(self) -> None:
        """Close it; a request that is on its way fails."""
        if self.exchange is None:
            self._drop()
        else:
            self._fail("the connection was closed by us")

    # Inside

    def _reply(self) -> Reply:
        status = self._status if self._is_whole else self._parser.get_status_code()
        return Reply(status, "", self._retry_after, self._excerpt)

    def _failure(self, error: str) -> Reply:
        return Reply(0, error)

    def _answer(self, exchange: Exchange) -> None:
        self.exchange = None
        reply = self._reply()
        self.answered += 1
        early = self._transport.get_write_buffer_size() > 0
        if early:
            reply = reply._replace(is_early=True)
        if self._is_whole and self._keeps and not early:
            self._owner.idle(self)
        else:
            self._drop()
        exchange.done(exchange, reply)

    def _fail(self, error: str) -> None:
        exchange, self.exchange = self.exchange, None
        self._drop()
        if exchange is not None:
            exchange.done(exchange, self._failure(error))

    def _drop(self) -> None:
        self._owner.lost(self)
        self._transport.abort()
