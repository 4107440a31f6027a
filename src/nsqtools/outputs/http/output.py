"""The output of nsq_to_http: the messages of one topic, each a request, each with its own answer.

Rules. (1) Done is what an endpoint answered with a status that says so, or what is durable as a dead
letter. (2) What may go well another time is wanted again, after a time that grows; it stays in hand
meanwhile. (3) When no endpoint can be asked the whole topic stands still: nsqd is asked for nothing. (4)
What will never go well goes to the dead letter, unless most of what is sent fails; where there is none
it is refused, and the pipeline leaves it with nsqd.

A delivery holds several messages only where requests are quick (`CHUNK_S`): what an answer of the engine
costs is shared then, and no message waits long for its neighbours.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsqtools.archive.failures import Failure
from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.contract import DONE, Again, Feeding, Refused
from nsqtools.outputs.http.dead_letter import BREAKER_RETRY_S, Breaker
from nsqtools.outputs.http.health import PAUSE_MAX_S
from nsqtools.outputs.http.outcome import Outcome, backoff_s, retry_after_s
from nsqtools.outputs.http.request import values_of
from nsqtools.outputs.http.sender import NO_VALUES, Job, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.http.connection import Reply
    from nsqtools.outputs.http.dead_letter import DeadLetter
    from nsqtools.outputs.http.sender import Sender
    from nsqtools.wire.messages import Messages

    Row = tuple[Messages, int]
    """A message: its batch and its number there."""

# A delivery is as large as is answered in about this time, divided by what one request takes.
CHUNK_S = 0.1
CHUNK_MAX = 32
# How much a delivery counts for what one takes.
_LATENCY_WEIGHT = 0.1
_COUNTED = (
    "requests",
    "network_errors",
    "status_3xx",
    "status_4xx",
    "status_5xx",
    "circuits_opened",
)


_HELD = Again(BREAKER_RETRY_S, "most messages fail: an outage", stands=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """`sample` is the part of messages that is sent; `to_all` sends each to every endpoint."""

    concurrency: int
    sample: float = 1.0
    to_all: bool = False
    tries_max: int = 0
    """After so many tries, nsqd's attempts among them, a message is given up; 0: never."""
    age_max_s: float = 0.0
    """So long after it was published a message that fails is given up; 0: never."""
    dead_letter_max_ratio: float = 1.0
    """With a greater part of failures it is an outage: nothing is given up."""
    tries_kept_max: int = 10_000
    """Of so many messages that wait for another try it is known how many there were."""


@dataclass(slots=True)
class Tries:
    """What was tried for a message that is not done."""

    count: int = 0
    done_at: set[int] = field(default_factory=set)
    """With `to_all`, the endpoints that have it."""


class _Delivery:
    """Messages that were delivered together, and the answers so far."""

    __slots__ = ("_failed", "answers", "failures", "jobs", "left", "rows", "whole")

    def __init__(
        self, rows: list[Row], failed: Callable[[_Delivery, Job, Reply, Outcome], Answer]
    ) -> None:
        self.rows = rows
        self.failures: dict[int, Failure] = {}
        """Of those that are refused, by their places."""
        self.answers: list[Answer] = [DONE] * len(rows)
        self.jobs: list[Job] = []
        self.left = 0
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed = failed

    def finished(self, job: Job, reply: Reply, outcome: Outcome) -> None:
        """A job of this delivery was answered."""
        if outcome is not Outcome.DONE:
            answer = self._failed(self, job, reply, outcome)
            # Where it goes to several endpoints, a refusal waits for those that may do it yet.
            if not isinstance(self.answers[job.place], Again):
                self.answers[job.place] = answer
        self.left -= 1
        if not self.left and not self.whole.done():
            self.whole.set_result(None)


class HttpOutput:
    """An `Output`; see `contract`."""

    def __init__(
        self,
        topic: str,
        sender: Sender,
        policy: DeliveryPolicy,
        dead_letter: DeadLetter | None = None,
    ) -> None:
        self._dead_letter = dead_letter
        self._breaker = Breaker(policy.dead_letter_max_ratio)
        self._topic = topic
        self._sender = sender
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._needs_values = any(not one.maker.is_fixed for one in sender.endpoints)
        self._tries: dict[tuple[str, bytes], Tries] = {}
        self._latency_s = CHUNK_S
        self._trouble = Repeated(
            get_log("http"), "an endpoint refused messages", clock=SystemClock()
        )
        self._counts = dict.fromkeys(("sampled_out", "retries", "rejected", "dead_lettered"), 0)

    @property
    def feeding(self) -> Feeding:
        chunk = min(CHUNK_MAX, max(1, int(CHUNK_S / max(self._latency_s, 1e-6))))
        return Feeding(
            wait_s=0.0,
            messages_max=chunk,
            deliveries_max=self._policy.concurrency,
            gives_back=True,
        )

    def counts(self) -> Mapping[str, int]:
        counted = {name: self._sender.counts[name] for name in _COUNTED}
        opened = self._sender.connections_opened
        return {**self._counts, **counted, "connections_opened": opened}

    async def open(self) -> None:
        """Connections are made with the first requests."""
        if self._dead_letter is not None:
            await self._dead_letter.open()

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        """Send what is sampled, each message to an endpoint, or to all."""
        rows = [(each, at) for each in messages for at in range(len(each))]
        delivery = _Delivery(rows, self._failed)
        for place, row in enumerate(rows):
            self._add_jobs(delivery, place, *row)
        await self._send(delivery)
        if self._dead_letter is not None:
            await self._bury(delivery, self._dead_letter)
        self._note_done(delivery)
        return _together(delivery.answers)

    def rotate(self) -> None:
        """Finish the file of dead letters."""
        if self._dead_letter is not None:
            self._dead_letter.rotate()

    async def close(self) -> None:
        """Close the connections, and the dead letter."""
        self._sender.close()
        if self._dead_letter is not None:
            await self._dead_letter.close()

    async def abandon(self) -> None:
        """The same; what is on its way may have arrived or not."""
        self._sender.close()
        if self._dead_letter is not None:
            await self._dead_letter.abandon()

    # Inside

    async def _send(self, delivery: _Delivery) -> None:
        jobs = delivery.jobs
        delivery.left = len(jobs)
        if not jobs:
            return
        for job in jobs:
            self._sender.submit(job)
        try:
            await delivery.whole
        finally:
            for job in jobs if delivery.left else ():
                job.is_cancelled = True
        if (sent_s := jobs[-1].sent_s) > 0:
            took_s = self._loop.time() - sent_s
            self._latency_s += (took_s - self._latency_s) * _LATENCY_WEIGHT

    def _add_jobs(self, delivery: _Delivery, place: int, messages: Messages, at: int) -> None:
        policy = self._policy
        if policy.sample < 1.0 and random.random() >= policy.sample:  # noqa: S311
            self._counts["sampled_out"] += 1
            return
        values = values_of(messages, at) if self._needs_values else NO_VALUES
        body = messages.bodies[at]
        if not policy.to_all:
            delivery.jobs.append(Job(body, delivery.finished, place=place, values=values))
            return
        tries = self._tries.get((messages.nsqd, messages.ids[at]))
        for number in range(len(self._sender.endpoints)):
            if tries is None or number not in tries.done_at:
                job = Job(body, delivery.finished, place=place, values=values, only=number)
                delivery.jobs.append(job)

    def _failed(self, delivery: _Delivery, job: Job, reply: Reply, outcome: Outcome) -> Answer:
        if job.wait_s:
            return Again(job.wait_s, reply.error, stands=True)
        row = delivery.rows[job.place]
        tries = self._tries_of(row)
        tries.count += 1
        reason = self._reason_to_give_up(row, tries, reply, outcome)
        if reason:
            self._counts["rejected"] += 1
            error = error_of(reply)
            delivery.failures[job.place] = Failure(
                status=reply.status, error=error, tries=tries.count
            )
            self._trouble.failed(error, topic=self._topic)
            return Refused(reason)
        self._counts["retries"] += 1
        asked_s = retry_after_s(reply.retry_after, time.time()) if reply.retry_after else 0.0
        return Again(max(backoff_s(tries.count), min(asked_s, PAUSE_MAX_S)), error_of(reply))

    def _reason_to_give_up(self, row: Row, tries: Tries, reply: Reply, outcome: Outcome) -> str:
        """Why a message is not tried again; nothing when it is."""
        messages, at = row
        policy = self._policy
        if outcome is Outcome.REJECTED:
            return f"status {reply.status}"
        if policy.tries_max and messages.attempts[at] - 1 + tries.count >= policy.tries_max:
            return "attempts used up"
        if policy.age_max_s and time.time() - messages.timestamps[at] / 1e9 > policy.age_max_s:
            return "too old"
        return ""

    async def _bury(self, delivery: _Delivery, dead_letter: DeadLetter) -> None:
        """Keep what was refused as dead letters, when that is allowed."""
        answers, breaker = delivery.answers, self._breaker
        places: list[int] = []
        for place, answer in enumerate(answers):
            if isinstance(answer, Refused) and breaker.is_open:
                answers[place] = _HELD
            elif isinstance(answer, Refused):
                breaker.note(failed=True)
                places.append(place)
            elif answer is DONE:
                breaker.note(failed=False)
        if not places:
            return
        kept = await dead_letter.keep(
            [(*delivery.rows[place], delivery.failures[place]) for place in places]
        )
        for place in places:
            answers[place] = kept
        self._counts["dead_lettered"] += len(places) if kept is DONE else 0

    def _tries_of(self, row: Row) -> Tries:
        """What was tried for a message; of the longest unheard one nothing is known any more."""
        key = (row[0].nsqd, row[0].ids[row[1]])
        tries = self._tries.pop(key, None) or Tries()
        if len(self._tries) >= self._policy.tries_kept_max:
            del self._tries[next(iter(self._tries))]
        self._tries[key] = tries
        return tries

    def _note_done(self, delivery: _Delivery) -> None:
        """Forget what was tried for messages that are done; note who has those that are not."""
        if not self._tries and not self._policy.to_all:
            return
        for row, answer in zip(delivery.rows, delivery.answers, strict=True):
            if answer is DONE:
                self._tries.pop((row[0].nsqd, row[0].ids[row[1]]), None)
        for job in delivery.jobs if self._policy.to_all else ():
            if job.is_done and delivery.answers[job.place] is not DONE and job.only is not None:
                self._tries_of(delivery.rows[job.place]).done_at.add(job.only)


def _together(answers: list[Answer]) -> Answer | Sequence[Answer]:
    """One answer for all, where no endpoint could be asked for any of them: then the topic stands."""
    first = answers[0]
    if isinstance(first, Again) and all(isinstance(one, Again) and one.stands for one in answers):
        return first
    return answers
