"""Which of its files a topic's messages go into: the one of now, or that of their publish time.

By publish time a *period* is what `<DATETIME>` makes one name of: an hour, a day. Its file stays open for
some time after the period, for messages that come late; what comes later still opens another file of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.naming import TopicNaming
    from nsqtools.archive.object_names import TopicObjectNaming
    from nsqtools.wire.messages import Messages

NS = 1_000_000_000
# Of as many steps of a quarter of an hour (forty days) it is remembered which name they have.
_STEMS_MAX = 4096
# Steps beyond which a period counts as endless; some 28 years of quarters of an hour.
_STEPS_MAX = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPublishTime:
    """File messages under their own time.

    `lateness_s` is how long the file of a period stays open after the period, or after it was opened
    where that was later; at most `open_files_max` files of a topic are open at once.
    """

    lateness_s: float
    open_files_max: int


class Piece(NamedTuple):
    """Messages of one file."""

    stem: str
    batches: Sequence[Messages]


class Periods:
    """The periods of one topic's names. For one thread."""

    def __init__(self, naming: TopicNaming | TopicObjectNaming) -> None:
        self._naming = naming
        self._step_s = naming.step_s
        self._stems: dict[int, str] = {}

    def split(self, batches: Sequence[Messages]) -> list[Piece]:
        """The messages of each period, in the order in which they came."""
        pieces: dict[str, list[Messages]] = {}
        for messages in batches:
            if len(messages):
                for stem, part in self._parts(messages):
                    pieces.setdefault(stem, []).append(part)
        return [Piece(stem, parts) for stem, parts in pieces.items()]

    def _parts(self, messages: Messages) -> Iterator[tuple[str, Messages]]:
        first, last = map(self._step_of, messages.time_range_ns())
        if first == last:
            yield self._stem_of(first), messages
            return
        places: dict[str, list[int]] = {}
        for at, time_ns in enumerate(messages.timestamps):
            places.setdefault(self._stem_of(self._step_of(time_ns)), []).append(at)
        for stem, some in places.items():
            yield stem, messages if len(some) == len(messages) else messages.pick(some)

    def _step_of(self, time_ns: int) -> int:
        return 0 if self._step_s is None else time_ns // (self._step_s * NS)

    def _stem_of(self, step: int) -> str:
        stem = self._stems.get(step)
        if stem is None:
            if len(self._stems) >= _STEMS_MAX:
                self._stems.clear()
            stem = self._stems[step] = self._naming.stem(step * (self._step_s or 0))
        return stem

    def ends_at(self, time_ns: int) -> float | None:
        """When the period of a publish time is over, in seconds since the epoch; None for one that has no
        end to speak of."""
        if self._step_s is None:
            return None
        first = self._step_of(time_ns)
        stem, within, beyond = self._stem_of(first), first, first + 1
        while self._stem_of(beyond) == stem:
            if beyond - first > _STEPS_MAX:
                return None
            within, beyond = beyond, first + 2 * (beyond - first)
        while beyond - within > 1:
            middle = (within + beyond) // 2
            if self._stem_of(middle) == stem:
                within = middle
            else:
                beyond = middle
        return float(beyond * self._step_s)


class Settled:
    """Messages of a delivery that are durable, while others of it, of another file, are not yet.

    The delivery is made again as a whole: these must not be written twice.
    """

    def __init__(self) -> None:
        self._keys: set[tuple[str, bytes, int]] = set()

    def add(self, batches: Sequence[Messages]) -> None:
        for messages in batches:
            self._keys.update(self._keys_of(messages))

    def rest_of(self, batches: Sequence[Messages]) -> Sequence[Messages]:
        """Those that are not durable yet."""
        if not self._keys:
            return batches
        rest = []
        for messages in batches:
            keys = enumerate(self._keys_of(messages))
            open_ones = [at for at, key in keys if key not in self._keys]
            if len(open_ones) == len(messages):
                rest.append(messages)
            elif open_ones:
                rest.append(messages.pick(open_ones))
        return rest

    def clear(self) -> None:
        self._keys.clear()

    @staticmethod
    def _keys_of(messages: Messages) -> list[tuple[str, bytes, int]]:
        nsqd = messages.nsqd
        pairs = zip(messages.ids, messages.timestamps, strict=True)
        return [(nsqd, one, time) for one, time in pairs]
