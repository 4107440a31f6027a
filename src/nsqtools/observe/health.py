"""What a run waits for and what of it fails, by part: for /health, /ready and the service manager.

    health.waiting("topic orders", "a subscription at nsqd")
    health.ready("topic orders")
    health.failing("disk", "No space left on device")      # again with every failure
    health.ok("disk")

A run is ready when nothing is waited for; until `started` it waits for itself. Waiting is about what
was asked for and did not begin yet, failing about what does not work now: an archive whose disk is
full is ready and not healthy. Parts are named by the program (a topic, a disk), so there are as many as
it has of them; texts that come from elsewhere are cut.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# A store's refusal names two long keys, and ends with what to do.
REASON_LENGTH_MAX = 1000
# So many parts are shown, with the number of the others.
SHOWN_MAX = 50
_SELF = "program"


class Health:
    """The health of one run; not for use from several threads."""

    def __init__(self) -> None:
        self._waits: dict[str, str] = {_SELF: "its start"}
        self._failures: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_started(self) -> bool:
        return _SELF not in self._waits

    @property
    def is_ready(self) -> bool:
        return not self._waits

    @property
    def is_ok(self) -> bool:
        return not self._failures

    @property
    def waits(self) -> Mapping[str, str]:
        """What each part that is not ready waits for."""
        return dict(self._waits)

    @property
    def failures(self) -> Mapping[str, str]:
        """Why each part that fails does so."""
        return dict(self._failures)

    @property
    def notes(self) -> Mapping[str, str]:
        """What an operator should know of a part that works."""
        return dict(self._notes)

    def started(self) -> None:
        """The program has told everything that it will wait for."""
        self.ready(_SELF)

    def waiting(self, what: str, for_what: str) -> None:
        """The part `what` has not begun its work."""
        self._set(self._waits, what, for_what)

    def ready(self, what: str) -> None:
        """The part has begun its work."""
        self._drop(self._waits, what)

    def failing(self, what: str, reason: object) -> None:
        """The part does not work at present; the newest reason counts."""
        self._set(self._failures, what, str(reason) or type(reason).__name__)

    def ok(self, what: str) -> None:
        """The part works."""
        self._drop(self._failures, what)

    def note(self, what: str, text: str) -> None:
        """Something that an operator should know of a part, which neither waits nor fails by it; nothing
        when that is over."""
        if text:
            self._notes[what] = text[:REASON_LENGTH_MAX]
        else:
            self._notes.pop(what, None)

    def forget(self, what: str) -> None:
        """The part is gone: nothing is waited for and nothing fails."""
        self.note(what, "")
        self.ready(what)
        self.ok(what)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each change; it must not raise."""
        self._listeners.append(listener)

    def summary(self) -> str:
        """One line: `ok`, or what fails and what is waited for."""
        fails = (f"{what} fails: {reason}" for what, reason in self._failures.items())
        waits = (f"{what} waits for {for_what}" for what, for_what in self._waits.items())
        count = len(self._failures) + len(self._waits)
        return "; ".join(shown(chain(fails, waits), count)) or "ok"

    def _set(self, table: dict[str, str], what: str, text: str) -> None:
        text = text[:REASON_LENGTH_MAX]
        if table.get(what) != text:
            table[what] = text
            self._tell()

    def _drop(self, table: dict[str, str], what: str) -> None:
        if table.pop(what, None) is not None:
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def shown(parts: Iterable[str], count: int) -> list[str]:
    """The first SHOWN_MAX of `count` parts, and how many there are beyond them."""
    first = list(islice(parts, SHOWN_MAX))  # the others are not even made
    return [*first, f"{count - SHOWN_MAX} more"] if count > SHOWN_MAX else first
