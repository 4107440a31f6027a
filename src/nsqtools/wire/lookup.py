"""nsqlookupd's two languages, sans-IO: TCP protocol V1 and the answers of its HTTP API.

TCP (spec: lookupd, A1), nsqd to nsqlookupd:

    "  V1"                                     once
    IDENTIFY LF i32 length, JSON               ──►  i32 length, JSON
    REGISTER topic [channel] LF                ──►  i32 length, "OK"
    UNREGISTER topic [channel] LF              ──►  i32 length, "OK"
    PING LF                                    ──►  i32 length, "OK"

Every command gets one reply, in order; an error reply is the last one. `CommandReader` is the
server's side, `ReplyReader` and the `encode_...` functions the client's. Legal moves of a server:

    state        PING   IDENTIFY       REGISTER, UNREGISTER
    new          ok     → identified   E_INVALID client must IDENTIFY
    identified   ok     E_INVALID      ok
    failed       the first error again, for good

Lengths are checked before anything is kept: the reference dies of a negative one (spec: lookupd,
A7).

HTTP: `parse_producers` and `parse_names` take a 200 body. What other machines will connect to is
checked entry by entry, so that one bad entry does not hide the good ones.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass

from nsqtools.errors import ProtocolError
from nsqtools.wire.gojson import JsonFields, MalformedJson, go_json
from nsqtools.wire.names import is_valid_name

MAGIC_V1 = b"  V1"
OK = b"OK"
PING = b"PING\n"
# The reference has no limit on a line; this is nsqd's own on its port.
COMMAND_LINE_BYTES_MAX = 16_384
IDENTIFY_BYTES_MAX = 65_536
REPLY_BYTES_MAX = 65_536
HOST_LENGTH_MAX = 253
PORT_MAX = 65_535
# More nsqds than any cluster has, few enough to connect to.
PRODUCERS_MAX = 4_096

_LENGTH = struct.Struct(">i")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """What an nsqd and an nsqlookupd tell each other when they meet."""

    broadcast_address: str
    tcp_port: int
    http_port: int
    version: str
    hostname: str = ""
    topology_region: str = ""
    topology_zone: str = ""

    @classmethod
    def from_fields(cls, fields: JsonFields) -> PeerInfo:
        """Read a JSON object; raises MalformedJson. Nothing is required here."""
        return cls(
            broadcast_address=fields.text("broadcast_address"),
            tcp_port=fields.integer("tcp_port"),
            http_port=fields.integer("http_port"),
            version=fields.text("version"),
            hostname=fields.text("hostname"),
            topology_region=fields.text("topology_region"),
            topology_zone=fields.text("topology_zone"),
        )

    @property
    def http_address(self) -> str:
        """`host:port` of the HTTP API; raises ProtocolError when that cannot be an address."""
        return join_address(self.broadcast_address, self.http_port)


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address.

    Raises ProtocolError when it is not an address that one could connect to.
    """
    if not 1 <= port <= PORT_MAX:
        raise ProtocolError("E_INVALID", f"port {port} is out of range 1-{PORT_MAX}")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        if not _is_ipv6(bare):
            raise ProtocolError("E_INVALID", f"{host[:HOST_LENGTH_MAX]!r} is not a host")
        return f"[{bare}]:{port}"
    if len(host) > HOST_LENGTH_MAX or not _HOST.fullmatch(host):
        raise ProtocolError("E_INVALID", f"{host[:HOST_LENGTH_MAX]!r} is not a host")
    return f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """The host, without brackets, and the port of `host:port`; raises ProtocolError."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= len(str(PORT_MAX))):
        raise ProtocolError("E_INVALID", "missing port")
    if ":" in host and not host.startswith("["):
        raise ProtocolError("E_INVALID", "an IPv6 address needs brackets")
    join_address(host, int(port))
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    if len(text) > HOST_LENGTH_MAX or (percent and not _ZONE.fullmatch(zone)):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


# The client's side


def encode_identify(peer: PeerInfo) -> bytes:
    body = go_json(
        {
            "version": peer.version,
            "tcp_port": peer.tcp_port,
            "http_port": peer.http_port,
            "hostname": peer.hostname,
            "broadcast_address": peer.broadcast_address,
            "topology_zone": peer.topology_zone,
            "topology_region": peer.topology_region,
        }
    )
    return b"IDENTIFY\n" + _LENGTH.pack(len(body)) + body


def encode_register(topic: str, channel: str | None = None) -> bytes:
    """The command, or ProtocolError for a name that no server would take."""
    return _encode_registration("REGISTER", topic, channel)


def encode_unregister(topic: str, channel: str | None = None) -> bytes:
    """The command, or ProtocolError for a name that no server would take."""
    return _encode_registration("UNREGISTER", topic, channel)


def _encode_registration(command: str, topic: str, channel: str | None) -> bytes:
    _check_names(command, topic, channel)
    names = topic if channel is None else f"{topic} {channel}"
    return f"{command} {names}\n".encode()


def _check_names(command: str, topic: str, channel: str | None) -> None:
    if not is_valid_name(topic):
        raise ProtocolError("E_BAD_TOPIC", f"{command} topic name '{topic}' is not valid")
    if channel is not None and not is_valid_name(channel):
        raise ProtocolError("E_BAD_CHANNEL", f"{command} channel name '{channel}' is not valid")


class ReplyReader:
    """Cuts what nsqlookupd sends into replies."""

    def __init__(self, max_bytes: int = REPLY_BYTES_MAX) -> None:
        self._max_bytes = max_bytes
        self._input = bytearray()

    def receive_data(self, data: bytes) -> None:
        self._input += data

    def next_reply(self) -> bytes | None:
        """The next whole reply, or None; raises ProtocolError, for good, for a bad length."""
        if len(self._input) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._input)
        if not 0 <= length <= self._max_bytes:
            raise ProtocolError(
                "E_INVALID", f"reply of {length} bytes, expected at most {self._max_bytes}"
            )
        end = _LENGTH.size + length
        if len(self._input) < end:
            return None
        reply = bytes(self._input[_LENGTH.size : end])
        del self._input[:end]
        return reply


def check_ok(reply: bytes) -> None:
    """Raise the ProtocolError that a reply stands for, unless it is `OK`."""
    if reply != OK:
        raise _error_in(reply)


def parse_identify_reply(reply: bytes) -> PeerInfo:
    """Who the nsqlookupd is; raises ProtocolError for an error reply and for nonsense."""
    if not reply.startswith(b"{"):
        raise _error_in(reply)
    try:
        peer = PeerInfo.from_fields(JsonFields.decode(reply))
    except MalformedJson as error:
        raise ProtocolError("E_BAD_BODY", f"IDENTIFY reply: {error}") from error
    join_address(peer.broadcast_address, peer.http_port)
    return peer


def _error_in(reply: bytes) -> ProtocolError:
    code, _, description = reply.decode("utf-8", "backslashreplace").partition(" ")
    if code.startswith("E_"):
        return ProtocolError(code, description)
    return ProtocolError("E_INVALID", f"unexpected reply {reply[:64]!r}")


# The server's side


@dataclass(frozen=True, slots=True, kw_only=True)
class Identify:
    """Who the nsqd is; the first command of a connection but PING."""

    peer: PeerInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """A topic, or a channel, that the nsqd has."""

    topic: str
    channel: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unregister:
    """One that it has no more."""

    topic: str
    channel: str | None


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


LookupCommand = Identify | Register | Unregister | Ping


def encode_reply(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def encode_error(error: ProtocolError) -> bytes:
    """The reply to send before closing."""
    return encode_reply(str(error).encode("utf-8", "surrogateescape"))


def identify_reply(server: PeerInfo) -> bytes:
    """The data of the reply to IDENTIFY, keys in the reference's order."""
    return go_json(
        {
            "broadcast_address": server.broadcast_address,
            "hostname": server.hostname,
            "http_port": server.http_port,
            "tcp_port": server.tcp_port,
            "version": server.version,
        }
    )


class CommandReader:
    """Reads what one nsqd sends, from its first byte.

    Errors carry nsqlookupd's exact texts; all are fatal.
    """

    def __init__(self) -> None:
        self._input = bytearray()
        self._begun = False
        self._identified = False
        self._body_bytes: int | None = None
        self._in_body = False
        self._failure: ProtocolError | None = None

    def receive_data(self, data: bytes) -> None:
        if self._failure is None:
            self._input += data

    def next_command(self) -> LookupCommand | None:
        """The next whole command, or None when more bytes are needed; raises ProtocolError."""
        if self._failure is None:
            try:
                return self._next()
            except ProtocolError as error:
                self._failure = error
                self._input.clear()
        raise self._failure

    def receive_eof(self) -> None:
        """Say that nothing more will come; raises ProtocolError inside an IDENTIFY body."""
        if self._in_body and self._failure is None:
            part = "body size" if self._body_bytes is None else "body"
            raise ProtocolError("E_BAD_BODY", f"IDENTIFY failed to read {part}")

    def _next(self) -> LookupCommand | None:
        if not self._begun and not self._take_magic():
            return None
        if self._in_body:
            return self._take_body()
        end = self._input.find(b"\n", 0, COMMAND_LINE_BYTES_MAX)
        if end < 0:
            if len(self._input) >= COMMAND_LINE_BYTES_MAX:
                raise ProtocolError("E_INVALID", "command line too long")
            return None
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        return self._command(line.strip().decode("utf-8", "surrogateescape").split(" "))

    def _take_magic(self) -> bool:
        if len(self._input) < len(MAGIC_V1):
            return False
        if not self._input.startswith(MAGIC_V1):
            raise ProtocolError("E_BAD_PROTOCOL")
        del self._input[: len(MAGIC_V1)]
        self._begun = True
        return True

    def _command(self, params: list[str]) -> LookupCommand | None:
        name = params[0]
        if name == "PING":
            return Ping()
        if name == "IDENTIFY":
            if self._identified:
                raise ProtocolError("E_INVALID", "cannot IDENTIFY again")
            self._in_body = True
            return self._take_body()
        if name not in ("REGISTER", "UNREGISTER"):
            raise ProtocolError("E_INVALID", f"invalid command {name}")
        if not self._identified:
            raise ProtocolError("E_INVALID", "client must IDENTIFY")
        if len(params) < 2:
            raise ProtocolError("E_INVALID", f"{name} insufficient number of params")
        topic, channel = params[1], (params[2] if len(params) > 2 and params[2] else None)
        _check_names(name, topic, channel)
        make = Register if name == "REGISTER" else Unregister
        return make(topic=topic, channel=channel)

    def _take_body(self) -> Identify | None:
        if self._body_bytes is None:
            if len(self._input) < _LENGTH.size:
                return None
            (self._body_bytes,) = _LENGTH.unpack_from(self._input)
            del self._input[: _LENGTH.size]
            if not 0 <= self._body_bytes <= IDENTIFY_BYTES_MAX:
                raise ProtocolError("E_BAD_BODY", "IDENTIFY failed to read body")
        if len(self._input) < self._body_bytes:
            return None
        body = bytes(self._input[: self._body_bytes])
        del self._input[: self._body_bytes]
        self._in_body, self._identified = False, True
        return Identify(peer=_parse_peer(body))


def _parse_peer(body: bytes) -> PeerInfo:
    try:
        peer = PeerInfo.from_fields(JsonFields.decode(body))
    except MalformedJson as error:
        raise ProtocolError("E_BAD_BODY", "IDENTIFY failed to decode JSON body") from error
    if not (peer.broadcast_address and peer.tcp_port and peer.http_port and peer.version):
        raise ProtocolError("E_BAD_BODY", "IDENTIFY missing fields")
    return peer


# The HTTP API, as a client reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one nsqlookupd said; `refused` are the entries that cannot be, for a warning."""

    values: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()


def parse_producers(body: bytes, port: str = "tcp_port") -> Answer:
    """The nsqds of a `/lookup` answer as `host:port` of this port (spec: lookupd, A3).

    Raises ProtocolError when the answer as a whole is not one.
    """
    try:
        producers = _answer_fields(body, "producers").sections("producers")
    except MalformedJson as error:
        raise _no_answer(str(error)) from error
    if len(producers) > PRODUCERS_MAX:
        raise _no_answer(f"{len(producers)} producers, expected at most {PRODUCERS_MAX}")
    values: set[str] = set()
    refused: list[str] = []
    for producer in producers:
        try:
            host = producer.text("broadcast_address")
            values.add(join_address(host, producer.integer(port)))
        except MalformedJson as error:
            refused.append(str(error))
        except ProtocolError as error:
            refused.append(error.description)
    return Answer(values=frozenset(values), refused=tuple(refused))


def parse_names(body: bytes, member: str) -> Answer:
    """The names of a `/topics` or `/channels` answer; raises ProtocolError as `parse_producers`."""
    try:
        names = _answer_fields(body, member).texts(member)
    except MalformedJson as error:
        raise _no_answer(str(error)) from error
    good = frozenset(filter(is_valid_name, names))
    return Answer(values=good, refused=tuple(name for name in names if name not in good))


def says_topic_not_found(body: bytes) -> bool:
    """Whether the body of a 404 means an unknown topic, and not a wrong URL."""
    return b"TOPIC_NOT_FOUND" in body


def _answer_fields(body: bytes, member: str) -> JsonFields:
    fields = JsonFields.decode(body)
    if member not in fields and "data" in fields:
        # Before 1.0 answers came wrapped: {"status_code": ..., "status_txt": ..., "data": ...}
        status = fields.integer("status_code", 200)
        if status != 200:
            raise MalformedJson(f"status_code {status} {fields.text('status_txt')[:64]}")
        fields = fields.section("data")
    if member not in fields:
        raise MalformedJson(f"no {member}")
    return fields


def _no_answer(reason: str) -> ProtocolError:
    return ProtocolError("E_INVALID", f"answer not understood: {reason}")
