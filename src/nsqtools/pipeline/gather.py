"""How much one delivery takes: decisions without I/O or clock, and the waiting that carries them out.

Making one message durable costs as much as making thousands, so a delivery waits while more is likely
to come: until enough of the window waits (`Pace`), until the oldest message has waited for `wait_s` of
the output, or until it has become quiet. How long is quiet depends on how much waits: with next to
nothing `quiet_s`, so that a trickle is gathered; near a full window next to no time, so that the end of
a backlog does not wait. With a steady stream no timer is at work: the next delivery begins when the
last one ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.client.batch import Batch, Part
    from nsqtools.client.consumer import Consumer
    from nsqtools.client.inbox import Inbox
    from nsqtools.clock import Clock
    from nsqtools.outputs.contract import Feeding

# Nothing for this long: whatever is coming is not coming soon.
QUIET_S = 0.2
# With a connection whose nsqd sends no more, what is on its way from the others still counts.
QUIET_MIN_S = 0.002
# How much of the window a delivery takes at least, where deliveries are quick, and where they are slow.
QUICK_FILL = 0.35
SLOW_FILL = 0.95
# A delivery of more makes each message hardly cheaper. The window of many nsqds holds several times as
# many, and while most of it is waited for, all those whose part has come stand still.
ENOUGH_MESSAGES = 5000
# So many deliveries in a row have to say the same before the pace changes.
CHANGE_AFTER = 3
# A window that is used to this part is used up.
_EXHAUSTED = 0.9
# By so much must deliveries be quicker than what they wait for, so that the pace does not flutter.
_CLEARLY = 1.5


class Pace:
    """How full the window should be when a delivery begins: learned from the last ones.

    While a delivery is under way, nsqd sends what is left of the window. Where deliveries are quick,
    small ones keep both sides busy: one begins when QUICK_FILL of the window waits. Where they take
    longer than the rest of the window lasts (slow disks, a small max-in-flight), everybody stands
    still until they end, and each should take as much as it can: SLOW_FILL.
    """

    def __init__(self) -> None:
        self.fill = QUICK_FILL
        self._contrary = 0

    def wanted(self, window: int) -> float:
        """How full a window of so many messages should be: with ENOUGH_MESSAGES it is full enough, but
        QUICK_FILL of it is always waited for."""
        enough = max(QUICK_FILL, ENOUGH_MESSAGES / max(window, 1))
        return min(self.fill, enough)

    def delivered(self, *, took_s: float, gathered_s: float, used: float) -> None:
        """A delivery ended after `took_s`; it had been gathered for `gathered_s` since the one before,
        and `used` is how much of the window was in flight when it ended."""
        is_quick = self.fill == QUICK_FILL
        contrary = used >= _EXHAUSTED if is_quick else took_s * _CLEARLY < gathered_s
        self._contrary = self._contrary + 1 if contrary else 0
        if self._contrary >= CHANGE_AFTER:
            self.fill = SLOW_FILL if is_quick else QUICK_FILL
            self._contrary = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherPolicy:
    """Times in seconds."""

    wait_s: float
    quiet_s: float = QUIET_S

    def wait_for_more_s(
        self,
        *,
        fill: float,
        fullest: float,
        wanted: float,
        first_s: float,
        last_s: float,
        now_s: float,
    ) -> float:
        """How long to wait for more, when something has come; 0 or less: not at all.

        `fill` is how much of the window waits, `fullest` how much of one connection's; `first_s` and
        `last_s` are when the oldest and the newest message came.
        """
        if fill >= wanted:
            return 0.0
        expected = min(1.0, max(fill / wanted, fullest))
        quiet_s = max(self.quiet_s * (1.0 - expected) ** 2, min(self.quiet_s, QUIET_MIN_S))
        return min(first_s + self.wait_s, last_s + quiet_s) - now_s


async def gather(
    consumer: Consumer, feeding: Feeding, pace: Pace, clock: Clock
) -> Sequence[Batch | Part]:
    """The messages of the next delivery; nothing when the consumer has ended.

    Cancelling it leaves them with the consumer.
    """
    inbox = consumer.inbox
    policy = GatherPolicy(wait_s=feeding.wait_s, quiet_s=min(QUIET_S, feeding.wait_s))
    wanted = pace.wanted(inbox.window)
    while not consumer.ended and not _is_full(inbox, feeding):
        if not inbox.messages:
            await inbox.wait()
            continue
        fill = inbox.fill
        wait_s = policy.wait_for_more_s(
            fill=fill,
            fullest=inbox.fullest,
            wanted=wanted,
            first_s=inbox.first_s,
            last_s=inbox.last_s,
            now_s=clock.monotonic(),
        )
        if wait_s <= 0:
            break
        # With much more than there is now, quiet is shorter: look again then.
        await inbox.wait(wait_s, fill=min(wanted, max(0.1, 2 * fill)))
    if feeding.messages_max is None and feeding.bytes_max is None and not inbox.is_begun:
        return inbox.take()
    return inbox.take_some(
        feeding.messages_max or inbox.messages, feeding.bytes_max or inbox.size_bytes
    )


def _is_full(inbox: Inbox, feeding: Feeding) -> bool:
    """Whether one delivery can take no more than waits already."""
    by_count = feeding.messages_max is not None and inbox.messages >= feeding.messages_max
    by_size = feeding.bytes_max is not None and inbox.size_bytes >= feeding.bytes_max
    return by_count or by_size
