"""MPUB's messages: cut when they are all there, checked as they come when they are not.

    i32 body size | i32 count | count x (i32 size, bytes)

A batch of more than SLICE_MESSAGES is cut a slice at a time: a message of a byte is five on the wire,
and several hundred as an object, framed, numbered and written, so that a batch of a million of them
would take a gigabyte at once, and everyone else would wait for it.

nsqd follows the counts, not the size (spec: tcp-protocol, part 5). The same layout without the size
is the body of POST /mpub?binary=true (spec: nsqd-http, 2.2).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nsqtools.errors import ProtocolError
from nsqtools.wire.bodies import Bodies, measured
from nsqtools.wire.commands import MPUB_COUNT_BYTES, SIZE_BYTES
from nsqtools.wire.cutting import cut, same_in_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.wire.limits import CommandLimits

    Buffer = bytes | bytearray | memoryview

SLICE_MESSAGES = 16384
# A message is at least one byte behind a size, which bounds the count (spec: part 5).
_MESSAGE_MIN_BYTES = 5
# Any size that is in range will do where there is none on the wire.
_STAND_IN_SIZE = b"\x00\x00\x00\x01"
_I32: Callable[[Buffer, int], tuple[int]] = struct.Struct(">i").unpack_from
_HEAD: Callable[[Buffer, int], tuple[int, int]] = struct.Struct(">ii").unpack_from
_START: Callable[[Buffer, int], tuple[int, int, int]] = struct.Struct(">iii").unpack_from


def read_mpub(body: bytes, limits: CommandLimits) -> Batch:
    """The messages of a batch without its size; what follows the last one is ignored.

    Raises ProtocolError with nsqd's code: E_BAD_BODY for the count, E_BAD_MESSAGE for a message.
    """
    data = _STAND_IN_SIZE + body
    walk = MpubWalk(0, limits)
    if walk.advance(data) > len(data):
        raise ProtocolError(*walk.reading)
    return walk.batch(data, 0)


def _mpub_count_max(limits: CommandLimits) -> int:
    return (limits.max_body_size_bytes - MPUB_COUNT_BYTES) // _MESSAGE_MIN_BYTES


def cut_mpub(data: bytes, at: int, limits: CommandLimits) -> tuple[Bodies, int] | None:
    """The messages of an MPUB body that is all there and right, and not too many to be cut at once,
    and where it ends; else None."""
    first = at + 2 * SIZE_BYTES
    if len(data) < first + SIZE_BYTES:
        return None
    body_size, count, size = _START(data, at)
    limit = limits.max_msg_size_bytes
    if not (
        0 < body_size <= limits.max_body_size_bytes
        and 0 < count <= min(SLICE_MESSAGES, _mpub_count_max(limits))
        and 0 < size <= limit
    ):
        return None
    stride = SIZE_BYTES + size
    stop = first + count * stride
    if stop <= len(data) and same_in_run(data, first, stop, stride, (3, 2, 1, 0)):
        each = cut(data, first, stride, SIZE_BYTES, size, count)
        return Bodies(each, count * size, size), stop
    return _cut_mixed(data, first, count, limit)


def _cut_mixed(data: bytes, at: int, count: int, limit: int) -> tuple[Bodies, int] | None:
    """Messages of many sizes; None where one is not all there or not within the limit."""
    bodies: list[bytes] = []
    note, read, first = bodies.append, _I32, at
    try:
        for _ in range(count):
            size = read(data, at)[0]
            if not 0 < size <= limit:
                return None
            at += SIZE_BYTES
            note(data[at : (at := at + size)])
    except struct.error:  # not even its size
        return None
    if at > len(data):
        return None
    return Bodies(bodies, at - first - count * SIZE_BYTES, 0), at


class Batch:
    """The messages of an MPUB body that was checked, cut as they are taken.

    `size_bytes` is what it holds in memory until then.
    """

    __slots__ = ("_at", "_data", "left")

    def __init__(self, data: bytes, at: int, count: int) -> None:
        self._data = data
        self._at = at
        self.left = count

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def take(self) -> Bodies | None:
        """The next messages, SLICE_MESSAGES at most; none at the end only."""
        return self.following() if self.left else None

    def following(self) -> Bodies:
        """As `take`, where there are any left."""
        count = min(SLICE_MESSAGES, self.left)
        self.left -= count
        data, at = self._data, self._at
        size = _I32(data, at)[0]
        stride = SIZE_BYTES + size
        stop = at + count * stride
        if stop <= len(data) and same_in_run(data, at, stop, stride, (3, 2, 1, 0)):
            self._at = stop
            each = cut(data, at, stride, SIZE_BYTES, size, count)
            return Bodies(each, count * size, size)
        found = _cut_mixed(data, at, count, len(data))
        if found is None:
            raise ValueError("a batch that was not checked")
        bodies, self._at = found
        return bodies


class Lines:
    """The lines of a body, taken as those of a `Batch`: the empty ones are no messages, a CR stays."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self) -> Bodies | None:
        """The next lines, about SLICE_MESSAGES at most; none at the end only."""
        body = self._body
        bodies: list[bytes] = []
        while not bodies and self._at < len(body):
            end = len(body)
            if body.count(b"\n", self._at) >= SLICE_MESSAGES:
                # A piece with as many lines as that has a byte for each at least.
                found = body.find(b"\n", self._at + SLICE_MESSAGES)
                end = end if found < 0 else found
            bodies = [line for line in body[self._at : end].split(b"\n") if line]
            self._at = end + 1
        return measured(bodies) if bodies else None


def long_line(body: bytes, size_max: int) -> int | None:
    """Where the first line of more than `size_max` bytes ends; None when there is none."""
    at = 0
    while len(body) - at > size_max:
        last = body.rfind(b"\n", at, at + size_max + 1)
        if last < 0:
            end = body.find(b"\n", at)
            return len(body) if end < 0 else end
        at = last + 1
    return None


class MpubWalk:
    """MPUB's body, checked as it comes: nsqd follows the counts, not the size (spec: part 5).

    Offsets count from the start of the command.
    """

    def __init__(self, at: int, limits: CommandLimits) -> None:
        self._limits = limits
        self._at = at
        self._first = at + 2 * SIZE_BYTES
        self._next = 0
        self._index = 0
        self._count = -1
        self.reading = ("E_BAD_BODY", "MPUB failed to read body size")

    def advance(self, kept: Buffer) -> int:
        """Check what has come; return how many bytes of the command are needed to go on.

        When that is no more than there is, the command is whole. Raises ProtocolError.
        """
        if self._count < 0:
            if len(kept) < self._first:
                return self._head_need(kept)
            self._check_head(kept)
        return self._walk(kept)

    @property
    def end(self) -> int:
        """Where the last message ends, once the body is whole."""
        return self._next

    def batch(self, data: bytes, start: int) -> Batch:
        """The messages of a body that is whole, in the command that begins at `start` of `data`."""
        return Batch(data, start + self._first, self._count)

    def _walk(self, kept: Buffer) -> int:
        # The only loop over what a stranger may send a million of: no call that can be spared.
        have, at, limit = len(kept), self._next, self._limits.max_msg_size_bytes
        index, count, read = self._index, self._count, _I32
        need = at
        while index < count:
            need = at + SIZE_BYTES
            if need > have:
                self.reading = (
                    "E_BAD_MESSAGE",
                    f"MPUB failed to read message({index}) body size",
                )
                break
            size = read(kept, at)[0]
            if not 0 < size <= limit:
                raise _bad_message(index, size, limit)
            need += size
            if need > have:
                self.reading = ("E_BAD_MESSAGE", "MPUB failed to read message body")
                break
            at = need
            index += 1
        self._next, self._index = at, index
        return need

    def _head_need(self, kept: Buffer) -> int:
        if len(kept) < self._at + SIZE_BYTES:
            return self._at + SIZE_BYTES
        self._check_body_size(_I32(kept, self._at)[0])
        self.reading = ("E_BAD_BODY", "MPUB failed to read message count")
        return self._first

    def _check_head(self, kept: Buffer) -> None:
        body_size, count = _HEAD(kept, self._at)
        self._check_body_size(body_size)
        if not 0 < count <= _mpub_count_max(self._limits):
            raise ProtocolError("E_BAD_BODY", f"MPUB invalid message count {count}")
        self._count = count
        self._next = self._first

    def _check_body_size(self, body_size: int) -> None:
        if body_size <= 0:
            raise ProtocolError("E_BAD_BODY", f"MPUB invalid body size {body_size}")
        limit = self._limits.max_body_size_bytes
        if body_size > limit:
            raise ProtocolError("E_BAD_BODY", f"MPUB body too big {body_size} > {limit}")


def _bad_message(index: int, size: int, limit: int) -> ProtocolError:
    text = f"MPUB message too big {size} > {limit}"
    if size <= 0:
        text = f"MPUB invalid message({index}) body size {size}"
    return ProtocolError("E_BAD_MESSAGE", text)
