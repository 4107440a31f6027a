"""What the broker does by itself: time-outs and deferrals, syncs that are due, and short files.

Theory of operation. A tick takes back what has timed out and delivers what is due. In between, one
thing at a time and with its waits for the disk in a thread: journals that have outgrown their snapshot
are rewritten, and segments that no channel needs are removed. A few stragglers do not hold a segment:
their channels take copies of them, which are on the disk before the segment goes. The segment that is
written to stays. While the disk refuses, any file of a log is emptied that nobody needs anything of,
that one and those behind a straggler, too: the copy of a straggler needs room before its segment can go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from nsqtools import durable
from nsqtools.broker.log import DiskLog
from nsqtools.broker.troubles import JOURNAL, OK, UPKEEP
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor

    from nsqtools.broker.alarms import Alarms
    from nsqtools.broker.channel import Channel
    from nsqtools.broker.commits import Commits
    from nsqtools.broker.retention import Retention
    from nsqtools.broker.topic import Topic
    from nsqtools.broker.troubles import Troubles

T = TypeVar("T")

log = logging.getLogger("nsqtools.broker")

SCAN_INTERVAL_S = 0.1
PASS_INTERVAL_S = 1.0


class Upkeep:
    """The tasks of one broker; `worker` is a thread of its own, for what nobody waits for."""

    def __init__(
        self,
        topics: Mapping[str, Topic],
        commits: Commits,
        troubles: Troubles,
        worker: Executor,
        alarms: Alarms,
        *,
        sync_timeout_s: float,
        retain: Retention,
        now_ns: Callable[[], int],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._topics = topics
        self._commits = commits
        self._troubles = troubles
        self._worker = worker
        self._alarms = alarms
        self._sync_timeout_s = sync_timeout_s
        self._retain = retain
        self._now_ns = now_ns
        self._needed = Repeated(
            get_log("broker"),
            "the disk refuses, and a log has to stay: consume it, empty it, or use nsqtools seek",
            clock=SystemClock(),
        )
        # Where the channels were in the last pass that hold a segment.
        self._floors: WeakKeyDictionary[Channel, int] = WeakKeyDictionary()
        # Channels with copies that may not be on the disk; what an earlier run has synced nobody knows.
        self._carrying = WeakSet(
            one for topic in topics.values() for one in topic.channels.values()
        )

    async def run(self) -> None:
        """Go on until cancelled, whatever fails on the way."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._tick, SCAN_INTERVAL_S))
            tasks.create_task(self._forever(self._sync_due, self._sync_timeout_s))
            tasks.create_task(self._forever(self._pass, PASS_INTERVAL_S))

    async def _forever(self, step: Callable[[], object], interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                going = step()
                if asyncio.iscoroutine(going):
                    await going
            except Exception:
                # A mistake of ours in one round; without the next one messages would never time out.
                log.exception("unexpected error in the broker's upkeep")

    def _tick(self) -> None:
        now_s, now_ns = self._loop.time(), self._now_ns()
        for channel in self._alarms.due(now_s, now_ns):
            try:
                channel.scan(now_s, now_ns)
                self._commits.touched(self._topics[channel.topic_name])
            except Exception:  # as in `_forever`: the other channels have their turn all the same
                log.exception("unexpected error in a channel channel=%s", channel.name)

    def _sync_due(self) -> None:
        self._commits.sync_due()

    async def _pass(self) -> None:
        for kind, name, folder in self._troubles.to_probe():
            with contextlib.suppress(StorageError):
                await self._in_thread(lambda folder=folder: durable.check_writable(folder))  # type: ignore[misc]
                self._troubles.recovered(kind, name)
        for topic in list(self._topics.values()):
            if not topic.exiting:
                if topic.keep_pumped():
                    self._commits.touched(topic)
                await self._keep_short(topic)

    async def _keep_short(self, topic: Topic) -> None:
        # A full disk takes no journal, and has room again by what is trimmed all the same.
        for kind, step in ((JOURNAL, self._shorten_journals), (UPKEEP, self._trim)):
            try:
                await step(topic)
                self._troubles.recovered(kind, topic.name)
            except StorageError as failure:
                if not topic.exiting:
                    self._troubles.failed(kind, topic.name, failure)

    async def _shorten_journals(self, topic: Topic) -> None:
        for channel in list(topic.channels.values()):
            if channel.journal.wants_rewrite:
                await self._rewrite(channel)

    async def _rewrite(self, channel: Channel) -> None:
        rewrite = channel.rewrite()
        try:
            await self._in_thread(rewrite.write)
            rewrite.follow()
            await self._in_thread(rewrite.place)
            rewrite.settle()
        except BaseException:
            rewrite.give_up()
            # What cannot be removed is so by the next start; whoever cancels us waits for our end.
            with contextlib.suppress(StorageError):
                await asyncio.shield(self._in_thread(rewrite.clean_up))
            raise

    async def _trim(self, topic: Topic) -> None:
        """Let go of the log that no channel needs and that is not to be retained; a few stragglers do
        not hold it."""
        if not isinstance(topic.log, DiskLog):
            topic.log.trim(topic.floor())
            return
        if self._troubles.health != OK and self._retain.is_none and not topic.exiting:
            await self._make_room(topic, topic.log)
        removable = self._retain.end(topic.log.segments, self._now_ns())
        if removable is None:
            return
        await self._carry_over(topic, topic.log)
        if not await self._has_kept_copies(topic):
            return
        if not topic.exiting:
            topic.log.trim(min(topic.floor(), removable))

    async def _make_room(self, topic: Topic, disk: DiskLog) -> None:
        """Free what nobody needs, wherever in the log it is: first of all for the journals, whose copies
        let the rest go. Where there is nothing, say who needs it."""
        channels = list(topic.channels.values())
        floor = min([topic.pumped, *(one.cursor for one in channels)])
        needs = {one: one.needs(floor) for one in channels}
        is_known = all(numbers is not None for numbers in needs.values())
        needed = sorted(number for numbers in needs.values() for number in numbers or ())
        if is_known and disk.clear(needed, floor):
            with contextlib.suppress(StorageError):  # it was told
                await self._shorten_journals(topic)
            return
        for channel in channels:
            if channel.floor() < disk.end:
                told = f"TOPIC({topic.name}) CHANNEL({channel.name}) needs messages of it"
                self._needed.failed(told, bytes=disk.size_bytes)

    async def _carry_over(self, topic: Topic, disk: DiskLog) -> None:
        """Give channels copies of what they need of the first segment, where they do not move on."""
        first_end = disk.segments[0].end
        floors = {one: one.floor() for one in topic.channels.values() if one.floor() < first_end}
        stuck = [
            one
            for one, floor in floors.items()
            if self._floors.get(one) == floor and not one.journal.is_broken
        ]
        self._floors.update(floors)
        for channel in stuck:
            if await self._carry(disk, channel, first_end):
                self._carrying.add(channel)

    async def _has_kept_copies(self, topic: Topic) -> bool:
        """Have every copy on the disk, before the original goes; False where a journal keeps nothing."""
        carrying = [one for one in topic.channels.values() if one in self._carrying]
        if carrying:
            topic.flush()
        for channel in carrying:
            await self._commits.in_syncer(channel.journal.sync)
            if channel.journal.wants_rewrite:
                return False
            self._carrying.discard(channel)
        return True

    async def _carry(self, disk: DiskLog, channel: Channel, end: int) -> bool:
        """Give a channel copies of what it still needs before `end`; False where that is too much."""
        numbers = channel.stragglers(end)
        if numbers is None:
            return False
        room_bytes = channel.carry_room_bytes
        found = await self._in_thread(lambda: disk.find(numbers, room_bytes))
        return found is not None and channel.carry(found.frames, end, found.due_ns)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._worker, function)
