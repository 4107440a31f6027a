"""What became of messages on their way to an output, and the way back of its answers. Pure."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

from nsqtools.outputs.contract import Again, Answer, Done, Refused, Removed
from nsqtools.wire.messages import count_messages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.outputs.contract import Feeding
    from nsqtools.transform.steps import Work
    from nsqtools.wire.messages import Messages

    Key = tuple[str, bytes, int]

# Of so many messages it is known which of the several that were made of each are done.
KNOWN_MAX = 10_000


class Route:
    """The messages of one batch: `messages` are those to deliver, `places` which of the batch each is."""

    def __init__(self, work: Work, messages: Messages, places: Sequence[int]) -> None:
        self.work = work
        self.messages = messages
        self.places = places

    @property
    def is_complete(self) -> bool:
        """Whether something of each message is delivered."""
        return len(self.work.places) == len(self.work.messages)

    def answers(self, own: Sequence[Answer]) -> list[Answer]:
        """For each message of the batch, from those for what was delivered. Of several that were made
        of one, what is not done counts: first that some of them are wanted again, then refusals."""
        work = self.work
        found: list[Answer | None] = [None] * len(work.messages)
        for at, by in work.removed.items():
            found[at] = removed(by)
        for at, refusal in work.refused.items():
            found[at] = Refused(refusal.reason)
        for at, answer in zip(self.places, own, strict=True):
            before = found[at]
            found[at] = answer if before is None else joined(before, answer)
        return cast("list[Answer]", found)  # each place was removed, refused or delivered


@cache
def removed(by: str) -> Removed:
    """The same one each time."""
    return Removed(by)


def joined(one: Answer, other: Answer) -> Answer:
    """The answer for a message of which two parts have these."""
    if isinstance(one, Again) and isinstance(other, Again):
        longer = max(one, other, key=lambda again: again.after_s)
        return Again(longer.after_s, longer.reason, stands=one.stands or other.stands)
    return max(one, other, key=_rank)


def _rank(answer: Answer) -> int:
    if isinstance(answer, Again):
        return 2
    return 1 if isinstance(answer, Refused) else 0


class KnownParts:
    """Which parts of a message are done while others are not: they are not delivered again with them.

    Of at most `known_max` messages: of the longest unheard one nothing is known any more. A message of
    which another number is made than before is delivered whole.
    """

    def __init__(self, known_max: int = KNOWN_MAX) -> None:
        self._known_max = known_max
        self._done: dict[Key, tuple[int, set[int]]] = {}

    def route(self, work: Work) -> Route:
        """Where the messages go, without the parts that are done."""
        messages, places = work.result()
        if work.several and self._done:
            wanted = [
                row
                for row, at in enumerate(places)
                if messages.parts[row] not in self._done_of(work, at)
            ]
            if len(wanted) < len(places):
                messages, places = messages.pick(wanted), [places[row] for row in wanted]
        return Route(work, messages, places)

    def _done_of(self, work: Work, at: int) -> set[int]:
        if at not in work.several:
            return set()
        count, done = self._done.get(_key_of(work, at), (0, set()))
        return done if count == len(work.several[at]) else set()

    def note(self, route: Route, own: Sequence[Answer]) -> None:
        """The answers for what was delivered of a route."""
        work = route.work
        if not work.several:
            return
        done: dict[int, set[int]] = {at: set() for at in work.several}
        for row, (at, answer) in enumerate(zip(route.places, own, strict=True)):
            if at in done and isinstance(answer, Done):
                done[at].add(route.messages.parts[row])
        for at, parts in done.items():
            key = _key_of(work, at)
            parts |= self._done_of(work, at)
            self._done.pop(key, None)
            if 0 < len(parts) < len(work.several[at]):
                if len(self._done) >= self._known_max:
                    del self._done[next(iter(self._done))]
                self._done[key] = (len(work.several[at]), parts)


def _key_of(work: Work, at: int) -> Key:
    messages = work.messages
    return messages.nsqd, messages.ids[at], messages.timestamps[at]


def bounded(batches: Sequence[Messages], feeding: Feeding) -> Iterator[list[Messages]]:
    """The messages in deliveries that are as the output wants them: there may be more now than came."""
    most = feeding.messages_max or count_messages(batches)
    most_bytes = feeding.bytes_max or sum(each.size_bytes for each in batches)
    if count_messages(batches) <= most and sum(each.size_bytes for each in batches) <= most_bytes:
        yield list(batches)
        return
    piece: list[Messages] = []
    count = size_bytes = 0
    for messages in batches:
        start = 0
        for at, payload in enumerate(messages.payloads):
            body_bytes = len(payload) - PAYLOAD_HEADER_BYTES
            if count and (count >= most or size_bytes + body_bytes > most_bytes):
                yield [*piece, messages.part(start, at)] if at > start else piece
                piece, start, count, size_bytes = [], at, 0, 0
            count += 1
            size_bytes += body_bytes
        piece.append(messages.part(start, len(messages)))
    yield piece
