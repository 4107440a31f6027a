"""Telling nsqlookupds what this nsqd has, and asking them what others have (spec: lookupd, A5).

One task for each nsqlookupd, independent of the others: in the reference a hung one delays all.

What is registered follows from the difference between two sets, not from a queue of events: what
the broker has now, and what this connection has been told. Any number of `changed` calls while a
round is under way is one more round, and a new connection simply starts from nothing.

    connect ─► IDENTIFY ─► reconcile ─► wait for a change, a PING that is due, or the end ─┐
       ▲                      ▲                                                            │
       └── delay ◄── failure  └────────────────────────────────────────────────────────────┘

Names of the registration commands: a channel's registration covers its topic, so a topic is
registered by itself only while it has no channel; unregistering a topic follows its channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from nsqtools.ask import ask, check_status, new_session
from nsqtools.errors import ConnectionFailed, OptionsError, ProtocolError
from nsqtools.wire.lookup import (
    MAGIC_V1,
    PING,
    Answer,
    PeerInfo,
    ReplyReader,
    check_ok,
    encode_identify,
    encode_register,
    encode_unregister,
    parse_identify_reply,
    parse_names,
    split_address,
)
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    import aiohttp

CONNECT_TIMEOUT_S = 1.0
REPLY_TIMEOUT_S = 1.0
PING_INTERVAL_S = 15.0
RECONNECT_FIRST_S = 1.0
# The reference tries again with the next PING.
RECONNECT_MAX_S = PING_INTERVAL_S
HTTP_CONNECT_TIMEOUT_S = 2.0
HTTP_REQUEST_TIMEOUT_S = 5.0
# Commands sent before their replies are awaited: thousands of channels need not cost as many
# round trips, and neither side has to buffer more than this.
PIPELINE_MAX = 100
_DOUBLINGS_MAX = 30

Registration = tuple[str, str | None]

log = logging.getLogger("nsqtools.registrar")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrarTiming:
    """Timeouts and intervals; the defaults are nsqd's where it has them."""

    connect_timeout_s: float = CONNECT_TIMEOUT_S
    reply_timeout_s: float = REPLY_TIMEOUT_S
    ping_interval_s: float = PING_INTERVAL_S
    reconnect_first_s: float = RECONNECT_FIRST_S
    reconnect_max_s: float = RECONNECT_MAX_S
    http_connect_timeout_s: float = HTTP_CONNECT_TIMEOUT_S
    http_request_timeout_s: float = HTTP_REQUEST_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupdStatus:
    """One nsqlookupd as seen from here; `info` is None while it is not connected."""

    address: str
    info: PeerInfo | None
    failures: int


def plan_registrations(
    told: set[Registration], wanted: Iterable[Registration], again: set[str]
) -> tuple[list[bytes], set[Registration]]:
    """The commands that lead from what a nsqlookupd was told to what is wanted, and what it was
    told then: a (topic, None) for every topic and a (topic, channel) for every channel.

    The topics in `again` are registered even if they were before.
    """
    wanted = set(wanted)
    wanted |= {(topic, None) for topic, _ in wanted}
    commands = [encode_unregister(*gone) for gone in sorted(told - wanted, key=_channels_first)]
    with_channels = {topic for topic, channel in wanted if channel is not None}
    for topic, channel in sorted(wanted, key=_channels_first):
        is_new = (topic, channel) not in told or topic in again
        if is_new and (channel is not None or topic not in with_channels):
            commands.append(encode_register(topic, channel))
    return commands, wanted


def _channels_first(registration: Registration) -> tuple[bool, str, str]:
    topic, channel = registration
    return channel is None, topic, channel or ""


def _target(address: str) -> tuple[str, int]:
    try:
        return split_address(address)
    except ProtocolError as error:
        raise OptionsError([f"lookupd address {address!r}: {error.description}"]) from error


class Registrar:
    """Keeps every nsqlookupd informed while `run` runs.

    `registrations` returns what the broker has now; it is called on the event loop, as often as
    there is something to tell, and must be quick.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        identity: PeerInfo,
        registrations: Callable[[], Iterable[Registration]],
        *,
        rng: random.Random,
        timing: RegistrarTiming | None = None,
    ) -> None:
        """Raises OptionsError for an address that is not `host:port`."""
        self._identity = identity
        self._registrations = registrations
        self._rng = rng
        self._timing = timing or RegistrarTiming()
        self._readdressed = asyncio.Event()
        self._running = False
        self._peers: dict[str, _Peer] = {}
        self.set_addresses(addresses)

    @property
    def addresses(self) -> list[str]:
        """The TCP addresses of the nsqlookupds, as given."""
        return list(self._peers)

    def set_addresses(self, addresses: Sequence[str]) -> None:
        """Go on with these nsqlookupds; those that were there already keep their connections.

        Raises OptionsError, and changes nothing, if one of them is not `host:port`.
        """
        targets = {address: _target(address) for address in addresses}
        self._peers = {
            address: self._peers.get(address) or self._new_peer(address, target)
            for address, target in targets.items()
        }
        self._readdressed.set()

    def _new_peer(self, address: str, target: tuple[str, int]) -> _Peer:
        return _Peer(
            address=address,
            target=target,
            identity=self._identity,
            registrations=self._registrations,
            rng=self._rng,
            timing=self._timing,
        )

    def changed(self, topic: str) -> None:
        """Say that this topic, or a channel of it, was created or deleted.

        The topic is registered anew if it is there: a topic that is deleted through nsqlookupd and
        then created again at once looks the same before and after, and yet has to be told.
        """
        for peer in self._peers.values():
            peer.changed(topic)

    def status(self) -> list[LookupdStatus]:
        return [peer.status() for peer in self._peers.values()]

    def lookupd_http_addresses(self) -> list[str]:
        """`host:port` of the HTTP API of every connected nsqlookupd, as it names itself."""
        return [peer.info.http_address for peer in self._peers.values() if peer.info]

    async def run(self) -> None:
        """Register, until cancelled; then the connections are closed, and with that nsqlookupd
        forgets what was registered.
        """
        tasks: dict[_Peer, asyncio.Task[None]] = {}
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._readdressed.clear()
                    peers = set(self._peers.values())
                    for peer in tasks.keys() - peers:
                        tasks.pop(peer).cancel()
                    for peer in peers - tasks.keys():
                        tasks[peer] = group.create_task(peer.run())
                    await self._readdressed.wait()
        finally:
            self._running = False

    async def channels(self, topic: str) -> set[str]:
        """The channels of `topic` that other nsqds have, without the ephemeral ones.

        For a topic that is being created: its channels must exist before its first message is
        handed out. Asks every connected nsqlookupd at once; one that fails, or is not connected, is
        a warning, and the answer is what the others said. Never raises; cancelling leaves nothing.
        """
        await self._first_attempts()
        for status in self.status():
            if status.info is None:
                log.warning("channels not asked for topic=%s lookupd=%s", topic, status.address)
        addresses = self.lookupd_http_addresses()
        if not addresses:
            return set()
        async with new_session() as session, asyncio.TaskGroup() as group:
            asked = [
                group.create_task(_channels_at(session, address, topic, self._timing))
                for address in addresses
            ]
        found = {channel for task in asked for channel in task.result()}
        return {channel for channel in found if not is_ephemeral(channel)}

    async def _first_attempts(self) -> None:
        """Wait until every nsqlookupd is connected or has failed once, so that a topic created in
        the first second gets its channels too.
        """
        if not self._running:
            return
        try:
            async with asyncio.timeout(
                self._timing.connect_timeout_s + self._timing.reply_timeout_s
            ):
                for peer in list(self._peers.values()):
                    await peer.attempted.wait()
        except TimeoutError:
            return


class _Peer:
    """The connection to one nsqlookupd, and its next one."""

    def __init__(
        self,
        *,
        address: str,
        target: tuple[str, int],
        identity: PeerInfo,
        registrations: Callable[[], Iterable[Registration]],
        rng: random.Random,
        timing: RegistrarTiming,
    ) -> None:
        self.address = address
        self.info: PeerInfo | None = None
        self.attempted = asyncio.Event()
        self._wake = asyncio.Event()
        self._told: set[Registration] = set()
        self._again: set[str] = set()
        self._target = target
        self._identity = identity
        self._registrations = registrations
        self._rng = rng
        self._timing = timing
        self._failures = 0

    def status(self) -> LookupdStatus:
        failures = 0 if self.info else self._failures
        return LookupdStatus(address=self.address, info=self.info, failures=failures)

    def changed(self, topic: str) -> None:
        # Only what was told can need telling again, and that bounds the set.
        if (topic, None) in self._told:
            self._again.add(topic)
        self._wake.set()

    async def run(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            began_at = now()
            try:
                async with self._connect() as link:
                    await self._stay_registered(link)
            except (ConnectionFailed, ProtocolError) as error:
                # A connection that saw a PING answered was a good one; what ended it is new.
                if now() - began_at > self._timing.ping_interval_s:
                    self._failures = 0
                self._note_failure(error)
            finally:
                self.info = None
                self.attempted.set()
            await asyncio.sleep(self._reconnect_delay_s())

    def _note_failure(self, error: Exception) -> None:
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(
            level,
            "lookupd failed address=%s failures=%d error=%s",
            self.address,
            self._failures,
            error,
        )

    def _reconnect_delay_s(self) -> float:
        doublings = min(self._failures - 1, _DOUBLINGS_MAX)
        longest_s = self._timing.reconnect_first_s * 2.0**doublings
        return min(longest_s, self._timing.reconnect_max_s) * self._rng.uniform(0.5, 1.0)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[_Link]:
        loop = asyncio.get_running_loop()
        link = _Link(self.address, self._wake, self._timing.reply_timeout_s)
        try:
            async with asyncio.timeout(self._timing.connect_timeout_s):
                await loop.create_connection(lambda: link, *self._target)
        except TimeoutError as error:
            raise ConnectionFailed(self.address, "connecting took too long") from error
        except (OSError, ValueError) as error:
            raise ConnectionFailed(self.address, str(error)) from error
        try:
            yield link
        finally:
            await link.close()

    async def _stay_registered(self, link: _Link) -> None:
        now = asyncio.get_running_loop().time
        self.info = await self._identify(link)
        self._told = set()
        ping_at = now() + self._timing.ping_interval_s
        await self._reconcile(link)
        log.info("registered with lookupd address=%s names=%d", self.address, len(self._told))
        self.attempted.set()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(ping_at):
                    await self._wake.wait()
            if now() >= ping_at:
                await self._tell(link, [PING])
                ping_at = now() + self._timing.ping_interval_s
            await self._reconcile(link)

    async def _reconcile(self, link: _Link) -> None:
        self._wake.clear()
        link.check()
        # Noted as told before it is: when telling fails, the connection and all of it are gone.
        commands, self._told = plan_registrations(self._told, self._registrations(), self._again)
        self._again = set()
        await self._tell(link, commands)

    async def _identify(self, link: _Link) -> PeerInfo:
        link.send(MAGIC_V1 + encode_identify(self._identity), replies=1)
        return parse_identify_reply(await link.next_reply())

    async def _tell(self, link: _Link, commands: Sequence[bytes]) -> None:
        for start in range(0, len(commands), PIPELINE_MAX):
            batch = commands[start : start + PIPELINE_MAX]
            link.send(b"".join(batch), replies=len(batch))
            for _ in batch:
                check_ok(await link.next_reply())


class _Link(asyncio.Protocol):
    """One TCP connection; `wake` is set when it ends, so that an idle one is not found out late."""

    def __init__(self, address: str, wake: asyncio.Event, reply_timeout_s: float) -> None:
        self._address = address
        self._wake = wake
        self._reply_timeout_s = reply_timeout_s
        self._reader = ReplyReader()
        self._replies: deque[bytes] = deque()
        self._outstanding = 0
        self._progress = asyncio.Event()
        self._closed = asyncio.Event()
        self._failure: ConnectionFailed | ProtocolError | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.receive_data(data)
        try:
            while (reply := self._reader.next_reply()) is not None:
                self._replies.append(reply)
        except ProtocolError as error:
            self._fail(error)
        if len(self._replies) > self._outstanding:
            self._fail(ProtocolError("E_INVALID", "reply to nothing"))
        self._progress.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionFailed(self._address, str(exc or "connection closed")))
        self._closed.set()

    def _fail(self, error: ConnectionFailed | ProtocolError) -> None:
        if self._failure is None:
            self._failure = error
        if self._transport is not None:
            self._transport.abort()
        self._progress.set()
        self._wake.set()

    def check(self) -> None:
        """Raise what ended the connection, if something did."""
        if self._failure is not None:
            raise self._failure

    def send(self, data: bytes, *, replies: int) -> None:
        self.check()
        self._outstanding += replies
        if self._transport is not None:
            self._transport.write(data)

    async def next_reply(self) -> bytes:
        """The next reply; ConnectionFailed when it does not come in time or the line is cut."""
        try:
            # One deadline for the whole reply, however slowly it trickles in.
            async with asyncio.timeout(self._reply_timeout_s):
                while not self._replies:
                    self.check()
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError as error:
            raise ConnectionFailed(self._address, "no reply in time") from error
        self._outstanding -= 1
        return self._replies.popleft()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            await self._closed.wait()


async def _channels_at(
    session: aiohttp.ClientSession, address: str, topic: str, timing: RegistrarTiming
) -> frozenset[str]:
    try:
        status, body = await ask(
            session,
            f"http://{address}/channels?topic={quote(topic, safe='')}",
            address,
            connect_timeout_s=timing.http_connect_timeout_s,
            timeout_s=timing.http_request_timeout_s,
        )
        check_status(status)
        answer = parse_names(body, "channels")
    except (ConnectionFailed, ProtocolError) as error:
        log.warning("channels not known topic=%s lookupd=%s error=%s", topic, address, error)
        answer = Answer()
    if answer.refused:
        log.warning("channel names refused topic=%s lookupd=%s", topic, address)
    return answer.values
