"""Steps that look at ids and bytes, and what all steps work on. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol
from zlib import crc32

from nsqtools.transform.search import Search
from nsqtools.wire.messages import Messages, PartedMessages
from nsqtools.wire.payloads import PAYLOAD_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.options import Pattern

_CHECKSUMS = 1 << 32


class Refusal(NamedTuple):
    """Why a message stays with nsqd: `reason` is one of a few, `detail` says more of this one."""

    reason: str
    detail: str


class Work:
    """The messages of one batch on their way through the steps; known by their places in it."""

    def __init__(self, messages: Messages) -> None:
        self.messages = messages
        self.places: Sequence[int] = range(len(messages))
        """Those that go on."""
        self.changed: dict[int, bytes] = {}
        """New bodies."""
        self.several: dict[int, list[bytes]] = {}
        """The bodies of messages that became several; only the last step makes them."""
        self.removed: dict[int, str] = {}
        """By what."""
        self.refused: dict[int, Refusal] = {}

    @property
    def is_untouched(self) -> bool:
        return len(self.places) == len(self.messages) and not (self.changed or self.several)

    def body(self, place: int) -> bytes:
        """As the steps so far have left it."""
        return self.changed[place] if place in self.changed else self.messages.bodies[place]

    def bodies(self) -> list[bytes]:
        """Of those that go on."""
        if not self.changed and len(self.places) == len(self.messages):
            return self.messages.bodies
        return [self.body(place) for place in self.places]

    def keep(self, kept: Sequence[int], by: str) -> None:
        """Only these go on: the others are removed."""
        if len(kept) < len(self.places):
            self.removed.update(dict.fromkeys(set(self.places).difference(kept), by))
            self.places = kept

    def result(self) -> tuple[Messages, Sequence[int]]:
        """The messages to deliver, and of which place each is."""
        if self.is_untouched:
            return self.messages, self.places
        if self.several:
            return self._with_several()
        if not self.changed:
            return self.messages.pick(self.places), self.places
        payloads = self.messages.payloads
        made = [
            payloads[at][:PAYLOAD_HEADER_BYTES] + self.changed[at]
            if at in self.changed
            else payloads[at]
            for at in self.places
        ]
        return Messages(made, nsqd=self.messages.nsqd), self.places

    def _with_several(self) -> tuple[Messages, Sequence[int]]:
        payloads: list[bytes] = []
        parts: list[int] = []
        places: list[int] = []
        for at in self.places:
            head = self.messages.payloads[at][:PAYLOAD_HEADER_BYTES]
            bodies = self.several.get(at) or [self.body(at)]
            payloads += [head + body for body in bodies]
            parts += range(len(bodies))
            places += [at] * len(bodies)
        return PartedMessages(payloads, parts, nsqd=self.messages.nsqd), places


class Step(Protocol):
    """One of the steps."""

    def apply(self, work: Work) -> None:
        """Remove, change or refuse messages."""


class Sample:
    """A part of all messages, chosen by the checksums of their ids: the same ones whoever asks."""

    def __init__(self, part: float) -> None:
        self._bound = part * _CHECKSUMS

    def apply(self, work: Work) -> None:
        ids, bound = work.messages.ids, self._bound
        work.keep([at for at in work.places if crc32(ids[at]) < bound], "sample")


class Grep:
    """Those in which a pattern is found, or those in which it is not."""

    def __init__(self, pattern: Pattern, *, excludes: bool = False) -> None:
        self._search = Search(pattern)
        self._excludes = excludes

    def apply(self, work: Work) -> None:
        places = work.places
        found = [places[at] for at in self._search.positions(work.bodies())]
        if self._excludes:
            without = set(found)
            work.keep([place for place in places if place not in without], "grep-exclude")
        else:
            work.keep(found, "grep")
