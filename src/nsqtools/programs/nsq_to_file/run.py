"""nsq_to_file: the shared run, with an archive of files as its output."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nsqtools.archive.naming import FileNaming, host_identifier
from nsqtools.archive.space import FreeSpace
from nsqtools.archive.streaming import StreamSpec
from nsqtools.archive.writer import ArchiveSpec
from nsqtools.ending import INTERRUPTED
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.live import LiveLine
from nsqtools.observe.log import configure, get_log
from nsqtools.outputs.file.archiving import hook_of, partition_of, rotation_of
from nsqtools.outputs.file.folders import prepare_folder
from nsqtools.outputs.file.leftovers import Leftovers
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.file.stream import StreamOutput, taken_stdout
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.errors import StorageError
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.outputs.file.options import FileOptions
    from nsqtools.programs.nsq_to_file.options import NsqToFileOptions


log = get_log("archive")


async def run(options: NsqToFileOptions) -> int:
    """Archive until SIGTERM or SIGINT; 0 when everything taken was made durable and acknowledged, 130
    when the end was cut short.

    Raises StorageError when a folder cannot be written, ArchiveError for a name that cannot be.
    """
    with LiveLine(options.progress) as line:
        configure(
            options.log_level,
            options.log_prefix,
            log_format=options.log_format,
            stream=line.log_stream,
        )
        if options.output is not None:
            return await _stream(options, line)
        return await _archive(options, line)


async def _stream(options: NsqToFileOptions, line: LiveLine) -> int:
    """To standard output. Raises StorageError when that could not be written any more."""
    with taken_stdout() as fd:
        return await _stream_to(fd, options, line)


async def _stream_to(fd: int, options: NsqToFileOptions, line: LiveLine) -> int:
    async with Lifecycle(options.shutdown_timeout_s) as life:
        workers = Workers()
        broken: list[StorageError] = []

        def on_broken(failure: StorageError) -> None:
            broken.append(failure)
            life.end(str(failure))

        run = Run(
            options,
            lambda topic: stream_of(options, topic, workers, on_broken, fd),
            done="written",
            line=line,
            neighbours_at=options.nsqd_http_address,
        )
        try:
            ended = await run.run(life)
        finally:
            workers.close()
        if broken:
            raise broken[0]
        return 0 if ended else INTERRUPTED


def stream_of(
    options: NsqToFileOptions,
    topic: str,
    workers: Workers,
    on_broken: Callable[[StorageError], None],
    fd: int,
) -> StreamOutput:
    """One topic on standard output, which is open as `fd`."""
    spec = StreamSpec(
        topic=topic,
        channel=options.channel,
        host=host_identifier(options.host_identifier),
        record_format=options.record_format,
        compression=options.compression,
        level=options.compression_level if options.compression != "none" else None,
    )
    return StreamOutput(spec, workers, wait_s=options.sync_interval_s, on_broken=on_broken, fd=fd)


async def _archive(options: NsqToFileOptions, line: LiveLine) -> int:
    async with Lifecycle(options.shutdown_timeout_s) as life:
        await asyncio.to_thread(_prepare, options)
        workers = Workers()
        hook = hook_of(options, options.program)
        leftovers = Leftovers(options.effective_work_dir, workers, hook=hook)
        archiver = Run(
            options,
            lambda topic: output_of(options, topic, workers, leftovers, hook),
            done="archived",
            line=line,
            neighbours_at=options.nsqd_http_address,
            more=lambda total: [f"{total['files']:,} files"],
        )
        life.on_reload(archiver.rotate)
        rest = asyncio.create_task(leftovers.finish_rest(set(options.topic)))
        try:
            return 0 if await archiver.run(life) else INTERRUPTED
        finally:
            rest.cancel()
            await asyncio.wait([rest])
            workers.close()
            if hook is not None:
                hook.close()


def _prepare(options: NsqToFileOptions) -> None:
    for folder in dict.fromkeys((options.output_dir, options.effective_work_dir)):
        prepare_folder(folder)


def output_of(
    options: NsqToFileOptions,
    topic: str,
    workers: Workers,
    leftovers: Leftovers | None = None,
    hook: PublishHook | None = None,
) -> FileOutput:
    """The archive of one topic. Raises ArchiveError for a name or a format that cannot be."""
    return FileOutput(
        archive_spec(options, topic),
        workers,
        sync_interval_s=options.sync_interval_s,
        leftovers=leftovers,
        rooms=rooms_of(options),
        watermark=options.watermark,
        hook=hook,
        hook_wait_s=options.shutdown_timeout_s / 2,
    )


def rooms_of(options: NsqToFileOptions) -> list[FreeSpace]:
    """What must stay free on the disks, if anything."""
    if options.min_free_space is None:
        return []
    return [FreeSpace((options.output_dir, options.effective_work_dir), options.min_free_space)]


def archive_naming(options: FileOptions) -> FileNaming:
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
        compact=not options.no_compact,
        manifest=options.manifest,
        live_name=options.live_name,
        partition=partition_of(options),
        # As many FINs may be on their way as messages are in flight; twice, because RDY moves.
        keys_max=0 if options.no_dedupe else 2 * options.effective_max_in_flight,
        level=options.compression_level if options.compression != "none" else None,
        rotation=rotation_of(options),
    )
