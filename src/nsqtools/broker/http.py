"""nsqd's HTTP server: connections, routing, and how answers look (spec: nsqd-http, part 1).

Theory of operation. aiohttp parses requests; everything above that follows nsqd to the letter: which
path exists for which method, what a path that is only nearly right is redirected to, and how answers
and errors are written. So there is no router of aiohttp's in between; what the endpoints do is `api`'s.

Everything is bounded: connections, the head of a request, bodies, and the time that each of them may
take; a client that is slower than that is cut off.
"""

from __future__ import annotations

import asyncio
import html
import logging
import posixpath
import re
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from aiohttp import HttpVersion11, web

from nsqtools.broker.api import (
    CONFIG_PATH,
    INTERNAL_ERROR,
    ROUTES,
    Answer,
    Api,
    HttpError,
    Json,
    Request,
)
from nsqtools.errors import StorageError
from nsqtools.options import join_address, render_duration
from nsqtools.wire.gojson import go_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nsqtools.broker.budget import BodyBudget
    from nsqtools.broker.view import BrokerView

log = logging.getLogger("nsqtools.broker.http")

# nsqd has none of these limits; each is far above what an honest client needs.
# How long a request waits for its part of the budget of all bodies.
BODY_WAIT_S = 10.0
LINE_MAX_BYTES = 8190
HEADERS_MAX = 128
# From the accept, or the last answer, to a whole request head.
IDLE_TIMEOUT_S = 75.0
# From there to the last byte of the answer.
REQUEST_TIMEOUT_S = 60.0
# The rest of a body that was refused is read this long, so that the client sees the answer.
LINGER_S = 2.0
STOP_TIMEOUT_S = 2.0

V1_HEADERS = {"X-Nsq-Content-Type": "nsq; version=1.0"}
TEXT = "text/plain; charset=utf-8"
JSON = "application/json; charset=utf-8"
HTML = "text/html; charset=utf-8"
# Paths of the hot requests, which are not logged.
_UNLOGGED = ("/pub", "/mpub")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class HttpApi:
    """The HTTP side of one broker; made on its loop."""

    def __init__(self, broker: BrokerView) -> None:
        self._api = Api(broker)
        self._bodies = broker.bodies
        self._server = _Server(self._handle)

    @property
    def connection_count(self) -> int:
        return len(self._server.connections)

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        return self._server()

    async def stop(self) -> None:
        """End the connections that there are; a request under way gets a moment."""
        self._server.pre_shutdown()
        await self._server.shutdown(STOP_TIMEOUT_S)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; on time, or its connection is cut."""
        began_s = time.perf_counter()
        path, query = _split_target(request.raw_path)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._respond(request, path, query)
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            response = web.Response(status=408)
            if request.transport is not None:
                request.transport.abort()
        if path not in _UNLOGGED:
            log.info(
                "%d %s %s (%s) %s",
                response.status,
                _printable(request.method),
                _printable(request.raw_path),
                _peer(request),
                render_duration(round(time.perf_counter() - began_s, 6)),
            )
        return response

    async def _respond(self, request: web.BaseRequest, path: str, query: str) -> web.Response:
        if is_foreign(request.method, request.headers):
            return _error(403, "FORBIDDEN: web pages of other sites may not change anything")
        found = find_route(request.method, path)
        if isinstance(found, Redirect):
            return _redirect(request.method, found, query)
        if isinstance(found, NoRoute):
            return _no_route(request.method, found.allowed)
        body = _Body(request, self._bodies)
        is_plain = path == "/ping"
        try:
            answer = await found.handler(
                self._api, Request(request.method, query, body, found.name)
            )
            return _ok(answer)
        except HttpError as error:
            response = _error(error.status, error.message, is_plain=is_plain)
            if error.close:
                response.force_close()
            return response
        except StorageError as failure:
            log.error("%s %s failed error=%s", request.method, path, failure)
            return _error(500, INTERNAL_ERROR, is_plain=is_plain)
        except Exception:
            # What nsqd makes of a handler that panics: the server goes on.
            log.exception("unexpected error path=%s", _printable(path))
            return _error(500, INTERNAL_ERROR, is_plain=is_plain)
        finally:
            body.release()


class _Server(web.Server):
    """aiohttp's connections, with limits to what each of them may take."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(
            handler,
            access_log=None,
            logger=_silent_log(),
            keepalive_timeout=IDLE_TIMEOUT_S,
            lingering_time=LINGER_S,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=LINE_MAX_BYTES,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
        )


def _silent_log() -> logging.Logger:
    """aiohttp writes a traceback for every malformed request: anyone could fill the disk with them."""
    silent = logging.getLogger("nsqtools.broker.http.malformed")
    silent.disabled = True
    return silent


class _Body:
    """The body of one request, a holder of the budget; `release` when it is done with."""

    def __init__(self, request: web.BaseRequest, bodies: BodyBudget) -> None:
        self._request = request
        self._bodies = bodies
        self._held_bytes = 0
        self._may_read = asyncio.Event()

    def go_on(self) -> None:
        self._may_read.set()

    def cut(self, reason: str) -> None:
        log.warning("client(%s) closed: %s", _peer(self._request), reason)
        if self._request.transport is not None:
            self._request.transport.abort()

    @property
    def declared_bytes(self) -> int | None:
        return self._request.content_length

    async def read(self, limit_bytes: int) -> bytes:
        await self._continue()
        parts: list[bytes] = []
        size = 0
        try:
            while size <= limit_bytes and (part := await self._request.content.readany()):
                parts.append(part)
                size += len(part)
                await self._hold(len(part))
        except (web.RequestPayloadError, OSError) as error:
            raise HttpError(500, INTERNAL_ERROR, close=True) from error
        if self._held_bytes:
            self._bodies.hold(self, self._held_bytes, is_ours=True)
        return b"".join(parts)[: limit_bytes + 1]

    def release(self) -> None:
        if self._held_bytes:
            self._held_bytes = 0
            self._bodies.hold(self, 0)

    async def _continue(self) -> None:
        """A client may wait for our word before it sends a large body."""
        request = self._request
        expects = request.headers.get("Expect", "").lower() == "100-continue"
        if expects and request.version == HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What was sent does not belong to the answer.
            request.writer.output_size = 0

    async def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        if self._bodies.hold(self, self._held_bytes):
            return
        self._may_read.clear()
        try:
            async with asyncio.timeout(BODY_WAIT_S):
                await self._may_read.wait()
        except TimeoutError as error:
            raise HttpError(503, "OVERLOADED", close=True) from error


# Browsers


def is_foreign(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a web page of another site has made a browser send what would change something.

    Browsers say where a page comes from, in one header or the other; nothing else sends them.
    """
    if method in _SAFE_METHODS:
        return False
    origin = headers.get("Origin")
    if origin is not None:
        scheme, _, host = origin.partition("://")
        is_own = scheme in ("http", "https") and host.lower() == headers.get("Host", "").lower()
        return not is_own
    return headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin")


# Routing


class Route(NamedTuple):
    """What a request leads to, and the name at the end of its path."""

    handler: Callable[[Api, Request], Awaitable[Answer]]
    name: str


class Redirect(NamedTuple):
    """The path that was meant."""

    path: str


class NoRoute(NamedTuple):
    """Nothing there, or not for this method: those that there are."""

    allowed: tuple[str, ...]


def find_route(method: str, path: str) -> Route | Redirect | NoRoute:
    """What `method path` is: an endpoint, nearly one, or none."""
    methods, name = _at(path)
    if method in methods:
        return Route(methods[method], name)
    nearly = _nearly(path)
    if nearly != path and method in _at(nearly)[0]:
        return Redirect(nearly)
    return NoRoute(tuple(sorted({*methods, "OPTIONS"})) if methods else ())


def _at(path: str) -> tuple[dict[str, Callable[[Api, Request], Awaitable[Answer]]], str]:
    name = path.removeprefix(CONFIG_PATH)
    if name != path:
        return (ROUTES[CONFIG_PATH], name) if name and "/" not in name else ({}, "")
    return ROUTES.get(path, {}), ""


def _nearly(path: str) -> str:
    """The path without superfluous slashes and dots, in the case that ours have."""
    if not path.startswith("/"):
        path = f"/{path}"
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean.lower().startswith(CONFIG_PATH):
        return CONFIG_PATH + clean[len(CONFIG_PATH) :]
    return clean.lower()


def _split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target; a path that is not well escaped is no path."""
    origin = _ORIGIN.match(target)
    if origin is not None:
        target = target[origin.end() :] or "/"
    path, _, query = target.partition("#")[0].partition("?")
    if _BAD_ESCAPE.search(path):
        return "", query
    raw = path.encode("utf-8", "surrogateescape")
    return unquote_to_bytes(raw).decode("utf-8", "replace"), query


# Answers


def _response(
    status: int, body: bytes, content_type: str, *, is_plain: bool = False, allow: str = ""
) -> web.Response:
    headers = {"Server": "nsqtools"}
    if not is_plain:
        headers.update(V1_HEADERS)
    if body:
        headers["Content-Type"] = content_type
    if allow:
        headers["Allow"] = allow
    return web.Response(status=status, body=body, headers=headers)


def _ok(answer: Answer) -> web.Response:
    if answer is None:
        return _response(200, b"", "")
    if isinstance(answer, Json):
        return _response(200, go_json(answer.value), JSON)
    return _response(200, answer.text.encode("utf-8", "replace"), TEXT, is_plain=answer.plain)


def _error(status: int, text: str, *, is_plain: bool = False, allow: str = "") -> web.Response:
    if is_plain:
        return _response(status, text.encode("utf-8", "replace"), TEXT, is_plain=True)
    return _response(status, go_json({"message": text}), JSON, allow=allow)


def _no_route(method: str, allowed: tuple[str, ...]) -> web.Response:
    allow = ", ".join(allowed)
    if method == "OPTIONS" and allowed:
        return _response(200, b"", "", is_plain=True, allow=allow)
    if allowed:
        return _error(405, "METHOD_NOT_ALLOWED", allow=allow)
    return _error(404, "NOT_FOUND")


def _redirect(method: str, redirect: Redirect, query: str) -> web.Response:
    location = quote(redirect.path) + (f"?{query}" if query else "")
    status, body = 308, b""
    if method == "GET":
        status = 301
        body = f'<a href="{html.escape(location)}">Moved Permanently</a>.\n\n'.encode()
    response = _response(status, body, HTML, is_plain=True)
    response.headers["Location"] = location
    return response


def _peer(request: web.BaseRequest) -> str:
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    return join_address(peer[0], peer[1]) if isinstance(peer, tuple) else "@"


def _printable(text: str) -> str:
    """Text of a client's for the log, which it must not be able to forge lines of."""
    return "".join(char if char.isprintable() else "?" for char in text)
