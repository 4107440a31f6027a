"""HTTP connections that get one page each, bounded in number, size and time; aiohttp parses.

Imported by whoever serves something: aiohttp costs a quarter of a second and ten megabytes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from nsqtools.observe.page import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.observe.page import Page

# Scrapers and probes ask one thing at a time; more connections than this are no honest client's.
CONNECTIONS_MAX = 32
# From the accept to the end of a connection, whatever happens on it.
CONNECTION_TIMEOUT_S = 10.0
LINE_MAX_BYTES = 2048
HEADERS_MAX = 64


class PageServer(web.Server):
    """A protocol factory for `loop.create_server`. `answer` gets method and path; it must not block.

    Bodies are not read, and every connection ends with its answer.
    """

    def __init__(self, answer: Callable[[str, str], Page]) -> None:
        super().__init__(
            self._respond,
            access_log=None,
            logger=_silent_log(),
            lingering_time=0,
            max_line_size=LINE_MAX_BYTES,
            max_field_size=LINE_MAX_BYTES,
            max_headers=HEADERS_MAX,
            auto_decompress=False,
        )
        self._pages = answer
        self._deadlines: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        self._deadlines[handler] = loop.call_later(CONNECTION_TIMEOUT_S, transport.abort)

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        if deadline := self._deadlines.pop(handler, None):
            deadline.cancel()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        page = self._pages(request.method, request.path)
        headers = {
            "Content-Type": page.content_type,
            "Cache-Control": "no-store",
            "Server": "nsqtools",  # and not which versions of what there are
        }
        if page.status == 405:
            headers["Allow"] = ", ".join(METHODS)
        body = page.text.encode("utf-8", "replace")
        response = web.Response(status=page.status, body=body, headers=headers)
        response.force_close()
        return response


def _silent_log() -> logging.Logger:
    """aiohttp writes a traceback for every malformed request: anyone could fill the disk with them."""
    silent = logging.getLogger("nsqtools.status.malformed")
    silent.disabled = True
    return silent
