"""Filters and transforms in front of an output: an `Output` around another one.

It gives the inner output what the steps have left, and maps its answers back to the messages that came.
What was removed is `Removed`, what was refused `Refused`; of several made of one message, that one is
done when all are. Where nothing is removed, changed or refused, everything goes through as it is.

What looks at bodies works in a thread, unless that is quicker done than handed over; a function of the
user always does, in one thread a topic, apart from those that write archives: one that hangs holds its
topic, and is seen in health.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log
from nsqtools.options import printable
from nsqtools.outputs.contract import Again, Answer, Done
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.delivery import distinct
from nsqtools.pipeline.routes import KnownParts, bounded
from nsqtools.transform.chain import Chain
from nsqtools.transform.hook import Stopped, load
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsqtools.outputs.contract import Feeding, Output
    from nsqtools.outputs.workers import Strand
    from nsqtools.pipeline.routes import Route
    from nsqtools.transform.hook import Function
    from nsqtools.transform.options import TransformOptions
    from nsqtools.transform.steps import Work
    from nsqtools.wire.messages import Messages

# A hand-over to a thread takes longer than the filters for this much.
ON_LOOP_MESSAGES = 32
ON_LOOP_BYTES = 32 << 10
# A delivery is as large as a function of the user does in about this time.
CALLS_S = 2.0
# While it is not known how long a call takes.
FIRST_CALLS = 100
# More than this is as good as no bound, which costs less.
UNBOUNDED_CALLS = 10_000
_AT_END = Again(1.0, "the run ends", stands=True)


class Transforms:
    """What the topics of a run share."""

    def __init__(self, options: TransformOptions) -> None:
        self._options = options
        self._function: Function | None = None
        self._workers = Workers(name="transform")

    async def open(self) -> None:
        """Find the function of the user. Raises OptionsError where there is none."""
        name = self._options.transform
        if name is not None:
            self._function = await asyncio.to_thread(load, name, self._options.transform_path)

    def around(self, topic: str, output: Output) -> Output:
        """The output behind the steps; itself where there are none."""
        if not self._options.transforms:
            return output
        chain = Chain(self._options, self._function)
        strand = self._workers.strand(f"transform of {topic}")
        return TransformingOutput(topic, output, chain, strand)

    def first(self, messages: Messages) -> Messages | str:
        """What the steps make of the first of some messages, or why nothing. Blocking; for a dry run."""
        work = Chain(self._options, self._function).apply([messages.part(0, 1)])[0]
        if work.removed:
            return f"the message is removed by --{work.removed[0]}"
        if work.refused:
            return f"the message is refused: {work.refused[0].reason}: {work.refused[0].detail}"
        return work.result()[0]

    def close(self) -> None:
        """Let the threads go."""
        self._workers.close()


class TransformingOutput:
    """An `Output`; see the module."""

    def __init__(self, topic: str, inner: Output, chain: Chain, strand: Strand) -> None:
        self.inner = inner
        self._topic = topic
        self._chain = chain
        self._strand = strand
        self._parts = KnownParts()
        self._made = 0
        self._refused = Repeated(
            get_log("transform"),
            "--transform failed: the message stays with nsqd",
            clock=SystemClock(),
        )

    @property
    def feeding(self) -> Feeding:
        """As the output wants it; of a slow function no more at once than it does in a while, or one
        delivery would take as long as if it hung."""
        feeding, hook = self.inner.feeding, self._chain.hook
        if hook is None:
            return feeding
        most = int(CALLS_S / hook.call_s) if hook.call_s else FIRST_CALLS
        if most >= feeding.messages_max if feeding.messages_max else most > UNBOUNDED_CALLS:
            return feeding
        return replace(feeding, messages_max=max(1, most))

    def counts(self) -> Mapping[str, int]:
        """Those of the output, and how many messages were made where one became several."""
        if self._chain.hook is None:
            return self.inner.counts()
        return {**self.inner.counts(), "made_messages": self._made}

    def trouble(self) -> str:
        """A function that does not return, or what the output says."""
        hook = self._chain.hook
        if hook is not None and (hangs_s := hook.hangs_s):
            return f"--transform {hook.name} has not returned for {hangs_s:.0f} s"
        return self.inner.trouble()

    async def open(self) -> None:
        await self.inner.open()

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        try:
            works = await self._apply(messages)
        except Stopped:
            return _AT_END
        self._tell(works)
        if all(work.is_untouched for work in works):
            return await self.inner.deliver(messages)
        routes = [self._parts.route(work) for work in works]
        wanted = [route.messages for route in routes if len(route.messages)]
        return self._mapped(routes, await self._deliver(wanted) if wanted else [])

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        self.inner.may_come_again(nsqd, message_id)

    def rotate(self) -> None:
        self.inner.rotate()

    def hurry(self) -> None:
        """What an output would give back is not looked at any more."""
        if self._chain.hook is not None and self.inner.feeding.gives_back:
            self._chain.hook.stop()
        self.inner.hurry()

    async def close(self) -> None:
        await self.inner.close()

    async def abandon(self) -> None:
        """The same; a function that is called now is not waited for."""
        if self._chain.hook is not None:
            self._chain.hook.stop()
        await self.inner.abandon()

    # Inside

    async def _apply(self, messages: Sequence[Messages]) -> list[Work]:
        chain = self._chain
        is_small = (
            count_messages(messages) <= ON_LOOP_MESSAGES
            and sum(each.size_bytes for each in messages) <= ON_LOOP_BYTES
        )
        if chain.hook is None and (chain.is_cheap or is_small):
            return chain.apply(messages)
        return await self._strand.call(lambda: chain.apply(messages))

    async def _deliver(self, messages: Sequence[Messages]) -> Answer | list[Answer]:
        """An answer for all, or for each; in as many deliveries as the output's bounds want, because
        there may be more now than came."""
        answers: list[Answer] = []
        pieces = list(bounded(messages, self.inner.feeding))
        for at, piece in enumerate(pieces):
            answer = await self.inner.deliver(piece)
            if len(pieces) == 1 and isinstance(answer, Answer):
                return answer
            count = count_messages(piece)
            answers += [answer] * count if isinstance(answer, Answer) else answer
            if isinstance(answer, Again) and answer.stands:
                rest = sum(map(count_messages, pieces[at + 1 :]))
                return answers + [answer] * rest
        return answers

    def _mapped(
        self, routes: Sequence[Route], answers: Answer | list[Answer]
    ) -> Answer | Sequence[Answer]:
        """The answers for the messages that came."""
        mapped: list[Answer] = []
        at = 0
        for route in routes:
            count = len(route.messages)
            own = [answers] * count if isinstance(answers, Answer) else answers[at : at + count]
            self._note(route, own)
            mapped += route.answers(own)
            at += count
        return _together(mapped)

    def _note(self, route: Route, own: Sequence[Answer]) -> None:
        self._parts.note(route, own)
        several = route.work.several
        if several:
            pairs = zip(route.places, own, strict=True)
            self._made += sum(at in several and isinstance(answer, Done) for at, answer in pairs)

    def _tell(self, works: Sequence[Work]) -> None:
        """Of messages that were refused, the errors: each kind at most once a minute."""
        for work in works:
            for at, refusal in work.refused.items():
                self._refused.failed(
                    printable(refusal.detail),
                    topic=self._topic,
                    id=printable(work.messages.ids[at].decode("latin-1")),
                )


def _together(answers: list[Answer]) -> Answer | Sequence[Answer]:
    """One answer for all where they are alike."""
    return answers[0] if len(set(distinct(answers))) == 1 else answers
