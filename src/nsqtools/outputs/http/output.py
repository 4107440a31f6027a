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
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.archive.failures import Failure
from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log
from nsqtools.options import printable
from nsqtools.outputs.contract import DONE, Again, Answer, Feeding, Refused
from nsqtools.outputs.http.breaker import PROBE_MESSAGES, PROBE_S, Breaker, held
from nsqtools.outputs.http.connection import Reply
from nsqtools.outputs.http.delivery import LATE_S, Delivery
from nsqtools.outputs.http.health import PAUSE_MAX_S
from nsqtools.outputs.http.outcome import Outcome, backoff_s, retry_after_s
from nsqtools.outputs.http.request import values_of
from nsqtools.outputs.http.sender import NO_VALUES, PAUSING, Job, error_of
from nsqtools.outputs.http.tries import GivenUp, KnownTries, LateJobs, Tries

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.outputs.http.batches import Batching
    from nsqtools.outputs.http.bodies import Bodies, Row
    from nsqtools.outputs.http.dead_letter import DeadLetter
    from nsqtools.outputs.http.sender import Sender
    from nsqtools.wire.messages import Messages

# A delivery is as large as is answered in about this time, divided by what one request takes.
CHUNK_S = 0.1
CHUNK_MAX = 32
# How much a delivery counts for what one takes.
_LATENCY_WEIGHT = 0.1
_COUNTED = (
    "requests",
    "redirects",
    "network_errors",
    "status_3xx",
    "status_4xx",
    "status_5xx",
    "circuits_opened",
)


_OWN_COUNTS = (
    *("retries", "rejected", "dead_lettered", "split_batches"),
    "unanswered_messages",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """`to_all` sends each message to every endpoint."""

    concurrency: int
    to_all: bool = False
    batching: Batching | None = None
    """None: a request for each message."""
    tries_max: int = 0
    """After so many tries, nsqd's attempts among them, a message is given up; 0: never."""
    age_max_s: float = 0.0
    """So long after it was published a message that fails is given up; 0: never."""
    dead_letter_max_ratio: float = 1.0
    """With a greater part of failures it is an outage: nothing is given up."""
    tries_kept_max: int = 10_000
    """Of so many messages that wait for another try it is known how many there were."""


class HttpOutput:
    """An `Output`; see `contract`."""

    def __init__(
        self,
        topic: str,
        sender: Sender,
        policy: DeliveryPolicy,
        bodies: Bodies,
        dead_letter: DeadLetter | None = None,
    ) -> None:
        """`bodies` says what requests say of messages, with the batches of `policy`."""
        self.echo: Callable[[str], None] | None = None
        """Gets a line for each request."""
        self._bodies = bodies
        self._dead_letter = dead_letter
        self._breaker = Breaker(policy.dead_letter_max_ratio, topic)
        self._topic = topic
        self._sender = sender
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._needs_values = any(not one.maker.is_fixed for one in sender.endpoints)
        # Each message as it is to one endpoint: what is done most, and what must be quick.
        self._is_plain = self._bodies.are_plain and not (self._needs_values or policy.to_all)
        self._tries = KnownTries(policy.tries_kept_max)
        # Where each goes to all endpoints, a message can wait for each of them.
        jobs_max = len(sender.endpoints) if policy.to_all else 1
        self._late = LateJobs(policy.tries_kept_max * jobs_max)
        self._latency_s = CHUNK_S
        refused = "an endpoint refused messages"
        if dead_letter is None:
            refused += ", there is no dead letter: they stay with nsqd"
        self._trouble = Repeated(get_log("http"), refused, clock=SystemClock())
        self._counts = dict.fromkeys(_OWN_COUNTS, 0)

    @property
    def feeding(self) -> Feeding:
        batching = self._policy.batching
        if batching is not None:
            return Feeding(
                wait_s=batching.wait_s,
                messages_max=batching.messages_max,
                bytes_max=batching.bytes_max,
                deliveries_max=self._policy.concurrency,
                gives_back=True,
            )
        chunk = min(CHUNK_MAX, max(1, int(CHUNK_S / max(self._latency_s, 1e-6))))
        return Feeding(
            wait_s=0.0,
            messages_max=chunk,
            deliveries_max=self._policy.concurrency,
            gives_back=True,
        )

    def counts(self) -> Mapping[str, int]:
        counted = {name: self._sender.counts[name] for name in _COUNTED}
        return {
            **self._counts,
            **counted,
            "ambiguous_messages": self._bodies.ambiguous,
            "connections_opened": self._sender.connections_opened,
        }

    def trouble(self) -> str:
        """Endpoints that are not asked now, an outage, or dead letters that cannot be finished."""
        if self._breaker.is_open:
            return self._breaker.why
        dead_letter = self._dead_letter
        return self._sender.trouble() or (dead_letter.trouble() if dead_letter is not None else "")

    async def open(self) -> None:
        """Connections are made with the first requests."""
        if self._dead_letter is not None:
            await self._dead_letter.open()

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        """Send each message to an endpoint, or to all."""
        if not self._breaker.is_open:
            return await self._deliver(messages)
        now_s = self._loop.time()
        if wait_s := self._breaker.wait_s(now_s):
            return Again(wait_s, self._breaker.why, stands=True)
        self._breaker.probe_began()
        try:
            return await self._probe(messages)
        finally:
            self._breaker.probe_ended(self._loop.time())

    async def _probe(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        """Send the first few alone; the others come again soon."""
        few = messages[0].part(0, PROBE_MESSAGES)
        answer = await self._deliver([few])
        rest = sum(map(len, messages)) - len(few)
        if not rest or (isinstance(answer, Again) and answer.stands):
            return answer
        answers = [answer] * len(few) if isinstance(answer, Answer) else answer
        return [*answers, *[Again(PROBE_S, self._breaker.why)] * rest]

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """It is delivered again: whoever must get each once tells them apart by their ids."""

    def rotate(self) -> None:
        """Finish the file of dead letters."""
        if self._dead_letter is not None:
            self._dead_letter.rotate()

    def hurry(self) -> None:
        """Send no more requests: what waits for its turn is given back."""
        self._sender.hurry()

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

    async def _deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        rows = [(each, at) for each in messages for at in range(len(each))]
        delivery = Delivery(rows, self._failed, self._tell if self.echo else None)
        if self._is_plain and not self._tries and not self._late:
            finish = delivery.finished
            delivery.jobs = [
                Job(messages.bodies[at], finish, places=(place,))
                for place, (messages, at) in enumerate(rows)
            ]
        else:
            await self._add_jobs(delivery)
        try:
            await self._send(delivery)
            if delivery.failures:
                await self._bury(delivery)
            else:
                self._breaker.note_done(delivery.answers.count(DONE))
            self._note_done(delivery)
            return _together(delivery.answers)
        finally:
            # They know it: a circle of messages, which the collector would find much later.
            delivery.jobs = []

    async def _send(self, delivery: Delivery) -> None:
        jobs = delivery.jobs
        if not jobs:
            return
        timer = None
        if len(delivery.rows) > 1 and self._policy.batching is None:
            timer = self._loop.call_later(LATE_S, delivery.let_go)
        try:
            if fresh := delivery.begin():
                self._sender.submit(fresh)  # a batch that is parted adds to the jobs
            await delivery.whole
        except BaseException:
            for job in jobs:
                job.is_cancelled = True
            raise
        finally:
            if timer is not None:
                timer.cancel()
        for job in delivery.unfinished():
            place = job.places[0]
            delivery.wait_for(place)
            self._late.leave(job, delivery.rows[place])
        if fresh and (sent_s := jobs[-1].sent_s) > 0:
            took_s = time.monotonic() - sent_s
            self._latency_s += (took_s - self._latency_s) * _LATENCY_WEIGHT

    async def _add_jobs(self, delivery: Delivery) -> None:
        """A job for each message that is sent, or for all of them."""
        places: Sequence[int] = range(len(delivery.rows))
        if self._tries:
            places = self._not_given_up(delivery, places)
        if self._bodies.are_looked_at:
            places = self._fitting(delivery, places)
        groups = [places] if self._policy.batching else [(place,) for place in places]
        for only in range(len(self._sender.endpoints)) if self._policy.to_all else (None,):
            for group in groups:
                wanted = group if only is None else self._wanted_by(only, delivery, group)
                if wanted and not self._is_under_way(delivery, wanted[0], only):
                    await self._add_job(delivery, wanted, only)

    def _is_under_way(self, delivery: Delivery, place: int, only: int | None) -> bool:
        """Whether the message was sent before, and only its answer is missing: it is waited for."""
        job = self._late.take(delivery.rows[place], only) if self._late else None
        if job is not None:
            delivery.adopt(job, place)
        return job is not None

    async def _add_job(self, delivery: Delivery, places: Sequence[int], only: int | None) -> None:
        body = self._bodies.body(delivery.rows, delivery.texts, places)
        body = await self._bodies.compressed(body)
        delivery.jobs.append(self._job(delivery, places, body, only))

    def _job(self, delivery: Delivery, places: Sequence[int], body: bytes, only: int | None) -> Job:
        values = values_of(*delivery.rows[places[0]]) if self._needs_values else NO_VALUES
        return Job(body, delivery.finished, places=places, values=values, only=only)

    def _fitting(self, delivery: Delivery, places: Sequence[int]) -> Sequence[int]:
        """Those that can be sent; the others fail."""
        fitting, delivery.texts, unfit = self._bodies.fit(delivery.rows, places)
        for place, why in unfit.items():
            self._give_up(delivery, place, Reply(0, str(why)), why.reason)
        return fitting

    def _not_given_up(self, delivery: Delivery, places: Sequence[int]) -> list[int]:
        """Those of which no more is missing than a dead letter are not sent again."""
        kept = []
        for place in places:
            tries = self._tries.get(delivery.rows[place])
            if tries is None or tries.given_up is None:
                kept.append(place)
            else:
                delivery.refuse(place, tries.given_up)
        return kept

    def _wanted_by(self, only: int, delivery: Delivery, places: Sequence[int]) -> list[int]:
        """Those that an endpoint has not got yet, and has not refused."""
        wanted = []
        for place in places:
            tries = self._tries.get(delivery.rows[place])
            if tries is not None and only in tries.refused_at:
                delivery.refuse(place, tries.refused_at[only])
            elif tries is None or only not in tries.done_at:
                wanted.append(place)
        return wanted

    def _failed(self, delivery: Delivery, job: Job, reply: Reply, outcome: Outcome) -> Again | None:
        if job.wait_s:
            return Again(job.wait_s, reply.error, stands=True)
        tries_max = 0
        reason = f"status {reply.status}" if outcome is Outcome.REJECTED else ""
        if reason and len(job.places) > 1:  # it says nothing of any one message: no try of it
            self._split(delivery, job)
            return None
        for place in job.places:
            tries = self._tries.of(delivery.rows[place])
            if place not in delivery.tried:
                delivery.tried.add(place)
                tries.count += 1
            tries_max = max(tries_max, tries.count)
            reason = reason or self._reason_to_give_up(delivery.rows[place], tries)
        if reason and len(job.places) > 1:
            self._split(delivery, job)
            return None
        if reason:
            given_up = self._give_up(delivery, job.places[0], reply, reason)
            if job.only is not None:
                self._tries.of(delivery.rows[job.places[0]]).refused_at[job.only] = given_up
            return None
        self._counts["retries"] += len(job.places)
        if not reply.status and job.sent_s:  # the endpoint may have got them
            self._counts["unanswered_messages"] += len(job.places)
        return Again(max(backoff_s(tries_max), self._asked_s(job, reply)), error_of(reply))

    def _asked_s(self, job: Job, reply: Reply) -> float:
        """How long the message waits because an endpoint said so: not where it pauses the endpoint
        alone, and there are others that may take it."""
        is_elsewhere = job.only is None and len(self._sender.endpoints) > 1
        if not reply.retry_after or (is_elsewhere and reply.status in PAUSING):
            return 0.0
        return min(retry_after_s(reply.retry_after, time.time()), PAUSE_MAX_S)

    def _tell(self, delivery: Delivery, job: Job, reply: Reply) -> None:
        """Say what became of a request."""
        if self.echo is None or job.wait_s:
            return
        messages, at = delivery.rows[job.places[0]]
        took_ms = (time.monotonic() - job.sent_s) * 1000 if job.sent_s else 0.0
        which = messages.ids[at].decode("latin-1")
        more = f" and {len(job.places) - 1} more" if len(job.places) > 1 else ""
        what = reply.status or f"- ({printable(reply.error)})"
        label = self._sender.endpoints[job.endpoint].label
        self.echo(f"{what} {took_ms:.1f}ms {self._topic} {printable(which)}{more} {label}")

    def _split(self, delivery: Delivery, job: Job) -> None:
        """Send the halves of a batch: one message that is refused must not cost its neighbours."""
        self._counts["split_batches"] += 1
        middle = len(job.places) // 2
        for places in (job.places[:middle], job.places[middle:]):
            body = self._bodies.body(delivery.rows, delivery.texts, places)
            if self._bodies.compress is not None:
                body = self._bodies.compress(body)
            half = self._job(delivery, places, body, job.only)
            delivery.jobs.append(half)
            delivery.left += 1
            self._sender.submit((half,))

    def _give_up(self, delivery: Delivery, place: int, reply: Reply, reason: str) -> GivenUp:
        error = error_of(reply)
        tries = self._tries.get(delivery.rows[place])
        failure = Failure(status=reply.status, error=error, tries=tries.count if tries else 0)
        self._trouble.failed(error, topic=self._topic)
        given_up = GivenUp(reason, failure)
        delivery.refuse(place, given_up)
        return given_up

    def _reason_to_give_up(self, row: Row, tries: Tries) -> str:
        """Why a message that could be tried again is not; nothing when it is."""
        messages, at = row
        policy = self._policy
        if policy.tries_max and messages.attempts[at] - 1 + tries.count >= policy.tries_max:
            return "attempts used up"
        if policy.age_max_s and time.time() - messages.timestamps[at] / 1e9 > policy.age_max_s:
            return "too old"
        return ""

    async def _bury(self, delivery: Delivery) -> None:
        """Keep what was refused as dead letters, when that is allowed."""
        dead_letter = self._dead_letter
        places = self._refused(delivery)
        if not places or dead_letter is None:
            return
        dead = [(*delivery.rows[place], delivery.failures[place]) for place in places]
        answers = await dead_letter.keep(dead)
        for place, answer in zip(places, answers, strict=True):
            refused = delivery.answers[place]
            if isinstance(answer, Again) and isinstance(refused, Refused):
                given_up = GivenUp(refused.reason, delivery.failures[place])
                self._tries.of(delivery.rows[place]).given_up = given_up
            delivery.answers[place] = answer
        self._counts["dead_lettered"] += sum(answer is DONE for answer in answers)

    def _refused(self, delivery: Delivery) -> list[int]:
        """The places of those that are refused; in an outage they are held instead."""
        places: list[int] = []
        self._breaker.note_done(delivery.answers.count(DONE))
        for place, answer in enumerate(delivery.answers):
            if not isinstance(answer, Refused):
                pass
            elif self._holds(delivery, place):
                tries = self._tries.get(delivery.rows[place])
                why = self._breaker.why
                delivery.answers[place] = held(tries.count if tries else 1, why)
            else:
                places.append(place)
        return places

    def _holds(self, delivery: Delivery, place: int) -> bool:
        """Whether this is an outage; if not, a message that is refused has failed. One that was refused
        before, and of which only the dead letter is missing, does not fail again."""
        tries = self._tries.get(delivery.rows[place])
        is_new = tries is None or tries.given_up is None
        if is_new:
            self._breaker.last_error = delivery.failures[place].error
        if self._breaker.is_open:
            return True
        if is_new:
            self._breaker.note_failed()
            self._counts["rejected"] += 1
        return False

    def _note_done(self, delivery: Delivery) -> None:
        """Forget what was tried for messages that are done; note who has those that are not."""
        if not self._tries and not self._policy.to_all:
            return
        for row, answer in zip(delivery.rows, delivery.answers, strict=True):
            if answer is DONE:
                self._tries.forget(row)
        for job in delivery.jobs if self._policy.to_all else ():
            for place in job.places if job.is_done else ():
                if delivery.answers[place] is not DONE and job.only is not None:
                    self._tries.of(delivery.rows[place]).done_at.add(job.only)


def _together(answers: list[Answer]) -> Answer | Sequence[Answer]:
    """One answer for all where they are alike: all are done, or no endpoint could be asked for any of
    them, and the topic stands."""
    first = answers[0]
    if answers.count(DONE) == len(answers):
        return DONE
    if isinstance(first, Again) and all(isinstance(one, Again) and one.stands for one in answers):
        return first
    return answers
