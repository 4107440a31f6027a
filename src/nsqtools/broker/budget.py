"""One byte budget for what clients have begun to send, over all connections of the process.

Rules. (1) Who holds bytes says how many after each read. (2) When the budget is spent, whoever sends
more waits: its reading is paused, in the order in which they came. (3) One of them always has the turn
and reads on whatever is held, so that the budget cannot lock itself; what a command may be long bounds
it. (4) While others wait, the turn ends after TURN_S, and who holds bytes and sends nothing for IDLE_S
is cut: its bytes are somebody else's room.

Pure: time comes from the caller, holders are told what to do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Twelve of the largest bodies that nsqd takes by default.
BODIES_BYTES_MAX = 64 << 20
TURN_S = 15.0
IDLE_S = 5.0


class Holder(Protocol):
    """A connection that holds a part of what it is to read."""

    def go_on(self) -> None:
        """Read on: it was told to wait."""

    def cut(self, reason: str) -> None:
        """End the connection."""


class _Held(NamedTuple):
    size_bytes: int
    since_s: float
    is_ours: bool


class BodyBudget:
    """See the module. `now_s` gives monotonic seconds."""

    def __init__(self, bytes_max: int, now_s: Callable[[], float]) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._now_s = now_s
        self._held: dict[Holder, _Held] = {}
        self._waiting: OrderedDict[Holder, None] = OrderedDict()
        self._turn: Holder | None = None
        self._turn_since_s = 0.0

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def room_bytes(self, holder: Holder) -> int:
        """What `holder` may read now without a wait."""
        room = self.bytes_max - self.held_bytes
        return self.bytes_max if holder is self._turn else max(0, room)

    def hold(self, holder: Holder, size_bytes: int, *, is_ours: bool = False) -> bool:
        """What `holder` holds now, all of it; whether it may read on. If not, `go_on` is called.

        `is_ours` says that it waits for us, not we for it.
        """
        before = self._held.pop(holder, None)
        self.held_bytes += size_bytes - (before.size_bytes if before else 0)
        if not size_bytes:
            self._waiting.pop(holder, None)
            if holder is self._turn:
                self._turn = None
            self._let_in()
            return True
        now_s = self._now_s()
        self._held[holder] = _Held(size_bytes, now_s, is_ours)
        if before and size_bytes < before.size_bytes:
            self._let_in()
        if self.held_bytes <= self.bytes_max or holder is self._turn:
            return holder not in self._waiting
        if self._turn is None:
            self._give_turn(holder)
            return True
        self._waiting[holder] = None
        return False

    def sweep(self) -> None:
        """Cut who keeps others waiting; to be called about once a second."""
        if not self._waiting:
            return
        now_s = self._now_s()
        for holder, held in list(self._held.items()):
            if held.is_ours or holder in self._waiting:
                continue
            idle_s = now_s - held.since_s
            turn_s = now_s - self._turn_since_s if holder is self._turn else 0.0
            if idle_s >= IDLE_S or turn_s >= TURN_S:
                holder.cut(
                    f"{held.size_bytes} bytes of a body that does not end, and {len(self._waiting)}"
                    " others wait for their room"
                )

    def _let_in(self) -> None:
        while self._waiting and (self._turn is None or self.held_bytes <= self.bytes_max):
            holder, _ = self._waiting.popitem(last=False)
            if self._turn is None:
                self._give_turn(holder)
            holder.go_on()

    def _give_turn(self, holder: Holder) -> None:
        self._turn = holder
        self._turn_since_s = self._now_s()
        held = self._held[holder]
        self._held[holder] = held._replace(since_s=self._turn_since_s)
