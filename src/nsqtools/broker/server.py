"""The broker: topics in a folder, and its outer side (`outside`); `async with Broker(options)`.

What is written when is `commits`; what happens by itself, and not at once, is `upkeep`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from nsqtools import durable
from nsqtools.broker.accepting import Admission
from nsqtools.broker.alarms import Alarms
from nsqtools.broker.budget import BODIES_BYTES_MAX, BodyBudget
from nsqtools.broker.commits import Commits
from nsqtools.broker.data_path import named_in, require_data_path
from nsqtools.broker.files import OpenFiles
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import MemoryBudget, Room
from nsqtools.broker.outside import Outside, cancel
from nsqtools.broker.reading import Reading, Share
from nsqtools.broker.retention import number_at
from nsqtools.broker.session import RECEIVE_BUFFER_BYTES
from nsqtools.broker.topic import Topic
from nsqtools.broker.topic_folder import TOPIC_SUFFIX, sweep
from nsqtools.broker.troubles import PUBLISH, Troubles
from nsqtools.broker.upkeep import Upkeep
from nsqtools.errors import StorageError
from nsqtools.wire.identify import ServerLimits
from nsqtools.wire.limits import CommandLimits
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from nsqtools.broker.block import Block
    from nsqtools.broker.channel import Channel
    from nsqtools.broker.options import NsqdOptions
    from nsqtools.broker.reading import Found, Read
    from nsqtools.broker.registrar import Registrar
    from nsqtools.broker.session import Session
    from nsqtools.wire.bodies import Bodies

log = logging.getLogger("nsqtools.broker")

# nsqd's version that this broker behaves like (spec: nsqd-http); clients read it.
NSQD_VERSION = "1.3.0"
READERS = 2
# Copies of messages that let the logs of all topics go, and how much more than the newest messages of
# topics on disk those may hold that are nowhere else.
COPIES_BYTES_MAX = 128 << 20
EPHEMERAL_FACTOR = 8
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
        self.troubles = Troubles()
        self.receive_buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self.bodies = BodyBudget(BODIES_BYTES_MAX, time.monotonic)
        self.max_channel_consumers = options.max_channel_consumers
        self.command_limits = _command_limits(options)
        self.server_limits = _server_limits(options)
        self.admission = Admission.of_process()
        self._outside = Outside(self, self)
        self._budget = MemoryBudget(options.mem_queue_bytes)
        self._data_path: Path = options.data_path
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._lock: contextlib.ExitStack = contextlib.ExitStack()
        self._exits = contextlib.AsyncExitStack()
        self._syncer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nsqd-sync")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nsqd-upkeep")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="nsqd-read")
        self._files = OpenFiles(self.admission.files_max // 2, self._defer)
        self._alarms = Alarms()
        self._copies = Room(COPIES_BYTES_MAX)
        self._ephemeral = Room(EPHEMERAL_FACTOR * options.mem_queue_bytes)
        self._reading = Reading(self._read, Share(), self.touched)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._commits = Commits(
            durable=self.options.durable,
            sync_every=self.options.sync_every,
            syncer=self._syncer,
            files=self._files,
            troubles=self.troubles,
        )
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
    def health(self) -> str:
        """What /ping says: `OK`, or `NOK - ` and why."""
        return self.troubles.health

    @property
    def registrar(self) -> Registrar | None:
        return self._outside.registrar

    @property
    def tcp_port(self) -> int:
        return self._outside.tcp_port

    @property
    def http_port(self) -> int:
        return self._outside.http_port

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
            try:
                topic = self._open_topic(name)
            except StorageError as failure:
                self.troubles.failed(PUBLISH, "", failure, self._data_path)
                raise
            log.info("TOPIC(%s): created", name)
            self._outside.created(topic)
            self._outside.changed(name)
        return topic

    def delete_topic(self, name: str) -> None:
        topic = self.topics[name]
        topic.remove()
        del self.topics[name]
        self._commits.forget(topic)
        self.troubles.forget(name)
        log.info("TOPIC(%s): deleting", name)
        self._outside.changed(name)

    def delete_channel(self, topic: Topic, name: str) -> None:
        """Delete a channel; an ephemeral topic goes with its last one (spec: part 7).

        Raises StorageError; then nothing has changed.
        """
        topic.delete_channel(name)
        if topic.ephemeral and not topic.channels and self.topics.get(topic.name) is topic:
            self.delete_topic(topic.name)

    def put(
        self, topic: Topic, bodies: Bodies, delay_ms: int, answer: Callable[[str | None], None]
    ) -> None:
        topic.put(bodies, delay_ms, answer)
        self.touched(topic)

    def touched(self, topic: Topic) -> None:
        self._commits.touched(topic)

    async def keep(self, topic: Topic) -> None:
        """Return when everything of the topic is on the disk. Raises StorageError."""
        if not await self._commits.sync(topic) and not topic.exiting:
            raise StorageError("keep", topic.folder or "", OSError(errno.EIO, self.health))

    def _read(self, read: Read, done: Callable[[Found], None]) -> None:
        """Read in a thread; `done` on the loop."""

        def finished(future: asyncio.Future[Block | None]) -> None:
            failure = future.exception()
            if failure is None:
                done(future.result())
            elif isinstance(failure, StorageError):
                done(failure)
            else:
                log.error("unexpected error while reading the log", exc_info=failure)
                done(StorageError("read", self._data_path, OSError(errno.EIO, str(failure))))

        self._loop.run_in_executor(self._readers, read).add_done_callback(finished)

    async def number_at(self, topic: Topic, time_ns: int) -> int | None:
        """The first message of a topic that was published then or later. Raises StorageError."""
        if not isinstance(topic.log, DiskLog):
            return topic.log.number_at(time_ns)
        segments = topic.log.segments
        return await self._loop.run_in_executor(self._readers, number_at, segments, time_ns)

    def _defer(self, function: Callable[[], object]) -> None:
        self._syncer.submit(_logged, function)

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

    # Start and stop

    async def _start(self) -> None:
        require_data_path(self._data_path)
        self._lock.enter_context(durable.lock(self._data_path))
        self._defer(lambda: sweep(self._data_path))
        for name in named_in(self._data_path, TOPIC_SUFFIX):
            self._resume(name)
            await self._let_files_go()
        await self._outside.start(self.registrations)
        upkeep = Upkeep(
            self.topics,
            self._commits,
            self.troubles,
            self._worker,
            self._alarms,
            sync_timeout_s=self.options.sync_timeout_s,
            retain=self.options.retain,
            now_ns=self.now_ns,
        )
        keeping = self._loop.create_task(upkeep.run())
        self._exits.push_async_callback(cancel, keeping)

    def _resume(self, name: str) -> None:
        """Open a topic that is there; on a full disk what it holds can be consumed, to make room."""
        topic = self._open_topic(name)
        self._commits.touched(topic)
        if isinstance(topic.log, DiskLog) and topic.log.refused is not None:
            self.troubles.failed(PUBLISH, name, topic.log.refused, topic.folder)

    async def _let_files_go(self) -> None:
        """Wait where more files are on their way to be closed than are to be open."""
        if self._files.are_too_many:
            await self._loop.run_in_executor(self._syncer, lambda: None)

    async def _stop(self) -> None:
        """Raises StorageError for what the disk refused."""
        await self._exits.aclose()
        await self._outside.stop()
        await self._commits.idle()
        await self._close_sessions()
        await self._commits.close()
        failures = [failure for topic in self.topics.values() for failure in _closed(topic)]
        run = self._loop.run_in_executor
        failures += await run(self._syncer, _sync_all, list(self.topics.values()))
        for executor in (self._worker, self._readers, self._syncer):
            await run(None, executor.shutdown)
        self._lock.close()
        if failures:
            raise failures[0]

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
            files=self._files,
            defer=self._defer,
            changed=self._outside.changed,
            budget=self._budget,
            reading=self._reading,
            alarms=self._alarms,
            copies=self._copies if folder is not None else self._ephemeral,
        )
        self.topics[name] = topic
        return topic


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


def _closed(topic: Topic) -> list[StorageError]:
    """Close it; what the disk refused."""
    try:
        topic.close()
    except StorageError as failure:
        log.error("TOPIC(%s): not closed cleanly error=%s", topic.name, failure)
        return [failure]
    return []


def _sync_all(topics: list[Topic]) -> list[StorageError]:
    """Bring topics to the disk; what it refused."""
    failures = []
    for topic in topics:
        try:
            topic.sync()
        except StorageError as failure:
            log.error("TOPIC(%s): not closed cleanly error=%s", topic.name, failure)
            failures.append(failure)
    return failures


def _logged(function: Callable[[], object]) -> None:
    try:
        function()
    except (OSError, StorageError) as failure:
        log.error("background file work failed error=%s", failure)
