"""nsq_to_file: recover what a dead run left, then one pipeline a topic until told to stop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.destination import DIRECTORY_MODE
from nsqtools.archive.naming import FileNaming, host_identifier
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveSpec
from nsqtools.client.memory import ConsumerMemory
from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed, NsqToolsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.log import Repeated, configure, get_log
from nsqtools.outputs.file import FileOutput
from nsqtools.pipeline.topic import TopicCounts, TopicPipeline, TopicSpec
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from nsqtools.pipeline.options import NsqToFileOptions

log = get_log("archive")

SUMMARY_INTERVAL_S = 60.0
# A topic that nsqlookupd has not named for so many rounds, and that no nsqd serves, is gone.
GONE_AFTER_ROUNDS = 3


async def run(options: NsqToFileOptions) -> int:
    """Archive until SIGTERM or SIGINT; 0 when everything taken was made durable and acknowledged.

    Raises StorageError when a folder cannot be written, ArchiveError for a name that cannot be.
    """
    configure(options.log_level, options.log_prefix)
    await asyncio.to_thread(_prepare, options)
    async with Lifecycle(options.shutdown_timeout_s) as life:
        archiver = Archiver(options)
        life.on_reload(archiver.rotate)
        return 0 if await archiver.run(life) else 1


def _prepare(options: NsqToFileOptions) -> None:
    """Folders that can be written, and files of dead writers finished."""
    for folder in (options.output_dir, options.effective_work_dir):
        durable.make_directories(folder, DIRECTORY_MODE)
        durable.check_writable(folder)
    durable.remove_leftovers(options.output_dir, now=time.time())
    for found in recover(options.effective_work_dir):
        what = "recovered a file of a run that did not end"
        if found.published is None:
            what = "a file of a run that did not end is not published"
        log.warning(
            what,
            path=found.path,
            published=found.published or "-",
            records=found.records,
            cut_bytes=found.cut_bytes,
            reason=found.reason,
        )


class Archiver:
    """The pipelines of one run: one a topic, each its own task."""

    def __init__(self, options: NsqToFileOptions) -> None:
        self._options = options
        self._running: dict[str, tuple[TopicPipeline, asyncio.Task[None]]] = {}
        self._totals = TopicCounts()
        self._missing: Counter[str] = Counter()
        self._memory = ConsumerMemory()

    async def run(self, life: Lifecycle) -> bool:
        """Archive until `life` stops; whether everything ended in order."""
        async with asyncio.TaskGroup() as group:
            if not self._options.is_discovering:
                for topic in dict.fromkeys(self._options.topic):
                    if self._options.wants_topic(topic):
                        self._start(topic, group)
            chores = [group.create_task(self._summaries())]
            if self._options.is_discovering:
                chores.append(group.create_task(self._discover(group)))
            life.ready("archiving")
            await life.stopping.wait()
            for chore in chores:
                chore.cancel()
            ended = await life.drain(self._drain(), what="making durable what is in flight")
        self._summarize("archived")
        return ended

    def rotate(self) -> None:
        """Every topic finishes its open file (SIGHUP)."""
        for pipeline, _ in self._running.values():
            pipeline.rotate()

    def _start(self, topic: str, group: asyncio.TaskGroup) -> None:
        options = self._options
        spec = TopicSpec(
            topic=topic,
            channel=options.channel,
            consumer=options.consumer(),
            sync_interval_s=options.sync_interval_s,
            nsqd_addresses=options.nsqd_tcp_address,
            lookupd_addresses=options.lookupd_http_address,
            memory=self._memory,
        )
        pipeline = TopicPipeline(spec, FileOutput(archive_spec(options, topic)))
        task = group.create_task(self._run_one(pipeline))
        self._running[topic] = pipeline, task

    async def _run_one(self, pipeline: TopicPipeline) -> None:
        try:
            await pipeline.run()
        finally:
            self._totals.add(pipeline.counts)
            self._running.pop(pipeline.topic, None)

    async def _drain(self) -> None:
        running = list(self._running.values())
        for pipeline, _ in running:
            pipeline.stop()
        tasks = [task for _, task in running]
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise

    async def _discover(self, group: asyncio.TaskGroup) -> None:
        """Archive what nsqlookupd names, at once and every topic_refresh_s (spec: tools, 1.2)."""
        from nsqtools.client.lookup import LookupOptions, topics

        trouble = Repeated(log, "could not retrieve the list of topics", clock=SystemClock())
        lookup = LookupOptions(
            lookupd_poll_timeout_s=self._options.http_client_request_timeout_s,
            auth_secret=self._options.auth_secret,
        )
        while True:
            try:
                found = await topics(self._options.lookupd_http_address, options=lookup)
            except ConnectionFailed as failure:
                trouble.failed(failure)
            else:
                trouble.recovered("the list of topics can be retrieved again")
                self._take_over(found, group)
            await asyncio.sleep(self._options.topic_refresh_s)

    def _take_over(self, found: set[str], group: asyncio.TaskGroup) -> None:
        wanted = {t for t in found if self._options.wants_topic(t) and not is_ephemeral(t)}
        for topic in sorted(wanted - self._running.keys()):
            log.info("new topic", topic=topic)
            try:
                self._start(topic, group)
            except NsqToolsError as failure:
                log.error("topic cannot be archived", topic=topic, error=failure)
        for topic, (pipeline, _) in self._running.items():
            gone = topic not in wanted and not pipeline.consumer.connections
            self._missing[topic] = self._missing[topic] + 1 if gone else 0
            if self._missing[topic] >= GONE_AFTER_ROUNDS:
                log.info("topic is gone", topic=topic)
                pipeline.stop()

    async def _summaries(self) -> None:
        """One line a minute, when there is something to tell."""
        told = 0
        while True:
            await asyncio.sleep(SUMMARY_INTERVAL_S)
            messages = self._sum().messages
            if messages != told:
                self._summarize("archiving")
                told = messages

    def _sum(self) -> TopicCounts:
        total = TopicCounts()
        total.add(self._totals)
        for pipeline, _ in self._running.values():
            total.add(pipeline.counts)
        return total

    def _summarize(self, what: str) -> None:
        total = self._sum()
        log.info(
            what,
            messages=total.messages,
            body_bytes=total.body_bytes,
            disk_bytes=total.disk_bytes,
            commits=total.commits,
            files=total.files,
            possible_duplicates=total.unsettled + total.fin_failed,
            output_failures=total.output_failures,
        )


def archive_naming(options: NsqToFileOptions) -> FileNaming:
    """How the files of this run are named."""
    return FileNaming(
        host=host_identifier(options.host_identifier),
        filename_format=options.filename_format,
        datetime_format=options.datetime_format,
        utc=options.utc,
    )


def archive_spec(options: NsqToFileOptions, topic: str) -> ArchiveSpec:
    """Where and how one topic is archived."""
    naming = archive_naming(options)
    return ArchiveSpec(
        topic=topic,
        channel=options.channel,
        host=naming.host,
        output_dir=options.output_dir,
        work_dir=options.effective_work_dir,
        naming=naming,
        record_format=options.record_format,
        compression=options.compression,
        level=options.compression_level if options.compression != "none" else None,
        rotation=RotationPolicy(
            rotate_interval_s=options.rotate_interval_s,
            rotate_size_bytes=options.rotate_size_bytes,
            rotate_records=options.rotate_records,
            rotate_idle_s=options.rotate_idle_s,
        ),
    )
