"""Kinds for addresses: `host:port`, and the addresses of nsqlookupd, which may be URLs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nsqtools.options.kinds import Kind

HOST_LENGTH_MAX = 253
PORT_MAX = 65535
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", re.ASCII)
_HOST_V6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_URL = re.compile(r"(https?)://([^/?#\s@]+)(/[^\s?#]*)?(\?[^\s#]*)?", re.ASCII)


def split_address(text: str) -> tuple[str, int]:
    """Host (without brackets) and port of `host:port` or `[::1]:port`.

    Raises ValueError with the reason. An empty host is kept: it means every interface to a
    listener. The port may be 0, which a listener takes as "any free one".
    """
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        raise ValueError("missing port in address, write host:port")
    if not _PORT.fullmatch(port) or int(port) > PORT_MAX:
        raise ValueError("the port should be a number up to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host or not _HOST_V6.fullmatch(host):
            raise ValueError("not an IPv6 address between the brackets")
    elif ":" in host:
        raise ValueError("an IPv6 address goes into brackets, as in [::1]:4150")
    elif host and (len(host) > HOST_LENGTH_MAX or not _HOST.fullmatch(host)):
        raise ValueError("not a host name or an IP address")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`: brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address(Kind[str]):
    """`host:port`. `listen` allows an empty host and port 0, `empty` no address at all, `unix` the
    absolute path of a socket."""

    listen: bool = False
    empty: bool = False
    unix: bool = False
    metavar: str = "ADDRESS"
    explain: str = "host:port, such as 127.0.0.1:4150 or [::1]:4150"

    def parse(self, text: str) -> str:
        if (self.empty and not text) or (self.unix and text.startswith("/")):
            return text
        if text.startswith("/"):
            raise ValueError("a path cannot be used here, write host:port")
        if "://" in text:
            raise ValueError("address should not contain scheme, write host:port")
        host, port = split_address(text)
        if not self.listen and not host:
            raise ValueError("missing host in address, write host:port")
        if not self.listen and not port:
            raise ValueError("the port should not be 0")
        return join_address(host, port)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAddress(Kind[str]):
    """`host:port`, or a full http or https URL (spec: client-behaviour, 4.3)."""

    metavar: str = "ADDRESS"
    explain: str = "host:port, such as 127.0.0.1:4150 or [::1]:4150"

    def parse(self, text: str) -> str:
        if "://" not in text:
            return ADDRESS.parse(text)
        match = _URL.fullmatch(text)
        if match is None:
            raise ValueError("not an http or https URL")
        authority = match[2]
        has_port = ":" in authority.rpartition("]")[2]
        split_address(authority if has_port else f"{authority}:80")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Host(Kind[str]):
    """A host name or IP address without a port."""

    metavar: str = "HOST"

    def parse(self, text: str) -> str:
        pattern = _HOST_V6 if ":" in text else _HOST
        if len(text) > HOST_LENGTH_MAX or not pattern.fullmatch(text):
            raise ValueError("not a host name or an IP address")
        return text


ADDRESS = Address()
LISTEN_ADDRESS = Address(listen=True)
HTTP_ADDRESS = HttpAddress()
HOST = Host()
