"""The output of nsq_to_file: one topic's archive.

Compressing, writing and fsync happen on a strand of the worker threads and release the GIL, while the
loop receives the next batch: one hand-over a commit. Finished files are compacted and published on
another strand, beside the commits. Both keep their own time: a file is finished when its time is over,
and what could not be published is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from functools import partial
from typing import TYPE_CHECKING, Any

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import SystemClock
from nsqtools.errors import NsqToolsError, StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.contract import DONE, Again, Feeding
from nsqtools.outputs.workers import Due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.archive.finishing import Published
    from nsqtools.archive.writer import ArchiveSpec, Commit
    from nsqtools.observe.log import Log
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.file.leftovers import Leftovers
    from nsqtools.outputs.workers import Workers
    from nsqtools.wire.messages import Messages

_COUNTS = ("disk_bytes", "files", "ambiguous_messages", "failures", "duplicates", "forgotten_keys")
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
# Messages of which it is kept apart that they may come again; beyond it all of their nsqd may.
DOUBTS_MAX = 10_000


class FileOutput:
    """An `Output`; see `contract`. `sync_interval_s` is the longest that a message waits."""

    def __init__(
        self,
        spec: ArchiveSpec,
        workers: Workers,
        *,
        sync_interval_s: float,
        leftovers: Leftovers | None = None,
    ) -> None:
        """Raises ArchiveError for a name or format that cannot be written."""
        self.feeding = Feeding(wait_s=sync_interval_s)
        self._topic = spec.topic
        self._writer = ArchiveWriter(spec)
        self._leftovers = leftovers
        self._strand = workers.strand(f"archive of {spec.topic}", self._due)
        self._finisher = workers.background.strand(
            f"finished files of {spec.topic}", self._finish_due
        )
        self._loop = asyncio.get_running_loop()
        self._log = get_log("archive").bind(topic=spec.topic, channel=spec.channel)
        self._commits = _Trouble(
            self._log,
            "output failed, the topic waits and is not acknowledged",
            "output works again",
        )
        self._seals = _Trouble(self._log, "a file cannot be finished")
        self._finishes = _Trouble(self._log, "a finished file cannot be published")
        self._rotate_wanted = False
        self._doubts: list[tuple[str, bytes | None]] = []
        self._counts = dict.fromkeys(_COUNTS, 0)

    async def open(self) -> None:
        """Finish what a run that did not end left of this topic."""
        if self._leftovers is not None:
            await self._leftovers.finish(self._topic)
        if (once := self._writer.once) is not None:
            await self._strand.call(once.open)

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        """Make messages durable, those that the archive has not got yet."""
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
        try:
            # First what waits: there may be no room for another.
            await self._finisher.call(self._finish_all)
            await self._strand.call(self._writer.close)
            await self._finisher.call(self._finish_all)
            await self._strand.call(self._writer.release)
        except StorageError:
            self._counts["failures"] += 1
            raise

    async def abandon(self) -> None:
        """Leave all files to recovery: that of the next `open`, in this process or another."""
        await self._strand.call(self._writer.abandon)
        if self._leftovers is not None:
            self._leftovers.abandoned(self._topic)

    def trouble(self) -> str:
        """What does not work although messages are made durable."""
        if self._leftovers is not None and (failed := self._leftovers.failed_of(self._topic)):
            return f"{failed} files of a run that did not end are not finished"
        return self._seals.reason or self._finishes.reason

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
        commit = self._writer.commit(messages)
        self._publish_sealed()
        return commit

    def _due(self) -> Due | None:
        """When the writer's file ends by time."""
        if self._rotate_wanted:
            return Due(max(RETRY_FIRST_S, self._seals.retry_s), self._rotate)
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

    def _finish(self) -> None:
        """Publish what is sealed."""
        try:
            self._finish_all()
        except NsqToolsError as failure:  # a name that became a link, too
            self._tell(partial(self._failed, self._finishes, failure))
        else:
            self._tell(self._finishes.over)

    def _finish_all(self) -> None:
        while (published := self._writer.finish()) is not None:
            self._tell(partial(self._report, published))

    def _finish_due(self) -> Due | None:
        if not len(self._writer.sealed):
            return None
        return Due(max(RETRY_FIRST_S, self._finishes.retry_s), self._finish)

    def _tell(self, what: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it any more
            self._loop.call_soon_threadsafe(what)

    # On the loop

    def _failed(self, trouble: _Trouble, failure: NsqToolsError) -> float:
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
        if commit.created is not None:
            self._log.info("opened", path=commit.created)

    def _report(self, file: Published) -> None:
        self._counts["files"] += 1
        if file.not_compacted:
            self._log.warning("published as it was written", reason=file.not_compacted)
        self._log.info(
            "finished",
            path=file.location,
            messages=file.messages,
            bytes=file.disk_bytes,
        )


class _Trouble:
    """One thing that can fail for a while: how long to wait, and what is said of it."""

    def __init__(self, log: Log, what: str, again: str = "it works again") -> None:
        self._again = again
        self.retry_s = 0.0
        self.reason = ""
        self._told = Repeated(log, what, clock=SystemClock())

    def failed(self, failure: NsqToolsError) -> float:
        """How many seconds to wait until the next try."""
        self.reason = str(failure)
        self._told.failed(failure)
        self.retry_s = min(max(RETRY_FIRST_S, self.retry_s * 2), RETRY_MAX_S)
        return self.retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def over(self) -> None:
        if self.retry_s:
            self.retry_s = 0.0
            self.reason = ""
            self._told.recovered(self._again)
