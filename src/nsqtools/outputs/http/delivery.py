"""Messages that were delivered together: their requests, and the answers so far."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nsqtools.outputs.contract import DONE, Again, Refused
from nsqtools.outputs.http.bodies import NO_TEXTS
from nsqtools.outputs.http.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nsqtools.archive.failures import Failure
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.http.bodies import Row
    from nsqtools.outputs.http.connection import Reply
    from nsqtools.outputs.http.sender import Job
    from nsqtools.outputs.http.tries import GivenUp

# A request that takes so much longer than its neighbours does not keep them any more.
LATE_S = 0.5
# Whoever is answered so comes again at once, and asks for the request that is under way.
LATE = Again(0.0, "no answer yet")


class Delivery:
    """See the module. `whole` is set when all jobs are answered, or when those that are should not
    wait for the others any more."""

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
        failed: Callable[[Delivery, Job, Reply, Outcome], Again | None],
        echo: Callable[[Delivery, Job, Reply], None] | None,
    ) -> None:
        """`failed` gives the answer for the messages of a job, or None where it has refused them, or put
        other jobs in its place."""
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

    def adopt(self, job: Job, place: int) -> None:
        """Go on with a job that was under way before for the message at this place."""
        job.places = (place,)
        job.finish = self.finished
        self.jobs.append(job)

    def begin(self) -> list[Job]:
        """The jobs that are to be sent; what was answered since they were left is taken in."""
        self.left = len(self.jobs)
        for job in self.jobs:
            if job.answered is not None:
                self.finished(job, *job.answered)
        return [job for job in self.jobs if not job.is_late]

    def refuse(self, place: int, given_up: GivenUp) -> None:
        """It will never be taken. Where it goes to several endpoints, that waits for those that may yet
        do it."""
        self.failures[place] = given_up.failure
        if not isinstance(self.answers[place], Again):
            self.answers[place] = Refused(given_up.reason)

    def wait_for(self, place: int) -> None:
        """A request for it has no answer yet: it comes again at once, unless another endpoint has said
        when."""
        if not isinstance(self.answers[place], Again):
            self.answers[place] = LATE

    def finished(self, job: Job, reply: Reply, outcome: Outcome) -> None:
        """A job of this delivery was answered."""
        job.is_finished = True
        try:
            self._note(job, reply, outcome)
        except Exception as fault:  # noqa: BLE001 - raised where the delivery is awaited
            if not self.whole.done():
                self.whole.set_exception(fault)
        self.left -= 1
        if not self.left:
            self.let_go()

    def let_go(self) -> None:
        """Wait no longer."""
        if not self.whole.done():
            self.whole.set_result(None)

    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs if not job.is_finished] if self.left else []

    def _note(self, job: Job, reply: Reply, outcome: Outcome) -> None:
        if self._echo is not None:
            self._echo(self, job, reply)
        if outcome is not Outcome.DONE:
            answer = self._failed(self, job, reply, outcome)
            for place in job.places if answer is not None else ():
                if answer is not None and not isinstance(self.answers[place], Again):
                    self.answers[place] = answer
