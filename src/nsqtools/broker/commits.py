"""One turn of the loop is one group commit.

Sessions and HTTP handlers put messages and settle them; at the end of the turn (`call_soon`) every
topic that was touched is written once, publishers are answered, channels deliver, and journals are
written. With `--durable` the topics are synced in between, in the one thread that syncs files, while
the next group gathers; where that fails the group is rolled back and its publishers are told, each for
its own topic. Syncs that nobody publishes for take turns with the groups.

Writes go to the page cache on the loop: they take microseconds, a hand-over to a thread takes longer
than they do. What waits for the disk is the thread's.

A group has no more files than may be open, and waits while as many are still to be closed: publishers
wait, too, and are not refused for want of descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nsqtools.broker.troubles import JOURNAL, PUBLISH, SYNC
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor

    from nsqtools.broker.files import OpenFiles
    from nsqtools.broker.publishing import Answers
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.troubles import Troubles

Group = list[tuple["Topic", "Answers"]]


class Commits:
    """The commits of all topics. All methods run on the loop; `syncer` is one thread."""

    def __init__(
        self,
        *,
        durable: bool,
        sync_every: int,
        syncer: Executor,
        files: OpenFiles,
        troubles: Troubles,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._durable = durable
        self._sync_every = sync_every
        self._syncer = syncer
        self._files = files
        self._troubles = troubles
        # The one that has waited longest comes first.
        self._touched: dict[Topic, None] = {}
        self._unsynced: set[Topic] = set()
        self._is_due = False
        self._closed = False
        self._group: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._syncs: dict[Topic, asyncio.Task[bool]] = {}
        # With `--durable`: what is written and synced under it is confirmed, or rolled back.
        self._turn = asyncio.Lock()

    def touched(self, topic: Topic) -> None:
        """Something was put or settled: commit at the end of this turn."""
        self._touched[topic] = None
        if not self._is_due and not self._closed:
            self._is_due = True
            self._loop.call_soon(self.commit)

    def forget(self, topic: Topic) -> None:
        """The topic is deleted."""
        self._touched.pop(topic, None)
        self._unsynced.discard(topic)

    def commit(self) -> None:
        """Write what was put, and answer; with `--durable` once that is synced."""
        self._is_due = False
        if self._files.are_too_many:
            self._wait_for_files()
            return
        if not self._durable:
            self._finish(self._written())
            self._go_on()
            return
        if self._group is not None or self._turn.locked():
            # Publishes wait for the disk; what was settled meanwhile is kept all the same.
            self._flush_journals(self._next_topics())
        if self._group is None:
            self._group = self._loop.create_task(self._commit_durably())

    def sync_due(self) -> None:
        """Have what is not on the disk brought there, in the background."""
        for topic in list(self._unsynced):
            if topic.exiting or not topic.wants_sync:
                self._unsynced.discard(topic)
            else:
                self._begin_sync(topic)

    async def sync(self, topic: Topic) -> bool:
        """Bring what there is of a topic now to the disk; whether that succeeded."""
        under_way = self._syncs.get(topic)
        if under_way is not None:  # it may have begun before the last change
            await asyncio.wait([under_way])
        return await asyncio.shield(self._begin_sync(topic))

    async def in_syncer(self, function: Callable[[], None]) -> None:
        """Run what syncs a file in the thread that closes files, too."""
        await self._loop.run_in_executor(self._syncer, function)

    async def idle(self) -> None:
        """Wait until no commit and no sync is under way."""
        while under_way := [*self._syncs.values(), *filter(None, (self._group, self._closing))]:
            await asyncio.wait(under_way)

    async def close(self) -> None:
        """The last commits; nothing is taken any more."""
        await self.idle()
        while self._touched:
            self.commit()
            await self.idle()
        self._closed = True

    # Inside

    def _next_topics(self) -> list[Topic]:
        """Those of the next group: their files may all be open at a time."""
        found: list[Topic] = []
        files = 0
        for topic in self._touched:
            files += 1 + len(topic.channels)
            if found and files > self._files.open_max:
                break
            found.append(topic)
        return found

    def _written(self) -> Group:
        """The next group, written to the logs; its answers are due when it is as safe as promised."""
        topics = self._next_topics()
        for topic in topics:
            del self._touched[topic]
        return [(topic, topic.commit() if topic.waiting else []) for topic in topics]

    def _wait_for_files(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._go_on_when_closed())

    async def _go_on_when_closed(self) -> None:
        """Files are closed in the order in which they were handed over: by then they all are."""
        try:
            await self._loop.run_in_executor(self._syncer, lambda: None)
        finally:
            self._closing = None
        self._go_on()

    async def _commit_durably(self) -> None:
        try:
            async with self._turn:
                group = self._written()
                if any(answers or topic.wants_sync for topic, answers in group):
                    failures = await self._loop.run_in_executor(
                        self._syncer, _sync_each, [topic for topic, _ in group]
                    )
                    group = [self._settle(*one, failures.get(one[0])) for one in group]
        finally:
            self._group = None
        self._finish(group)
        self._go_on()

    def _go_on(self) -> None:
        """What has gathered meanwhile, or did not fit, is due."""
        if self._touched:
            self.touched(next(iter(self._touched)))

    def _settle(
        self, topic: Topic, answers: Answers, failure: StorageError | None
    ) -> tuple[Topic, Answers]:
        """What a sync has said counts for the topic's part of the group."""
        self._tell_sync(topic, failure)
        if failure is None:
            topic.confirm()
            return topic, answers
        topic.roll_back()
        return topic, [(answer, reason or str(failure)) for answer, reason in answers]

    def _finish(self, group: Group) -> None:
        topics = {topic for topic, _ in group}
        # What was settled before a publish is kept before the publish is answered.
        self._flush_journals(topics)
        for topic, answers in group:
            for answer, reason in answers:
                answer(reason)
            if answers:
                self._tell(topic, answers)
        self._unsynced |= topics
        for topic in topics:
            topic.pump()
            if topic.unsynced_count >= self._sync_every:
                self._begin_sync(topic)
        self._flush_journals(topics)

    def _tell(self, topic: Topic, answers: Answers) -> None:
        failed = [reason for _, reason in answers if reason is not None]
        if not failed:
            self._troubles.recovered(PUBLISH, topic.name)
        elif not topic.exiting:
            self._troubles.failed(PUBLISH, topic.name, failed[0], topic.folder)

    def _tell_sync(self, topic: Topic, failure: StorageError | None) -> None:
        if failure is None:
            self._troubles.recovered(SYNC, topic.name)
        elif not topic.exiting:
            self._troubles.failed(SYNC, topic.name, failure)

    def _flush_journals(self, topics: Iterable[Topic]) -> None:
        for topic in topics:
            try:
                topic.flush()
            except StorageError as failure:
                self._troubles.failed(JOURNAL, topic.name, failure)

    def _begin_sync(self, topic: Topic) -> asyncio.Task[bool]:
        task = self._syncs.get(topic)
        if task is None:
            task = self._syncs[topic] = self._loop.create_task(self._sync(topic))
        return task

    async def _sync(self, topic: Topic) -> bool:
        """A sync for which no publisher waits; whether it succeeded."""
        try:
            async with self._turn if self._durable else contextlib.nullcontext():
                failure = await self._synced(topic)
                if self._durable:
                    self._settle(topic, [], failure)
                else:
                    self._tell_sync(topic, failure)
        finally:
            del self._syncs[topic]
        return failure is None

    async def _synced(self, topic: Topic) -> StorageError | None:
        topic.unsynced_count = 0
        try:
            topic.leave_doubtful()
        except StorageError as failure:
            return failure
        failures = await self._loop.run_in_executor(self._syncer, _sync_each, [topic])
        return failures.get(topic)


def _sync_each(topics: list[Topic]) -> dict[Topic, StorageError]:
    """Bring topics to the disk; those that failed, and why."""
    failures = {}
    for topic in topics:
        try:
            topic.sync()
        except StorageError as failure:
            failures[topic] = failure
    return failures
