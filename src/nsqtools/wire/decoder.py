"""The broker's side of the wire: bytes in, commands out, with nsqd's checks in nsqd's order.

Rules. (1) Every check that needs only the connection (its state, the line, the sizes) is here, in the
order and with the words of the spec (tcp-protocol, 2.1); what needs topics is the session's.
(2) Commands are pulled one at a time, so that the session can move `state` between two commands of
one read. (3) After a fatal error the decoder stays failed.

The hot path is FIN and MPUB: a run of FIN lines is recognised by one regular expression and becomes one
command; an MPUB whose messages have one size is cut by one comprehension.
"""

from __future__ import annotations

import enum
import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from nsqtools.errors import NsqToolsError, ProtocolError
from nsqtools.wire.buffering import Tail
from nsqtools.wire.commands import FIN_LINE_BYTES, MAGIC_V2, SIZE_BYTES, fin
from nsqtools.wire.cutting import same_in_run
from nsqtools.wire.mpub import Batch, MpubWalk, cut_mpub
from nsqtools.wire.names import NAME_LENGTH_MAX, go_quote, is_valid_name
from nsqtools.wire.payloads import ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.wire.bodies import Bodies
    from nsqtools.wire.limits import CommandLimits

    Buffer = bytes | bytearray | memoryview

LINE_MAX_BYTES = 16384
_U64 = 1 << 64
# One command is carried out in one go: more than any client holds, and not a whole read of them.
FIN_RUN_MAX = 4096
# A space would end the id, and a CR behind it belongs to the end of the line (spec: part 1).
_FIN_RUN = re.compile(rb"(?:FIN [^\n ]{15}[^\n\r ]\n){1,%d}" % FIN_RUN_MAX)
# Fewer are matched more quickly than looked at by columns.
_FIN_COLUMNS_MIN = 48
_LF = ord("\n")
_I32: Callable[[Buffer, int], tuple[int]] = struct.Struct(">i").unpack_from


class ClientState(enum.IntEnum):
    """The integer that /stats shows (spec: tcp-protocol, part 1)."""

    INIT = 0
    SUBSCRIBED = 3
    CLOSING = 4


class ConnectionDropped(NsqToolsError):  # noqa: N818
    """The connection ends with no answer, as nsqd ends it (a line too long, an end inside a line)."""


class Identify(NamedTuple):
    body: bytes


class Auth(NamedTuple):
    secret: bytes


class Sub(NamedTuple):
    topic: str
    channel: str


class Rdy(NamedTuple):
    ready_count: int


class Fin(NamedTuple):
    """A run of FIN commands: their lines, as `commands.fin` writes them; see `is_id`."""

    lines: bytes


class Req(NamedTuple):
    message_id: bytes
    delay_ms: int


class Touch(NamedTuple):
    message_id: bytes


class Cls(NamedTuple):
    pass


class Nop(NamedTuple):
    pass


class Pub(NamedTuple):
    """PUB, or DPUB when there is a delay."""

    topic: str
    body: bytes
    delay_ms: int | None


class Mpub(NamedTuple):
    """A batch; of a very long one the first messages, and those that are still to be cut."""

    topic: str
    bodies: Bodies
    rest: Batch | None = None


Command = Identify | Auth | Sub | Rdy | Fin | Req | Touch | Cls | Nop | Pub | Mpub


class _Incomplete(Exception):  # noqa: N818 - not an error: more bytes are needed
    def __init__(self, need: int, reading: tuple[str, str]) -> None:
        self.need = need
        self.reading = reading


_LINE = ("", "")
# "PUB", the longest name, and what stands around them.
_PUB_LINE_MAX_BYTES = NAME_LENGTH_MAX + 6
# What is being read of a message, and the code for one that is cut off there.
_MESSAGE_READING = {
    command: ("E_BAD_MESSAGE", f"{command} failed to read message body")
    for command in ("PUB", "DPUB")
}
_MESSAGE_SIZE_READING = {
    command: (code, f"{text} size") for command, (code, text) in _MESSAGE_READING.items()
}


class CommandDecoder:
    """One connection's commands. The session keeps `state` and `heartbeats` true."""

    def __init__(self, limits: CommandLimits) -> None:
        self.limits = limits
        self.state = ClientState.INIT
        self.heartbeats = True
        self._data = b""
        self._position = 0
        self._tail = Tail()
        self._walk: MpubWalk | None = None
        self._walked: MpubWalk | None = None
        self._reading = _LINE
        self._greeted = False
        # The last line of a PUB that was good: most that publish one by one send it again.
        self._pub_line, self._pub_topic = b"", ""
        self._failure: NsqToolsError | None = None

    def receive(self, data: bytes | memoryview) -> None:
        """Take in what was read; then pull with `next_command` until it gives None."""
        if self._failure is not None:
            return
        walk = self._walk
        joined = self._tail.join(data) if walk is None else self._walk_on(walk, data)
        if joined is not None:
            self._data, self._position, self._walk, self._walked = joined, 0, None, walk

    def _walk_on(self, walk: MpubWalk, data: bytes | memoryview) -> bytes | None:
        self._tail.append(data)
        try:
            self._tail.need = walk.advance(self._tail.kept)
        except ProtocolError as failure:
            self._failure = failure
            return None
        self._reading = walk.reading
        return self._tail.take()

    @property
    def held_bytes(self) -> int:
        """What is kept: of a command that is not all there, and of those not pulled yet."""
        return len(self._tail) + len(self._data) - self._position

    @property
    def is_in_batch(self) -> bool:
        """Whether an MPUB is under way, whose every message is looked at as it comes."""
        return self._walk is not None

    def receive_eof(self) -> ProtocolError | None:
        """The peer has closed: the error to answer when that cut a body off, else None."""
        code, text = self._reading
        return ProtocolError(code, text) if code and len(self._tail) else None

    def take_unread(self) -> bytes:
        """Bytes behind the last command; they belong to the next layer after an upgrade."""
        rest = self._data[self._position :] + bytes(self._tail.kept)
        self._data, self._position, self._tail = b"", 0, Tail()
        return rest

    def next_command(self) -> Command | None:
        """The next whole command, or None when more bytes are needed.

        Raises ProtocolError (answer it; `fatal` says whether to close) or ConnectionDropped (close
        with no answer).
        """
        if self._failure is not None:
            raise self._failure
        if self._position >= len(self._data):
            self._data, self._position = b"", 0
            return None
        try:
            return self._next()
        except _Incomplete as incomplete:
            self._reading = incomplete.reading
            self._tail.keep(self._data[self._position :], incomplete.need - self._position)
            self._data, self._position = b"", 0
            return None
        except NsqToolsError as failure:
            if not isinstance(failure, ProtocolError) or failure.fatal:
                self._failure = failure
            raise

    def _next(self) -> Command:
        if not self._greeted:
            self._greet()
            if self._position >= len(self._data):
                raise _Incomplete(self._position + 1, _LINE)
        if self.state is not ClientState.INIT:
            run = _fin_run(self._data, self._position)
            if run is not None:
                self._position += len(run)
                return Fin(run)
        if self._pub_line and self._data.startswith(self._pub_line, self._position):
            after = self._position + len(self._pub_line)
            return Pub(self._pub_topic, self._message("PUB", after), None)
        name, params, after = self._line()
        parse = _PARSERS.get(name)
        if parse is None:
            raise ProtocolError("E_INVALID", f"invalid command {_text(name)}")
        return parse(self, params, after)

    def _greet(self) -> None:
        if len(self._data) < len(MAGIC_V2):
            raise _Incomplete(len(MAGIC_V2), _LINE)
        if not self._data.startswith(MAGIC_V2):
            raise ProtocolError("E_BAD_PROTOCOL")
        self._greeted = True
        self._position = len(MAGIC_V2)

    def _line(self) -> tuple[bytes, list[bytes], int]:
        start = self._position
        end = self._data.find(b"\n", start, start + LINE_MAX_BYTES)
        if end < 0:
            if len(self._data) - start >= LINE_MAX_BYTES:
                raise ConnectionDropped(f"command line longer than {LINE_MAX_BYTES} bytes")
            raise _Incomplete(len(self._data) + 1, _LINE)
        line = self._data[start:end]
        name, *params = line.removesuffix(b"\r").split(b" ")
        return name, params, end + 1

    # Each parser gets the parameters and the position behind the line, and moves `_position`.

    def _identify(self, _params: list[bytes], after: int) -> Identify:
        self._require(ClientState.INIT, command="IDENTIFY")
        return Identify(self._body(after, "IDENTIFY"))

    def _auth(self, params: list[bytes], after: int) -> Auth:
        self._require(ClientState.INIT, command="AUTH")
        if params:
            raise ProtocolError("E_INVALID", "AUTH invalid number of parameters")
        return Auth(self._body(after, "AUTH"))

    def _sub(self, params: list[bytes], after: int) -> Sub:
        self._require(ClientState.INIT, command="SUB")
        if not self.heartbeats:
            raise ProtocolError("E_INVALID", "cannot SUB with heartbeats disabled")
        _require_params(params, 2, "SUB insufficient number of parameters")
        topic = _name(params[0], "E_BAD_TOPIC", "SUB topic")
        channel = _name(params[1], "E_BAD_CHANNEL", "SUB channel")
        self._position = after
        return Sub(topic, channel)

    def _rdy(self, params: list[bytes], after: int) -> Rdy | Nop:
        if self.state is ClientState.CLOSING:
            self._position = after
            return Nop()
        self._require(ClientState.SUBSCRIBED, command="RDY")
        count = 1
        if params:
            count = _decimal(params[0], "RDY could not parse count")
        if not 0 <= count <= self.limits.max_rdy_count:
            limit = self.limits.max_rdy_count
            raise ProtocolError("E_INVALID", f"RDY count {_signed(count)} out of range 0-{limit}")
        self._position = after
        return Rdy(count)

    def _fin(self, params: list[bytes], after: int) -> Fin:
        message_id = self._message_id("FIN", params, 1)
        self._position = after
        return Fin(fin([message_id]))

    def _req(self, params: list[bytes], after: int) -> Req:
        message_id = self._message_id("REQ", params, 2)
        delay_ms = _decimal(params[1], "REQ could not parse timeout")
        self._position = after
        return Req(message_id, delay_ms)

    def _touch(self, params: list[bytes], after: int) -> Touch:
        message_id = self._message_id("TOUCH", params, 1)
        self._position = after
        return Touch(message_id)

    def _cls(self, _params: list[bytes], after: int) -> Cls:
        self._require(ClientState.SUBSCRIBED, command="CLS")
        self._position = after
        return Cls()

    def _nop(self, _params: list[bytes], after: int) -> Nop:
        self._position = after
        return Nop()

    def _pub(self, params: list[bytes], after: int) -> Pub:
        _require_params(params, 1, "PUB insufficient number of parameters")
        topic = _name(params[0], "E_BAD_TOPIC", "PUB topic")
        if after - self._position <= _PUB_LINE_MAX_BYTES:
            self._pub_line, self._pub_topic = self._data[self._position : after], topic
        return Pub(topic, self._message("PUB", after), None)

    def _dpub(self, params: list[bytes], after: int) -> Pub:
        _require_params(params, 2, "DPUB insufficient number of parameters")
        topic = _name(params[0], "E_BAD_TOPIC", "DPUB topic")
        delay_ms = _decimal(params[1], "DPUB could not parse timeout")
        limit = self.limits.max_req_timeout_ms
        if delay_ms > limit:
            raise ProtocolError("E_INVALID", f"DPUB timeout {delay_ms} out of range 0-{limit}")
        return Pub(topic, self._message("DPUB", after), delay_ms)

    def _mpub(self, params: list[bytes], after: int) -> Mpub:
        _require_params(params, 1, "MPUB insufficient number of parameters")
        # The code really is doubled in nsqd's answer (spec: 2.1).
        topic = _name(params[0], "E_BAD_TOPIC", "E_BAD_TOPIC MPUB topic")
        walked, self._walked = self._walked, None
        found = None if walked else cut_mpub(self._data, after, self.limits)
        if found is not None:
            bodies, self._position = found
            return Mpub(topic, bodies)
        walk = walked or MpubWalk(after - self._position, self.limits)
        if walked is None:
            need = walk.advance(memoryview(self._data)[self._position :])
            if self._position + need > len(self._data):
                self._walk = walk
                raise _Incomplete(self._position + need, walk.reading)
        batch = walk.batch(self._data, self._position)
        self._position += walk.end
        return Mpub(topic, batch.following(), batch if batch.left else None)

    def _require(self, *states: ClientState, command: str) -> None:
        if self.state not in states:
            raise ProtocolError("E_INVALID", f"cannot {command} in current state")

    def _message_id(self, command: str, params: list[bytes], count: int) -> bytes:
        self._require(ClientState.SUBSCRIBED, ClientState.CLOSING, command=command)
        _require_params(params, count, f"{command} insufficient number of params")
        if len(params[0]) != ID_BYTES:
            raise ProtocolError("E_INVALID", "invalid message ID")
        return params[0]

    def _body(self, after: int, command: str) -> bytes:
        reading = ("E_BAD_BODY", f"{command} failed to read body")
        size = self._size(after, (reading[0], reading[1] + " size"))
        limit = self.limits.max_body_size_bytes
        if size > limit:
            raise ProtocolError("E_BAD_BODY", f"{command} body too big {size} > {limit}")
        if size <= 0:
            raise ProtocolError("E_BAD_BODY", f"{command} invalid body size {size}")
        return self._bytes(after + SIZE_BYTES, size, reading)

    def _message(self, command: str, after: int) -> bytes:
        size = self._size(after, _MESSAGE_SIZE_READING[command])
        if size <= 0:
            raise ProtocolError("E_BAD_MESSAGE", f"{command} invalid message body size {size}")
        limit = self.limits.max_msg_size_bytes
        if size > limit:
            raise ProtocolError("E_BAD_MESSAGE", f"{command} message too big {size} > {limit}")
        return self._bytes(after + SIZE_BYTES, size, _MESSAGE_READING[command])

    def _size(self, at: int, reading: tuple[str, str]) -> int:
        if len(self._data) < at + SIZE_BYTES:
            raise _Incomplete(at + SIZE_BYTES, reading)
        size: int = _I32(self._data, at)[0]
        return size

    def _bytes(self, at: int, size: int, reading: tuple[str, str]) -> bytes:
        if len(self._data) < at + size:
            raise _Incomplete(at + size, reading)
        self._position = at + size
        return self._data[at : at + size]


_PARSERS: dict[bytes, Callable[[CommandDecoder, list[bytes], int], Command]] = {
    b"IDENTIFY": CommandDecoder._identify,
    b"AUTH": CommandDecoder._auth,
    b"SUB": CommandDecoder._sub,
    b"RDY": CommandDecoder._rdy,
    b"FIN": CommandDecoder._fin,
    b"REQ": CommandDecoder._req,
    b"TOUCH": CommandDecoder._touch,
    b"CLS": CommandDecoder._cls,
    b"NOP": CommandDecoder._nop,
    b"PUB": CommandDecoder._pub,
    b"DPUB": CommandDecoder._dpub,
    b"MPUB": CommandDecoder._mpub,
}


def is_id(message_id: bytes) -> bool:
    """Whether 16 bytes of a FIN are one parameter: that ends at a space or an LF (spec: part 1)."""
    return b" " not in message_id and b"\n" not in message_id


def _fin_run(data: bytes, start: int) -> bytes | None:
    """The run of FIN lines that begins at `start`; None without one.

    Usually the rest of a read is one run of our own ids. Of a long one no more is looked at than that
    it is made of FINs of that length, and has no CR, which at a line's end is no part of it: who compares
    it with what is in flight asks `is_id` of the rest.
    """
    if not data.startswith(b"FIN ", start):
        return None
    count = min((len(data) - start) // FIN_LINE_BYTES, FIN_RUN_MAX)
    stop = start + count * FIN_LINE_BYTES
    if (
        count >= _FIN_COLUMNS_MIN
        and data[stop - 1] == _LF
        and same_in_run(data, start, stop, FIN_LINE_BYTES, (0, 1, 2, 3, FIN_LINE_BYTES - 1))
        and data.find(b"\r", start, stop) < 0
    ):
        return data[start:stop]
    run = _FIN_RUN.match(data, start)
    return None if run is None else run.group()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _name(raw: bytes, code: str, what: str) -> str:
    name = raw.decode("utf-8", "replace")
    if not is_valid_name(name):
        raise ProtocolError(code, f"{what} name {go_quote(raw)} is not valid")
    return name


def _require_params(params: list[bytes], count: int, text: str) -> None:
    if len(params) < count:
        raise ProtocolError("E_INVALID", text)


def _decimal(raw: bytes, text: str) -> int:
    """Decimal digits only; wraps modulo 2^64, and nothing at all is 0 (spec: part 5)."""
    if raw and not raw.isdigit():
        raise ProtocolError("E_INVALID", f"{text} {_text(raw)}")
    value = 0
    for digit in raw:
        value = (value * 10 + digit - 48) % _U64
    return value


def _signed(value: int) -> int:
    return value - _U64 if value >= _U64 >> 1 else value
