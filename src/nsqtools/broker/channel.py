"""A channel: a cursor into its topic's log, and what was handed out and not acknowledged.

Rules. (1) Every message before the cursor is in exactly one place: in flight (`broker/flight.py`),
waiting again or deferred (`broker/waiting.py`), or done; done is not stored. Deferred messages join
these as soon as the topic hands them over; should the cursor not be there yet, it passes over their
range (a *void*) when it is. (2) Whatever changes that is journaled. (3) Messages are delivered in runs:
a stretch of the log, one lease, one write. (4) What stands still costs nothing: no work grows with what
waits, is deferred, void or in flight, nor with the consumers that are not served.

The order. What a restart or a lost connection takes back comes before all that is new, in the order of
the log; but for a message that was lost with its consumer several times, which may be what ends them.
That one, what was requeued, what timed out and what is no longer deferred go to the tail, as nsqd puts
them behind what its queue holds in memory: they come when the cursor has passed what the topic had
handed over by then, but no more than `TAIL_MESSAGES` of it, so that a deep backlog does not starve them.
As each of them is behind messages that are new, they do not starve those either.

Where nsqd leaves what a lost connection held until it times out, a channel here takes it back at once:
nobody is left who could acknowledge it.
"""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING, cast

from nsqtools.broker.alarms import Alarm
from nsqtools.broker.consumers import Consumers
from nsqtools.broker.cursor import Cursor
from nsqtools.broker.flight import Flight, Lease, fins_of
from nsqtools.broker.journal import Frozen, NoJournal
from nsqtools.broker.reading import NotAtHand
from nsqtools.broker.redelivery import Redelivery
from nsqtools.broker.stragglers import Stragglers
from nsqtools.broker.waiting import Carried, Waiting
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nsqtools.broker.block import Block
    from nsqtools.broker.consumers import Subscriber
    from nsqtools.broker.cursor import Feed
    from nsqtools.broker.journal import ChannelState, Journal, Rewrite

log = logging.getLogger("nsqtools.broker.channel")

# Copies that let the log go: more than an ephemeral channel whose reader stopped has by default.
CARRY_MESSAGES_MAX = 16_384
CARRY_BYTES_MAX = 16 << 20
# What goes to the tail waits for this many others at most, as many as nsqd's queue has in memory.
TAIL_MESSAGES = 10_000
# So often a message that was lost with its consumer comes before all that is new.
LOST_FIRST_MAX = 3
_NO_BOUND = 1 << 62


class Channel:
    """See the module. All methods run on the broker's loop and return without waiting."""

    def __init__(
        self,
        name: str,
        feed: Feed,
        *,
        state: ChannelState,
        journal: Journal | None,
        depth_max: int | None,
        max_msg_timeout_s: float,
    ) -> None:
        self.name = name
        self.ephemeral = is_ephemeral(name)
        self.paused = state.paused
        self.subscribers = Consumers()
        self.message_count = 0
        self.delivered_count = 0
        self.requeue_count = 0
        self.timeout_count = 0
        self.dropped_count = 0
        self._feed = feed
        self.journal = NoJournal() if journal is None else journal
        self._depth_max = depth_max
        self._max_msg_timeout_s = max_msg_timeout_s
        self._cursor = Cursor(feed, state.cursor, state.voids, self.deliver)
        self._flight = Flight()
        self._carried = Carried(state.carried, feed.copies)
        self._waiting = Waiting(self._carried)
        for number, pending in sorted(state.pending.items()):
            self._waiting.put(number, pending.attempts, pending.due_ns)
        self._redelivery = Redelivery(self._cursor, self._waiting, self._carried)
        self._stragglers = Stragglers(self._cursor, self._flight, self._waiting, self._carried)
        # What was handed over from here on has been looked at for what is deferred.
        self._seen_from = feed.log.end
        self._wants_scan = False
        self._alarm = Alarm(feed.alarms, self)
        self._trouble = Repeated(
            get_log("broker"), "messages cannot be read, their channel waits", clock=SystemClock()
        )
        self._set_alarm()

    # What there is

    @property
    def topic_name(self) -> str:
        return self._feed.name

    @property
    def cursor(self) -> int:
        """Messages before this number are in flight, waiting again, deferred, or done."""
        return self._cursor.position

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def deferred(self) -> int:
        return self._waiting.deferred

    @property
    def depth(self) -> int:
        """Messages that wait; neither in flight nor deferred (spec: tcp-protocol, part 7)."""
        return self._cursor.ahead_count + self._waiting.again

    @property
    def backend_depth(self) -> int:
        """Those of `depth` that are on disk only."""
        return self._cursor.on_disk_count

    @property
    def uncopied(self) -> int:
        """How many of the messages that it has are nowhere but in the log."""
        return self.depth + self.in_flight + self.deferred - len(self._carried)

    def floor(self) -> int:
        """The lowest message that the log must keep for this channel."""
        return self._stragglers.floor()

    def frozen(self) -> Frozen:
        """The same, for a thread to write down; nothing that waits is visited here."""
        waiting, held = self._waiting.copy(), self._flight.copy()

        def pending() -> Iterator[tuple[int, int, int]]:
            yield from waiting.pending()
            for numbers, attempts in held:
                yield from ((number, attempts, 0) for number in numbers)

        voids = list(self._cursor.voids)
        return Frozen(self.cursor, self.paused, pending(), self._carried.frames(), voids)

    # Messages come and go

    def pumped(self, first: int, end: int) -> None:
        """The topic hands over messages `first` to `end` (exclusive)."""
        self.message_count += self._feed.log.count(first, end)
        self._defer_pumped(first, end)
        self.deliver()
        if self._depth_max is not None:
            self._drop_excess(first, end, self._depth_max)

    def void(self, first: int, end: int) -> None:
        """Messages `first` to `end` are never to be delivered here."""
        if first < end:
            self.journal.voided(first, end)
        self._cursor.void(first, end)

    def ready(self, subscriber: Subscriber) -> None:
        """What the consumer can take has changed; hand out what may be handed out now."""
        self.subscribers.wake(subscriber)
        self.deliver()

    def deliver(self) -> None:
        """Hand out what may be handed out now.

        What cannot be read from the disk stays where it is, which is told; every scan tries it again.
        """
        delivered = self.delivered_count
        try:
            self._deliver_ready()
        except StorageError as failure:
            self._wants_scan = True
            self._set_alarm()
            self._trouble.failed(failure, topic=self._feed.name, channel=self.name)
        except NotAtHand:
            return  # the reader calls this again
        else:
            if self._trouble.is_failing and self.delivered_count > delivered:
                self._trouble.recovered("messages can be read again")

    def finish(self, holder: Subscriber, fins: bytes) -> list[tuple[bytes, str]]:
        """A run of FIN lines; the ids that were refused, with the reason."""
        settled = self._flight.settle(holder, fins)
        self._carried.settle(settled)
        self.journal.finished(settled.runs, settled.numbers)
        self.subscribers.wake(holder)
        return settled.refused

    def requeue(self, holder: Subscriber, message_id: bytes, due_ns: int) -> str | None:
        """REQ: back to the end of the queue, at once (0) or when due; else why not."""
        number = self._flight.find(holder, message_id)
        if isinstance(number, str):
            return number
        attempts = self._flight.end(number).attempts
        self.requeue_count += 1
        if due_ns:
            self._put([(number, attempts, due_ns)])
        else:
            self._put_last([(number, attempts)])
        self.subscribers.wake(holder)
        return None

    def touch(self, holder: Subscriber, message_id: bytes, now_s: float) -> str | None:
        """TOUCH: more time, within the maximum (spec: tcp-protocol, 6.3); else why not."""
        number = self._flight.find(holder, message_id)
        if isinstance(number, str):
            return number
        self._flight.touch(number, now_s, holder.msg_timeout_s, self._max_msg_timeout_s)
        self._set_alarm()
        return None

    def scan(self, now_s: float, now_ns: int) -> None:
        """Take back what has timed out and what is no longer deferred, and hand it out; also what
        could not be read before. There may be something to be written then."""
        self._alarm.rang()
        self._wants_scan = False
        try:
            over = self._flight.expired(now_s)
            for lease in over:
                self.timeout_count += len(lease.numbers)
                # Who holds messages of a channel is subscribed to it.
                self.subscribers.wake(cast("Subscriber", lease.holder))
            self._put_last(sorted((n, lease.attempts) for lease in over for n in lease.numbers))
            self._put_last(self._waiting.due(now_ns))
            self.deliver()
        finally:
            self._set_alarm()

    def subscribe(self, subscriber: Subscriber) -> None:
        self.subscribers.add(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """The consumer is gone; what it held waits again.

        In the order of the log, which leases are not in: so it is read in stretches.
        """
        self.subscribers.remove(subscriber)
        leases = self._flight.release(subscriber)
        lost = sorted((n, lease.attempts) for lease in leases for n in lease.numbers)
        self._put([(*entry, 0) for entry in lost if entry[1] <= LOST_FIRST_MAX])
        self._put_last([entry for entry in lost if entry[1] > LOST_FIRST_MAX])

    # Administration

    def pause(self, *, paused: bool) -> None:
        self.paused = paused
        self.journal.paused(paused)

    def empty(self) -> None:
        """Drop everything: waiting, in flight and deferred (spec: tcp-protocol, part 7)."""
        self.seek(self._feed.pumped)

    def seek(self, number: int) -> None:
        """Go on from a message, or the first behind it that the log has; what waits, is in flight or
        deferred is forgotten. What consumers hold they can no longer answer for."""
        self._flight.clear()
        self._waiting.clear()
        self._carried.clear()
        self._cursor.seek(number)
        # What is deferred there is met by the cursor.
        self._seen_from = self._feed.pumped
        self.journal.emptied(self.cursor)
        for subscriber in self.subscribers:
            self.subscribers.wake(subscriber)

    def disconnect(self) -> None:
        for subscriber in list(self.subscribers):
            subscriber.disconnect()

    def discard(self) -> None:
        """It is deleted: nothing is held for it, and nobody looks at it any more."""
        self.disconnect()
        self._carried.clear()
        self._alarm.turn_off()

    def rewrite(self) -> Rewrite:
        """Begin to replace the journal by a shorter one; that must be wanted."""
        return self.journal.rewrite(self.frozen())

    def close(self) -> None:
        """Have everything written that a restart needs. Raises StorageError."""
        self.journal.close(self.frozen())

    # Letting go of the log

    def stragglers(self, end: int, messages_max: int = CARRY_MESSAGES_MAX) -> list[int] | None:
        """The messages before `end` that this channel needs of the log, in order.

        None when they, with the copies that it has, are more than `messages_max`. They may only
        become fewer: none before `end` is needed anew, once the topic has handed it over.
        """
        return self._stragglers.before(end, messages_max)

    def needs(self, end: int) -> list[int] | None:
        """All messages before `end` that are not done with; None when they are more than are copied."""
        stragglers = self.stragglers(end)
        return None if stragglers is None else [*stragglers, *self._carried.frames()]

    @property
    def carry_room_bytes(self) -> int:
        """So much more may be carried: to read more of the stragglers than that would not help."""
        return min(CARRY_BYTES_MAX - self._carried.size_bytes, self._feed.copies.left_bytes)

    def carry(
        self,
        frames: Mapping[int, bytes | None],
        end: int,
        due_ns: Mapping[int, int] | None = None,
        *,
        bytes_max: int = CARRY_BYTES_MAX,
    ) -> bool:
        """Keep copies of the stragglers before `end`, so that the log can go up to there.

        `frames` is what was found of them; None is not in the log any more, and is lost when its turn
        comes. `due_ns` has the times of those that are in a deferred block. Nothing is done, and False
        is given, when it would not help: a straggler is missing, the copies are too large, or times
        are not known and may matter.
        """
        copies = self._stragglers.copies(frames, end, bytes_max)
        if copies is None or self._alarm.is_off:  # deleted while they were read
            return False
        ahead = self._cursor.ahead(end, len(copies)) or []
        if ahead and due_ns is None and self.cursor < self._seen_from:
            return False
        self._bring_in(ahead, min(end, self._feed.pumped), due_ns or {})
        for number, frame in copies.items():
            self._carried.add(number, frame)
            self.journal.carried(number, frame)
        self._wants_scan = True
        self._set_alarm()
        return True

    def carry_over(self, end: int) -> bool:
        """Find the stragglers before `end` in the log and `carry` them, however many; or StorageError."""
        numbers = self.stragglers(end, _NO_BOUND)
        found = None if numbers is None else self._stragglers.find(numbers, _NO_BOUND)
        return found is not None and self.carry(
            found.frames, end, found.due_ns, bytes_max=_NO_BOUND
        )

    def _bring_in(self, ahead: list[int], end: int, due_ns: Mapping[int, int]) -> None:
        """The cursor goes to `end`; what lies ahead of it until there waits behind it."""
        if self.cursor >= end:
            return
        self._put([(number, 0, due_ns.get(number, 0)) for number in ahead])
        self.journal.passed(self.cursor, end)
        self._cursor.move_to(end)

    def _set_alarm(self) -> None:
        """Have `scan` called when something is due."""
        deadline_s = -math.inf if self._wants_scan else self._flight.next_deadline_s
        self._alarm.set(deadline_s, self._waiting.next_due_ns)

    # Where messages wait

    def _put_last(self, entries: list[tuple[int, int]]) -> None:
        position = min(self._feed.pumped, self.cursor + TAIL_MESSAGES)
        for number, attempts in entries:
            self._waiting.put_last(number, attempts, position)
        self.journal.queued([(*entry, 0) for entry in entries])

    def _put(self, entries: list[tuple[int, int, int]], *, is_ahead: bool = False) -> None:
        """Before all that is new, or until their time."""
        for entry in entries:
            self._waiting.put(*entry)
        self._set_alarm()
        self.journal.queued(entries, is_ahead=is_ahead)

    def _defer_pumped(self, first: int, end: int) -> None:
        """What is deferred is so from now on; what is not in memory is met by the cursor."""
        memory_start = self._feed.log.memory_start
        block = self._feed.log.in_memory(max(first, memory_start))
        while block is not None and block.first < end:
            if block.due_ns:
                self._defer_run(max(first, block.first), min(end, block.end), block.due_ns)
            block = block.next
        if memory_start > first:
            self._seen_from = end

    def _defer_run(self, first: int, end: int, due_ns: int) -> None:
        """Messages `first` to `end` are deferred; what a bounded channel cannot hold is dropped."""
        room = end - first if self._depth_max is None else max(0, self._depth_max - self.deferred)
        if self._depth_max is not None and end - first > room:
            self.dropped_count += end - first - room
            self.void(first + room, end)
            end = first + room
        if first >= end:
            return
        if is_ahead := first > self.cursor:
            self._cursor.void(first, end)
        self._put([(number, 0, due_ns) for number in range(first, end)], is_ahead=is_ahead)
        if not is_ahead:
            self._cursor.move_to(end)

    def _drop_excess(self, first: int, end: int, depth_max: int) -> None:
        """An ephemeral channel holds no more than mem-queue-size: the newest are dropped."""
        newest = self._cursor.newest(first, end, self.depth - depth_max)
        for start, stop, count in list(newest):
            self.dropped_count += count
            self.void(start, stop)

    # Delivery

    def _deliver_ready(self) -> None:
        # For each of what is there now: of a block's rest the shares would become ever smaller.
        share = -(-self._cursor.ahead_count // (self.subscribers.ready_count or 1)) or 1
        while not self.paused and (subscriber := self.subscribers.next_ready()) is not None:
            if self._waiting.head(self.cursor) is not None:
                self._deliver_again(subscriber, self.cursor)
            elif not self._deliver_next(subscriber, share):
                if not self._waiting.again:
                    return
                # Nothing is before them any more.
                self._deliver_again(subscriber, self._feed.pumped)

    def _deliver_again(self, subscriber: Subscriber, cursor: int) -> None:
        """Deliver messages that wait again: a run of those that were tried as often as the first."""
        share = min(subscriber.budget(), -(-self._waiting.again // self.subscribers.ready_count))
        numbers, frames, attempts, lost = self._redelivery.run(share, cursor)
        for number in lost:
            self._lose(number)
        if numbers:
            self._hand_out(subscriber, numbers, fins_of(numbers), frames, attempts)

    def _lose(self, number: int) -> None:
        """A message that should be in the log is not: the log was damaged."""
        log.error("a message that waited again is not in the log id=%016x", number)
        self.dropped_count += 1
        self._carried.forget(number)
        self.journal.finished([], [number])

    def _deliver_next(self, subscriber: Subscriber, share: int) -> bool:
        """Deliver a run from the cursor; False when there is nothing, or it is not at hand."""
        if (block := self._cursor.block()) is None:
            return False
        first, turn = self.cursor, self._waiting.next_turn
        if turn <= first:
            return True  # the block is behind a gap or a void, where a turn came
        end = min(self._cursor.bound, max(block.end, turn))
        if block.due_ns:
            self._defer_run(first, min(block.end, end), block.due_ns)
            return True
        end = min(end, first + min(subscriber.budget(), share))
        if subscriber.sample_rate:
            self._deliver_sampled(subscriber, block, first, min(block.end, end))
            return True
        end, frames, fins = block.stretch(first, end)
        self._cursor.move_to(end)
        self.journal.delivered(first, end)
        self._hand_out(subscriber, range(first, end), fins, frames)
        return True

    def _deliver_sampled(self, subscriber: Subscriber, block: Block, first: int, end: int) -> None:
        """sample_rate percent are delivered, the others are done with for the whole channel."""
        self._cursor.move_to(end)
        rate = subscriber.sample_rate
        chosen = [n for n in range(first, end) if random.randrange(100) < rate]  # noqa: S311
        self.dropped_count += end - first - len(chosen)
        self.journal.queued([(number, 1, 0) for number in chosen])
        self.journal.passed(first, end)
        if chosen:
            frames = [block.slice(number, number + 1) for number in chosen]
            self._hand_out(subscriber, chosen, fins_of(chosen), frames)

    def _hand_out(
        self,
        subscriber: Subscriber,
        numbers: Sequence[int],
        fins: bytes,
        frames: Sequence[bytes],
        attempts: int = 1,
    ) -> None:
        lease = Lease(
            subscriber,
            numbers,
            fins,
            attempts=attempts,
            now_s=self._feed.now_s(),
            timeout_s=subscriber.msg_timeout_s,
        )
        self._flight.take(lease)
        if lease.deadline_s < self._alarm.next_s:
            self._set_alarm()
        self.delivered_count += len(numbers)
        subscriber.deliver(frames, len(numbers))
        self.subscribers.served(subscriber)
