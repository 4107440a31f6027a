"""Which RDY each connection should have: a decision, taken anew whenever something changes.

The driver calls `share_rdy` when a connection comes or goes, when `max_in_flight` changes, when
backoff changes what is allowed, every REDISTRIBUTE_INTERVAL_S, soon after a connection had as many
messages in flight as it may, and, while there are more connections than `max_in_flight`, when a
connection at RDY 0 has its last message answered. It sends `RDY n` to those whose number differs from
the last one sent, in the order of the answer: lowered ones first, so that the sum is not passed on
the way.

Rules
- The sum never exceeds `max_in_flight`, and no connection gets more than its nsqd allows.
- With at most `max_in_flight` connections an eighth is shared out evenly, at least 1 each, and the
  rest goes where messages come from, in proportion to what came of late; evenly as long as nothing
  has come. One that had all of its RDY in flight could not show how much it has: it counts as HELD_BACK
  times what came, up to as much as the busiest. So one with much has its part after a few decisions,
  and one where a message comes now and then, each of them all of its RDY, takes nothing from the busy
  ones. What a small `max_rdy_count` leaves over goes to the others. A
  connection that goes away leaves its share to the survivors at once (NSQ's own client raises them
  only at the next connect, and shares evenly between busy and idle; spec: client-behaviour, 4.5 and
  part 6).
- Shares that would change little stay as they are: RDY need not follow every wave.
- With more connections than `max_in_flight`, RDY 1 goes round. A holder gives it up when it was
  idle for `low_rdy_idle_timeout_s`, or, while others wait, for PROBE_S (an nsqd that has a message
  sends it at once), and after `low_rdy_timeout_s` in any case. A message still in flight on a
  connection that gave up occupies its place until it is answered. Places go to connections at
  random, so that many consumers of one channel do not march in step; but one that waited longer
  than a whole round comes first, the longest wait first. So everyone is served within two rounds.
- Backoff needs no rule of its own: `max_in_flight` 0 is a pause, 1 is the test with one message.
- Strictly, what is in flight on one connection counts against the others, and so does for a moment what
  it was asked for before: no RDY gets back what nsqd has sent. Without that, a connection that is
  made later gets its share beside all that the first ones were asked for. The last few messages may be
  with any nsqd: STRICT_PLACES_MIN are asked at a time, in turn, and so a few more may come.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence

REDISTRIBUTE_INTERVAL_S = 5.0
LOW_RDY_IDLE_TIMEOUT_S = 10.0
LOW_RDY_TIMEOUT_S = 30.0
# How long a connection may keep RDY 1 without a message while others wait for their turn.
PROBE_S = 0.5
# The same while exactly so many messages are wanted, and the last of them may be with any nsqd.
STRICT_PROBE_S = 0.1
# Where more nsqds than that are left to be asked for the last few, so many are asked at once.
STRICT_PLACES_MIN = 4
# The part of max-in-flight that is shared evenly, so that an idle nsqd can begin at once.
EVEN_PART = 8
# From so many messages a second for each place on, where RDY goes makes a difference.
RATE_MATTERS = 10
# How much more may come of one that had all of its RDY in flight.
HELD_BACK = 4
# Shares that all stay within this factor are not worth new RDYs.
CHANGE_MIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRdy:
    """What counts of one connection; times are seconds of the driver's clock.

    `rdy` is the number last sent, `rdy_changed_at` when it was sent (at first: when the connection
    became ready for it). `last_message_at` is None before the first message. `in_flight` are the
    messages received on it and not answered yet, `rate_per_s` is how many came a second of late,
    `was_exhausted` whether all of its RDY was in flight at some time since the last decision.
    """

    key: str
    max_rdy_count: int
    rdy: int
    in_flight: int
    rdy_changed_at: float
    last_message_at: float | None = None
    rate_per_s: float = 0.0
    was_exhausted: bool = False
    rdy_before: int = 0
    """A higher RDY that was lowered a moment ago."""

    @property
    def brings(self) -> int:
        """How many it has in flight, or may have already."""
        return max(self.in_flight, self.rdy_before)


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
    strictly: bool = False,
) -> dict[str, int]:
    """The RDY every connection should have, by key; to be sent in the order of the dictionary."""
    ready = sorted((c for c in connections if c.max_rdy_count > 0), key=lambda c: c.key)
    if strictly and 0 < max_in_flight < len(ready):
        max_in_flight = min(max(max_in_flight, STRICT_PLACES_MIN), len(ready))
    if max_in_flight <= 0 or len(ready) <= max_in_flight:
        shares = _keep_if_alike(ready, _shares(ready, max(0, max_in_flight)), max_in_flight)
    else:
        timing = timing or LowRdyTiming()
        probe_s = STRICT_PROBE_S if strictly else PROBE_S
        idle_s = min(timing.low_rdy_idle_timeout_s, probe_s)
        timing = replace(timing, low_rdy_idle_timeout_s=idle_s)
        shares = _rotate(ready, max_in_flight, now, rng, timing, in_order=strictly)
    if strictly:
        shares = _within(connections, shares, max(0, max_in_flight))
    return {
        c.key: shares.get(c.key, 0)
        for c in sorted(connections, key=lambda c: shares.get(c.key, 0) > c.rdy)
    }


def _shares(ready: Sequence[ConnectionRdy], places: int) -> dict[str, int]:
    """An even part for everyone, and the rest by weight."""
    weights = _weights(ready, places)
    even = min(places // len(ready), max(1, places // (EVEN_PART * len(ready)))) if ready else 0
    shares: dict[str, int] = {}
    left = places
    left_weight = sum(weights.values())
    # The smallest limits in relation to their weight first: what one cannot take is for those after it.
    order = sorted(ready, key=lambda c: c.max_rdy_count / weights[c.key])
    for position, connection in enumerate(order):
        others = len(order) - position - 1
        more = max(0, left - even * (others + 1))
        part = even + -(-more * weights[connection.key] // left_weight)
        share = min(int(part), connection.max_rdy_count, left - even * others)
        shares[connection.key] = share
        left -= share
        left_weight -= weights[connection.key]
    for connection in order:
        more = min(left, connection.max_rdy_count - shares[connection.key])
        shares[connection.key] += more
        left -= more
    return shares


def _within(
    ready: Collection[ConnectionRdy], shares: dict[str, int], places: int
) -> dict[str, int]:
    """The shares, without what would let more be in flight than there are places."""
    new = {c.key: min(shares.get(c.key, 0), c.rdy) for c in ready}
    over = sum(max(c.brings, new[c.key]) for c in ready) - places
    for connection in ready:
        less = max(0, min(over, new[connection.key] - connection.brings))
        new[connection.key] -= less
        over -= less
    # What is taken from one now may be on its way.
    free = places - sum(max(c.brings, c.rdy) for c in ready)
    # In the order of the shares: whose turn it is comes first, or the last in line would never have one.
    for key, share in shares.items():
        more = max(0, min(free, share - new[key]))
        new[key] += more
        free -= more
    return new


def _weights(ready: Sequence[ConnectionRdy], places: int) -> dict[str, int]:
    """Whole numbers, so that sums are exact; all the same while RDY holds nobody back."""
    rates = {c.key: round(c.rate_per_s) for c in ready}
    busy = [rate for rate in rates.values() if rate]
    matters = sum(busy) >= RATE_MATTERS * places or any(c.was_exhausted for c in ready)
    if not busy or not matters:
        return dict.fromkeys(rates, 1)
    for connection in ready:
        if connection.was_exhausted:
            shown = max(1, rates[connection.key])
            rates[connection.key] = min(max(busy), HELD_BACK * shown)
    return {key: max(1, rate) for key, rate in rates.items()}


def _keep_if_alike(
    ready: Sequence[ConnectionRdy], shares: dict[str, int], places: int
) -> dict[str, int]:
    """The present RDYs, when no new one is much larger or smaller and they use the whole."""
    if not any(c.rate_per_s for c in ready) or len(ready) == 1:
        return shares
    present = {c.key: c.rdy for c in ready}
    wasted = sum(shares.values()) - sum(present.values())
    if sum(present.values()) > places or wasted * EVEN_PART > places:
        return shares
    for connection in ready:
        new, old = shares[connection.key], connection.rdy
        if old > connection.max_rdy_count or new > old * CHANGE_MIN or old > new * CHANGE_MIN:
            return shares
    return present


def _rotate(
    ready: Sequence[ConnectionRdy],
    places: int,
    now: float,
    rng: random.Random,
    timing: LowRdyTiming,
    *,
    in_order: bool,
) -> dict[str, int]:
    # Some always wait here: there are more connections than places.
    keeping = [c for c in ready if c.rdy > 0 and not _gives_up(c, now, timing)]
    # More can be holding than there are places when max_in_flight was lowered.
    keeping = rng.sample(keeping, min(places, len(keeping)))
    kept = {c.key for c in keeping}
    occupied = sum(max(c.in_flight, int(c.key in kept)) for c in ready)
    free = places - occupied
    others = [c for c in ready if c.key not in kept]
    if in_order:
        waiting = sorted(others, key=lambda c: _turn(c, now, 0.0))
    else:
        waiting = _in_turn(others, places, now, rng, timing)
    return dict.fromkeys([*kept, *(c.key for c in waiting[: max(0, free)])], 1)


def _gives_up(connection: ConnectionRdy, now: float, timing: LowRdyTiming) -> bool:
    held_s = now - connection.rdy_changed_at
    if connection.in_flight:
        return held_s >= timing.low_rdy_timeout_s
    # Not only the last message counts: it may be long past when RDY has just been given.
    idle_since = max(connection.rdy_changed_at, connection.last_message_at or 0.0)
    is_idle = now - idle_since >= timing.low_rdy_idle_timeout_s
    return held_s >= timing.low_rdy_timeout_s or is_idle


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
