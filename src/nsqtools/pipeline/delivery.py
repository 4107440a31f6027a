"""What an output gets at once, and what becomes of it: settled in bulk, or kept to come again."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

from nsqtools.client.batch import Part
from nsqtools.outputs.contract import Again, Answer, Done, Refused, Removed
from nsqtools.wire.messages import Messages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsqtools.client.batch import Batch

T = TypeVar("T")

# How long nsqd keeps a refused message before it is tried again: it will hardly fare better.
REFUSED_DELAY_S = 900.0


@dataclass(slots=True)
class Counts:
    """What went through a topic since the start; counters that only grow."""

    messages: int = 0
    body_bytes: int = 0
    deliveries: int = 0
    again: int = 0
    refused: int = 0
    requeued: int = 0
    disconnected: int = 0
    unsettled: int = 0
    removed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the refused, by reason."""
    removed_by: Counter[str] = field(default_factory=Counter)
    """Of the removed, by what removed them."""

    def totals(self) -> dict[str, int]:
        """The numbers by name; of what removes messages only what has done so."""
        names = [one.name for one in fields(self) if one.name not in ("reasons", "removed_by")]
        by = {f"removed_by_{what.replace('-', '_')}": n for what, n in self.removed_by.items()}
        return {name: getattr(self, name) for name in names} | by


class Waiting:
    """Messages that an output wants again later, the soonest first. Bounded by max-in-flight: all of
    them are in flight."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, list[Batch | Part]]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def due_s(self) -> float | None:
        """When the first is due; None while nothing waits."""
        return self._heap[0][0] if self._heap else None

    def put(self, held: list[Batch | Part], due_s: float) -> None:
        heapq.heappush(self._heap, (due_s, next(self._order), held))

    def take_due(self, now_s: float) -> list[Batch | Part] | None:
        """What is due first, when its time has come."""
        if self._heap and self._heap[0][0] <= now_s:
            return heapq.heappop(self._heap)[2]
        return None

    def drop_lost(self) -> int:
        """Forget what came by connections that are gone; gives how many messages."""
        lost = [one for _, _, held in self._heap for one in held if one.is_lost]
        if lost:
            kept = [
                (due_s, order, [one for one in held if not one.is_lost])
                for due_s, order, held in self._heap
            ]
            self._heap = [entry for entry in kept if entry[2]]
            heapq.heapify(self._heap)
        for one in lost:
            one.let_go()
        return sum(map(len, lost))

    def take_all(self) -> list[Batch | Part]:
        """Everything, due or not."""
        everything = [one for _, _, held in self._heap for one in held]
        self._heap.clear()
        return everything


class Settlement:
    """Answers of an output turned into FIN, REQ, and waiting; one for a topic."""

    def __init__(self, counts: Counts, waiting: Waiting) -> None:
        self._counts = counts
        self._waiting = waiting

    def settle(
        self,
        delivery: Sequence[Batch | Part],
        answer: Answer | Sequence[Answer],
        now_s: float,
    ) -> None:
        """Carry out an answer for all, or one for each message in their order. Messages with equal
        answers come again together, as they were delivered."""
        again: dict[Again, list[Batch | Part]] = {}
        if isinstance(answer, Answer):
            for held in delivery:
                self._settle_one(held, answer, now_s, again)
        else:
            at = 0
            for held in delivery:
                self._settle_each(held, answer[at : at + len(held)], now_s, again)
                at += len(held)
        for one, waiting in again.items():
            self._waiting.put(waiting, now_s + one.after_s)

    def _settle_each(
        self,
        held: Batch | Part,
        answers: Sequence[Answer],
        now_s: float,
        again: dict[Again, list[Batch | Part]],
    ) -> None:
        """Messages with equal answers are settled together."""
        groups = _grouped(answers)
        if len(groups) == 1:
            self._settle_one(held, answers[0], now_s, again)
        elif all(isinstance(answer, Done | Removed) for answer in groups):
            self._finish_all(held, groups)
        else:
            for answer, places in groups.items():
                self._settle_one(part_of(held, places), answer, now_s, again)

    def _finish_all(self, held: Batch | Part, groups: dict[Answer, list[int]]) -> None:
        """Filters leave and remove parts of each batch: they are finished as it came, in one piece."""
        counts, payloads = self._counts, held.messages.payloads
        for answer, places in groups.items():
            if isinstance(answer, Removed):
                counts.removed += len(places)
                counts.removed_by[answer.by] += len(places)
            else:
                sizes = sum([len(payloads[at]) for at in places])
                counts.messages += len(places)
                counts.body_bytes += sizes - PAYLOAD_HEADER_BYTES * len(places)
        counts.unsettled += held.finish()

    def _settle_one(
        self,
        held: Batch | Part,
        answer: Answer,
        now_s: float,
        again: dict[Again, list[Batch | Part]],
    ) -> None:
        counts, messages = self._counts, len(held)
        if isinstance(answer, Done):
            counts.messages += messages
            counts.body_bytes += held.messages.size_bytes
            counts.unsettled += held.finish()
        elif isinstance(answer, Removed):
            counts.removed += messages
            counts.removed_by[answer.by] += messages
            counts.unsettled += held.finish()
        elif isinstance(answer, Refused):
            counts.refused += messages
            counts.reasons[answer.reason] += messages
            held.requeue(REFUSED_DELAY_S)
        elif now_s + answer.after_s > held.expires_s:
            counts.requeued += messages
            held.requeue(answer.after_s)
        else:
            counts.again += messages
            again.setdefault(answer, []).append(held)

    def without_lost(self, delivery: Sequence[Batch | Part], now_s: float) -> list[Batch | Part]:
        """What is still ours to deliver.

        What came by a connection that is gone comes again by another; what nsqd will not leave with us
        much longer goes back to it.
        """
        kept = []
        for held in delivery:
            if held.is_lost:
                self._counts.disconnected += len(held)
                held.let_go()
            elif held.expires_s < now_s:
                self._counts.requeued += len(held)
                held.requeue()
            else:
                kept.append(held)
        return kept


def distinct(answers: Sequence[T]) -> Iterable[T]:
    """Each object among them once, in the order in which they first stand there. Most are the same few:
    to look at each of thousands, or to compare them, costs more than what is done with them."""
    return {id(one): one for one in answers}.values()


def _grouped(answers: Sequence[Answer]) -> dict[Answer, list[int]]:
    """The places of equal answers, in order."""
    same: dict[int, list[int]] = {}
    for at, answer in enumerate(map(id, answers)):
        same.setdefault(answer, []).append(at)
    groups: dict[Answer, list[int]] = {}
    for places in same.values():
        groups.setdefault(answers[places[0]], []).extend(places)
    return groups if len(groups) == len(same) else {one: sorted(at) for one, at in groups.items()}


def check_answer(answer: Answer | Sequence[Answer], messages: int) -> None:
    """Raises ValueError unless it is one answer for all, or one for each message."""
    if isinstance(answer, Answer):
        return
    if len(answer) != messages:
        raise ValueError(f"an output gave {len(answer)} answers for {messages} messages")
    given: Sequence[object] = answer
    if wrong := [one for one in distinct(given) if not isinstance(one, Answer)]:
        raise ValueError(f"an output gave an answer that is none: {wrong[0]!r:.80}")


def longest_stand(answer: Answer | Sequence[Answer]) -> Again | None:
    """Of answers for each message, the one that has the output stand still for longest, if any."""
    if isinstance(answer, Answer):
        return None
    stands = [one for one in distinct(answer) if isinstance(one, Again) and one.stands]
    return max(stands, key=lambda one: one.after_s, default=None)


def part_of(held: Batch | Part, places: Sequence[int]) -> Part:
    """Some of the messages, by their numbers."""
    payloads = held.messages.payloads
    chosen = Messages([payloads[at] for at in places], nsqd=held.messages.nsqd)
    return Part(held.batch if isinstance(held, Part) else held, chosen)
