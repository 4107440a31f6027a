"""What one connection takes in: a bounded amount in each turn of the loop, nothing while it is paused.

A peer that sends without end would have all turns for itself, and no timer and no signal would come to
theirs: an event loop reads on as long as there is something to read. And a kilobyte of a compressed
stream can open to a megabyte, so what a codec holds waits like what lies in the socket.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nsqtools.errors import ProtocolError
from nsqtools.wire.frames import OTHER_SIZE_MAX_BYTES, FrameDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.wire.compression import Codec
    from nsqtools.wire.frames import Event

# Decoded bytes after which everything else on the loop has its turn.
TURN_BYTES = 1 << 20
_SIZE_BYTES = 4
_STEP_MAX_BYTES = _SIZE_BYTES + OTHER_SIZE_MAX_BYTES


class Intake:
    """From bytes to events, which `dispatch` gets; a violation goes to `fail`.

    While TLS or compression may begin behind each frame (`stepwise`), frames are taken one by one, and
    none while `has_answer`. Nothing is taken after `close`.
    """

    def __init__(
        self,
        dispatch: Callable[[list[Event]], None],
        fail: Callable[[ProtocolError], None],
        has_answer: Callable[[], bool],
        *,
        stepwise: bool,
    ) -> None:
        self.codec: Codec | None = None
        self.transport: asyncio.Transport | None = None
        self.is_paused = False
        self._dispatch = dispatch
        self._fail = fail
        self._has_answer = has_answer
        self._stepwise = stepwise
        self._decoder = FrameDecoder()
        self._unread = b""
        self._taken_bytes = 0
        self._rests = False
        self._closed = False

    @property
    def has_unread(self) -> bool:
        """Whether something lies behind the last answer of the handshake."""
        return bool(self._unread)

    def receive(self, data: memoryview) -> None:
        """Take in what was read."""
        try:
            if self.codec is not None:
                self._open(self.codec, bytes(data))
            elif self._stepwise:
                self._unread += data
                self._step()
            else:
                self._take(data)
        except ProtocolError as violation:
            self._fail(violation)

    def step(self) -> None:
        """Take frames up to the next one of the handshake: what is behind it may be compressed.

        nsqd goes over to compression without waiting for us, so that one read can bring both.
        """
        try:
            self._step()
        except ProtocolError as violation:
            self._fail(violation)

    def _step(self) -> None:
        while not self._closed and not self._has_answer() and len(self._unread) >= _SIZE_BYTES:
            end = _SIZE_BYTES + int.from_bytes(self._unread[:_SIZE_BYTES], "big")
            if len(self._unread) < end <= _STEP_MAX_BYTES:
                return
            frame, self._unread = self._unread[:end], self._unread[end:]
            self._dispatch(self._decoder.receive(frame))
            if end > _STEP_MAX_BYTES:
                raise ProtocolError("E_BAD_FRAME", f"frame of {end} bytes within the handshake")
        if len(self._unread) > TURN_BYTES:
            raise ProtocolError("E_BAD_FRAME", "data without end within the handshake")

    def end_steps(self, codec: Codec | None) -> None:
        """From here on everything is compressed, or nothing."""
        self._stepwise = False
        self.codec = codec
        unread, self._unread = self._unread, b""
        self.receive(memoryview(unread))

    def pause(self) -> None:
        """Leave what comes in the socket, and in the codec, until `resume`."""
        self.is_paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on in the next turn: whoever calls this may be at an event of ours."""
        if self.is_paused:
            self.is_paused = False
            self._rest()

    def close(self) -> None:
        self._closed = True

    @property
    def _holds(self) -> bool:
        return self.is_paused or self._rests or self._closed

    def _open(self, codec: Codec, data: bytes) -> None:
        self._take(codec.decompress(data))
        while codec.pending and not self._holds:
            self._take(codec.decompress(b""))

    def _take(self, data: bytes | memoryview) -> None:
        self._taken_bytes += len(data)
        self._dispatch(self._decoder.receive(data))
        if self._taken_bytes >= TURN_BYTES:
            self._rest()

    def _rest(self) -> None:
        """Let the others have their turn."""
        self._taken_bytes = 0
        if self.transport is None or self._rests or self._closed:
            return
        self._rests = True
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        if self.codec is not None and self.codec.pending and not self._holds:
            self.receive(memoryview(b""))
        if self.transport is not None and not (self._holds or self.transport.is_closing()):
            self.transport.resume_reading()
