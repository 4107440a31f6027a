"""file_to_nsq: read archives and logs in a thread, publish them, and say what became of every record."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from nsqtools import __version__
from nsqtools.clock import SystemClock
from nsqtools.ending import INTERRUPTED
from nsqtools.errors import ArchiveError, NsqToolsError, StorageError, StoreError
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.counters import Registry
from nsqtools.observe.log import configure, get_log
from nsqtools.observe.status import StatusServer
from nsqtools.options import printable
from nsqtools.replay import metrics
from nsqtools.replay.chunks import ChunkLimits, chunks, sort_out
from nsqtools.replay.inputs import find_inputs
from nsqtools.replay.interrupt import Interrupt
from nsqtools.replay.player import TOLD_MAX, Player
from nsqtools.replay.progress import progress_for
from nsqtools.replay.rate import Rate
from nsqtools.replay.where import select
from nsqtools.stores.named import NamedObjects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsqtools.archive.stream import Records
    from nsqtools.clock import Clock
    from nsqtools.replay.inputs import Input
    from nsqtools.replay.options import FileToNsqOptions
    from nsqtools.replay.progress import Progress

log = get_log("replay")

T = TypeVar("T")


@dataclass(slots=True)
class ReplayCounts:
    """What was read, and what of it was not sent, with the reason."""

    files: int = 0
    records: int = 0
    empty: int = 0
    left_out: int = 0
    too_big: int = 0
    inexact_files: int = 0
    failures: list[NsqToolsError] = field(default_factory=list)


async def run(options: FileToNsqOptions) -> int:
    """Replay; 0 when every record was published or skipped as empty.

    Otherwise the exit code of the first file that could not be read to its end, 1 when records were
    refused, or 130 when a signal ended it early. Raises OptionsError for a name that is no file,
    StoreError where a store cannot be asked, and a group with a ServerError when nsqd refuses the
    topic; what became of the records is told first.
    """
    configure(options.log_level, options.log_prefix, log_format=options.log_format)
    registry = Registry()
    async with (
        Lifecycle(options.shutdown_timeout_s) as life,
        StatusServer(
            options.status_address,
            registry,
            life.health,
            status=lambda: {"program": "file_to_nsq", "version": __version__},
        ),
    ):
        with NamedObjects(options) as remotes:
            sources = await _find(options.files, remotes, life)
            if sources is None:
                return INTERRUPTED
            return await _replay(options, sources, remotes, life, registry)


async def _find(names: Sequence[str], remotes: NamedObjects, life: Lifecycle) -> list[Input] | None:
    """What the names stand for, which a store may be long in saying; None when a signal came first."""
    finding = asyncio.ensure_future(asyncio.to_thread(find_inputs, names, remotes))
    stopping = asyncio.ensure_future(life.stopping.wait())
    try:
        await asyncio.wait((finding, stopping), return_when=asyncio.FIRST_COMPLETED)
        return finding.result() if finding.done() else None
    finally:
        stopping.cancel()
        if not finding.done():
            remotes.close()
        await asyncio.gather(finding, stopping, return_exceptions=True)


async def _replay(
    options: FileToNsqOptions,
    sources: list[Input],
    remotes: NamedObjects,
    life: Lifecycle,
    registry: Registry,
) -> int:
    clock = SystemClock()
    player = Player(
        options.topic,
        options.nsqd_tcp_address,
        options.producer(),
        in_flight=options.in_flight,
        clock=clock,
    )
    began_s = clock.monotonic()
    with Interrupt() as interrupt:
        progress = progress_for(options.progress, sources)
        configure(
            options.log_level,
            options.log_prefix,
            log_format=options.log_format,
            stream=progress.log_stream,
        )
        replay = Replay(options, player, progress, clock, interrupt)
        metrics.register(replay, registry)
        try:
            async with player:
                life.ready("replaying")
                ended = await _until_stopped(replay, sources, remotes, life)
        finally:
            progress.close()
            print(replay.report(clock.monotonic() - began_s), flush=True)
    return replay.exit_code(ended=ended)


async def _until_stopped(
    replay: Replay, sources: list[Input], remotes: NamedObjects, life: Lifecycle
) -> bool:
    """Whether everything was read and answered before a signal came."""
    reading = asyncio.ensure_future(replay.read(sources))
    stopping = asyncio.ensure_future(life.stopping.wait())
    try:
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
            return True
    finally:
        stopping.cancel()
        replay.interrupt.fire()
        remotes.close()
        reading.cancel()
        await asyncio.gather(reading, stopping, return_exceptions=True)
    await life.drain(replay.player.finish(), what="waiting for the last answers")
    return False


class Replay:
    """One run: the reading side, its counts, and its report."""

    def __init__(
        self,
        options: FileToNsqOptions,
        player: Player,
        progress: Progress,
        clock: Clock,
        interrupt: Interrupt,
    ) -> None:
        self.player = player
        self.interrupt = interrupt
        self.counts = ReplayCounts()
        self._options = options
        self._progress = progress
        self._clock = clock
        self._rate = Rate(options.rate_per_s, clock.monotonic())
        self._limits = ChunkLimits(
            messages_max=self._rate.largest_batch(options.batch_size),
            msg_size_max_bytes=options.max_msg_size_bytes,
            body_size_max_bytes=options.max_body_size_bytes,
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replay-read")

    async def read(self, sources: list[Input]) -> None:
        """Read every source and publish it, to the last answer.

        A file that cannot be read to its end is told, and the next one read. Cancelling it stops
        reading, when `interrupt` is fired even of a pipe in which nothing comes, and when its store is
        closed even of an object that does not come.
        """
        try:
            for source in sources:
                self.counts.files += 1
                try:
                    await self._read_one(source)
                except (ArchiveError, StorageError, StoreError) as failure:
                    self.counts.failures.append(failure)
                    log.error("file not read to its end", error=failure, hint=failure.hint or "-")
                self._progress.finished(source)
            await self.player.finish()
        finally:
            self._thread.shutdown(wait=False)

    def report(self, elapsed_s: float) -> str:
        """What became of every record, in one line for each kind."""
        counts, played = self.counts, self.player.counts
        rate = played.messages / elapsed_s if elapsed_s > 0 else 0.0
        summary = (
            f"published {played.messages} messages ({played.body_bytes} bytes) from"
            f" {counts.files} file(s) to topic {self._options.topic} in {elapsed_s:.2f} s:"
            f" {rate:,.0f} messages/s"
        )
        lines = [summary]
        for count, what in (
            (counts.left_out, "left out by --where"),
            (counts.empty, "skipped: empty, which nsqd refuses"),
            (counts.too_big, f"not sent: larger than {self._options.max_msg_size_bytes} bytes"),
            (played.refused, "refused by nsqd"),
            (played.sent_again, "sent again after no answer or a failure: may be there twice"),
            (played.sent, "given up without an answer: may be there or not"),
            (played.unanswered - played.sent, "read and never sent"),
        ):
            if count:
                lines.append(f"{count} messages {what}")
        if counts.inexact_files and played.messages:
            lines.append(
                f"{counts.inexact_files} file(s) of lines keep no time: whole frames were published,"
                " with messages from before --since or after --until"
            )
        lines += [f"not read to its end: {printable(str(failure))}" for failure in counts.failures]
        return "\n".join(lines)

    def exit_code(self, *, ended: bool) -> int:
        if not ended:
            return INTERRUPTED
        if self.counts.failures:
            return self.counts.failures[0].exit_code
        return 1 if self.counts.too_big or self.player.counts.refused else 0

    async def _read_one(self, source: Input) -> None:
        wanted = None if self._options.record_format == "auto" else self._options.record_format
        following: asyncio.Future[Records | None] | None = None
        with contextlib.ExitStack() as held:
            opened = source.opened(wanted, interrupt=self.interrupt)
            try:
                reader = await self._call(lambda: held.enter_context(opened))
                since_ns, until_ns = self._options.since_ns, self._options.until_ns
                batches = reader.batches(since_ns, until_ns)
                has_range = since_ns is not None or until_ns is not None
                self.counts.inexact_files += has_range and not reader.selects_exactly
                following = self._call(lambda: next(batches, None))
                while (batch := await following) is not None:
                    # The next batch is read while this one is published.
                    following = self._call(lambda: next(batches, None))
                    await self._play(source, batch)
            finally:
                if following is not None:
                    following.cancel()  # nobody will look at it any more
                # Whatever the thread is at ends before the file is closed under it.
                await self._call(held.close)

    async def _play(self, source: Input, batch: Records) -> None:
        records = len(batch.bodies)
        self.counts.records += records
        if self._options.where:
            batch = select(batch, self._options.where, source.name)
        self.counts.left_out += records - len(batch.bodies)
        kept = sort_out(batch.bodies, self._limits)
        self.counts.empty += kept.empty
        for at, size in kept.too_big:
            self.counts.too_big += 1
            if self.counts.too_big <= TOLD_MAX:
                log.error(
                    "message larger than nsqd takes is not sent",
                    file=source.name,
                    record=batch.first_record + at,
                    near_byte=batch.offset,
                    size=size,
                )
        for bodies in chunks(kept.bodies, self._limits):
            wait_s = self._rate.reserve(len(bodies), self._clock.monotonic())
            if wait_s > 0:
                await self._clock.sleep(wait_s)
            await self.player.play(bodies)
            # Slow ones, too, are seen to go on: a batch is of many chunks.
            self._progress.advanced(source, batch.offset, self.player.counts.messages)

    def _call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function)
