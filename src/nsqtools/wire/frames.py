"""Frames from nsqd to a client (spec: tcp-protocol, part 1), big-endian:

    i32 size = 4 + len(data) | i32 type: 0 response, 1 error, 2 message | data

Theory of operation. Decoding is the consumer's hottest path, so one pass over a read makes parallel
columns (`Messages`), not an object per message. Neighbouring messages often have one size; then the
headers of a whole run are compared by strided slices (one C call for each of the eight header bytes)
and the payloads are cut in one comprehension, three times faster than header by header. The run that
is tried grows while it holds; after one that did not hold, a number of messages go header by header,
so that mixed sizes pay next to nothing for it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from nsqtools.errors import ProtocolError, ServerError
from nsqtools.wire.buffering import Tail
from nsqtools.wire.cutting import same_in_run
from nsqtools.wire.messages import FRAME_HEADER_BYTES, PAYLOAD_HEADER_BYTES, Messages, Span

RESPONSE = 0
ERROR = 1
MESSAGE = 2

HEARTBEAT = b"_heartbeat_"
OK = b"OK"
CLOSE_WAIT = b"CLOSE_WAIT"

# What a client accepts from a server. nsqd's own limit is its --max-msg-size (1 MiB by default), which
# a client is not told; this bounds what a broken or hostile peer can make us hold.
FRAME_SIZE_MAX_BYTES = 64 << 20

_HEADER = struct.Struct(">ii")
_SIZE_FIELD_BYTES = 4
_MESSAGE_SIZE_MIN = 4 + PAYLOAD_HEADER_BYTES
_RUN_MIN = 16
_RUN_MAX = 1024
# Messages that go header by header after a run that did not hold.
_RUN_PAUSE = 64


class Response(NamedTuple):
    """A response frame: `OK`, `CLOSE_WAIT`, `_heartbeat_` or JSON."""

    data: bytes


Event = Messages | Response | ServerError


def encode_frame(frame_type: int, data: bytes) -> bytes:
    """One frame, as nsqd writes it."""
    return _HEADER.pack(_SIZE_FIELD_BYTES + len(data), frame_type) + data


def parse_error(data: bytes) -> ServerError:
    """The error that an error frame names: `CODE SP description`."""
    code, _, description = data.decode("utf-8", "replace").partition(" ")
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
        self._pause = 0
        self._failed: ProtocolError | None = None

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of a frame that has not come whole."""
        return len(self._tail)

    def receive(self, data: bytes | memoryview) -> list[Event]:
        """The events that `data` completes, in order; neighbouring messages are one event.

        Raises ProtocolError for an impossible size or an unknown frame type.
        """
        if self._failed is not None:
            raise self._failed
        joined = self._tail.join(data)
        return [] if joined is None else self._decode(joined)

    def _decode(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        parts: list[Span | list[bytes]] = []
        payloads: list[bytes] = []
        unpack = _HEADER.unpack_from
        position, end = 0, len(data)
        last_size = 0
        while position + FRAME_HEADER_BYTES <= end:
            size, frame_type = unpack(data, position)
            following = position + _SIZE_FIELD_BYTES + size
            if frame_type != MESSAGE or size < _MESSAGE_SIZE_MIN or following > end:
                self._check(size, frame_type)
                if following > end:
                    break
                _gather(events, parts, payloads)
                parts, payloads = [], []
                events.append(_other(frame_type, data[position + FRAME_HEADER_BYTES : following]))
                position = following
            elif size == last_size and not self._pause:
                run = self._find_run(data, position, _SIZE_FIELD_BYTES + size)
                parts += (payloads, run) if payloads else (run,)
                payloads = []
                position += run.messages * run.stride
            else:
                payloads.append(data[position + FRAME_HEADER_BYTES : following])
                position = following
                if size != last_size:
                    last_size = size
                elif self._pause:
                    self._pause -= 1
        _gather(events, parts, payloads)
        if position < end:
            self._keep(data, position)
        return events

    def _find_run(self, data: bytes, start: int, stride: int) -> Span:
        """The messages from `start` on that all have the size of the first; at least that one."""
        count = min((len(data) - start) // stride, self._run)
        # The last byte of the size differs first, so it is compared first.
        columns = (3, 2, 1, 0, 7, 6, 5, 4)
        if same_in_run(data, start, start + count * stride, stride, columns):
            self._run = min(_RUN_MAX, self._run << 1)
            return Span(data, start, stride, count)
        self._run, self._pause = _RUN_MIN, _RUN_PAUSE
        return Span(data, start, stride, 1)

    def _check(self, size: int, frame_type: int) -> None:
        if not _SIZE_FIELD_BYTES <= size <= self._frame_size_max:
            self._fail(f"frame size {size} out of range {_SIZE_FIELD_BYTES}-{self._frame_size_max}")
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
        if len(rest) >= _SIZE_FIELD_BYTES:
            need = max(need, _SIZE_FIELD_BYTES + int.from_bytes(rest[:4], "big", signed=True))
        self._tail.keep(rest, need)


def _gather(events: list[Event], parts: list[Span | list[bytes]], payloads: list[bytes]) -> None:
    """Make one event of the messages since the last."""
    if payloads:
        parts.append(payloads)
    if parts:
        events.append(Messages([], parts))


def _other(frame_type: int, data: bytes) -> Response | ServerError:
    return Response(data) if frame_type == RESPONSE else parse_error(data)
