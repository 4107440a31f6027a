"""Requests to the endpoints of a topic: which one, how many at once, and how each of them is.

A job waits for its turn without a task of its own; its endpoint is chosen when its turn has come. Where
no endpoint may be asked now, it is told so at once, with the time when one may be.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log
from nsqtools.options import printable
from nsqtools.outputs.http.connection import Exchange, Reply
from nsqtools.outputs.http.health import Circuit
from nsqtools.outputs.http.limit import AdaptiveLimit
from nsqtools.outputs.http.outcome import Outcome, Rules, retry_after_s
from nsqtools.outputs.http.pool import Pool
from nsqtools.outputs.http.redirects import REDIRECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nsqtools.outputs.http.latencies import Latencies
    from nsqtools.outputs.http.picking import Picker
    from nsqtools.outputs.http.pool import ClientOptions
    from nsqtools.outputs.http.request import RequestMaker
    from nsqtools.outputs.http.status_lines import StatusLines

_SERVER_ERROR = 500
# Statuses by which an endpoint says that it is asked too much; 0 is no reply.
_OVERLOADED = frozenset({0, 429, 503})
# What a rate has not used for so long may be used at once.
BURST_S = 0.1
# Until what was not sent at the end of a run may be asked for again, if anybody does.
HURRY_WAIT_S = 0.1
# How much of an endpoint's text is told.
TOLD_BYTES_MAX = 200
# Statuses by which an endpoint says when it wants to be asked again.
PAUSING = frozenset({429, 503})
NO_VALUES: Mapping[str, str] = {}
# A pause that an endpoint asks for is told when it is as long as this.
PAUSE_TOLD_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How many requests at once, in all, and, with `rate_per_s`, in a second (0: as many as there are).

    With `is_adaptive` each endpoint has a limit of its own that follows how quick it is.
    """

    concurrency: int
    rate_per_s: float = 0.0
    is_adaptive: bool = False
    status: StatusLines | None = None
    latencies: Latencies | None = None


class Endpoint:
    """One URL of a topic: its requests, its connections and its health."""

    def __init__(self, maker: RequestMaker, options: ClientOptions, label: str, topic: str) -> None:
        """`label` stands for it in messages, without what could be secret."""
        self.label = label
        self.which = {"topic": topic, "url": label}
        """In log lines."""
        self.maker = maker
        self.pool = Pool(maker.origin, options, maker.proxy)
        self.circuit = Circuit()
        self.last_error = ""
        self.trouble = Repeated(
            get_log("http"), "endpoint is in trouble, nothing is sent to it", clock=SystemClock()
        )
        self.failures = Repeated(
            get_log("http"), "a request failed, it will be tried again", clock=SystemClock()
        )
        self.pauses = Repeated(
            get_log("http"), "endpoint asks for a pause, nothing is sent to it", clock=SystemClock()
        )


class Job(Exchange):
    """A request that is to be sent to some endpoint, or to `only` one; `places` are those of its messages
    in their delivery.

    `finish` is called once, with the reply and what it means. With `wait_s` it was not sent: no endpoint
    may be asked before so many seconds have passed.
    """

    __slots__ = (
        "answered",
        "body",
        "endpoint",
        "finish",
        "is_cancelled",
        "is_done",
        "is_finished",
        "is_late",
        "only",
        "places",
        "values",
        "wait_s",
    )

    def __init__(
        self,
        body: bytes,
        finish: Callable[[Job, Reply, Outcome], None],
        *,
        places: Sequence[int] = (),
        values: Mapping[str, str] = NO_VALUES,
        only: int | None = None,
    ) -> None:
        self.body = body
        self.finish = finish
        self.places = places
        self.values = values
        self.only = only
        self.endpoint = 0
        self.wait_s = 0.0
        self.sent_s = 0.0
        self.answered: tuple[Reply, Outcome] | None = None  # while nobody waited for it
        self.is_cancelled = self.is_done = self.is_finished = self.is_late = False


class Sender:
    """See the module. `close` ends all connections; what is on its way fails."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        picker: Picker,
        rules: Rules,
        pacing: Pacing,
        secrets: Sequence[str] = (),
    ) -> None:
        """`secrets` are taken out of what endpoints say."""
        self._secrets = [secret.encode("utf-8", "surrogateescape") for secret in secrets]
        self.endpoints = endpoints
        self.counts: Counter[str] = Counter()
        self._picker = picker
        self._rules = rules
        self._outcomes: dict[int, Outcome] = {}
        self._pacing = pacing
        self._limits: list[AdaptiveLimit] = []
        if pacing.is_adaptive:
            self._limits = [AdaptiveLimit(pacing.concurrency) for _ in endpoints]
        self._is_paced = pacing.is_adaptive or pacing.rate_per_s > 0
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job] = deque()
        self._everywhere = tuple(range(len(endpoints)))
        self._under_way = 0
        self._hurries = self._is_closed = False

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; they may be finished within this call."""
        self._waiting.extend(jobs)
        if self._hurries:
            self.hurry()
        else:
            self._pump()

    def hurry(self) -> None:
        """Send nothing more: whatever waits for its turn is told so, and what is still submitted."""
        self._hurries = True
        while self._waiting:
            job = self._waiting.popleft()
            job.wait_s = HURRY_WAIT_S
            job.finish(job, Reply(0, "the run ends"), Outcome.RETRY)

    def close(self) -> None:
        self._is_closed = True
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for endpoint in self.endpoints:
            endpoint.pool.close()

    def trouble(self) -> str:
        """The endpoints whose circuits are open, or that asked for a long pause, and why."""
        soon_s = self._loop.time() + PAUSE_TOLD_S
        down = [
            one
            for one in self.endpoints
            if one.circuit.is_open or one.circuit.available_s(soon_s) > soon_s
        ]
        return "; ".join(f"{one.label}: {one.last_error}" for one in down)

    @property
    def connections_opened(self) -> int:
        return sum(endpoint.pool.opened for endpoint in self.endpoints)

    def _pump(self) -> None:
        waiting = self._waiting
        if not waiting:
            return
        now_s = self._loop.time()
        while waiting and self._under_way < self._pacing.concurrency:
            if waiting[0].is_cancelled:
                waiting.popleft()
            elif self._is_paced and self._has_to_wait(waiting[0], now_s):
                return
            else:
                self._send(waiting.popleft(), now_s)

    def _has_to_wait(self, job: Job, now_s: float) -> bool:
        return self._waits_for_rate(now_s) or (bool(self._limits) and self._is_full(job))

    def _waits_for_rate(self, now_s: float) -> bool:
        """Whether the next request has to wait; it is looked at again in time."""
        if not self._pacing.rate_per_s or self._next_s <= now_s:
            return False
        if self._timer is None:
            self._timer = self._loop.call_at(self._next_s, self._pump_again)
        return True

    def _pump_again(self) -> None:
        self._timer = None
        self._pump()

    def _is_full(self, job: Job) -> bool:
        """Whether each endpoint that may be asked has as many requests as it can take now."""
        wanted = self._everywhere if job.only is None else (job.only,)
        closed = [at for at in wanted if not self.endpoints[at].circuit.is_open]
        return bool(closed) and all(self._limits[at].is_full for at in closed)

    def _send(self, job: Job, now_s: float) -> None:
        wanted = self._everywhere if job.only is None else (job.only,)
        available = [at for at in wanted if self.endpoints[at].circuit.available_s(now_s) <= now_s]
        if self._limits:
            available = [at for at in available if not self._limits[at].is_full] or available
        if not available:
            job.wait_s = self._wait_s(wanted, now_s)
            job.finish(job, Reply(0, self._why(wanted)), Outcome.RETRY)
            return
        at = available[0] if len(wanted) == 1 else self._picker.pick(available, now_s)
        endpoint = self.endpoints[at]
        job.endpoint = at
        job.done = self._answered  # type: ignore[assignment]  # an exchange that is a job
        job.request = endpoint.maker.make(job.body, job.values)
        endpoint.circuit.began()
        self._under_way += 1
        if self._is_paced:
            self._note_began(at, now_s)
        endpoint.pool.send(job)

    def _note_began(self, at: int, now_s: float) -> None:
        if self._limits:
            self._limits[at].began()
        self._note_rate(now_s)

    def _note_rate(self, now_s: float) -> None:
        """A request is sent: the next one has its turn later."""
        if self._pacing.rate_per_s:
            self._next_s = max(self._next_s, now_s - BURST_S) + 1 / self._pacing.rate_per_s

    def _wait_s(self, wanted: Sequence[int], now_s: float) -> float:
        soonest_s = min(self.endpoints[at].circuit.available_s(now_s) for at in wanted)
        return max(0.01, soonest_s - now_s)

    def _why(self, wanted: Sequence[int]) -> str:
        errors = [f"{self.endpoints[at].label}: {self.endpoints[at].last_error}" for at in wanted]
        return f"no endpoint can be asked now: {'; '.join(errors)}"

    def _answered(self, job: Job, reply: Reply) -> None:
        self._under_way -= 1
        if self._is_closed:  # by us: it says nothing of the endpoint
            job.finish(job, reply, Outcome.RETRY)
            return
        now_s = self._loop.time()
        if reply.excerpt:
            reply = reply._replace(excerpt=self._masked(reply.excerpt))
        outcome = self._judge(reply.status)
        if reply.is_early and outcome is Outcome.DONE:
            reply = Reply(0, f"status {reply.status} came before the request was sent")
            outcome = self._judge(0)
        self.counts["requests"] += 1
        latency_s = time.monotonic() - job.sent_s if job.sent_s else 0.0
        if self._pacing.status is not None:
            self._pacing.status.note(job.endpoint, latency_s, now_s)
        if self._pacing.latencies is not None:
            self._pacing.latencies.note(latency_s)
        if self._limits:
            self._limits[job.endpoint].answered(
                latency_s, now_s, is_overloaded=reply.status in _OVERLOADED
            )
        if outcome is Outcome.DONE:
            job.is_done = True
            self._well(job, latency_s, now_s)
        else:
            self._badly(job, reply, outcome, now_s)
        job.finish(job, reply, outcome)
        self._pump()

    def _judge(self, status: int) -> Outcome:
        outcome = self._outcomes.get(status)
        if outcome is None:
            outcome = self._outcomes[status] = self._rules.judge(status)
        return outcome

    def _masked(self, excerpt: bytes) -> bytes:
        """The beginning of what an endpoint said, without what it was told in confidence."""
        for secret in self._secrets:
            excerpt = excerpt.replace(secret, b"***")
        return excerpt[:TOLD_BYTES_MAX]

    def _well(self, job: Job, latency_s: float, now_s: float) -> None:
        endpoint = self.endpoints[job.endpoint]
        if endpoint.circuit.answered():
            endpoint.trouble.recovered("endpoint works again", **endpoint.which)
        if len(self._everywhere) > 1:
            self._picker.succeeded(job.endpoint, latency_s, now_s)

    def _badly(self, job: Job, reply: Reply, outcome: Outcome, now_s: float) -> None:
        endpoint = self.endpoints[job.endpoint]
        endpoint.last_error = error = error_of(reply)
        self.counts[f"status_{reply.status // 100}xx" if reply.status else "network_errors"] += 1
        pause_s = 0.0
        if reply.status in PAUSING and reply.retry_after:
            pause_s = retry_after_s(reply.retry_after, SystemClock().time())
            endpoint.circuit.pause(now_s, pause_s)
            if pause_s >= PAUSE_TOLD_S:
                endpoint.pauses.failed(error, **endpoint.which, seconds=round(pause_s))
        if outcome is Outcome.RETRY and (not reply.status or reply.status >= _SERVER_ERROR):
            self._picker.failed(job.endpoint, now_s)
            if endpoint.circuit.failed(now_s):
                self.counts["circuits_opened"] += 1
                endpoint.trouble.failed(error, **endpoint.which)
            elif not endpoint.circuit.is_open:
                endpoint.failures.failed(error, **endpoint.which)
            return
        if outcome is Outcome.RETRY and pause_s < PAUSE_TOLD_S:
            endpoint.failures.failed(error, **endpoint.which)
        if endpoint.circuit.answered():
            endpoint.trouble.recovered("endpoint works again", **endpoint.which)


def error_of(reply: Reply) -> str:
    """What went wrong, for a log line or a dead letter."""
    if not reply.status:
        return reply.error
    text = f"got status code {reply.status}"
    if reply.error:
        text += f" ({reply.error})"
    elif reply.status in REDIRECTS:
        text += " (a redirect, not followed)"
    if reply.excerpt:
        text += f": {printable(reply.excerpt.decode('utf-8', 'replace'))}"
    return text
