"""The connection under a session: what is sent to a client, and whether it is still there.

A client is ended that says nothing (heartbeats; spec: tcp-protocol, 6.8), and one that takes nothing of
what it was sent: nsqd gives each write a heartbeat's time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

from nsqtools.options import join_address
from nsqtools.wire.frames import HEARTBEAT, RESPONSE, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.wire.identify import ClientSettings

log = logging.getLogger("nsqtools.broker.session")

# Above this many unsent bytes a client gets no more messages, and is not listened to, until it has
# taken some.
WRITE_HIGH_WATER_BYTES = 1 << 20
# A client without heartbeats that takes nothing for so long is cut.
STALL_TIMEOUT_S = 60.0
# nsqd closes a client that was silent for two heartbeats.
SILENT_HEARTBEATS_MAX = 2

HEARTBEAT_FRAME = encode_frame(RESPONSE, HEARTBEAT)


class Connection(asyncio.BufferedProtocol):
    """See the module. `now_s` gives monotonic seconds."""

    def __init__(self, settings: ClientSettings, now_s: Callable[[], float]) -> None:
        self.settings = settings
        self.remote_address = self.client_id = self.hostname = ""
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._sent_bytes = 0
        self._stall: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._heard_s = now_s()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        is_ip = isinstance(peer, tuple)
        self.remote_address = join_address(peer[0], peer[1]) if is_ip else "@"
        self.client_id = self.hostname = peer[0] if is_ip else "@"
        self._arm_heartbeat()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        for timer in (self._heartbeat, self._stall):
            if timer is not None:
                timer.cancel()

    @property
    def is_listening(self) -> bool:
        """Whether it reads: what does not come then, the client has not sent."""
        return self._transport is not None and self._transport.is_reading()

    @property
    def _is_ending(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def disconnect(self) -> None:
        """Close, after what was written is sent; no error frame (spec: tcp-protocol, part 7)."""
        if self._transport is not None:
            self._transport.close()
            self._watch_unsent()

    def abort(self) -> None:
        """Close at once, with what was not sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def cut(self, reason: str) -> None:
        log.warning("client(%s) closed: %s", self.remote_address, reason)
        self.abort()

    def _send(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._sent_bytes += len(data)
            self._transport.write(data)

    # What is not taken

    def _watch_unsent(self) -> None:
        """Cut a client that takes nothing from now on: it may hold memory, but not for ever."""
        if self._stall is None and self._transport is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent:
                interval_s = self.settings.heartbeat_interval_ms / 1000
                wait_s = SILENT_HEARTBEATS_MAX * interval_s if interval_s > 0 else STALL_TIMEOUT_S
                taken = self._sent_bytes - unsent
                self._stall = self._loop.call_later(wait_s, self._check_unsent, taken, wait_s)

    def _check_unsent(self, taken_before: int, waited_s: float) -> None:
        self._stall = None
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if unsent and self._sent_bytes - unsent <= taken_before:
            self.cut(f"took nothing of {unsent} bytes for {waited_s:g}s")
        else:
            self._watch_unsent()

    # Heartbeats (spec: tcp-protocol, 6.8)

    def _arm_heartbeat(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        if self.settings.heartbeat_interval_ms > 0:
            interval_s = self.settings.heartbeat_interval_ms / 1000
            self._heartbeat = self._loop.call_later(interval_s, self._beat)

    def _beat(self) -> None:
        silent_s = self._now_s() - self._heard_s
        interval_s = self.settings.heartbeat_interval_ms / 1000
        if silent_s >= SILENT_HEARTBEATS_MAX * interval_s and self.is_listening:
            log.info("client(%s) closed: silent for %.1fs", self.remote_address, silent_s)
            self.abort()
            return
        self._watch_unsent()
        self._send(HEARTBEAT_FRAME)
        self._arm_heartbeat()
