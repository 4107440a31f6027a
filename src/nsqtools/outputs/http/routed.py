"""A connection through a proxy, or one whose replies may lead elsewhere.

Apart from `connection`, where each header that is looked at costs something for each request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.outputs.http.connection import Connection, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.outputs.http.connection import Owner
    from nsqtools.outputs.http.proxy import Proxy

LOCATION_BYTES_MAX = 8192
_WANTS_PROXY_AUTHORIZATION = 407
_FIRST_ERROR = 400


class RoutedConnection(Connection):
    """It keeps the header Location, and tells what the proxy is to blame for."""

    def __init__(
        self, owner: Owner, now: Callable[[], float], proxy: Proxy | None, *, is_tunnel: bool
    ) -> None:
        """Within a tunnel it is the endpoint that answers, not the proxy."""
        self._way = "" if proxy is None else f"through proxy {proxy}"
        self._proxy_answers = proxy is not None and not is_tunnel
        super().__init__(owner, now)

    def _reset(self) -> None:
        super()._reset()
        self._location = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if not self._has_head and name.lower() == b"location":
            # Of two the space between them makes what nobody follows.
            found = value.strip(b" \t")[: LOCATION_BYTES_MAX + 1].decode("latin-1")
            self._location = f"{self._location} {found}" if self._location else found

    def on_message_complete(self) -> None:
        if not self._has_head:  # 1xx: the reply is still to come
            self._location = ""
        super().on_message_complete()

    def _reply(self) -> Reply:
        reply = super()._reply()._replace(location=self._location)
        if not self._proxy_answers or reply.status < _FIRST_ERROR:
            return reply
        if reply.status == _WANTS_PROXY_AUTHORIZATION:  # it says nothing of the message
            return self._failure("status 407: credentials are missing or wrong")
        return reply._replace(error=self._way)

    def _failure(self, error: str) -> Reply:
        return Reply(0, f"{error} {self._way}" if self._way else error)
