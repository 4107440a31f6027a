"""URLs of endpoints: where to connect, and what to ask for.

https://host:port/path?query            HTTP/1.1 with TLS
http+unix://%2Frun%2Fapp.sock/path      by a Unix socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from nsqtools.options import join_address, split_address
from nsqtools.outputs.http.template import Template, escape_url

if TYPE_CHECKING:
    from collections.abc import Mapping

_URL = re.compile(r"(https?|http\+unix)://([^/?#]*)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
# What need not be escaped in a target; `%` because what is escaped already stays so.
_SAFE = "!$&'()*+,/:;=?@[]-._~%{}|"
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
URL_LENGTH_MAX = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who is asked: `host` and `port`, or the `socket_path` of a Unix socket."""

    is_tls: bool
    host: str
    port: int
    socket_path: str = ""

    def __str__(self) -> str:
        if self.socket_path:
            return self.socket_path
        return join_address(self.host, self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """`authority` is what the header Host says; `target` what the request line asks for, a template
    still."""

    origin: Origin
    authority: str
    target: str


def split_url(text: str, fixed: Mapping[str, str]) -> Url:
    """The parts of a URL; `fixed` are the fields that may stand in its host.

    Raises ValueError with the reason.
    """
    if len(text) > URL_LENGTH_MAX:
        raise ValueError(f"longer than {URL_LENGTH_MAX} characters")
    if _CONTROL.search(text):
        raise ValueError("holds a space or a control character, write it as %20")
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError("not an http, https or http+unix URL")
    host = Template(match[2], fixed=fixed, escape=escape_url)
    if not host.is_fixed:
        raise ValueError("only {topic} and {channel} may stand in the host")
    return _join(match[1].lower(), host.render({}), (match[3] or "/") + (match[4] or ""))


def _join(scheme: str, authority: str, target: str) -> Url:
    target = quote(target, safe=_SAFE)
    if "@" in authority:
        raise ValueError("holds credentials, which other users could read: use --basic-auth-file")
    if scheme == "http+unix":
        return Url(origin=_socket(authority), authority="localhost", target=target)
    has_port = ":" in authority.rpartition("]")[2]
    host, port = split_address(authority if has_port else f"{authority}:{_PORTS[scheme]}")
    if not host or not port:
        raise ValueError("missing host or port")
    origin = Origin(is_tls=scheme == "https", host=host, port=port)
    return Url(origin=origin, authority=authority, target=target)


def _socket(authority: str) -> Origin:
    path = unquote(authority)
    if not path.startswith("/"):
        raise ValueError("a socket is an absolute path, as in http+unix://%2Frun%2Fapp.sock/")
    return Origin(is_tls=False, host="", port=0, socket_path=path)
