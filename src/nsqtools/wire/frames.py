"""Frames from nsqd to a client (spec: tcp-protocol, part 1), big-endian:

    i32 size = 4 + len(data) | i32 type: 0 response, 1 error, 2 message | data

Theory of operation. Decoding is the consumer's hottest path, so one pass over a read makes parallel
columns (`Messages`), not an object per message, and copies nothing: it notes where messages lie.
Neighbouring messages often have one size; then the headers of a whole run are compared by strided slices
(one C call for each of the eight header bytes), ten times faster than header by header. The run that is
tried grows while it holds; after one that did not hold, a number of messages go header by header, so
that mixed sizes pay next to nothing for it.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

from nsqtools.errors import ProtocolError, ServerError
from nsqtools.wire.buffering import Tail
from nsqtools.wire.cutting import same_in_run
from nsqtools.wire.messages import Messages
from nsqtools.wire.payloads import (
    FRAME_HEADER_BYTES,
    PAYLOAD_HEADER,
    PAYLOAD_HEADER_BYTES,
    Apart,
    Mixed,
    Span,
)

if TYPE_CHECKING:
    from nsqtools.wire.payloads import Payloads

RESPONSE = 0
ERROR = 1
MESSAGE = 2

HEARTBEAT = b"_heartbeat_"
OK = b"OK"
CLOSE_WAIT = b"CLOSE_WAIT"

# Those of nsqd (spec: tcp-protocol, part 2).
ERROR_CODES = (
    frozenset({"E_INVALID", "E_UNAUTHORIZED", "E_WAIT"})
    .union(f"E_BAD_{what}" for what in ("BODY", "TOPIC", "CHANNEL", "MESSAGE", "PROTOCOL"))
    .union(
        f"E_{what}_FAILED"
        for what in ("PUB", "MPUB", "DPUB", "FIN", "REQ", "TOUCH", "SUB", "AUTH", "IDENTIFY")
    )
    .union(f"E_AUTH_{what}" for what in ("FIRST", "DISABLED", "ERROR"))
)

# What is kept of an error's text.
_ERROR_MAX_BYTES = 1 << 10
# An id is hexadecimal; whatever else stands there is no id of ours.
_FIN_FAILED = re.compile(r"FIN ([!-~]{16}) ")
_HEADER = struct.Struct(">ii")
_SIZE_FIELD_BYTES = 4
# The size that a frame would have of which the first bytes are those of a reply by HTTP.
_HTTP_SIZE = int.from_bytes(b"HTTP")
# What a client accepts from a server. nsqd's own limit is its --max-msg-size (1 MiB by default), which
# a client is not told; this bounds what a broken or hostile peer can make us hold.
BODY_SIZE_MAX_BYTES = 64 << 20
FRAME_SIZE_MAX_BYTES = BODY_SIZE_MAX_BYTES + _SIZE_FIELD_BYTES + PAYLOAD_HEADER_BYTES
# The same of a response or an error: nsqd's are short, and IDENTIFY's answer is one of 20 members.
OTHER_SIZE_MAX_BYTES = 64 << 10
_MESSAGE_SIZE_MIN = 4 + PAYLOAD_HEADER_BYTES
# How much of a message that is too large has to be there to know which one it is.
_OVERSIZED_NEEDS = FRAME_HEADER_BYTES + PAYLOAD_HEADER_BYTES
# Nobody's messages are as large as that: it is a stream gone wrong.
_PASSED_OVER_MAX = 1 << 30
# Messages that are tried at a time whether they have one size; more while they do. With fewer than
# that at hand it is not worth trying.
_RUN_MIN = 16
_RUN_MAX = 1024
_TRIED_MIN = 4
# Messages that go header by header after a run that did not hold.
_WALKED_MAX = 128
# Messages keep the bytes that they lie in, those of a whole read. Where they are a smaller part of it,
# among much that is not kept, they are cut at once: who holds them holds no more than is counted.
_KEPT_AS_READ_MIN = 0.5


def refused_fin(code: str, description: str) -> bytes | None:
    """The id of the message for which nsqd took no FIN; None for any other error (spec: tcp-protocol,
    part 2)."""
    found = _FIN_FAILED.match(description) if code == "E_FIN_FAILED" else None
    return None if found is None else found[1].encode("ascii")


class Response(NamedTuple):
    """A response frame: `OK`, `CLOSE_WAIT`, `_heartbeat_` or JSON."""

    data: bytes


class Oversized(NamedTuple):
    """A message of more than a client accepts: its body was passed over, not kept."""

    id: bytes
    attempts: int
    size_bytes: int
    """Of the body."""


Event = Messages | Response | ServerError | Oversized


def encode_frame(frame_type: int, data: bytes) -> bytes:
    """One frame, as nsqd writes it."""
    return _HEADER.pack(_SIZE_FIELD_BYTES + len(data), frame_type) + data


def parse_error(data: bytes) -> ServerError:
    """The error that an error frame names: `CODE SP description`."""
    code, _, description = data[:_ERROR_MAX_BYTES].decode("utf-8", "replace").partition(" ")
    fatal = code not in ("E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED")
    return ServerError(code, description, fatal=fatal)


class FrameDecoder:
    """The client's side of the wire: bytes in, events out.

    A violation raises `ProtocolError`; the decoder then stays failed, and the connection is to be
    closed.
    """

    def __init__(self, frame_size_max_bytes: int = FRAME_SIZE_MAX_BYTES) -> None:
        self._frame_size_max = frame_size_max_bytes
        self._tail = Tail()
        self._run = _RUN_MIN
        self._skip_bytes = 0
        self._failed: ProtocolError | None = None

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._tail)

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """The events that `data` completes, in order; neighbouring messages are one event.

        A message of more than the client accepts is passed over, in bounded memory. Raises
        ProtocolError for an impossible size or an unknown frame type.
        """
        if self._failed is not None:
            raise self._failed
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
            if not data:
                return []
        joined = self._tail.join(data)
        return [] if joined is None else self._decode(joined)

    def _decode(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        runs: list[Payloads] = []
        position, end = 0, len(data)
        while position + FRAME_HEADER_BYTES <= end:
            before = position
            position = self._take_messages(data, position, runs)
            if position == before:
                following = self._frame_end(data, position)
                if following is None:
                    break
                _gather(events, runs, end)
                runs = []
                events.append(self._take_other(data, position, following))
                position = min(following, end)
        _gather(events, runs, end)
        if position < end:
            self._keep(data, position)
        return events

    def _take_messages(self, data: bytes, position: int, runs: list[Payloads]) -> int:
        """Note the whole messages from `position` on, up to anything else; gives where that is."""
        starts: list[int] = []
        while True:
            run = self._find_run(data, position)
            if run is not None:
                _note_mixed(runs, data, starts, position)
                starts = []
                runs.append(run)
                position += run.messages * run.stride
                continue
            walked = self._walk(data, position, starts)
            if walked == position:
                _note_mixed(runs, data, starts, position)
                return position
            position = walked

    def _find_run(self, data: bytes, start: int) -> Span | None:
        """The messages from `start` on, if they all have the size of the first."""
        if len(data) - start < _TRIED_MIN * _MESSAGE_SIZE_MIN:
            return None
        size, frame_type = _HEADER.unpack_from(data, start)
        if frame_type != MESSAGE or not _MESSAGE_SIZE_MIN <= size <= self._frame_size_max:
            return None
        stride = _SIZE_FIELD_BYTES + size
        count = min((len(data) - start) // stride, self._run)
        if count < _TRIED_MIN:
            return None
        # The last byte of the size differs first, so it is compared first.
        columns = (3, 2, 1, 0, 7, 6, 5, 4)
        if not same_in_run(data, start, start + count * stride, stride, columns):
            self._run = _RUN_MIN
            return None
        self._run = min(_RUN_MAX, self._run << 1)
        return Span(data, start, stride, count)

    def _walk(self, data: bytes, position: int, starts: list[int]) -> int:
        """Note in `starts` where messages begin, header by header, up to anything else, or one that is
        not whole; gives where that is."""
        unpack, note = _HEADER.unpack_from, starts.append
        smallest, largest = _MESSAGE_SIZE_MIN, self._frame_size_max
        last = len(data) - FRAME_HEADER_BYTES
        for _ in range(_WALKED_MAX):
            if position > last:
                break
            size, frame_type = unpack(data, position)
            if frame_type != MESSAGE or not smallest <= size <= largest:
                break
            note(position)
            position += _SIZE_FIELD_BYTES + size
        return starts.pop() if position > len(data) else position

    def _frame_end(self, data: bytes, position: int) -> int | None:
        """Where a frame ends that is no whole message; None when it has not come whole."""
        size, frame_type = _HEADER.unpack_from(data, position)
        self._check(size, frame_type)
        following = position + _SIZE_FIELD_BYTES + size
        is_known = size > self._frame_size_max and len(data) - position >= _OVERSIZED_NEEDS
        return following if following <= len(data) or is_known else None

    def _take_other(self, data: bytes, position: int, following: int) -> Event:
        size, frame_type = _HEADER.unpack_from(data, position)
        if size > self._frame_size_max:
            self._skip_bytes = max(0, following - len(data))
            return _oversized(data, position, size)
        content = data[position + FRAME_HEADER_BYTES : following]
        return Response(content) if frame_type == RESPONSE else parse_error(content)

    def _check(self, size: int, frame_type: int) -> None:
        largest = self._frame_size_max
        if frame_type in (RESPONSE, ERROR):
            largest = min(largest, OTHER_SIZE_MAX_BYTES)
        size_max = _PASSED_OVER_MAX if frame_type == MESSAGE else largest
        if size == _HTTP_SIZE:
            self._fail("an answer by HTTP: is this the HTTP port? nsqd's TCP port is wanted")
        if not _SIZE_FIELD_BYTES <= size <= size_max:
            self._fail(f"frame size {size} out of range {_SIZE_FIELD_BYTES}-{largest}")
        if frame_type not in (RESPONSE, ERROR, MESSAGE):
            self._fail(f"unknown frame type {frame_type}")
        if frame_type == MESSAGE and size < _MESSAGE_SIZE_MIN:
            self._fail(f"message frame of {size} bytes is shorter than {_MESSAGE_SIZE_MIN}")

    def _fail(self, description: str) -> None:
        self._failed = ProtocolError("E_BAD_FRAME", description)
        raise self._failed

    def _keep(self, data: bytes, position: int) -> None:
        rest = data[position:]
        need = FRAME_HEADER_BYTES
        if len(rest) >= FRAME_HEADER_BYTES:  # the size is none to wait for before it was checked
            size = int.from_bytes(rest[:4], "big", signed=True)
            whole = _SIZE_FIELD_BYTES + size
            need = max(need, _OVERSIZED_NEEDS if size > self._frame_size_max else whole)
        self._tail.keep(rest, need)


def _gather(events: list[Event], runs: list[Payloads], read_bytes: int) -> None:
    """Make one event of the messages since the last, out of a read of so many bytes."""
    if not runs:
        return
    if sum([part.payloads_bytes for part in runs]) < read_bytes * _KEPT_AS_READ_MIN:
        runs = [Apart([payload for part in runs for payload in part.payloads()])]
    events.append(Messages([], runs))


def _note_mixed(runs: list[Payloads], data: bytes, starts: list[int], end: int) -> None:
    """Messages that begin at `starts`, the last of which ends at `end`."""
    if starts:
        runs.append(Mixed(data, [*starts, end]))


def _oversized(data: bytes, position: int, size: int) -> Oversized:
    _, attempts, message_id = PAYLOAD_HEADER.unpack_from(data, position + FRAME_HEADER_BYTES)
    body_bytes = size - _SIZE_FIELD_BYTES - PAYLOAD_HEADER_BYTES
    return Oversized(message_id, attempts, body_bytes)
