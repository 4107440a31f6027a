"""The output of nsq_to_file: one topic's archive.

Compressing, writing and fsync happen on a strand of the worker threads and release the GIL, while the
loop receives the next batch: one hand-over a commit. Finished files go to their destination on another
strand, so that no commit waits for that. The strand finishes a file when its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.contract import DONE, Again, Feeding
from nsqtools.outputs.workers import Due

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.archive.writer import ArchiveSpec, Commit, Published
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.workers import Workers
    from nsqtools.wire.messages import Messages

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0


class FileOutput:
    """An `Output`; see `contract`. `sync_interval_s` is the longest that a message waits."""

    def __init__(self, spec: ArchiveSpec, workers: Workers, *, sync_interval_s: float) -> None:
        """Raises ArchiveError for a name or format that cannot be written."""
        self.feeding = Feeding(wait_s=sync_interval_s)
        self._spec = spec
        self._writer = ArchiveWriter(spec)
        self._strand = workers.strand(f"archive of {spec.topic}", self._due)
        self._loop = asyncio.get_running_loop()
        self._log = get_log("archive")
        self._trouble = Repeated(
            self._log,
            "output failed, the topic waits and is not acknowledged",
            clock=SystemClock(),
        )
        self._retry_s = 0.0
        self._counts = dict.fromkeys(("disk_bytes", "files", "ambiguous_messages", "failures"), 0)

    async def open(self) -> None:
        """Nothing to do: a file is created with its first message."""

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        """Make messages durable."""
        try:
            commit = await self._strand.call(lambda: self._writer.commit(messages))
        except StorageError as failure:
            return self._again(failure)
        self._works()
        self._note(commit)
        return DONE

    def rotate(self) -> None:
        """Finish the open file soon."""
        self._strand.call_soon(self._rotate)

    async def close(self) -> None:
        """Finish the open file. Raises StorageError; after that it can be called again."""
        try:
            self._report(await self._strand.call(self._writer.close))
        except StorageError:
            self._counts["failures"] += 1
            raise

    async def abandon(self) -> None:
        """Leave the open file to the recovery of the next start."""
        await self._strand.call(self._writer.abandon)

    def counts(self) -> Mapping[str, int]:
        """What was done since the start."""
        return self._counts

    # In the strand's thread

    def _due(self) -> Due | None:
        at_s = self._writer.next_tick
        return None if at_s is None else Due(max(at_s - time.time(), self._retry_s), self._tick)

    def _tick(self) -> None:
        """Finish the open file when its time is over."""
        self._finish(self._writer.tick)

    def _rotate(self) -> None:
        self._finish(self._writer.rotate)

    def _finish(self, finish: Callable[[], list[Published]]) -> None:
        try:
            published = finish()
        except StorageError as failure:
            self._tell(self._again, failure)
        else:
            self._tell(self._report_tick, published)

    def _tell(self, what: Callable[[Any], object], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it any more
            self._loop.call_soon_threadsafe(what, value)

    # On the loop

    def _again(self, failure: StorageError) -> Again:
        self._counts["failures"] += 1
        self._trouble.failed(failure, topic=self._spec.topic)
        self._retry_s = min(max(RETRY_FIRST_S, self._retry_s * 2), RETRY_MAX_S)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311
        return Again(self._retry_s * jitter, str(failure), stands=True)

    def _works(self) -> None:
        if self._retry_s:
            self._retry_s = 0.0
            self._trouble.recovered("output works again", topic=self._spec.topic)

    def _note(self, commit: Commit) -> None:
        if commit.ambiguous and not self._counts["ambiguous_messages"]:
            self._log.warning(
                "a message holds a newline: as lines it cannot be told apart on replay; use"
                " --format=framed or jsonl",
                topic=self._spec.topic,
            )
        self._counts["ambiguous_messages"] += commit.ambiguous
        self._counts["disk_bytes"] += commit.disk_bytes
        if commit.created is not None:
            self._log.info("opened", topic=self._spec.topic, path=commit.created)
        self._report(commit.published)

    def _report_tick(self, published: Sequence[Published]) -> None:
        self._works()
        self._report(published)

    def _report(self, published: Sequence[Published]) -> None:
        for file in published:
            self._counts["files"] += 1
            self._log.info(
                "finished",
                topic=self._spec.topic,
                path=file.path,
                messages=file.messages,
                bytes=file.disk_bytes,
            )
