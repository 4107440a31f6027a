"""A channel: a cursor into its topic's log, and what was handed out and not acknowledged.

Rules. (1) Every message before the cursor is in exactly one place: in flight, waiting again
(`_again`), deferred, or done; done is not stored. (2) Whatever changes that is journaled. (3) Messages
are delivered in runs: a slice of a block, one lease, one write.

Where nsqd leaves what a lost connection held until it times out, a channel here takes it back at once:
nobody is left who could acknowledge it.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Protocol

from nsqtools.broker.block import Block, with_attempts
from nsqtools.broker.flight import Flight, Holder, Lease, ids_of
from nsqtools.broker.journal import ChannelState, Pending
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsqtools.broker.journal import Journal, Rewrite
    from nsqtools.broker.log import TopicLog

log = logging.getLogger("nsqtools.broker.channel")

# A message handed out this often shows the highest count that the wire can hold.
_ATTEMPTS_MAX = 65535
# Stragglers are carried over from a segment when they are no more than this.
CARRY_MESSAGES_MAX = 1000
CARRY_BYTES_MAX = 4 << 20
# Messages that wait again may be anywhere: for one of them little is read.
LOOK_UP_BYTES = 64 << 10


class Subscriber(Holder, Protocol):
    """A consumer's connection, as a channel sees it."""

    msg_timeout_s: float
    sample_rate: int

    def budget(self) -> int:
        """How many more messages it may get now."""

    def deliver(self, frames: bytes, count: int) -> None:
        """Send message frames."""

    def disconnect(self) -> None:
        """Close the connection: its channel is gone."""


class Feed(Protocol):
    """What a channel needs of its topic."""

    name: str

    @property
    def log(self) -> TopicLog:
        """Where the messages are."""

    @property
    def pumped(self) -> int:
        """Messages before this number are the channels' to deliver."""

    def now_s(self) -> float:
        """Monotonic time."""


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
        self.cursor = state.cursor
        self.subscribers: list[Subscriber] = []
        self.message_count = 0
        self.delivered_count = 0
        self.requeue_count = 0
        self.timeout_count = 0
        self.dropped_count = 0
        self._feed = feed
        self._journal = journal
        self._depth_max = depth_max
        self._max_msg_timeout_s = max_msg_timeout_s
        self._block: Block | None = None
        self._looked_up: Block | None = None
        self._turn = 0
        self._flight = Flight()
        self._again: deque[int] = deque()
        self._deferred: list[tuple[int, int]] = []
        self._attempts: dict[int, int] = {}
        self._voids = deque(state.voids)
        self._carried = state.carried
        self._trouble = Repeated(
            get_log("broker"), "messages cannot be read, their channel waits", clock=SystemClock()
        )
        self._restore(state)

    # What there is

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def deferred(self) -> int:
        return len(self._deferred)

    @property
    def depth(self) -> int:
        """Messages that wait; neither in flight nor deferred (spec: tcp-protocol, part 7)."""
        return self._ahead() + len(self._again)

    @property
    def backend_depth(self) -> int:
        """Those of `depth` that are on disk only."""
        memory_start = self._feed.log.memory_start
        return self._count(self.cursor, min(memory_start, self._feed.pumped))

    def floor(self) -> int:
        """The lowest message that the log must keep for this channel."""
        lowest = [self.cursor]
        held = (n for n in self._pending_numbers() if n not in self._carried)
        lowest.append(min(held, default=self.cursor))
        return min(lowest)

    def state(self) -> ChannelState:
        """What a journal's snapshot holds."""
        pending = {n: Pending(self._attempts.get(n, 0)) for n in self._again}
        pending.update((n, Pending(self._attempts.get(n, 0), due)) for due, n in self._deferred)
        pending.update((n, Pending(attempts)) for n, attempts in self._flight.attempts())
        return ChannelState(
            self.cursor, self.paused, pending, dict(self._carried), list(self._voids)
        )

    # Messages come and go

    def pumped(self, first: int, end: int) -> None:
        """The topic hands over messages `first` to `end` (exclusive)."""
        self.message_count += self._feed.log.count(first, end)
        if self._depth_max is not None:
            self._drop_excess(end, self._depth_max)
        self.deliver()

    def void(self, first: int, end: int) -> None:
        """Messages `first` to `end` are never to be delivered here."""
        if first < end:
            self._voids.append((first, end))
            if self._journal is not None:
                self._journal.voided(first, end)

    def deliver(self) -> None:
        """Hand out what may be handed out now.

        What cannot be read from the disk stays where it is, which is told; every scan tries it again.
        """
        delivered = self.delivered_count
        try:
            self._deliver_ready()
        except StorageError as failure:
            self._trouble.failed(failure, topic=self._feed.name, channel=self.name)
        else:
            if self._trouble.is_failing and self.delivered_count > delivered:
                self._trouble.recovered("messages can be read again")

    def _deliver_ready(self) -> None:
        while not self.paused:
            ready = [subscriber for subscriber in self.subscribers if subscriber.budget() > 0]
            if not ready:
                return
            if self._again:
                self._deliver_again(ready)
            elif not self._deliver_next(ready):
                return

    def finish(self, holder: Subscriber, ids: bytes) -> list[tuple[bytes, str]]:
        """FIN for a run of ids; the ids that were refused, with the reason."""
        settled = self._flight.settle(holder, ids)
        for kept in (self._attempts, self._carried):
            if kept:
                for number in settled:
                    kept.pop(number, None)
        if self._journal is not None:
            self._journal.finished(settled.runs, settled.numbers)
        return settled.refused

    def requeue(self, holder: Subscriber, message_id: bytes, due_ns: int) -> str | None:
        """REQ: back to the end of the queue, at once (0) or when due; else why not."""
        number = self._flight.find(holder, message_id)
        if isinstance(number, str):
            return number
        lease = self._flight.end(number)
        self.requeue_count += 1
        self._queue([(number, lease.attempts, due_ns)])
        return None

    def touch(self, holder: Subscriber, message_id: bytes, now_s: float) -> str | None:
        """TOUCH: more time, within the maximum (spec: tcp-protocol, 6.3); else why not."""
        number = self._flight.find(holder, message_id)
        if isinstance(number, str):
            return number
        self._flight.touch(number, now_s, holder.msg_timeout_s, self._max_msg_timeout_s)
        return None

    def scan(self, now_s: float, now_ns: int) -> None:
        """Take back what has timed out, and what is no longer deferred."""
        over = self._flight.expired(now_s)
        self.timeout_count += sum(len(lease.numbers) for lease in over)
        self._take_back(over)
        due = []
        while self._deferred and self._deferred[0][0] <= now_ns:
            due.append(heapq.heappop(self._deferred)[1])
        if due:
            self._queue([(number, self._attempts.get(number, 0), 0) for number in due])

    def subscribe(self, subscriber: Subscriber) -> None:
        self.subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """The consumer is gone; what it held waits again."""
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)
        self._take_back(self._flight.release(subscriber))

    # Administration

    def pause(self, *, paused: bool) -> None:
        self.paused = paused
        if self._journal is not None:
            self._journal.paused(paused)

    def empty(self) -> None:
        """Drop everything: waiting, in flight and deferred (spec: tcp-protocol, part 7)."""
        self._flight.clear()
        self._again.clear()
        self._deferred.clear()
        self._attempts.clear()
        self._carried.clear()
        self._voids.clear()
        self.cursor = self._feed.pumped
        self._block = None
        if self._journal is not None:
            self._journal.emptied(self.cursor)

    def disconnect(self) -> None:
        for subscriber in list(self.subscribers):
            subscriber.disconnect()

    @property
    def wants_flush(self) -> bool:
        """Whether the journal has something to write."""
        return self._journal is not None and self._journal.wants_flush

    @property
    def wants_rewrite(self) -> bool:
        """Whether the journal is to be replaced by a shorter one."""
        return self._journal is not None and self._journal.wants_rewrite

    def rewrite(self) -> Rewrite:
        """Begin that; it must be wanted."""
        if self._journal is None:
            raise RuntimeError("an ephemeral channel has no journal")
        return self._journal.rewrite(self.state())

    def flush(self) -> None:
        """Write the journal; raises StorageError."""
        if self._journal is not None:
            self._journal.flush()

    def sync(self) -> None:
        """Bring the journal to the disk; for a thread. Raises StorageError."""
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close(self.state())

    def remove(self) -> None:
        if self._journal is not None:
            self._journal.remove()

    def stragglers(self, end: int, messages_max: int = CARRY_MESSAGES_MAX) -> list[int] | None:
        """What this channel still needs of the log before `end`; None when that is too much."""
        held = [n for n in self._pending_numbers() if n < end and n not in self._carried]
        if self.cursor < end or len(held) > messages_max:
            return None
        return sorted(held)

    def carry(self, frames: Mapping[int, bytes | None], end: int) -> None:
        """Keep copies of what is still needed of these messages."""
        needed = {n for n in self._pending_numbers() if n < end and n not in self._carried}
        for number in needed & frames.keys():
            frame = frames[number]
            if frame is not None:
                self._carried[number] = frame
                if self._journal is not None:
                    self._journal.carried(number, frame)

    # Inside

    def _restore(self, state: ChannelState) -> None:
        for number, pending in sorted(state.pending.items()):
            if pending.attempts:
                self._attempts[number] = pending.attempts
            if pending.due_ns:
                self._deferred.append((pending.due_ns, number))
            else:
                self._again.append(number)
        heapq.heapify(self._deferred)

    def _pending_numbers(self) -> Iterable[int]:
        yield from self._flight.numbers()
        yield from self._again
        yield from (number for _, number in self._deferred)

    def _ahead(self) -> int:
        ahead = self._count(self.cursor, self._feed.pumped)
        return ahead - sum(self._count(max(first, self.cursor), end) for first, end in self._voids)

    def _count(self, first: int, end: int) -> int:
        return self._feed.log.count(first, end) if first < end else 0

    def _drop_excess(self, end: int, depth_max: int) -> None:
        """An ephemeral channel holds no more than mem-queue-size: the newest are dropped."""
        excess = min(self._ahead() - depth_max, end - self.cursor)
        if excess > 0:
            self.dropped_count += excess
            self.void(end - excess, end)

    def _deliver_again(self, ready: Sequence[Subscriber]) -> None:
        """Deliver messages that wait again: a run of those that were tried as often as the first."""
        subscriber = self._next_of(ready)
        room = min(subscriber.budget(), -(-len(self._again) // len(ready)))
        tried = self._attempts.get(self._again[0], 0)
        attempts = min(tried + 1, _ATTEMPTS_MAX)
        numbers: list[int] = []
        frames: list[bytes] = []
        while room and self._again and self._attempts.get(self._again[0], 0) == tried:
            number = self._again[0]
            try:
                frame = self._carried.get(number) or self._frame(number)
            except StorageError:
                if not numbers:
                    raise
                break  # what was read goes out; the next round meets the error again
            self._again.popleft()
            if frame is None:
                self._lose(number)
                continue
            self._attempts[number] = attempts
            numbers.append(number)
            frames.append(with_attempts(frame, attempts))
            room -= 1
        if not self._again:
            self._looked_up = None
        if numbers:
            self._hand_out(subscriber, numbers, ids_of(numbers), b"".join(frames), attempts)

    def _lose(self, number: int) -> None:
        """A message that should be in the log is not: the log was damaged."""
        log.error("a message that waited again is not in the log id=%016x", number)
        self.dropped_count += 1
        if self._journal is not None:
            self._journal.finished([], [number])

    def _deliver_next(self, ready: Sequence[Subscriber]) -> bool:
        """Deliver a run from the cursor; False when there is nothing, or it is not at hand."""
        block = self._block_at_cursor()
        if block is None:
            return False
        first, end = self.cursor, min(block.end, self._feed.pumped)
        if self._voids and self._voids[0][0] > first:
            end = min(end, self._voids[0][0])
        if block.due_ns:
            self._defer_run(first, end, block.due_ns)
            return True
        subscriber = self._next_of(ready)
        share = -(-(end - first) // len(ready))
        end = min(end, first + min(subscriber.budget(), share))
        self._advance(end)
        if subscriber.sample_rate:
            self._deliver_sampled(subscriber, block, first, end)
            return True
        if self._journal is not None:
            self._journal.delivered(first, end)
        ids = block.slice_ids(first, end)
        self._hand_out(subscriber, range(first, end), ids, block.slice(first, end))
        return True

    def _deliver_sampled(self, subscriber: Subscriber, block: Block, first: int, end: int) -> None:
        """sample_rate percent are delivered, the others are done with for the whole channel."""
        rate = subscriber.sample_rate
        chosen = [n for n in range(first, end) if random.randrange(100) < rate]  # noqa: S311
        self.dropped_count += end - first - len(chosen)
        if self._journal is not None:
            self._journal.passed(first, end)
            self._journal.queued([(number, 1, 0) for number in chosen])
        if chosen:
            frames = b"".join([block.slice(number, number + 1) for number in chosen])
            self._hand_out(subscriber, chosen, ids_of(chosen), frames)

    def _hand_out(
        self,
        subscriber: Subscriber,
        numbers: Sequence[int],
        ids: bytes,
        frames: bytes,
        attempts: int = 1,
    ) -> None:
        lease = Lease(
            subscriber,
            numbers,
            ids,
            attempts=attempts,
            now_s=self._feed.now_s(),
            timeout_s=subscriber.msg_timeout_s,
        )
        self._flight.take(lease)
        self.delivered_count += len(numbers)
        subscriber.deliver(frames, len(numbers))

    def _defer_run(self, first: int, end: int, due_ns: int) -> None:
        self._advance(end)
        self._queue([(number, 0, due_ns) for number in range(first, end)])

    def _next_of(self, ready: Sequence[Subscriber]) -> Subscriber:
        self._turn += 1
        return ready[self._turn % len(ready)]

    def _advance(self, end: int) -> None:
        self.cursor = end
        if self._block is not None and self._block.end <= end:
            self._block = self._block.next

    def _block_at_cursor(self) -> Block | None:
        """The block that the cursor is in, from memory, else from disk; None when there is none."""
        self._pass_voids()
        if self.cursor >= self._feed.pumped:
            return None
        block = self._block
        if block is None or not block.first <= self.cursor < block.end:
            block = self._feed.log.in_memory(self.cursor) or self._feed.log.read(self.cursor)
            self._block = block
        if block is not None and self.cursor < block.first:
            self.cursor = block.first  # a gap between two runs of the broker
        return block if self.cursor < self._feed.pumped else None

    def _pass_voids(self) -> None:
        while self._voids and self._voids[0][0] <= self.cursor:
            first, end = self._voids.popleft()
            if end > self.cursor:
                self.cursor, self._block = end, None
                if self._journal is not None:
                    self._journal.passed(first, end)

    def _frame(self, number: int) -> bytes | None:
        block = self._feed.log.in_memory(number) or self._look_up(number)
        if block is None or not block.first <= number < block.end:
            return None
        return block.slice(number, number + 1)

    def _look_up(self, number: int) -> Block | None:
        """From disk; what was read is kept while more of it may be wanted."""
        block = self._looked_up
        if block is not None and block.first <= number:
            while block is not None and block.end <= number:
                block = block.next
            if block is not None and block.first <= number:
                self._looked_up = block
                return block
        self._looked_up = self._feed.log.read(number, LOOK_UP_BYTES)
        return self._looked_up

    def _take_back(self, leases: list[Lease]) -> None:
        """In the order of the log, which leases are not in: so it is read in stretches."""
        entries = [(number, lease.attempts, 0) for lease in leases for number in lease.numbers]
        if entries:
            self._queue(sorted(entries))

    def _queue(self, entries: list[tuple[int, int, int]]) -> None:
        for number, attempts, due_ns in entries:
            if attempts:
                self._attempts[number] = attempts
            if due_ns:
                heapq.heappush(self._deferred, (due_ns, number))
            else:
                self._again.append(number)
        if self._journal is not None:
            self._journal.queued(entries)
