"""One topic's way from its channel to its output: gather, deliver, settle.

Rules. (1) FIN only for what the output has said is done. (2) An output that stands still stops this
topic and no other: RDY 0, what is held is touched, and the same messages are delivered again until
they go in, unless nsqd has taken them back meanwhile. (3) The end is in order: CLS, deliver what has
come, settle it, close the connections, close the output. What does not go in before the deadline is
given back to nsqd, which delivers it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nsqtools.client.consumer import Consumer
from nsqtools.clock import SystemClock
from nsqtools.errors import NsqToolsError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.contract import Again
from nsqtools.pipeline.delivery import (
    Counts,
    Settlement,
    Waiting,
    check_answer,
    longest_stand,
)
from nsqtools.pipeline.gather import Pace, gather

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from nsqtools.client.batch import Batch, Part
    from nsqtools.client.discovery import Discovery
    from nsqtools.client.memory import ConsumerMemory
    from nsqtools.client.options import ConsumerOptions
    from nsqtools.clock import Clock
    from nsqtools.outputs.contract import Answer, Output
    from nsqtools.pipeline.batch import Quota

T = TypeVar("T")

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 30.0
# Part of the deadline that waiting for CLOSE_WAIT may take.
CLOSE_WAIT_S = 5.0
# How long to wait between tries once the end has begun: it has a deadline.
STAND_AT_END_S = 1.0
# The answers for so many go out at once: nsqd works on them while we count. Those for fewer wait for
# what other deliveries settle in the same turn of the loop.
FLUSHED_MESSAGES = 256
# So long after its time is over what stands is given back for certain.
_EXPIRED_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """Which topic, and from where; `memory` is shared by the topics of a process."""

    topic: str
    channel: str
    consumer: ConsumerOptions
    nsqd_addresses: tuple[str, ...] = ()
    lookupd_addresses: tuple[str, ...] = ()
    memory: ConsumerMemory | None = None
    discovery: Discovery | None = None
    quota: Quota | None = None
    """How many messages the run still wants; None: all that come."""
    clock: Clock = field(default_factory=SystemClock)


class TopicPipeline:
    """See the module. `run` is the whole life; `stop` asks it to end."""

    def __init__(self, spec: TopicSpec, output: Output) -> None:
        self.topic = spec.topic
        self.output = output
        self.counts = Counts()
        self.last_delivery_time_s = 0.0
        """When messages were last done, in seconds since the epoch; 0 before that."""
        self.lag_s = 0.0
        """Between publishing and done, of the first message of the last delivery."""
        self.is_open = False
        """Whether the output is ready, and the topic is consumed."""
        self.trouble = ""
        """Why the topic stands still; nothing while it does not."""
        self._clock = spec.clock
        self._quota = spec.quota
        self._pace = Pace()
        self._stop = asyncio.Event()
        self._flows = asyncio.Event()
        self._flows.set()
        self._turn = asyncio.Lock()
        self._gathering: asyncio.Timeout | None = None
        self._waiting = Waiting()
        self._settlement = Settlement(self.counts, self._waiting)
        self._log = get_log("pipeline").bind(topic=spec.topic, channel=spec.channel)
        self._failed = Repeated(self._log, "output failed", clock=self._clock)
        self._ended_s = 0.0
        self._under_way: dict[asyncio.Timeout, _UnderWay] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._free_workers = 0
        self.consumer = Consumer(
            spec.topic,
            spec.channel,
            spec.consumer,
            nsqd_addresses=spec.nsqd_addresses,
            lookupd_addresses=spec.lookupd_addresses,
            memory=spec.memory,
            discovery=spec.discovery,
            on_lost=self._connection_lost,
            on_refused=self._may_come_again,
        )

    def totals(self) -> Counter[str]:
        """What was done since the start, by name; `fin_failed` are FINs that nsqd refused, because it
        had given the message to somebody else by then, or to us again."""
        total = Counter(self.counts.totals())
        total["fin_failed"] = self.consumer.counts["E_FIN_FAILED"]
        total.update(self.output_counts())
        return total

    def output_counts(self) -> Mapping[str, int]:
        """What the output counts; nothing when it fails to tell."""
        try:
            return self.output.counts()
        except Exception as failure:  # noqa: BLE001 - a count is no reason to stop
            self._note_fault(failure)
            return {}

    def output_trouble(self) -> str:
        """What does not work in the output although it answers."""
        try:
            return self.output.trouble()
        except Exception as failure:  # noqa: BLE001 - a word is no reason to stop
            self._note_fault(failure)
            return ""

    @property
    def delivering_s(self) -> float:
        """For how long the oldest delivery has been under way, in seconds; 0 without one."""
        began_s = min((one.began_s for one in self._under_way.values()), default=None)
        return 0.0 if began_s is None else self._clock.monotonic() - began_s

    def stop(self) -> None:
        """Ask the topic to end in order; `run` returns when it has."""
        self._stop.set()

    def rotate(self) -> None:
        """Have the output finish what it is filling."""
        try:
            self.output.rotate()
        except Exception as failure:  # noqa: BLE001 - the other topics are to be rotated, too
            self._note_failure(failure)

    async def run(self) -> None:
        """Consume until `stop`, then end in order. Cancelling it gives what is not acknowledged back to
        nsqd, and leaves what is open to the output's next start."""
        try:
            if await self._open():
                async with self._wanted(), self.consumer:
                    await self._consume()
            await self._close()
        except BaseException:
            await self._abandon()
            raise

    @contextlib.asynccontextmanager
    async def _wanted(self) -> AsyncIterator[None]:
        """Take part in what the run still wants, if that is not everything."""
        quota = self._quota
        if quota is not None:
            quota.enter(self.consumer)
        try:
            yield
        finally:
            if quota is not None:
                quota.leave(self.consumer)

    async def _abandon(self) -> None:
        try:
            await self.output.abandon()
        except NsqToolsError:
            pass  # the next start finds what there is
        except Exception as failure:  # noqa: BLE001 - what ended the run counts
            self._note_fault(failure)

    async def _open(self) -> bool:
        """Whether the output got ready before the topic was stopped."""
        retry = _Retry()
        while not self._stop.is_set():
            try:
                await unless_cancelled(self.output.open())
            except Exception as failure:  # noqa: BLE001 - this topic waits, the others go on
                self._note_failure(failure)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(retry.next_s()):
                        await self._stop.wait()
            else:
                self._note_success()
                self.is_open = True
                return True
        return False

    async def _close(self) -> None:
        retry = _Retry()
        while True:
            try:
                await unless_cancelled(self.output.close())
            except Exception as failure:  # noqa: BLE001 - the deadline of the run bounds it
                self._note_failure(failure)
                await self._clock.sleep(min(retry.next_s(), STAND_AT_END_S))
            else:
                self._note_success()
                return

    async def _consume(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                ender = tasks.create_task(self._end_in_order())
                self._begin_worker(tasks)
                while workers := [one for one in self._workers if not one.done()]:
                    await asyncio.wait(workers)
                ender.cancel()
            self._give_back(self._waiting.take_all())
            await self.consumer.close()
        except BaseException:
            self.counts.requeued += self.consumer.give_back()
            raise

    async def _end_in_order(self) -> None:
        await self._stop.wait()
        try:
            self.output.hurry()
        except Exception as failure:  # noqa: BLE001 - the end goes on
            self._note_fault(failure)
        if self.output.feeding.gives_back:
            self.consumer.pause()  # before what is given back comes again
            inbox = self.consumer.inbox
            self._give_back(inbox.take_some(inbox.messages, inbox.size_bytes))
            self._flows.set()  # what comes still is given back by whoever takes it
        if not await self.consumer.stop(CLOSE_WAIT_S):
            self._log.warning("an nsqd did not answer CLS in time")

    def _give_back(self, held: Sequence[Batch | Part]) -> None:
        for one in held:
            self.counts.requeued += len(one)
            one.requeue()

    def _connection_lost(self, nsqd: str) -> None:
        """What waits to come again, and whose connection is gone, takes memory for nothing."""
        self.counts.disconnected += self._waiting.drop_lost()
        if self.output.feeding.lets_go:
            for limit, one in self._under_way.items():
                if any(held.is_lost for held in one.delivery) and not limit.expired():
                    limit.reschedule(0.0)
        self._may_come_again(nsqd, None)

    def _may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        try:
            self.output.may_come_again(nsqd, message_id)
        except Exception as failure:  # noqa: BLE001 - the consumer's affairs go on
            self._note_fault(failure)

    # Delivering

    def _begin_worker(self, tasks: asyncio.TaskGroup) -> None:
        """One more: there are never more than were needed at once, so that quiet topics cost little."""
        self._free_workers += 1
        self._workers.append(tasks.create_task(self._work(tasks)))

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        workers_max = self.output.feeding.deliveries_max
        while delivery := await self._next():
            self._free_workers -= 1
            if not self._free_workers and len(self._workers) < workers_max:
                self._begin_worker(tasks)
            await self._deliver(delivery)
            self._free_workers += 1

    async def _next(self) -> Sequence[Batch | Part]:
        """What is to be delivered next: what waited for its time, or what has come. One worker at a
        time; nothing when the consumer has ended."""
        async with self._turn:
            while True:
                await self._flows.wait()
                now_s = self._clock.monotonic()
                if (due := self._waiting.take_due(now_s)) is not None:
                    return due
                due_s = self._waiting.due_s
                try:
                    async with asyncio.timeout(None if due_s is None else due_s - now_s) as limit:
                        self._gathering = limit
                        return await gather(
                            self.consumer, self.output.feeding, self._pace, self._clock
                        )
                except TimeoutError:
                    pass  # something is due
                finally:
                    self._gathering = None

    def _look_again(self) -> None:
        """Have the worker that waits for messages see what is to come again, and when."""
        limit, due_s = self._gathering, self._waiting.due_s
        if limit is not None and due_s is not None and not limit.expired():
            in_s = max(0.0, due_s - self._clock.monotonic())
            limit.reschedule(asyncio.get_running_loop().time() + in_s)

    async def _deliver(self, delivery: Sequence[Batch | Part]) -> None:
        began_s = self._clock.monotonic()
        gathered_s = began_s - self._ended_s
        while delivery := self._settlement.without_lost(delivery, self._clock.monotonic()):
            answer = await self._ask(delivery)
            if not isinstance(answer, Again) or not answer.stands:
                break
            if self._stop.is_set() and self.output.feeding.gives_back:
                self._give_back(delivery)
                return
            await self._stand(answer, delivery)
        else:
            # Nothing is left of it: let something come, to see whether the output works again.
            self._flow()
            return
        self._note_success()
        self._ended_s = now_s = self._clock.monotonic()
        done = self.counts.messages
        used = self.consumer.in_flight / (self.consumer.inbox.window or 1)
        waiting_s = self._waiting.due_s
        self._settle(delivery, answer, now_s)
        if self.counts.messages > done:
            self.last_delivery_time_s = wall_s = self._clock.time()
            self.lag_s = max(0.0, wall_s - delivery[0].messages.first_timestamp_ns / 1e9)
        if self._waiting.due_s != waiting_s:
            self._look_again()
        self.counts.deliveries += 1
        if standing := longest_stand(answer):
            await self._stand(standing, delivery)
            self._note_success()
        self._pace.delivered(took_s=now_s - began_s, gathered_s=gathered_s, used=used)

    def _settle(
        self, delivery: Sequence[Batch | Part], answer: Answer | Sequence[Answer], now_s: float
    ) -> None:
        quota, done = self._quota, self.counts.messages
        messages = sum(map(len, delivery))
        if quota is not None:
            quota.settling(self.consumer, messages)
        self._settlement.settle(delivery, answer, now_s)
        if messages >= FLUSHED_MESSAGES:
            for held in delivery:
                held.flush()
        if quota is not None:
            quota.done(self.counts.messages - done)

    async def _ask(self, delivery: Sequence[Batch | Part]) -> Answer | Sequence[Answer]:
        try:
            answer = await self._deliver_now(delivery)
            check_answer(answer, sum(map(len, delivery)))
        except Exception as failure:  # noqa: BLE001 - whatever it raises stops this topic alone
            self._note_failure(failure)
            return Again(RETRY_MAX_S, f"{type(failure).__name__}: {failure}", stands=True)
        return answer

    async def _deliver_now(self, delivery: Sequence[Batch | Part]) -> Answer | Sequence[Answer]:
        """What the output answers; `Again` when it has let go of what is not ours any more."""
        messages = [held.messages for held in delivery]
        began_s = self._clock.monotonic()
        kept_s = None
        if self.output.feeding.lets_go:
            kept_s = min(held.expires_s for held in delivery) - began_s + _EXPIRED_S
        limit = asyncio.timeout(kept_s)
        try:
            async with limit:
                self._under_way[limit] = _UnderWay(began_s, delivery)
                return await unless_cancelled(self.output.deliver(messages))
        except TimeoutError:
            if not limit.expired():
                raise
            return Again(0.0, "nsqd has taken messages back")
        finally:
            self._under_way.pop(limit, None)

    async def _stand(self, answer: Again, delivery: Sequence[Batch | Part]) -> None:
        """Let time pass until the output is to be asked again, or `delivery` cannot be kept any longer;
        nsqd is asked for nothing."""
        kept_s = min(held.expires_s for held in delivery) - self._clock.monotonic()
        after_s = min(answer.after_s, max(0.0, kept_s) + _EXPIRED_S)
        self.trouble = answer.reason
        self._flows.clear()
        self.consumer.pause()
        if self._stop.is_set():  # the end has a deadline: what works again is to be found in time
            await self._clock.sleep(min(after_s, STAND_AT_END_S))
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s):
                await self._stop.wait()

    def _note_failure(self, failure: Exception) -> None:
        self.trouble = str(failure) or type(failure).__name__
        self._failed.failed(failure)
        if not isinstance(failure, NsqToolsError):
            self._note_fault(failure)

    def _note_fault(self, failure: Exception) -> None:
        logging.getLogger("nsqtools.pipeline").error(
            "a fault in nsqtools topic=%s channel=%s",
            self.topic,
            self.consumer.channel,
            exc_info=failure,
        )

    def _note_success(self) -> None:
        self._failed.recovered("output works again")
        if self.trouble:
            self.trouble = ""
            self._flow()

    def _flow(self) -> None:
        if not self._flows.is_set():
            self._flows.set()
            self.consumer.resume()


async def unless_cancelled(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. A CancelledError that leaks from it, when nobody cancelled us, is a failure."""
    try:
        return await work
    except asyncio.CancelledError as leaked:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("something inside was cancelled") from leaked


class _UnderWay(NamedTuple):
    """A delivery that an output has not answered."""

    began_s: float
    delivery: Sequence[Batch | Part]


class _Retry:
    """Delays that double, with jitter."""

    def __init__(self) -> None:
        self._delay_s = RETRY_FIRST_S

    def next_s(self) -> float:
        delay_s = self._delay_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._delay_s = min(self._delay_s * 2, RETRY_MAX_S)
        return delay_s
