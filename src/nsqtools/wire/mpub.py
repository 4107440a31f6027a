"""MPUB's messages: cut when they are all there, checked as they come when they are not.

    i32 body size | i32 count | count x (i32 size, bytes)

nsqd follows the counts, not the size (spec: tcp-protocol, part 5). The same layout without the size
is the body of POST /mpub?binary=true (spec: nsqd-http, 2.2).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from nsqtools.errors import ProtocolError
from nsqtools.wire.commands import MPUB_COUNT_BYTES, SIZE_BYTES
from nsqtools.wire.cutting import cut, same_in_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.wire.decoder import CommandLimits

    Buffer = bytes | bytearray | memoryview

# A message is at least one byte behind a size, which bounds the count (spec: part 5).
_MESSAGE_MIN_BYTES = 5
# Any size that is in range will do where there is none on the wire.
_STAND_IN_SIZE = b"\x00\x00\x00\x01"
_I32: Callable[[Buffer, int], tuple[int]] = struct.Struct(">i").unpack_from
_HEAD: Callable[[Buffer, int], tuple[int, int]] = struct.Struct(">ii").unpack_from
_START: Callable[[Buffer, int], tuple[int, int, int]] = struct.Struct(">iii").unpack_from


def read_mpub(body: bytes, limits: CommandLimits) -> list[bytes]:
    """The messages of a batch without its size; what follows the last one is ignored.

    Raises ProtocolError with nsqd's code: E_BAD_BODY for the count, E_BAD_MESSAGE for a message.
    """
    data = _STAND_IN_SIZE + body
    whole = cut_mpub(data, 0, limits)
    if whole is not None:
        return whole[0]
    walk = MpubWalk(0, limits)
    walk.advance(data)
    raise ProtocolError(*walk.reading)


def _mpub_count_max(limits: CommandLimits) -> int:
    return (limits.max_body_size_bytes - MPUB_COUNT_BYTES) // _MESSAGE_MIN_BYTES


def cut_mpub(data: bytes, at: int, limits: CommandLimits) -> tuple[list[bytes], int] | None:
    """The messages of an MPUB body that is all there and right, and where it ends; else None."""
    first = at + 2 * SIZE_BYTES
    if len(data) < first + SIZE_BYTES:
        return None
    body_size, count, size = _START(data, at)
    limit = limits.max_msg_size_bytes
    if not (
        0 < body_size <= limits.max_body_size_bytes
        and 0 < count <= _mpub_count_max(limits)
        and 0 < size <= limit
    ):
        return None
    stride = SIZE_BYTES + size
    stop = first + count * stride
    if stop <= len(data) and same_in_run(data, first, stop, stride, (3, 2, 1, 0)):
        return cut(data, first, stride, SIZE_BYTES, size, count), stop
    return _cut_mixed(data, first, count, limit)


def _cut_mixed(data: bytes, at: int, count: int, limit: int) -> tuple[list[bytes], int] | None:
    bodies = []
    have = len(data) - SIZE_BYTES
    for _ in range(count):
        if at > have:
            return None
        following = at + SIZE_BYTES + _I32(data, at)[0]
        if not at + SIZE_BYTES < following <= min(len(data), at + SIZE_BYTES + limit):
            return None
        bodies.append(data[at + SIZE_BYTES : following])
        at = following
    return bodies, at


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
        while self._index < self._count:
            if len(kept) < self._next + SIZE_BYTES:
                text = f"MPUB failed to read message({self._index}) body size"
                self.reading = ("E_BAD_MESSAGE", text)
                return self._next + SIZE_BYTES
            size = _I32(kept, self._next)[0]
            self._check_message(size)
            if len(kept) < self._next + SIZE_BYTES + size:
                self.reading = ("E_BAD_MESSAGE", "MPUB failed to read message body")
                return self._next + SIZE_BYTES + size
            self._next += SIZE_BYTES + size
            self._index += 1
        return self._next

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

    def _check_message(self, size: int) -> None:
        if size <= 0:
            text = f"MPUB invalid message({self._index}) body size {size}"
            raise ProtocolError("E_BAD_MESSAGE", text)
        limit = self._limits.max_msg_size_bytes
        if size > limit:
            raise ProtocolError("E_BAD_MESSAGE", f"MPUB message too big {size} > {limit}")
