"""How many messages one commit takes: a decision, without I/O or clock.

An fsync costs the same for one message and for thousands, so a commit waits while more is likely to
come: until some nsqd has little left to send (half of what it may send waits here, the other half is
on its way while we commit), until the oldest message has waited for `sync_interval_s`, or until it has
become quiet. How long is quiet depends on how much waits: with next to nothing `QUIET_S`, so that a
trickle is gathered and compresses well; near a full batch next to no time at all, so that the end of a
backlog does not wait. With a steady stream no timer is at work: the next commit begins when the last
one ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nsqtools.client.batch import Batch
    from nsqtools.client.consumer import Consumer
    from nsqtools.clock import Clock

# Nothing for this long: whatever is coming is not coming soon.
QUIET_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherPolicy:
    """Times in seconds."""

    sync_interval_s: float
    quiet_s: float = QUIET_S

    def wait_s(
        self, *, fill: float, first_arrival_s: float, last_arrival_s: float, now: float
    ) -> float:
        """How long to wait for more, when something has come; 0 or less: not at all.

        `fill` is how much of a full batch waits; at 1 nsqd has little left to send.
        """
        if fill >= 1.0:
            return 0.0
        quiet_s = self.quiet_s * (1.0 - fill) ** 2
        return min(first_arrival_s + self.sync_interval_s, last_arrival_s + quiet_s) - now


async def gather(consumer: Consumer, policy: GatherPolicy, clock: Clock) -> list[Batch]:
    """The messages of the next commit; [] when the consumer has ended.

    Cancelling it leaves them with the consumer.
    """
    while not consumer.ended:
        if not consumer.waiting:
            await consumer.wait()
            continue
        wait_s = policy.wait_s(
            fill=consumer.fill,
            first_arrival_s=consumer.first_arrival_s,
            last_arrival_s=consumer.last_arrival_s,
            now=clock.monotonic(),
        )
        if wait_s <= 0:
            break
        await consumer.wait(wait_s, starved=True)
    return consumer.take()
