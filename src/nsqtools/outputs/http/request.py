"""Requests: messages to the bytes of an HTTP/1.1 request, as little as possible done for each.

What is the same for all messages of a topic is joined once. No header can be injected: names are
tokens, values hold no control characters, and what a message brings is escaped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote_plus

from nsqtools.options import Kind
from nsqtools.outputs.http.template import Template, escape_header, escape_url
from nsqtools.outputs.http.url import Url, split_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nsqtools.outputs.http.proxy import Proxy
    from nsqtools.outputs.http.url import Origin
    from nsqtools.wire.messages import Messages

Method = Literal["GET", "POST"]
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_FORBIDDEN_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# What frames a request is ours.
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "expect", "upgrade", "te"})
GET_FIELD = "%s"
_PLACE = "\0"
_PLACE_BYTES = _PLACE.encode()

# A part of a path that looks like a key: long, of letters and digits.
_KEY = re.compile(r"(?=[^/]*[0-9])(?=[^/]*[A-Za-z])[A-Za-z0-9_~.:-]{22,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that goes with each request; `value` is a template, and may be a secret unless
    `is_public`."""

    name: str
    value: str = field(repr=False)
    is_public: bool = False


class HeaderKind(Kind[Header]):
    """`Name: value`, as NSQ's tool takes it; the value may be a secret."""

    metavar = "HEADER"
    separator = "\n"  # commas and semicolons are common in values
    hidden = True

    def parse(self, text: str) -> Header:
        name, colon, value = text.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not name or not value:
            raise ValueError("value format should be 'Name: value'")
        if not _TOKEN.fullmatch(name):
            raise ValueError("the name holds a character that a header cannot have")
        if name.lower() in _OURS:
            raise ValueError(f"{name} is set by this program")
        if _FORBIDDEN_IN_VALUE.search(value):
            raise ValueError("the value holds a control character")
        if not _is_latin(value):
            raise ValueError("the value holds a character that a header cannot have")
        header_template(value, {})
        return Header(name=name, value=value)

    def render(self, value: Header) -> str:
        return f"{value.name}: ***"


def _is_latin(value: str) -> bool:
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


HEADER = HeaderKind()


def header_template(value: str, fixed: Mapping[str, str]) -> Template:
    """Raises ValueError for a field that is not known."""
    return Template(value, fixed=fixed, escape=escape_header)


def values_of(messages: Messages, at: int) -> dict[str, str]:
    """What templates can say of a message."""
    return {
        "id": messages.ids[at].decode("latin-1"),
        "timestamp": str(messages.timestamps[at]),
        "attempts": str(messages.attempts[at]),
        "nsqd": messages.nsqd,
    }


class HeaderName(Kind[str]):
    """The name of a header."""

    metavar = "NAME"

    def parse(self, text: str) -> str:
        return HEADER.parse(f"{text}: value").name


HEADER_NAME = HeaderName()


def lines_of(headers: Iterable[Header]) -> str:
    """As they stand in a head; a template still."""
    return "".join(f"{one.name}: {one.value}\r\n" for one in headers)


def directly(_: Origin) -> None:
    """The way without a proxy."""


def way(proxy: Proxy | None, origin: Origin, authority: str) -> tuple[str, str]:
    """What stands before the path in a request line, and the header lines, for a proxy that reads them:
    one that tunnels does not."""
    if proxy is None or origin.is_tls:
        return "", ""
    return f"http://{authority}", proxy.lines


class RequestMaker:
    """The requests of one topic to one endpoint.

    `sign` gives header lines, each with its end of line, that are made from a body; `proxy_of` says
    which proxy they go through.
    """

    def __init__(
        self,
        method: Method,
        url: str,
        headers: Sequence[Header],
        *,
        fixed: Mapping[str, str],
        sign: Callable[[bytes], bytes] | None = None,
        proxy_of: Callable[[Origin], Proxy | None] = directly,
    ) -> None:
        """`fixed` are `topic` and `channel`. Raises ValueError for what is no URL with these, and for a
        proxy that cannot be used."""
        parsed = split_url(url, fixed)
        self.method = method
        self.origin: Origin = parsed.origin
        self._authority = parsed.authority
        self.proxy = proxy_of(parsed.origin)
        # For messages: a query may hold a secret, and a path, as those of webhooks do.
        path = parsed.target.partition("?")[0]
        for name, value in fixed.items():
            path = path.replace(f"{{{name}}}", escape_url(value))
        path = _KEY.sub("***", path)
        self.label = f"{url.partition('://')[0]}://{parsed.authority}{path}"
        self._sign = sign
        self._is_get = method == "GET"
        # The body's place is marked with what cannot stand in a URL.
        target = parsed.target.replace(GET_FIELD, _PLACE) if self._is_get else parsed.target
        named = {one.name.lower(): one for one in headers}  # the last one counts
        host = named.pop("host", Header(name="Host", value=parsed.authority))
        self._start, proxy_lines = way(self.proxy, self.origin, parsed.authority)
        first = f"{method} {self._start}{target} HTTP/1.1"
        first_line = Template(first, fixed=fixed, escape=escape_url)
        lines = lines_of([host, *named.values()]) + proxy_lines
        self._first, self._lines = first_line, header_template(lines, fixed)
        public = {one.name.lower(): one for one in headers if one.is_public}
        self._public_lines = header_template(lines_of(public.values()), fixed)
        self.is_fixed = first_line.is_fixed and self._lines.is_fixed
        self._fixed_head = self._head({}) if self.is_fixed else b""

    def _head(self, values: Mapping[str, str]) -> bytes:
        text = f"{self._first.render(values)}\r\n{self._lines.render(values)}"
        return text.encode("latin-1", "replace")

    def make(self, body: bytes, values: Mapping[str, str]) -> bytes:
        """The request for a body; `values` is looked at only where not all `is_fixed`."""
        head = self._fixed_head or self._head(values)
        signature = b"" if self._sign is None else self._sign(body)
        if self._is_get:
            head = head.replace(_PLACE_BYTES, quote_plus(body).encode("ascii"), 1)
            return b"%b%b\r\n" % (head, signature)
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (head, len(body), signature, body)

    def url_of(self, request: bytes) -> Url:
        """What a request of `make` asks for; its target is no template any more."""
        target = request.split(b" ", 2)[1].decode("latin-1").removeprefix(self._start)
        return Url(origin=self.origin, authority=self._authority, target=target)

    def redirected(
        self,
        url: Url,
        body: bytes,
        values: Mapping[str, str],
        proxy: Proxy | None,
        *,
        is_elsewhere: bool,
    ) -> bytes:
        """The request for a body, sent on to `url`, whose target is no template. With `is_elsewhere` it
        goes to somebody else, who gets neither a signature nor a header that is not public."""
        if is_elsewhere:
            start, proxy_lines = way(proxy, url.origin, url.authority)
            public = self._public_lines.render(values)
            lines = f"Host: {url.authority}\r\n{public}{proxy_lines}"
        else:
            start, lines = self._start, self._lines.render(values)
        head = f"{self.method} {start}{url.target} HTTP/1.1\r\n{lines}".encode("latin-1", "replace")
        signature = b"" if is_elsewhere or self._sign is None else self._sign(body)
        if self._is_get:
            return b"%b%b\r\n" % (head, signature)
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (head, len(body), signature, body)
