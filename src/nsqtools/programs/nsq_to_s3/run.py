"""nsq_to_s3: the shared run, with an archive in a bucket as its output."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsqtools.archive.destination import About
from nsqtools.archive.object_names import fixed_prefix
from nsqtools.archive.space import FreeSpace
from nsqtools.archive.streaming import StreamSpec
from nsqtools.archive.writer import ArchiveSpec
from nsqtools.ending import INTERRUPTED
from nsqtools.errors import StorageError, StoreError
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.live import LiveLine
from nsqtools.observe.log import configure, get_log
from nsqtools.options import printable
from nsqtools.outputs.file.archiving import hook_of, partition_of, rotation_of
from nsqtools.outputs.file.folders import prepare_folder
from nsqtools.outputs.file.output import FileOutput, Spooling
from nsqtools.outputs.s3.backlog import Backlog
from nsqtools.outputs.s3.destination import Destinations
from nsqtools.outputs.s3.direct import DirectOutput, DirectSpec, remove_dead
from nsqtools.outputs.s3.spool import Spool, look
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.run import Run
from nsqtools.programs.nsq_to_s3.watch import SpoolWatch
from nsqtools.stores.client import open_store
from nsqtools.stores.location import Location

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nsqtools.outputs.contract import Output
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.programs.nsq_to_s3.options import NsqToS3Options

log = get_log("archive")

_BATCH_IDLE_S = 1.0
# Where credentials are fetched over a network that does not answer, archiving begins without them.
_CONNECT_WAIT_S = 2.0


async def run(options: NsqToS3Options) -> int:
    """Archive until SIGTERM or SIGINT; 0 when everything taken was made durable and acknowledged, 130
    when the end was cut short.

    Raises StorageError when the spool cannot be written, ArchiveError for a key that cannot be.
    """
    with LiveLine(options.progress) as line:
        configure(
            options.log_level,
            options.log_prefix,
            log_format=options.log_format,
            stream=line.log_stream,
        )
        if options.only_check:
            return await asyncio.to_thread(_check, options)
        with contextlib.closing(Destinations(options)) as destinations:
            return await _archive(options, destinations, line)


def _check(options: NsqToS3Options) -> int:
    """Tell what each step showed; 0 when all that is needed works, else 5."""
    from nsqtools.stores.check import check  # heavy, and for this alone

    prefix = fixed_prefix(options.key_format)
    with open_store(options) as store:
        findings = check(store, prefix)
    for found in findings:
        mark = "ok" if found.is_fine else ("FAILED" if found.needed else "note")
        problem = f": {printable(found.problem)}" if found.problem else ""
        print(f"{mark:<7} {found.step}{problem}")
        if found.hint:
            print(f"        hint: {found.hint}")
    failed = [found for found in findings if found.needed and not found.is_fine]
    print(f"{'not usable' if failed else 'usable'}: {Location(store.bucket, prefix)}")
    return StoreError.exit_code if failed else 0


async def _archive(options: NsqToS3Options, destinations: Destinations, line: LiveLine) -> int:
    async with Lifecycle(options.shutdown_timeout_s) as life:
        workers = Workers()
        hook = hook_of(options, options.program)
        archive = _Archive(options, destinations, workers, hook)
        await asyncio.to_thread(archive.prepare)
        archiver = Run(
            options,
            archive.output_of,
            done="archived",
            line=line,
            neighbours_at=options.nsqd_http_address,
            more=lambda total: [f"{total['files']:,} objects", *archive.watch.told()],
        )
        life.on_reload(archiver.rotate)
        chores = archive.chores(archiver, life)
        try:
            if await archiver.run(life):
                return 0
            await archive.tell_left()
            return INTERRUPTED
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.wait(chores)
            await archive.settle()
            workers.close()
            if hook is not None:
                hook.close()


def _tell_fault(chore: asyncio.Task[None]) -> None:
    """Nobody waits for it before the end."""
    if not chore.cancelled() and (fault := chore.exception()) is not None:
        logging.getLogger("nsqtools.archive").error("a fault in nsqtools", exc_info=fault)


class _Archive:
    """What the outputs of one run share."""

    def __init__(
        self,
        options: NsqToS3Options,
        destinations: Destinations,
        workers: Workers,
        hook: PublishHook | None,
    ) -> None:
        self._options = options
        self._workers = workers
        self._hook = hook
        self._folder = options.spool_dir or Path(tempfile.gettempdir())
        self._destination = destinations.open(f"s3://{options.bucket}")
        self._spool = Spool(self._folder, options.max_spool_bytes)
        self._backlog = Backlog(
            self._folder,
            workers,
            self._destination,
            open_destination=destinations.open,
            hook=hook,
        )
        spool = self._spool if options.ack == "spool" else None
        self.watch = SpoolWatch(spool, self._destination, self._backlog, workers.strand("spool"))

    def prepare(self) -> None:
        """A folder that can be written, and all loaded before messages flow. Blocks; raises
        StorageError."""
        self._destination.prepare(_CONNECT_WAIT_S)
        prepare_folder(self._folder)
        if self._options.ack == "upload":
            remove_dead(self._folder)

    def chores(self, archiver: Run, life: Lifecycle) -> list[asyncio.Task[None]]:
        """Tasks that go on until the end."""
        # On a thread that the end of the process does not wait for: a store may not answer.
        clean_up = partial(self._destination.abort_old_uploads, self._options.naming())
        self._workers.background.strand("unfinished uploads").call_soon(clean_up)
        self.watch.register(archiver.registry)
        found = [_chore("watch", self.watch.run(life.health))]
        if self._options.ack == "spool":
            found.append(_chore("backlog", self._backlog.run()))
        return found

    async def tell_left(self) -> None:
        """Of an end that was cut short: what it leaves to the next start."""
        if self._options.ack == "spool":
            with contextlib.suppress(StorageError):
                left = await asyncio.to_thread(look, self._folder)
                log.warning(
                    "the end was cut short: files stay in the spool, for the next start to upload",
                    files=left.files,
                    path=self._folder,
                )

    async def settle(self) -> None:
        """Let what is being uploaded come to its end, within limits."""
        await self._backlog.settle(self._options.shutdown_timeout_s / 2)

    def output_of(self, topic: str) -> Output:
        """The archive of one topic. Raises ArchiveError for a key or a format that cannot be."""
        if self._options.ack == "upload":
            return DirectOutput(
                self._direct_spec(topic), self._workers, self._destination, hook=self._hook
            )
        options = self._options
        rooms: list[Spool | FreeSpace] = [self._spool]
        if options.min_free_space is not None:
            rooms.append(FreeSpace([self._folder], options.min_free_space))
        return FileOutput(
            self._archive_spec(topic),
            self._workers,
            sync_interval_s=options.sync_interval_s,
            leftovers=self._backlog,
            rooms=rooms,
            watermark=options.watermark,
            hook=self._hook,
            hook_wait_s=options.shutdown_timeout_s / 2,
            spooling=Spooling(
                destination=self._destination,
                leave=self._backlog.left,
                close_wait_s=options.shutdown_timeout_s / 2,
            ),
        )

    def _archive_spec(self, topic: str) -> ArchiveSpec:
        options = self._options
        naming = options.naming()
        return ArchiveSpec(
            topic=topic,
            channel=options.channel,
            host=naming.host,
            output_dir=self._folder,
            work_dir=self._folder,
            naming=naming,
            record_format=options.record_format,
            compression=options.compression,
            compact=not options.no_compact,
            manifest=options.manifest,
            partition=partition_of(options),
            keys_max=0 if options.no_dedupe else 2 * options.effective_max_in_flight,
            level=options.compression_level if options.compression != "none" else None,
            rotation=rotation_of(options),
        )

    def _direct_spec(self, topic: str) -> DirectSpec:
        options = self._options
        naming = options.naming()
        rotation = rotation_of(options)
        if (options.max_messages or options.exit_when_idle_s) and not rotation.rotate_idle_s:
            # A run that ends by itself must not wait for its last object to grow.
            rotation = replace(rotation, rotate_idle_s=_BATCH_IDLE_S)
        about = About(
            unique="",
            topic=topic,
            channel=options.channel,
            host=naming.host,
            record_format=options.record_format,
            compression=options.compression,
        )
        return DirectSpec(
            stream=StreamSpec(
                topic=topic,
                channel=options.channel,
                host=naming.host,
                record_format=options.record_format,
                compression=options.compression,
                level=options.compression_level if options.compression != "none" else None,
            ),
            about=about,
            manifest=options.manifest,
            naming=naming.format_for(
                topic, options.compression, revision_needed=True, channel=options.channel
            ),
            rotation=rotation,
            window=options.effective_max_in_flight,
            sync_interval_s=options.sync_interval_s,
            scratch_dir=self._folder,
        )


def _chore(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task beside the topics, whose end by an error of ours is heard at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_end)
    return task


def _tell_end(chore: asyncio.Task[None]) -> None:
    if not chore.cancelled() and (error := chore.exception()) is not None:
        name = chore.get_name()
        log.error("a chore has failed, and is not done any more", chore=name, error=repr(error))
