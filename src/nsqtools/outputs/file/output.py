"""The output of nsq_to_file: one topic's archive.

Compressing, writing and fsync happen on a strand of the worker threads and release the GIL, while the
loop receives the next batch: one hand-over a commit. Finished files are compacted and published on
another strand, beside the commits. Both keep their own time: a file is finished when its time is over,
and what could not be published is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import NsqToolsError, StorageError, StoreClosed, StoreError
from nsqtools.observe.log import get_log
from nsqtools.outputs.contract import DONE, Again, Feeding
from nsqtools.outputs.file.hook import PublishedFile
from nsqtools.outputs.trouble import Trouble
from nsqtools.outputs.workers import Due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nsqtools.archive.dead_keys import KeyFiles
    from nsqtools.archive.destination import Destination
    from nsqtools.archive.finishing import Published
    from nsqtools.archive.watermark import Watermark
    from nsqtools.archive.writer import ArchiveSpec, Commit
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.outputs.workers import Workers
    from nsqtools.wire.messages import Messages

_COUNTS = ("disk_bytes", "files", "ambiguous_messages", "failures", "duplicates", "forgotten_keys")
_HOOK_COUNTS = ("commands", "failed_commands", "unfinished_commands")
# How long the end waits for commands that run for published files.
HOOK_WAIT_S = 15.0
# How often the watermark is looked at while nothing is published.
MARK_INTERVAL_S = 10.0
MARK_WAIT_S = 5.0
# Messages of which it is kept apart that they may come again; beyond it all of their nsqd may.
DOUBTS_MAX = 10_000


class LeftBehind(Protocol):
    """What knows of a topic's files that no output has in hand (`leftovers`, `s3.backlog`)."""

    key_files: KeyFiles

    async def finish(self, topic: str) -> int:
        """Do with them what must be done before the topic flows. Raises StorageError."""

    def abandoned(self, topic: str) -> None:
        """An output has let go of its files."""

    def failed_of(self, topic: str) -> int:
        """How many there are."""

    def trouble_of(self, topic: str) -> str:
        """What a topic's health says of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooling:
    """For an archive whose finished files go elsewhere than to a folder, and may wait long for that.

    `leave` takes the claim of a topic's file that is not to be kept in hand. When the run ends, what
    cannot be placed within `close_wait_s` stays for the next start: its messages are durable.
    """

    destination: Destination
    leave: Callable[[str, Path], None]
    close_wait_s: float


class Room(Protocol):
    """What says whether there is room (`archive.space`, `s3.spool`)."""

    def check(self) -> None:
        """Raise StorageError when there is none."""

    def wrote(self, size_bytes: int) -> None:
        """So much was written."""


class FileOutput:
    """An `Output`; see `contract`. `sync_interval_s` is the longest that a message waits."""

    def __init__(
        self,
        spec: ArchiveSpec,
        workers: Workers,
        *,
        sync_interval_s: float,
        leftovers: LeftBehind | None = None,
        rooms: Sequence[Room] = (),
        watermark: bool = False,
        hook: PublishHook | None = None,
        hook_wait_s: float = HOOK_WAIT_S,
        spooling: Spooling | None = None,
    ) -> None:
        """`rooms` are asked before each commit; `close` waits `hook_wait_s` for the commands of `hook`.

        Raises ArchiveError for a name or format that cannot be written."""
        self.feeding = Feeding(wait_s=sync_interval_s)
        self._topic = spec.topic
        self._spooling = spooling
        self._writer = (
            ArchiveWriter(spec)
            if spooling is None
            else ArchiveWriter(
                spec,
                destination=spooling.destination,
                leave=partial(spooling.leave, spec.topic),
            )
        )
        self._leftovers = leftovers
        self._strand = workers.strand(f"archive of {spec.topic}", self._due)
        self._finisher = workers.background.strand(
            f"finished files of {spec.topic}", self._finish_due
        )
        self._loop = asyncio.get_running_loop()
        self._log = get_log("archive").bind(topic=spec.topic, channel=spec.channel)
        self._commits = Trouble(
            self._log,
            "output failed, the topic waits and is not acknowledged",
            "output works again",
        )
        self._seals = Trouble(self._log, "a file cannot be finished")
        self._finishes = Trouble(self._log, "a finished file cannot be published")
        self._rotate_wanted = False
        self._doubts: list[tuple[str, bytes | None]] = []
        self._spec = spec
        self._rooms = tuple(rooms)
        self._refusal: NsqToolsError | None = None
        self._watermark = self._writer.watermark() if watermark else None
        self._marked_s = 0.0
        self._marks = Trouble(self._log, "the watermark cannot be written")
        self._hook = hook
        self._hook_wait_s = hook_wait_s
        self._counts = dict.fromkeys((*_COUNTS, *(_HOOK_COUNTS if hook else ())), 0)

    async def open(self) -> None:
        """Finish what a run that did not end left of this topic."""
        key_files = None
        if self._leftovers is not None:
            await self._leftovers.finish(self._topic)
            key_files = self._leftovers.key_files
        if (once := self._writer.once) is not None:
            try:
                await self._strand.call(lambda: once.open(key_files))
            except StorageError:
                if (
                    self._leftovers is not None
                ):  # what another process had in hand may be left to us
                    self._leftovers.abandoned(self._topic)
                raise
        await self._mark_now()

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        """Make messages durable, those that the archive has not got yet."""
        if (refusal := self._refusal) is not None:
            return Again(self._finishes.wait_s, str(refusal), stands=True)
        doubts, self._doubts = self._doubts, []
        try:
            commit = await self._strand.call(lambda: self._commit(messages, doubts))
        except NsqToolsError as failure:  # a folder that became a link, too
            return Again(self._failed(self._commits, failure), str(failure), stands=True)
        self._commits.over()
        self._note(commit)
        return DONE

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """Remembered until the next commit: the writer looks for them from then on."""
        if self._writer.once is not None:
            if len(self._doubts) >= DOUBTS_MAX:  # one by one is too much
                self._doubts = [
                    (each, None) for each in dict.fromkeys(one for one, _ in self._doubts)
                ]
            self._doubts.append((nsqd, message_id))

    def rotate(self) -> None:
        """Finish the open file soon."""
        self._rotate_wanted = True
        self._strand.call_soon(self._rotate)

    def hurry(self) -> None:
        """What was delivered is being made durable already."""

    async def close(self) -> None:
        """Finish every file. Raises StorageError; after that it can be called again."""
        began_s = time.monotonic()
        mark_wait_s = MARK_WAIT_S
        try:
            if self._spooling is None:
                # First what waits: there may be no room for another.
                await self._finisher.call(self._finish_all)
                await self._strand.call(self._writer.close)
                await self._finisher.call(self._finish_all)
            else:
                await self._strand.call(self._writer.close)
                await self._upload_rest(self._spooling.close_wait_s)
                left_s = began_s + self._spooling.close_wait_s - time.monotonic()
                mark_wait_s = min(MARK_WAIT_S, max(0.0, left_s))
            await self._strand.call(self._writer.release)
            if self._leftovers is not None:
                self._leftovers.key_files.look_again()  # ours is there for whoever comes next
        except StorageError:
            self._counts["failures"] += 1
            raise
        await self._mark_now(mark_wait_s)
        if self._hook is not None:
            left = await self._hook.idle(self._topic, self._hook_wait_s)
            self._counts["unfinished_commands"] = left

    async def _mark_now(self, wait_s: float = MARK_WAIT_S) -> None:
        """Return when the watermark says what is so now, or nearly: a store may take its time."""
        if self._watermark is not None:
            await self._strand.call(self._mark)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._finisher.call(lambda: None)

    async def _upload_rest(self, wait_s: float) -> None:
        """Upload what can be within that time; the rest is durable and stays."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while True:
                    try:
                        await self._finisher.call(self._finish_all)
                        break
                    except NsqToolsError as failure:
                        await asyncio.sleep(self._failed(self._finishes, failure))
        if left := len(self._writer.sealed):
            self._log.warning("files stay in the spool, for the next start to upload", files=left)
            self._finisher.call_soon(self._writer.leave_sealed)

    async def abandon(self) -> None:
        """Leave all files to recovery: that of the next `open`, in this process or another."""
        await self._strand.call(self._let_go)
        if self._leftovers is not None:
            self._leftovers.abandoned(self._topic)

    def trouble(self) -> str:
        """What does not work although messages are made durable."""
        left = "" if self._leftovers is None else self._leftovers.trouble_of(self._topic)
        return left or self._seals.reason or self._finishes.reason or self._marks.reason

    def counts(self) -> Mapping[str, int]:
        """What was done since the start."""
        return self._counts

    # In the first strand's thread

    def _commit(
        self, messages: Sequence[Messages], doubts: Sequence[tuple[str, bytes | None]] = ()
    ) -> Commit:
        once = self._writer.once
        if once is not None:
            for nsqd, message_id in doubts:
                once.may_come_again(nsqd, message_id)
        self._check_room()
        try:
            commit = self._writer.commit(messages)
        finally:  # what it has sealed before it failed, too: to be taken away may be what makes room
            self._publish_sealed()
        for room in self._rooms:
            room.wrote(commit.disk_bytes)
        return commit

    def _check_room(self) -> None:
        """Raises StorageError when there is none. What fills a spool may be the open file alone: it goes,
        or nothing ever would."""
        try:
            for room in self._rooms:
                room.check()
        except StorageError:
            if self._spooling is not None:
                self._writer.rotate()
                self._publish_sealed()
            raise

    def _let_go(self) -> None:
        self._watermark = None  # what is let go of is not published
        self._writer.abandon()

    def _mark(self) -> None:
        """Say how far the archive is complete."""
        self._marked_s = time.monotonic()
        if self._watermark is None:
            return
        until = self._watermark.until(self._writer.oldest_unfinished_s)
        # Asked behind that: what the writer has let go of meanwhile is among them.
        if self._leftovers is not None and self._leftovers.failed_of(self._topic):
            return
        self._finisher.call_soon(partial(self._write_mark, self._watermark, until))

    def _due(self) -> Due | None:
        """What is to be done next by time: the file, or the watermark.

        Called when a commit was answered and no other one waits: what belongs to no answer is done here.
        """
        self._writer.catch_up()
        due = self._file_due()
        if self._watermark is None:
            return due
        mark_s = max(0.0, self._marked_s + MARK_INTERVAL_S - time.monotonic())
        return due if due is not None and due.in_s <= mark_s else Due(mark_s, self._mark)

    def _file_due(self) -> Due | None:
        """When the writer's file ends by time."""
        if self._rotate_wanted:
            return Due(self._seals.wait_s, self._rotate)
        in_s = self._writer.next_tick
        if in_s is None:
            return None
        return Due(max(in_s, self._seals.retry_s), lambda: self._seal(self._writer.tick))

    def _rotate(self) -> None:
        """Kept in mind until it is done: there may be no room for another sealed file."""
        if self._rotate_wanted and self._seal(self._writer.rotate):
            self._rotate_wanted = False

    def _seal(self, seal: Callable[[], None]) -> bool:
        try:
            seal()
        except NsqToolsError as failure:
            self._tell(partial(self._failed, self._seals, failure))
            return False
        self._tell(self._seals.over)
        self._publish_sealed()
        return True

    def _publish_sealed(self) -> None:
        if len(self._writer.sealed):
            self._finisher.call_soon(self._finish)

    # In the second strand's thread

    def _write_mark(self, watermark: Watermark, until: int) -> None:
        try:
            watermark.advance(until)
        except NsqToolsError as failure:
            self._tell(partial(self._failed, self._marks, failure))
        else:
            self._tell(self._marks.over)

    def _finish(self) -> None:
        """Publish what is sealed."""
        try:
            self._finish_all()
        except NsqToolsError as failure:  # a name that became a link, too
            self._tell(partial(self._not_finished, failure))
        else:
            self._tell(self._all_finished)

    def _finish_all(self) -> None:
        while (published := self._writer.finish()) is not None:
            self._tell(partial(self._report, published))
            if self._watermark is not None:
                self._strand.call_soon(self._mark)

    def _finish_due(self) -> Due | None:
        if not len(self._writer.sealed):
            return None
        return Due(self._finishes.wait_s, self._finish)

    def _tell(self, what: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it any more
            self._loop.call_soon_threadsafe(what)

    # On the loop

    def _not_finished(self, failure: NsqToolsError) -> None:
        """What somebody has to mend stops the topic: nothing is gained by a longer queue."""
        if isinstance(failure, StoreClosed):
            return  # the run ends, and has said what stays
        self._failed(self._finishes, failure)
        if not len(self._writer.sealed):
            self._all_finished()  # somebody took away the last that waited
        elif isinstance(failure, StoreError) and not failure.is_passing:
            if self._refusal is None:
                self._log.warning("the topic waits until the store takes its files again")
            self._refusal = failure

    def _all_finished(self) -> None:
        self._refusal = None
        self._finishes.over()

    def _failed(self, trouble: Trouble, failure: NsqToolsError) -> float:
        self._counts["failures"] += 1
        return trouble.failed(failure)

    def _note(self, commit: Commit) -> None:
        if commit.ambiguous and not self._counts["ambiguous_messages"]:
            self._log.warning(
                "a message holds a newline: as lines it cannot be told apart on replay; use"
                " --format=framed or jsonl",
            )
        self._counts["ambiguous_messages"] += commit.ambiguous
        self._counts["disk_bytes"] += commit.disk_bytes
        self._counts["duplicates"] += commit.duplicates
        if self._writer.once is not None:
            self._counts["forgotten_keys"] = self._writer.once.forgotten
        if commit.created and self._spec.partition is None:
            self._seals.over()  # the file before it is finished, or there would be no other
        for path in commit.created:
            self._log.info("opened", path=path)

    def _report(self, file: Published) -> None:
        self._counts["files"] += 1
        if file.not_compacted:
            self._log.warning("published as it was written", reason=file.not_compacted)
        if file.no_manifest:
            self._log.warning("finished without a manifest", reason=file.no_manifest)
        self._log.info(
            "finished",
            path=file.location,
            messages=file.messages,
            bytes=file.disk_bytes,
        )
        if self._hook is not None:
            self._run_hook(self._hook, file)

    def _run_hook(self, hook: PublishHook, file: Published) -> None:
        spec = self._spec
        told = PublishedFile(
            path=file.location,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
            record_format=spec.record_format,
            compression=spec.compression,
            records=file.messages,
            stored_bytes=file.disk_bytes,
            first_ts_ns=file.first_ts_ns,
            last_ts_ns=file.last_ts_ns,
        )
        hook.published(told, lambda went_well: self._tell(partial(self._count_hook, went_well)))

    def _count_hook(self, went_well: bool) -> None:
        self._counts["commands"] += 1
        self._counts["failed_commands"] += not went_well
