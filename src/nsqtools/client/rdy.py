"""Which RDY each connection should have: a decision, taken anew whenever something changes.

The driver calls `share_rdy` when a connection comes or goes, when `max_in_flight` changes, when
backoff changes what is allowed, every REDISTRIBUTE_INTERVAL_S, and, while there are more
connections than `max_in_flight`, when a connection at RDY 0 has its last message answered. It
sends `RDY n` to those whose number differs from the last one sent, in the order of the answer:
lowered ones first, so that the sum is not passed on the way.

Rules
- The sum never exceeds `max_in_flight`, and no connection gets more than its nsqd allows.
- With at most `max_in_flight` connections everyone gets an equal share of at least 1; the
  remainder, and what a small `max_rdy_count` leaves over, goes to the others. The shares follow
  from who is connected, so a connection that goes away leaves its share to the survivors at once
  (NSQ's own client raises them only at the next connect; spec: client-behaviour, 4.5 and part 6).
- With more connections than `max_in_flight`, RDY 1 goes round. A holder gives it up when it was
  idle for `low_rdy_idle_timeout_s`, or after `low_rdy_timeout_s` in any case. A message still in
  flight on a connection that gave up occupies its place until it is answered. Places go to
  connections at random, so that many consumers of one channel do not march in step; but one that
  waited longer than a whole round comes first, the longest wait first. So everyone is served
  within two rounds.
- Backoff needs no rule of its own: `max_in_flight` 0 is a pause, 1 is the test with one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence

REDISTRIBUTE_INTERVAL_S = 5.0
LOW_RDY_IDLE_TIMEOUT_S = 10.0
LOW_RDY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRdy:
    """What counts of one connection; times are seconds of the driver's clock.

    `rdy` is the number last sent, `rdy_changed_at` when it was sent (at first: when the connection
    became ready for it). `last_message_at` is None before the first message. `in_flight` are the
    messages received on it and not answered yet.
    """

    key: str
    max_rdy_count: int
    rdy: int
    in_flight: int
    rdy_changed_at: float
    last_message_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRdyTiming:
    """How long a connection keeps RDY 1 when there is not enough for all."""

    low_rdy_idle_timeout_s: float = LOW_RDY_IDLE_TIMEOUT_S
    low_rdy_timeout_s: float = LOW_RDY_TIMEOUT_S


def share_rdy(
    connections: Collection[ConnectionRdy],
    *,
    max_in_flight: int,
    now: float,
    rng: random.Random,
    timing: LowRdyTiming | None = None,
) -> dict[str, int]:
    """The RDY every connection should have, by key; to be sent in the order of the dictionary."""
    ready = sorted((c for c in connections if c.max_rdy_count > 0), key=lambda c: c.key)
    if max_in_flight <= 0 or len(ready) <= max_in_flight:
        shares = _equal_shares(ready, max(0, max_in_flight))
    else:
        shares = _rotate(ready, max_in_flight, now, rng, timing or LowRdyTiming())
    return {
        c.key: shares.get(c.key, 0)
        for c in sorted(connections, key=lambda c: shares.get(c.key, 0) > c.rdy)
    }


def _equal_shares(ready: Sequence[ConnectionRdy], left: int) -> dict[str, int]:
    """Fill the smallest limits first: what one cannot take is shared by those after it."""
    shares: dict[str, int] = {}
    by_limit = sorted(ready, key=lambda c: c.max_rdy_count)
    for position, connection in enumerate(by_limit):
        fair = -(-left // (len(by_limit) - position))
        shares[connection.key] = min(fair, connection.max_rdy_count)
        left -= shares[connection.key]
    return shares


def _rotate(
    ready: Sequence[ConnectionRdy],
    places: int,
    now: float,
    rng: random.Random,
    timing: LowRdyTiming,
) -> dict[str, int]:
    keeping = [c for c in ready if c.rdy > 0 and not _gives_up(c, now, timing)]
    # More can be holding than there are places when max_in_flight was lowered.
    keeping = rng.sample(keeping, min(places, len(keeping)))
    kept = {c.key for c in keeping}
    occupied = sum(max(c.in_flight, int(c.key in kept)) for c in ready)
    free = places - occupied
    waiting = _in_turn([c for c in ready if c.key not in kept], places, now, rng, timing)
    return dict.fromkeys([*kept, *(c.key for c in waiting[: max(0, free)])], 1)


def _gives_up(connection: ConnectionRdy, now: float, timing: LowRdyTiming) -> bool:
    held_s = now - connection.rdy_changed_at
    if connection.in_flight:
        return held_s >= timing.low_rdy_timeout_s
    # Not only the last message counts: it may be long past when RDY has just been given.
    idle_since = max(connection.rdy_changed_at, connection.last_message_at or 0.0)
    return held_s >= timing.low_rdy_timeout_s or now - idle_since >= timing.low_rdy_idle_timeout_s


def _in_turn(
    waiting: list[ConnectionRdy],
    places: int,
    now: float,
    rng: random.Random,
    timing: LowRdyTiming,
) -> list[ConnectionRdy]:
    """Those who waited for more than a round, longest first; then the others in random order.

    One that has only just given up stands last of all.
    """
    rounds = -(-len(waiting) // places)
    overdue_s = timing.low_rdy_timeout_s * rounds
    order = rng.sample(waiting, len(waiting))
    order.sort(key=lambda c: _turn(c, now, overdue_s))
    return order


def _turn(connection: ConnectionRdy, now: float, overdue_s: float) -> tuple[int, float]:
    waited_s = now - connection.rdy_changed_at
    if connection.rdy > 0:
        return 2, 0.0
    return (0, -waited_s) if waited_s > overdue_s else (1, 0.0)
