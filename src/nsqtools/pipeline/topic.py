"""One topic's way from its channel to the disk: gather, make durable, acknowledge.

Rules. (1) FIN only after the output has said that the batch is durable. (2) An output that fails stops
this topic and no other: RDY 0, what is held is touched, and the same batch is tried again until it
goes in. (3) The end is in order: CLS, commit what has come, FIN, close the connections, finish the
file. What does not go in before the deadline is left to nsqd, which delivers it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

from nsqtools.client.consumer import Consumer, settle_all
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.pipeline.gather import GatherPolicy, gather

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nsqtools.archive.finishing import Published
    from nsqtools.archive.writer import Commit
    from nsqtools.client.batch import Batch
    from nsqtools.client.memory import ConsumerMemory
    from nsqtools.client.options import ConsumerOptions
    from nsqtools.clock import Clock
    from nsqtools.outputs.file import FileOutput

T = TypeVar("T")

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
TICK_INTERVAL_S = 0.5
# Part of the deadline that waiting for CLOSE_WAIT may take.
CLOSE_WAIT_S = 5.0


@dataclass(slots=True, kw_only=True)
class TopicCounts:
    """What went through a topic since the start."""

    messages: int = 0
    body_bytes: int = 0
    disk_bytes: int = 0
    commits: int = 0
    files: int = 0
    ambiguous: int = 0
    unsettled: int = 0
    fin_failed: int = 0
    output_failures: int = 0

    def add(self, other: TopicCounts) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """Which topic, from where, and how; `memory` is shared by the topics of a process."""

    topic: str
    channel: str
    consumer: ConsumerOptions
    sync_interval_s: float
    nsqd_addresses: tuple[str, ...] = ()
    lookupd_addresses: tuple[str, ...] = ()
    memory: ConsumerMemory | None = None
    clock: Clock = field(default_factory=SystemClock)


class TopicPipeline:
    """See the module. `run` is the whole life; `stop` asks it to end."""

    def __init__(self, spec: TopicSpec, output: FileOutput) -> None:
        self.topic = spec.topic
        self.counts = TopicCounts()
        self._spec = spec
        self._output = output
        self._clock = spec.clock
        self._policy = GatherPolicy(sync_interval_s=spec.sync_interval_s)
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._rotate_wanted = False
        self._log = get_log("archive")
        self._trouble = Repeated(
            self._log, "output failed, the topic waits and is not acknowledged", clock=self._clock
        )
        self.consumer = Consumer(
            spec.topic,
            spec.channel,
            spec.consumer,
            nsqd_addresses=spec.nsqd_addresses,
            lookupd_addresses=spec.lookupd_addresses,
            memory=spec.memory,
        )

    def stop(self) -> None:
        """Ask the topic to end in order; `run` returns when it has."""
        self._stop.set()

    def rotate(self) -> None:
        """Finish the open file soon."""
        self._rotate_wanted = True
        self._wake.set()

    @property
    def is_failing(self) -> bool:
        """Whether the output refuses, and the topic stands still."""
        return self._trouble.is_failing

    async def run(self) -> None:
        """Archive until `stop`, then end in order. Cancelling it leaves what is not acknowledged to
        nsqd, and the open file to the recovery of the next start."""
        try:
            async with self.consumer, asyncio.TaskGroup() as chores:
                tasks = [chores.create_task(self._tick()), chores.create_task(self._end_in_order())]
                while batches := await gather(self.consumer, self._policy, self._clock):
                    await self._commit(batches)
                for task in tasks:
                    task.cancel()
                await self.consumer.close()
            self._report(await self._retry(self._output.close))
        except BaseException:
            with contextlib.suppress(StorageError):
                await self._output.abandon()
            raise

    async def _end_in_order(self) -> None:
        await self._stop.wait()
        if not await self.consumer.stop(CLOSE_WAIT_S):
            self._log.warning("an nsqd did not answer CLS in time", topic=self.topic)

    async def _commit(self, batches: Sequence[Batch]) -> None:
        messages = [batch.messages for batch in batches]
        commit: Commit = await self._retry(lambda: self._output.write(messages))
        unsettled = settle_all(batches)
        self._count(commit, unsettled)
        if commit.created is not None:
            self._log.info("opened", topic=self.topic, path=commit.created)
        if self._output.has_sealed:
            self._wake.set()

    def _count(self, commit: Commit, unsettled: int) -> None:
        counts = self.counts
        if commit.ambiguous and not counts.ambiguous:
            self._log.warning(
                "a message holds a newline: as lines it cannot be told apart on replay; use"
                " --format=framed or jsonl",
                topic=self.topic,
            )
        counts.messages += commit.messages
        counts.body_bytes += commit.body_bytes
        counts.disk_bytes += commit.disk_bytes
        counts.commits += 1
        counts.ambiguous += commit.ambiguous
        counts.unsettled += unsettled
        # nsqd had given these to somebody else by then, or to us again.
        counts.fin_failed = self.consumer.counts["E_FIN_FAILED"]

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """The output's answer, however long it refuses: the disk may be full, it is not for ever."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                result = await call()
            except StorageError as failure:
                self.counts.output_failures += 1
                self._trouble.failed(failure, topic=self.topic)
                self.consumer.pause()
                await self._clock.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay_s = min(delay_s * 2, RETRY_MAX_S)
            else:
                if self._trouble.is_failing:
                    self._trouble.recovered("output works again", topic=self.topic)
                    self.consumer.resume()
                return result

    async def _tick(self) -> None:
        """Finish the file when its time is over, or when asked to."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            due_s = self._output.next_tick
            if self._rotate_wanted:
                self._rotate_wanted = False
                await self._retry(self._output.rotate)
            elif due_s is not None and due_s <= 0:
                await self._retry(self._output.tick)
            if self._output.has_sealed:
                self._report(await self._retry(self._output.finish))

    def _report(self, published: Sequence[Published]) -> None:
        for file in published:
            if file.not_compacted:
                self._log.warning(
                    "published as it was", topic=self.topic, reason=file.not_compacted
                )
            self.counts.files += 1
            self._log.info(
                "finished",
                topic=self.topic,
                path=file.location,
                messages=file.messages,
                bytes=file.disk_bytes,
            )
