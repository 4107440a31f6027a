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
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsqtools.archive.failures import Failure
from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log
from nsqtools.options import printable
from nsqtools.outputs.contract import DONE, Again, Feeding, Refused
from nsqtools.outputs.http.bodies import NO_TEXTS, Bodies
from nsqtools.outputs.http.connection import Reply
from nsqtools.outputs.http.dead_letter import BREAKER_RETRY_S, Breaker
from nsqtools.outputs.http.health import PAUSE_MAX_S
from nsqtools.outputs.http.outcome import Outcome, backoff_s, retry_after_s
from nsqtools.outputs.http.request import values_of
from nsqtools.outputs.http.sender import NO_VALUES, Job, error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.http.batches import Batching, Encoding
    from nsqtools.outputs.http.bodies import Row
    from nsqtools.outputs.http.body_template import BodyTemplate
    from nsqtools.outputs.http.dead_letter import DeadLetter
    from nsqtools.outputs.http.sender import Sender
    from nsqtools.outputs.workers import Strand
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


_OWN_COUNTS = ("sampled_out", "retries", "rejected", "dead_lettered", "split_batches")
# It does not stand: good messages behind bad ones show that it is none.
_HELD = Again(BREAKER_RETRY_S, "most messages fail: an outage")
_CHECKSUMS = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """`sample` is the part of messages that is sent; `to_all` sends each to every endpoint."""

    concurrency: int
    sample: float = 1.0
    to_all: bool = False
    batching: Batching | None = None
    """None: a request for each message."""
    encoding: Encoding = "none"
    template: BodyTemplate | None = None
    """None: bodies as they are."""
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

    __slots__ = (
        "_echo",
        "_failed",
        "answers",
        "failures",
        "jobs",
        "left",
        "rows",
        "texts",
        "tried",
        "whole",
    )

    def __init__(
        self,
        rows: list[Row],
        failed: Callable[[_Delivery, Job, Reply, Outcome], Answer | None],
        echo: Callable[[_Delivery, Job, Reply], None] | None,
    ) -> None:
        """`failed` gives the answer for the messages of a job, or None where others have taken its
        place."""
        self.rows = rows
        self.texts: Mapping[int, bytes] = NO_TEXTS
        """What is sent of messages, by their places, where it is not their bodies."""
        self.failures: dict[int, Failure] = {}
        """Of those that are refused, by their places."""
        self.answers: list[Answer] = [DONE] * len(rows)
        self.jobs: list[Job] = []
        self.left = 0
        self.tried: set[int] = set()
        """The places whose failure was counted as a try: a delivery is one, however parted."""
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed = failed
        self._echo = echo

    def finished(self, job: Job, reply: Reply, outcome: Outcome) -> None:
        """A job of this delivery was answered."""
        try:
            self._note(job, reply, outcome)
        except Exception as fault:  # noqa: BLE001 - raised where the delivery is awaited
            if not self.whole.done():
                self.whole.set_exception(fault)
        self.left -= 1
        if not self.left and not self.whole.done():
            self.whole.set_result(None)

    def _note(self, job: Job, reply: Reply, outcome: Outcome) -> None:
        if self._echo is not None:
            self._echo(self, job, reply)
        if outcome is not Outcome.DONE:
            answer = self._failed(self, job, reply, outcome)
            for place in job.places if answer is not None else ():
                # Where it goes to several endpoints, a refusal waits for those that may do it yet.
                if answer is not None and not isinstance(self.answers[place], Again):
                    self.answers[place] = answer


class HttpOutput:
    """An `Output`; see `contract`."""

    def __init__(
        self,
        topic: str,
        sender: Sender,
        policy: DeliveryPolicy,
        strand: Strand,
        dead_letter: DeadLetter | None = None,
    ) -> None:
        """`strand` compresses what is large."""
        self.echo: Callable[[str], None] | None = None
        """Gets a line for each request."""
        self._bodies = Bodies(topic, policy.batching, policy.encoding, policy.template, strand)
        self._dead_letter = dead_letter
        self._breaker = Breaker(policy.dead_letter_max_ratio)
        self._topic = topic
        self._sender = sender
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._needs_values = any(not one.maker.is_fixed for one in sender.endpoints)
        # Each message as it is to one endpoint: what is done most, and what must be quick.
        self._is_plain = self._bodies.are_plain and not (
            self._needs_values or policy.to_all or policy.sample < 1.0
        )
        self._tries: dict[tuple[str, bytes], Tries] = {}
        self._latency_s = CHUNK_S
        self._trouble = Repeated(
            get_log("http"), "an endpoint refused messages", clock=SystemClock()
        )
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
        opened = self._sender.connections_opened
        ambiguous = self._bodies.ambiguous
        return {
            **self._counts,
            **counted,
            "ambiguous_messages": ambiguous,
            "connections_opened": opened,
        }

    def trouble(self) -> str:
        """Endpoints that are not asked now, an outage, or dead letters that cannot be finished."""
        if self._breaker.is_open:
            return "most messages fail: nothing goes to the dead letter"
        dead_letter = self._dead_letter
        return self._sender.trouble() or (dead_letter.trouble() if dead_letter is not None else "")

    async def open(self) -> None:
        """Connections are made with the first requests."""
        if self._dead_letter is not None:
            await self._dead_letter.open()

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        """Send what is sampled, each message to an endpoint, or to all."""
        rows = [(each, at) for each in messages for at in range(len(each))]
        delivery = _Delivery(rows, self._failed, self._tell if self.echo else None)
        if self._is_plain:
            finish = delivery.finished
            delivery.jobs = [
                Job(messages.bodies[at], finish, places=(place,))
                for place, (messages, at) in enumerate(rows)
            ]
        else:
            await self._add_jobs(delivery)
        await self._send(delivery)
        if self._dead_letter is not None:
            await self._bury(delivery, self._dead_letter)
        self._note_done(delivery)
        return _together(delivery.answers)

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

    async def _send(self, delivery: _Delivery) -> None:
        jobs = delivery.jobs
        delivery.left = len(jobs)
        if not jobs:
            return
        self._sender.submit(tuple(jobs))  # a batch that is parted adds to them
        try:
            await delivery.whole
        finally:
            for job in jobs if delivery.left else ():
                job.is_cancelled = True
        if (sent_s := jobs[-1].sent_s) > 0:
            took_s = self._loop.time() - sent_s
            self._latency_s += (took_s - self._latency_s) * _LATENCY_WEIGHT

    async def _add_jobs(self, delivery: _Delivery) -> None:
        """A job for each message that is sent, or for all of them."""
        places: Sequence[int] = range(len(delivery.rows))
        if self._policy.sample < 1.0:
            places = self._sampled(delivery, places)
        if self._bodies.are_looked_at:
            places = self._fitting(delivery, places)
        groups = [places] if self._policy.batching else [(place,) for place in places]
        for only in range(len(self._sender.endpoints)) if self._policy.to_all else (None,):
            for group in groups:
                wanted = group if only is None else self._wanted_by(only, delivery, group)
                if wanted:
                    body = self._bodies.body(delivery.rows, delivery.texts, wanted)
                    body = await self._bodies.compressed(body)
                    delivery.jobs.append(self._job(delivery, wanted, body, only))

    def _job(
        self, delivery: _Delivery, places: Sequence[int], body: bytes, only: int | None
    ) -> Job:
        values = values_of(*delivery.rows[places[0]]) if self._needs_values else NO_VALUES
        return Job(body, delivery.finished, places=places, values=values, only=only)

    def _sampled(self, delivery: _Delivery, places: Sequence[int]) -> list[int]:
        """The same ones at each try: what was chosen is sent until it is done."""
        bound = self._policy.sample * _CHECKSUMS
        kept = [place for place in places if zlib.crc32(_identity(delivery.rows[place])) < bound]
        self._counts["sampled_out"] += len(places) - len(kept)
        return kept

    def _fitting(self, delivery: _Delivery, places: Sequence[int]) -> Sequence[int]:
        """Those that can be sent; the others fail."""
        fitting, delivery.texts, unfit = self._bodies.fit(delivery.rows, places)
        for place, why in unfit.items():
            answer = self._give_up(delivery, place, Reply(0, str(why)), why.reason)
            delivery.answers[place] = answer
        return fitting

    def _wanted_by(self, only: int, delivery: _Delivery, places: Sequence[int]) -> list[int]:
        """Those that an endpoint has not got yet."""
        found = [(place, self._tries.get(_key(delivery.rows[place]))) for place in places]
        return [place for place, tries in found if tries is None or only not in tries.done_at]

    def _failed(
        self, delivery: _Delivery, job: Job, reply: Reply, outcome: Outcome
    ) -> Answer | None:
        if job.wait_s:
            return Again(job.wait_s, reply.error, stands=True)
        tries_max = 0
        reason = f"status {reply.status}" if outcome is Outcome.REJECTED else ""
        if reason and len(job.places) > 1:  # it says nothing of any one message: no try of it
            self._split(delivery, job)
            return None
        for place in job.places:
            tries = self._tries_of(delivery.rows[place])
            if place not in delivery.tried:
                delivery.tried.add(place)
                tries.count += 1
            tries_max = max(tries_max, tries.count)
            reason = reason or self._reason_to_give_up(delivery.rows[place], tries)
        if reason and len(job.places) > 1:
            self._split(delivery, job)
            return None
        if reason:
            return self._give_up(delivery, job.places[0], reply, reason)
        self._counts["retries"] += len(job.places)
        asked_s = retry_after_s(reply.retry_after, time.time()) if reply.retry_after else 0.0
        return Again(max(backoff_s(tries_max), min(asked_s, PAUSE_MAX_S)), error_of(reply))

    def _tell(self, delivery: _Delivery, job: Job, reply: Reply) -> None:
        """Say what became of a request."""
        if self.echo is None or job.wait_s:
            return
        messages, at = delivery.rows[job.places[0]]
        took_ms = (self._loop.time() - job.sent_s) * 1000 if job.sent_s else 0.0
        which = messages.ids[at].decode("latin-1")
        more = f" and {len(job.places) - 1} more" if len(job.places) > 1 else ""
        what = reply.status or f"- ({printable(reply.error)})"
        label = self._sender.endpoints[job.endpoint].label
        self.echo(f"{what} {took_ms:.1f}ms {self._topic} {printable(which)}{more} {label}")

    def _split(self, delivery: _Delivery, job: Job) -> None:
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

    def _give_up(self, delivery: _Delivery, place: int, reply: Reply, reason: str) -> Refused:
        self._counts["rejected"] += 1
        error = error_of(reply)
        tries = self._tries.get(_key(delivery.rows[place]))
        delivery.failures[place] = Failure(
            status=reply.status, error=error, tries=tries.count if tries else 0
        )
        self._trouble.failed(error, topic=self._topic)
        return Refused(reason)

    def _reason_to_give_up(self, row: Row, tries: Tries) -> str:
        """Why a message that could be tried again is not; nothing when it is."""
        messages, at = row
        policy = self._policy
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
        for place, answer in zip(places, kept, strict=True):
            answers[place] = answer
        self._counts["dead_lettered"] += sum(answer is DONE for answer in kept)

    def _tries_of(self, row: Row) -> Tries:
        """What was tried for a message; of the longest unheard one nothing is known any more."""
        key = _key(row)
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
                self._tries.pop(_key(row), None)
        for job in delivery.jobs if self._policy.to_all else ():
            for place in job.places if job.is_done else ():
                if delivery.answers[place] is not DONE and job.only is not None:
                    self._tries_of(delivery.rows[place]).done_at.add(job.only)


def _key(row: Row) -> tuple[str, bytes]:
    return row[0].nsqd, row[0].ids[row[1]]


def _identity(row: Row) -> bytes:
    nsqd, message_id = _key(row)
    return nsqd.encode("utf-8", "replace") + message_id


def _together(answers: list[Answer]) -> Answer | Sequence[Answer]:
    """One answer for all where they are alike: all are done, or no endpoint could be asked for any of
    them, and the topic stands."""
    first = answers[0]
    if answers.count(DONE) == len(answers):
        return DONE
    if isinstance(first, Again) and all(isinstance(one, Again) and one.stands for one in answers):
        return first
    return answers
