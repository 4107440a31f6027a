"""Proxies: which one is asked for an endpoint, as the environment or the user says.

    http_proxy, HTTP_PROXY      for http:// endpoints
    https_proxy, HTTPS_PROXY    for https:// endpoints
    all_proxy, ALL_PROXY        where the one above is not set
    no_proxy, NO_PROXY          host, .suffix, host:port, address, 10.0.0.0/8, or *

Of two spellings the lower case one counts, as for curl. As for NSQ's own tools (Go), `localhost` and
addresses of loopback are never asked by a proxy that the environment names. One that the user names is
asked for everything but what NO_PROXY lists. Unix sockets need none.

A proxy is spoken to in plain HTTP: a whole URL in the request line for an http:// endpoint, a tunnel
(CONNECT) with TLS inside for an https:// one.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from nsqtools.options import Kind, join_address, split_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsqtools.outputs.http.url import Origin

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROXY_LENGTH_MAX = 8192
_PROXY = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:(.*)@)?([^/?#@\s]+)/?", re.DOTALL)
_PORT = 80
_SEPARATORS = re.compile(r"[\s,]+")
_SECRET_LENGTH_MIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where it listens; `authorization` is what Proxy-Authorization says, if anything."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return join_address(self.host, self.port)

    @property
    def lines(self) -> str:
        """Lines of a head, for the proxy alone."""
        return f"Proxy-Authorization: {self.authorization}\r\n" if self.authorization else ""


def split_proxy(text: str) -> Proxy:
    """The proxy of a URL, `http://[user:password@]host[:port]`. Raises ValueError with the reason, which
    tells nothing of the password."""
    match = _PROXY.fullmatch(text)
    if match is None or len(text) > PROXY_LENGTH_MAX:
        raise ValueError("not the URL of a proxy, write http://host:port")
    scheme, user, authority = match.groups()
    if scheme and scheme.lower() != "http":
        raise ValueError(f"a proxy is spoken to by http://, not by {scheme.lower()}://")
    has_port = ":" in authority.rpartition("]")[2]
    host, port = split_address(authority if has_port else f"{authority}:{_PORT}")
    if not host or not port:
        raise ValueError("missing host or port")
    return Proxy(host=host, port=port, authorization=basic(user) if user else "")


def basic(user: str) -> str:
    """What `user:password`, percent-encoded as in a URL, says in a header."""
    name, colon, password = user.partition(":")
    plain = unquote_to_bytes(name) + b":" + unquote_to_bytes(password if colon else "")
    return f"Basic {base64.b64encode(plain).decode('ascii')}"


class ProxyKind(Kind[str]):
    """The URL of a proxy, without credentials."""

    metavar = "URL"

    def parse(self, text: str) -> str:
        if split_proxy(text).authorization:
            raise ValueError(
                "holds credentials, which other users could read: use --proxy-auth-file"
            )
        return text


class Bypass:
    """What is asked without a proxy: the words of NO_PROXY. What is no such word matches nothing."""

    def __init__(self, text: str = "") -> None:
        self._all = False
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._hosts: list[tuple[str, int]] = []
        for word in filter(None, _SEPARATORS.split(text)):
            self._add(word.lower())

    def _add(self, word: str) -> None:
        if word == "*":
            self._all = True
        elif "/" in word:
            try:
                self._networks.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                return
        else:
            self._hosts.append(_host_and_port(word))

    def has(self, host: str, port: int) -> bool:
        """Whether it is asked directly."""
        name = host.lower().rstrip(".")
        address = address_of(name)
        if self._all or (address and any(address in one for one in self._networks)):
            return True
        return any(
            listed_port in (0, port) and _is_within(name, address, listed)
            for listed, listed_port in self._hosts
        )


def _host_and_port(word: str) -> tuple[str, int]:
    """A port of 0 stands for all of them."""
    host, colon, port = word.rpartition(":")
    if colon and port.isdecimal() and (":" not in host or host.endswith("]")):
        return host.strip("[]").rstrip("."), int(port[:6])
    return word.strip("[]").rstrip("."), 0


def _is_within(name: str, address: Address | None, listed: str) -> bool:
    if address is not None:
        return address == address_of(listed)
    suffix = listed.removeprefix("*").removeprefix(".")
    return bool(suffix) and (name == suffix or name.endswith(f".{suffix}"))


def address_of(host: str) -> Address | None:
    """None for a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether it is this machine, by its name or address."""
    address = address_of(host)
    return host.lower().rstrip(".") == "localhost" or (address is not None and address.is_loopback)


class Proxies:
    """Which proxy is asked for what. Without arguments: none, ever."""

    def __init__(
        self,
        *,
        http: str = "",
        https: str = "",
        bypass: str = "",
        forced: Proxy | None = None,
    ) -> None:
        """URLs of proxies, and the words of NO_PROXY; `forced` is one that the user named."""
        self._urls = (("http_proxy", http), ("https_proxy", https))
        self._bypass = Bypass(bypass)
        self._forced = forced

    def of(self, origin: Origin) -> Proxy | None:
        """None where it is asked directly. Raises ValueError for a proxy that cannot be used, without
        its password."""
        if origin.socket_path or self._bypass.has(origin.host, origin.port):
            return None
        if self._forced is not None:
            return self._forced
        name, url = self._urls[origin.is_tls]
        if not url or is_loopback(origin.host):
            return None
        try:
            return split_proxy(url)
        except ValueError as error:
            raise ValueError(f"{name} or all_proxy of the environment: {error}") from None

    def secrets(self) -> list[str]:
        """What is told to proxies in confidence."""
        found = [] if self._forced is None else [self._forced.authorization]
        for _, url in self._urls:
            try:
                found.append(split_proxy(url).authorization)
            except ValueError:  # told where it would be used
                continue
        return [secret for secret in found if len(secret) >= _SECRET_LENGTH_MIN]


def from_environment(environ: Mapping[str, str]) -> Proxies:
    """What the environment says."""
    every = _first(environ, "all_proxy")
    return Proxies(
        http=_first(environ, "http_proxy") or every,
        https=_first(environ, "https_proxy") or every,
        bypass=_first(environ, "no_proxy"),
    )


def forced_on(proxy: Proxy, environ: Mapping[str, str]) -> Proxies:
    """One proxy for everything but what NO_PROXY lists."""
    return Proxies(forced=proxy, bypass=_first(environ, "no_proxy"))


def _first(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""
