"""The run of a consuming tool: one pipeline a topic, each its own task, until told to stop.

Topics are given, or those that nsqlookupd names. Whatever happens to one of them, its output
included, is its own affair: it is told, and tried again, and the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from nsqtools import __version__
from nsqtools.client.discovery import Discovery
from nsqtools.client.memory import ConsumerMemory
from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed, NsqToolsError
from nsqtools.observe.counters import Registry
from nsqtools.observe.health import Health
from nsqtools.observe.log import Repeated, get_log
from nsqtools.observe.status import StatusServer
from nsqtools.options.kinds import render_duration
from nsqtools.pipeline.batch import SHARE_INTERVAL_S, Idle, Quota
from nsqtools.pipeline.live import LIVE_INTERVAL_S, LiveText
from nsqtools.pipeline.report import RunMetrics, part_of, status_of, tell_health
from nsqtools.pipeline.topic import TopicPipeline, TopicSpec
from nsqtools.pipeline.transforming import Transforms
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsqtools.lifecycle import Lifecycle
    from nsqtools.observe.live import LiveLine
    from nsqtools.outputs.contract import Output
    from nsqtools.pipeline.options import ConsumingOptions

log = get_log("pipeline")

SUMMARY_INTERVAL_S = 60.0
# A topic that nsqlookupd has not named for so many rounds, and that no nsqd serves, is gone.
GONE_AFTER_ROUNDS = 3
# How long a topic whose pipeline failed is left alone.
TOPIC_RETRY_S = 30.0
# How soon the list of topics is asked for again while there has been none; the time doubles.
FIRST_LIST_S = 1.0
# How often the health of the topics is looked at, and until all are subscribed.
WATCH_S = 5.0
WATCH_FIRST_S = 0.2
# So many topics begin at a time: each asks nsqlookupd, and calls its nsqds.
STARTS_AT_ONCE = 20
STARTS_EVERY_S = 0.1
_LIST = "list of topics"


class Run:
    """The pipelines of one run. `output_of` makes the output of a topic; what it raises stops that
    topic alone, unless it is so for every topic that was asked for by name. `done` is the word for
    what happened to messages in log lines."""

    def __init__(
        self,
        options: ConsumingOptions,
        output_of: Callable[[str], Output],
        *,
        done: str = "delivered",
        line: LiveLine | None = None,
        more: Callable[[Counter[str]], Sequence[str]] = lambda _: (),
        neighbours_at: Sequence[str] | None = None,
    ) -> None:
        """`line` shows how the run is, with what `more` makes of the sums of its counters. Unless
        `neighbours_at` is None it is told when others get a part of the channel's messages: asked there,
        or wherever nsqds answer HTTP."""
        self._neighbours_at = neighbours_at
        self._done = done
        self._line = line
        self._text = LiveText(done, more)
        self._options = options
        self._output_of = output_of
        self._transforms = Transforms(options)
        self._pipelines: dict[str, TopicPipeline] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._totals: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._memory = ConsumerMemory()
        self._discovery = Discovery()
        self._is_ending = self._failed_at_end = False
        self._health = Health()
        self.registry = Registry()
        self._failed: set[str] = set()
        self._quota: Quota | None = None
        RunMetrics(self._pipelines.values(), self.registry, failed=self._failed)

    async def run(self, life: Lifecycle) -> bool:
        """Consume until `life` stops; whether everything ended in order.

        Raises what `output_of` raised when it did so for every topic that was asked for, and OptionsError
        for a `--transform` that cannot be used.
        """
        self._health = life.health
        if wanted := self._options.max_messages:
            self._quota = Quota(wanted, lambda: life.end("all messages that were wanted are done"))
        await self._transforms.open()
        try:
            return await self._run(life)
        finally:
            self._transforms.close()

    async def _run(self, life: Lifecycle) -> bool:
        if not self._options.is_discovering:
            self._check_outputs()
        async with self._status_server(life), asyncio.TaskGroup() as group:
            chores = self._begin(group)
            chores += self._begin_ends(group, life)
            life.ready("consuming")
            await life.stopping.wait()
            for chore in chores:
                chore.cancel()
            ended = await life.drain(self._drain(), what="delivering what is in flight")
        self._summarize()
        return ended and not self._failed_at_end

    def _begin(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start what was asked for; gives the tasks that go on until the end."""
        chores = [group.create_task(self._summaries()), group.create_task(self._watch())]
        if self._line is not None and self._line.is_shown:
            chores.append(group.create_task(self._show(self._line)))
        if self._neighbours_at is not None:
            from nsqtools.pipeline.neighbours import Neighbours  # HTTP loads slowly

            others = Neighbours(
                self._options, self._neighbours_at, self._pipelines, self._health, part_of
            )
            chores.append(group.create_task(others.run()))
        if self._options.is_discovering:
            self._health.waiting(_LIST, "an answer of nsqlookupd")
            chores.append(group.create_task(self._discover(group)))
        else:
            for topic in self._named():
                self._start(topic, group)
        return chores

    def _begin_ends(self, group: asyncio.TaskGroup, life: Lifecycle) -> list[asyncio.Task[None]]:
        """What may end the run by itself."""
        chores = []
        if self._quota is not None:
            chores.append(group.create_task(self._share_out(self._quota)))
        if self._options.exit_when_idle_s:
            chores.append(group.create_task(self._end_when_idle(life)))
        return chores

    async def _share_out(self, quota: Quota) -> None:
        while True:
            await asyncio.sleep(SHARE_INTERVAL_S)
            quota.share()

    async def _end_when_idle(self, life: Lifecycle) -> None:
        idle_s = self._options.exit_when_idle_s
        idle, clock = Idle(idle_s), SystemClock()
        while True:
            await asyncio.sleep(idle.look_s)
            now_s = clock.monotonic()
            if idle.is_over(is_quiet=self._is_quiet(), received=self._received(), now_s=now_s):
                break
        life.end(f"no message has come for {render_duration(idle_s)}")

    def _received(self) -> int:
        """Another number when another message has come."""
        now = sum(one.consumer.counts["received"] for one in self._pipelines.values())
        return now + self._totals["messages"]

    def _is_quiet(self) -> bool:
        """Whether all that is asked for is connected, works, and has nothing in flight."""
        self._tell_health()
        health = self._health
        busy = any(one.consumer.in_flight or not one.is_open for one in self._pipelines.values())
        return health.is_ready and health.is_ok and not busy

    def _status_server(self, life: Lifecycle) -> StatusServer:
        return StatusServer(
            self._options.status_address,
            self.registry,
            life.health,
            status=lambda: {
                "program": self._options.program,
                "version": __version__,
                "topics": {name: status_of(one) for name, one in self._pipelines.items()},
            },
            refresh=self._tell_health,
        )

    def _tell_health(self) -> None:
        tell_health(self._pipelines.values(), self._health)

    async def _watch(self) -> None:
        """Tell the service manager how the topics are: soon at the start, now and then afterwards."""
        while True:
            self._tell_health()
            await asyncio.sleep(WATCH_S if self._health.is_ready else WATCH_FIRST_S)

    def rotate(self) -> None:
        """Every topic's output finishes what it is filling (SIGHUP)."""
        for pipeline in self._pipelines.values():
            pipeline.rotate()

    def _named(self) -> list[str]:
        wanted = dict.fromkeys(self._options.topic)
        return [topic for topic in wanted if self._options.wants_topic(topic)]

    def _check_outputs(self) -> None:
        failures: list[NsqToolsError] = []
        for topic in self._named():
            try:
                self._output_of(topic)
            except NsqToolsError as failure:
                failures.append(failure)
        if failures and len(failures) == len(self._named()):
            raise failures[0]

    def _start(self, topic: str, group: asyncio.TaskGroup) -> None:
        self._health.waiting(part_of(topic), "a subscription")
        self._tasks[topic] = group.create_task(self._keep(topic))

    async def _keep(self, topic: str) -> None:
        """One topic, for as long as it is wanted; it is begun anew when it fails, but not at the end."""
        trouble = Repeated(log, "topic stands still", clock=SystemClock())
        try:
            while True:
                try:
                    await self._run_one(topic)
                except NsqToolsError as failure:
                    self._stands_still(topic, trouble, failure)
                except Exception as failure:
                    self._stands_still(topic, trouble, failure)
                    logging.getLogger("nsqtools.pipeline").error(
                        "a fault topic=%s channel=%s",
                        topic,
                        self._options.channel,
                        exc_info=failure,
                    )
                else:
                    return
                if self._is_ending:
                    self._failed_at_end = True
                    return
                self._failed.add(topic)
                await asyncio.sleep(TOPIC_RETRY_S)
                self._failed.discard(topic)
        finally:
            self._failed.discard(topic)
            self._tasks.pop(topic, None)
            self._health.forget(part_of(topic))

    def _stands_still(self, topic: str, trouble: Repeated, failure: Exception) -> None:
        while isinstance(failure, ExceptionGroup):  # which says nothing but that there are some
            failure = failure.exceptions[0]
        trouble.failed(failure, topic=topic, channel=self._options.channel)
        self._health.failing(part_of(topic), failure)
        self._health.ready(part_of(topic))

    async def _run_one(self, topic: str) -> None:
        options = self._options
        spec = TopicSpec(
            topic=topic,
            channel=options.channel,
            consumer=options.consumer(),
            nsqd_addresses=options.nsqd_tcp_address,
            lookupd_addresses=options.lookupd_http_address,
            memory=self._memory,
            discovery=self._discovery,
            quota=self._quota,
        )
        pipeline = self._pipelines[topic] = TopicPipeline(
            spec, self._transforms.around(topic, self._output_of(topic))
        )
        try:
            await pipeline.run()
        finally:
            self._totals.update(pipeline.totals())
            del self._pipelines[topic]

    async def _drain(self) -> None:
        self._is_ending = True
        tasks = list(self._tasks.values())
        for topic, task in list(self._tasks.items()):
            pipeline = self._pipelines.get(topic)
            if pipeline is None:
                task.cancel()
            else:
                pipeline.stop()
        try:
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise

    async def _discover(self, group: asyncio.TaskGroup) -> None:
        """Take what nsqlookupd names, at once and every topic_refresh_s (spec: tools, 1.2)."""
        from nsqtools.client.lookup import topics  # HTTP loads slowly

        trouble = Repeated(log, "could not retrieve the list of topics", clock=SystemClock())
        too_many = Repeated(log, "topics beyond --max-topics wait", clock=SystemClock())
        silent = Repeated(log, "an nsqlookupd gives no list of topics", clock=SystemClock())
        lookup = self._options.topic_lookup()
        first_s = FIRST_LIST_S
        while True:
            wait_s = self._options.topic_refresh_s
            try:
                failures: list[ConnectionFailed] = []
                found = await topics(
                    self._options.lookupd_http_address, options=lookup, on_failure=failures.append
                )
            except ConnectionFailed as failure:
                trouble.failed(failure)
                self._health.failing(_LIST, failure)
                wait_s = min(first_s, wait_s)
                first_s *= 2
            else:
                trouble.recovered("the list of topics can be retrieved again")
                for one in failures:
                    silent.failed(one)
                if not failures:
                    silent.recovered("every nsqlookupd gives its list of topics again")
                first_s = wait_s
                await self._take_over(found, group, too_many)
            self._health.ready(_LIST)
            await asyncio.sleep(wait_s)

    async def _take_over(
        self, found: set[str], group: asyncio.TaskGroup, too_many: Repeated
    ) -> None:
        wanted = {t for t in found if self._options.wants_topic(t) and not is_ephemeral(t)}
        self._let_go_of_missing(wanted)
        new = sorted(wanted - self._tasks.keys())
        room = max(0, self._options.max_topics - len(self._tasks))
        if beyond := len(new[room:]):
            failure = f"{beyond} topics of nsqlookupd are not consumed, such as {new[room]}"
            self._health.failing(_LIST, f"{failure}: beyond --max-topics")
            too_many.failed(failure, max_topics=self._options.max_topics)
        else:
            self._health.ok(_LIST)
            too_many.recovered("all topics are within --max-topics")
        for number, topic in enumerate(new[:room]):
            if number % STARTS_AT_ONCE == 0:
                await asyncio.sleep(STARTS_EVERY_S if number else 0)
            log.info("new topic", topic=topic, channel=self._options.channel)
            self._start(topic, group)

    def _let_go_of_missing(self, wanted: set[str]) -> None:
        for topic in list(self._tasks):
            pipeline = self._pipelines.get(topic)
            connected = pipeline is not None and pipeline.consumer.connections
            gone = topic not in wanted and not connected
            self._missing[topic] = self._missing[topic] + 1 if gone else 0
            if self._missing[topic] >= GONE_AFTER_ROUNDS:
                self._let_go(topic)

    def _let_go(self, topic: str) -> None:
        log.info("topic is gone", topic=topic, channel=self._options.channel)
        del self._missing[topic]
        pipeline = self._pipelines.get(topic)
        if pipeline is not None:
            pipeline.stop()
        else:
            self._tasks[topic].cancel()

    async def _summaries(self) -> None:
        """One line a minute, when there is something to tell."""
        told = 0
        while True:
            await asyncio.sleep(SUMMARY_INTERVAL_S)
            messages = self._sum()["messages"]
            if messages != told:
                self._summarize()
                told = messages

    async def _show(self, line: LiveLine) -> None:
        clock = SystemClock()
        while True:
            line.show(self._text.say(self._sum(), self._pipelines.values(), clock.monotonic()))
            await asyncio.sleep(LIVE_INTERVAL_S)

    def _sum(self) -> Counter[str]:
        total = Counter(self._totals)
        for pipeline in self._pipelines.values():
            total.update(pipeline.totals())
        return total

    def _summarize(self) -> None:
        total = self._sum()
        duplicates = total.pop("unsettled", 0) + total.pop("fin_failed", 0)
        duplicates += total["unanswered_messages"]
        log.info(self._done, **total, possible_duplicates=duplicates)
