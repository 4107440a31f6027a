"""The broker: topics in a folder, TCP and HTTP servers, timers; `async with Broker(options)`.

One turn of the loop is one group commit. Sessions and HTTP handlers put messages and settle them; at
the end of the turn (`call_soon`) every topic that was touched is written once, publishers are answered,
channels deliver, and journals are written. With `--durable` the log is fsynced in between, in the one
thread that syncs files, while the next group gathers.

Writes go to the page cache on the loop: they take microseconds, a hand-over to a thread takes longer
than they do. What may wait for the disk (fsync, closing, removing files) is that thread's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from nsqtools import durable
from nsqtools.broker.budget import BODIES_BYTES_MAX, BodyBudget
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import MemoryBudget
from nsqtools.broker.registrar import Registrar
from nsqtools.broker.session import RECEIVE_BUFFER_BYTES, Session
from nsqtools.broker.topic import TOPIC_SUFFIX, Topic, sweep
from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed, StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.wire.identify import ServerLimits
from nsqtools.wire.limits import CommandLimits
from nsqtools.wire.lookup import PeerInfo
from nsqtools.wire.names import is_ephemeral, is_valid_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from nsqtools.broker.channel import Channel
    from nsqtools.broker.options import NsqdOptions

log = logging.getLogger("nsqtools.broker")

# nsqd's version that this broker behaves like (spec: nsqd-http); clients read it.
NSQD_VERSION = "1.3.0"
SCAN_INTERVAL_S = 0.1
TRIM_INTERVAL_S = 1.0
# How long a client may take what was sent to it before its connection is cut.
CLOSE_SESSIONS_S = 1.0


class Broker:
    """An embedded nsqd.

    Entering locks the data path, recovers every topic, and listens; leaving stops, in nsqd's order
    (spec: nsqd-http, 5.4), and keeps everything, in-flight and deferred messages included. Raises
    DataPathInUse, StorageError, or ConnectionFailed when an address cannot be listened on.
    """

    def __init__(self, options: NsqdOptions) -> None:
        self.options = options
        self.topics: dict[str, Topic] = {}
        self.sessions: set[Session] = set()
        self.start_time_s = int(time.time())
        self.health = "OK"
        self.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.bodies = BodyBudget(BODIES_BYTES_MAX, time.monotonic)
        self.max_channel_consumers = options.max_channel_consumers
        self.command_limits = _command_limits(options)
        self.server_limits = _server_limits(options)
        self.registrar: Registrar | None = None
        self.tcp_port = -1
        self.http_port = -1
        self._budget = MemoryBudget(options.mem_queue_bytes)
        self._data_path: Path = options.data_path
        self._touched: set[Topic] = set()
        self._flushing = False
        self._syncing = False
        self._closing = False
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._lock: contextlib.ExitStack = contextlib.ExitStack()
        self._exits = contextlib.AsyncExitStack()
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nsqd-sync")
        self._precreating: set[asyncio.Task[None]] = set()
        self._answering: asyncio.Task[None] | None = None
        self._journal_trouble = Repeated(
            get_log("broker"), "a channel's journal was not written", clock=SystemClock()
        )
        self._trim_trouble = Repeated(
            get_log("broker"), "the log keeps what no channel needs", clock=SystemClock()
        )
        self._last_trim_s = 0.0
        self._last_sync_s = 0.0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    # What sessions and the HTTP API use

    def now_s(self) -> float:
        return self._loop.time()

    def now_ns(self) -> int:
        return time.time_ns()

    @property
    def tcp_address(self) -> str:
        """Where a local client connects."""
        return f"127.0.0.1:{self.tcp_port}"

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    def topic(self, name: str) -> Topic:
        """The topic of that name, made when it is missing. Raises StorageError."""
        topic = self.topics.get(name)
        if topic is None:
            topic = self._open_topic(name)
            topic.save_state()
            log.info("TOPIC(%s): created", name)
            self._precreate(topic)
            self._changed(name)
        return topic

    def delete_topic(self, name: str) -> None:
        topic = self.topics.pop(name)
        self._touched.discard(topic)
        log.info("TOPIC(%s): deleting", name)
        topic.remove()
        self._changed(name)

    def delete_channel(self, topic: Topic, name: str) -> None:
        """Delete a channel; an ephemeral topic goes with its last one (spec: part 7)."""
        topic.delete_channel(name)
        if topic.ephemeral and not topic.channels and self.topics.get(topic.name) is topic:
            self.delete_topic(topic.name)

    def put(
        self, topic: Topic, bodies: list[bytes], delay_ms: int, answer: Callable[[str | None], None]
    ) -> None:
        topic.put(bodies, delay_ms, answer)
        self.touched(topic)

    def touched(self, topic: Topic) -> None:
        self._touched.add(topic)
        if not self._flushing and not self._closing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def release(self, topic: Topic, channel: Channel) -> None:
        """A consumer has left; what is ephemeral goes with its last (spec: part 7)."""
        is_ours = topic.channels.get(channel.name) is channel
        if channel.ephemeral and not channel.subscribers and is_ours:
            self.delete_channel(topic, channel.name)
            return
        channel.deliver()
        self.touched(topic)

    def joined(self, session: Session) -> None:
        self.sessions.add(session)
        self._deserted.clear()

    def left(self, session: Session) -> None:
        self.sessions.discard(session)
        if not self.sessions:
            self._deserted.set()

    def registrations(self) -> Iterable[tuple[str, str | None]]:
        """What nsqlookupd is to know: (topic, channel or None)."""
        for topic in self.topics.values():
            if not topic.channels:
                yield topic.name, None
            for channel in topic.channels.values():
                yield topic.name, channel.name

    # The turn of the loop

    def _flush(self) -> None:
        self._flushing = False
        if self._syncing:
            # Publishes wait for the disk; what was settled meanwhile is kept all the same.
            self._flush_journals(self._touched)
            return
        topics, self._touched = self._touched, set()
        answers = [pair for topic in topics if topic.waiting for pair in topic.commit()]
        failed = [reason for _, reason in answers if reason is not None]
        if answers:
            self.health = f"NOK - {failed[0]}" if failed else "OK"
        if self.options.durable and answers:
            self._syncing = True
            self._answering = self._loop.create_task(self._answer_when_durable(topics, answers))
        else:
            self._finish_turn(topics, answers)

    async def _answer_when_durable(
        self,
        topics: set[Topic],
        answers: list[tuple[Callable[[str | None], None], str | None]],
    ) -> None:
        reason = await self._loop.run_in_executor(self._syncer, _sync_all, list(topics))
        self._syncing = False
        if reason is not None:
            self.health = f"NOK - {reason}"
            answers = [(answer, reason) for answer, _ in answers]
        self._finish_turn(topics, answers)
        if self._touched:
            self.touched(next(iter(self._touched)))

    def _finish_turn(
        self,
        topics: set[Topic],
        answers: list[tuple[Callable[[str | None], None], str | None]],
    ) -> None:
        # What was settled before a publish is kept before the publish is answered.
        self._flush_journals(topics)
        for answer, reason in answers:
            answer(reason)
        for topic in topics:
            topic.pump()
            if topic.unsynced_count >= self.options.sync_every:
                self._sync(topic)
        self._flush_journals(topics)

    def _flush_journals(self, topics: set[Topic]) -> None:
        for topic in topics:
            try:
                topic.flush()
            except StorageError as failure:
                self._journal_trouble.failed(failure, topic=topic.name)
                self.health = f"NOK - {failure}"

    def _sync(self, topic: Topic) -> None:
        topic.unsynced_count = 0
        if isinstance(topic.log, DiskLog):
            self._defer(lambda: _sync_all([topic]))

    def _defer(self, function: Callable[[], object]) -> None:
        self._syncer.submit(_logged, function)

    async def _tick(self) -> None:
        """The queue scan, syncs that are due, and letting go of the log."""
        while True:
            await asyncio.sleep(SCAN_INTERVAL_S)
            now_s = self.now_s()
            for topic in list(self.topics.values()):
                if topic.scan(now_s, self.now_ns()):
                    self.touched(topic)
            if now_s - self._last_sync_s >= self.options.sync_timeout_s:
                self._last_sync_s = now_s
                for topic in self.topics.values():
                    if topic.unsynced_count:
                        self._sync(topic)
            if now_s - self._last_trim_s >= TRIM_INTERVAL_S:
                self._last_trim_s = now_s
                self._trim()
                self.bodies.sweep()

    def _trim(self) -> None:
        failed = False
        for topic in self.topics.values():
            try:
                topic.trim()
            except StorageError as failure:
                self._trim_trouble.failed(failure, topic=topic.name)
                failed = True
        if not failed:
            self._trim_trouble.recovered("logs are let go of again")

    # Start and stop

    async def _start(self) -> None:
        _require_folder(self._data_path)
        self._lock.enter_context(durable.lock(self._data_path))
        self._defer(lambda: sweep(self._data_path))
        for folder in sorted(self._data_path.glob(f"*{TOPIC_SUFFIX}")):
            name = folder.name.removesuffix(TOPIC_SUFFIX)
            if is_valid_name(name):
                self._open_topic(name)
        if self.options.http_address:
            await self._listen_http(self.options.http_address)
        await self._listen()
        self._register()
        tick = self._loop.create_task(self._tick())
        self._exits.push_async_callback(_cancel, tick)

    def _register(self) -> None:
        """Keep nsqlookupds informed; the ports that they are told are known now."""
        options = self.options
        self.registrar = Registrar(
            options.lookupd_tcp_address,
            PeerInfo(
                version=NSQD_VERSION,
                broadcast_address=options.effective_broadcast_address,
                hostname=socket.gethostname(),
                tcp_port=options.broadcast_tcp_port or self.tcp_port,
                http_port=options.broadcast_http_port or self.http_port,
            ),
            self.registrations,
            rng=random.Random(),  # noqa: S311 - jitter
        )
        registering = self._loop.create_task(self.registrar.run())
        self._exits.push_async_callback(_cancel, registering)

    async def _listen_http(self, address: str) -> None:
        from nsqtools.broker.http import HttpApi  # aiohttp takes a third of a second

        api = HttpApi(self)
        self._exits.push_async_callback(api.stop)
        self.http_port = await api.start(address)

    async def _listen(self) -> None:
        address = self.options.tcp_address
        host, _, port = address.rpartition(":")
        try:
            if "/" in address:
                server: asyncio.AbstractServer = await self._loop.create_unix_server(
                    lambda: Session(self), address
                )
            else:
                server = await self._loop.create_server(
                    lambda: Session(self), host.strip("[]") or None, int(port), backlog=1024
                )
        except OSError as cause:
            raise ConnectionFailed(address, f"cannot listen: {cause.strerror or cause}") from cause
        if "/" not in address:
            self.tcp_port = server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        log.info("TCP: listening on %s", address if "/" in address else f"{host}:{self.tcp_port}")
        self._exits.push_async_callback(_close_server, server)

    async def _stop(self) -> None:
        await self._exits.aclose()
        for task in list(self._precreating):
            await _cancel(task)
        if self._answering is not None:
            await self._answering
        await self._close_sessions()
        self._flush()
        if self._answering is not None:
            await self._answering
        self._closing = True
        for topic in self.topics.values():
            try:
                topic.close()
            except StorageError as failure:
                log.error("TOPIC(%s): not closed cleanly error=%s", topic.name, failure)
        await self._loop.run_in_executor(None, self._syncer.shutdown)
        self._lock.close()

    async def _close_sessions(self) -> None:
        """Clients just see the end of the connection; what they held is theirs no more."""
        for session in list(self.sessions):
            session.disconnect()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SESSIONS_S):
                await self._deserted.wait()
        for session in list(self.sessions):
            session.abort()
        await self._deserted.wait()

    def _open_topic(self, name: str) -> Topic:
        folder = None if is_ephemeral(name) else self._data_path / f"{name}{TOPIC_SUFFIX}"
        topic = Topic(
            name,
            folder,
            self.options,
            now_ns=self.now_ns,
            now_s=self.now_s,
            defer=self._defer,
            changed=self._changed,
            budget=self._budget,
        )
        self.topics[name] = topic
        return topic

    def _changed(self, topic: str) -> None:
        if self.registrar is not None:
            self.registrar.changed(topic)

    def _precreate(self, topic: Topic) -> None:
        """A new topic waits for the channels that nsqlookupd knows (spec: lookupd, A5)."""
        registrar = self.registrar
        if registrar is not None and registrar.addresses and not topic.ephemeral:
            topic.hold()
            task = self._loop.create_task(self._precreate_channels(topic, registrar))
            self._precreating.add(task)
            task.add_done_callback(self._precreating.discard)

    async def _precreate_channels(self, topic: Topic, registrar: Registrar) -> None:
        try:
            for name in sorted(await registrar.channels(topic.name)):
                if is_valid_name(name) and not is_ephemeral(name) and not topic.exiting:
                    topic.channel(name)
        finally:
            topic.release()
            self.touched(topic)


def _command_limits(options: NsqdOptions) -> CommandLimits:
    return CommandLimits(
        max_msg_size_bytes=options.max_msg_size_bytes,
        max_body_size_bytes=options.max_body_size_bytes,
        max_rdy_count=options.max_rdy_count,
        max_req_timeout_ms=int(options.max_req_timeout_s * 1000),
    )


def _server_limits(options: NsqdOptions) -> ServerLimits:
    return ServerLimits(
        version=NSQD_VERSION,
        max_rdy_count=options.max_rdy_count,
        max_heartbeat_interval_ms=int(options.max_heartbeat_interval_s * 1000),
        max_output_buffer_size=options.max_output_buffer_size_bytes,
        output_buffer_timeout_ms=int(options.output_buffer_timeout_s * 1000),
        min_output_buffer_timeout_ms=int(options.min_output_buffer_timeout_s * 1000),
        max_output_buffer_timeout_ms=int(options.max_output_buffer_timeout_s * 1000),
        msg_timeout_ms=int(options.msg_timeout_s * 1000),
        max_msg_timeout_ms=int(options.max_msg_timeout_s * 1000),
        deflate=False,
        snappy=False,
    )


def _require_folder(path: Path) -> None:
    try:
        if not path.is_dir():
            raise NotADirectoryError(20, os.strerror(20), str(path))
    except OSError as cause:
        raise StorageError("open data path", path, cause) from cause


def _sync_all(topics: list[Topic]) -> str | None:
    """Bring the topics' logs to the platter; why not, if it failed."""
    try:
        for topic in topics:
            if isinstance(topic.log, DiskLog):
                topic.log.sync()
    except StorageError as failure:
        log.error("fsync failed error=%s", failure)
        return str(failure)
    return None


def _logged(function: Callable[[], object]) -> None:
    try:
        function()
    except (OSError, StorageError) as failure:
        log.error("background file work failed error=%s", failure)


async def _close_server(server: asyncio.AbstractServer) -> None:
    server.close()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
