"""A consumer of one channel, over every nsqd that has the topic.

The batch is the unit: `receive` gives everything that has come since it was last asked, and settling a
batch is one write. While one batch is being worked on the next arrives; max-in-flight bounds both.
`async for message in consumer` and `run(handler)` are made of that.

What the consumer does by itself: connect (every address, for ever, with jitter), share RDY out, answer
heartbeats, TOUCH what is held for long, and give back nothing that was not settled. It never drops a
message: `max_attempts` is unlimited unless it is set, and then says so.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import TYPE_CHECKING, Self

from nsqtools.client.backoff import Backoff, BackoffOptions, ReconnectDelay
from nsqtools.client.connection import connect
from nsqtools.client.memory import ConsumerMemory
from nsqtools.client.rdy import LowRdyTiming, share_rdy
from nsqtools.client.subscription import Subscription
from nsqtools.errors import ConnectionFailed, NotSettled, NsqToolsError, OptionsError
from nsqtools.wire import commands
from nsqtools.wire.frames import CLOSE_WAIT, OK
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from types import TracebackType

    from nsqtools.client.batch import Batch, Message
    from nsqtools.client.connection import Connection
    from nsqtools.client.lookup import LookupPoller
    from nsqtools.client.options import ConsumerOptions
    from nsqtools.errors import ServerError
    from nsqtools.wire.messages import Messages

log = logging.getLogger("nsqtools.client")

# How often held messages are looked at; a small part of the shortest msg_timeout (1 s).
TOUCH_INTERVAL_S = 0.2
# nsqlookupd is asked no more often than every second, and needs some time to answer.
ASK_FIRST_S = 2.0


class Consumer:
    """See the module. Use as `async with`; leaving it closes every connection at once.

    Give `nsqd_addresses`, or `lookupd_addresses`, or both. A graceful end is `stop()`, then settling
    what `receive` still gives, then leaving.
    """

    def __init__(
        self,
        topic: str,
        channel: str,
        options: ConsumerOptions,
        *,
        nsqd_addresses: Iterable[str] = (),
        lookupd_addresses: Iterable[str] = (),
        rng: random.Random | None = None,
        memory: ConsumerMemory | None = None,
    ) -> None:
        problems = [
            f"invalid {what} name {name!r}"
            for what, name in (("topic", topic), ("channel", channel))
            if not is_valid_name(name)
        ]
        if problems:
            raise OptionsError(problems)
        self.topic = topic
        self.channel = channel
        self.options = options
        self.counts: Counter[str] = Counter()
        self._nsqd_addresses = tuple(nsqd_addresses)
        self._lookupd_addresses = tuple(lookupd_addresses)
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._memory = memory or ConsumerMemory()
        self._subscriptions: dict[Connection, Subscription] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._listed: frozenset[str] = frozenset()
        self._poller: LookupPoller | None = None
        self._arrived: list[Batch] = []
        self._waiting_messages = 0
        self.first_arrival_s = self.last_arrival_s = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._is_full = False
        self._stopping = False
        self._waits_for_starved = False
        self._all_closed = asyncio.Event()
        self._backoff = Backoff(
            BackoffOptions(
                strategy=options.backoff_strategy,
                max_backoff_duration_s=options.max_backoff_duration_s,
                multiplier_s=options.backoff_multiplier_s,
            ),
            self._rng,
        )
        self._timing = LowRdyTiming(
            low_rdy_idle_timeout_s=options.low_rdy_idle_timeout_s,
            low_rdy_timeout_s=options.low_rdy_timeout_s,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._memory.enter()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        for address in self._nsqd_addresses:
            self._keep(address)
        self._chores = [
            self._tasks.create_task(self._touch_held()),
            self._tasks.create_task(self._redistribute()),
        ]
        if self._lookupd_addresses:
            self._chores.append(self._tasks.create_task(self._discover()))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping = True
        self._wake()
        for task in (*self._chores, *self._keepers.values()):
            task.cancel()
        self._memory.leave()
        await self._tasks.__aexit__(None, None, None)

    # Receiving

    @property
    def connections(self) -> int:
        """How many nsqds are connected and subscribed."""
        return len(self._subscriptions)

    @property
    def waiting(self) -> int:
        """Messages that have come and were not taken with `receive`."""
        return self._waiting_messages

    @property
    def fill(self) -> float:
        """How much of a full batch waits, of the fullest connection.

        From 1 on, some nsqd has little left to send until messages are settled, or so many bytes are
        held that no more are read.
        """
        if self._is_full:
            return 1.0
        return max((s.fill for s in self._subscriptions.values()), default=0.0)

    @property
    def in_flight(self) -> int:
        """Messages that were delivered and not settled."""
        return sum(s.in_flight for s in self._subscriptions.values())

    @property
    def ended(self) -> bool:
        """Whether no message will come any more."""
        return self._stopping and self._all_closed.is_set()

    def take(self) -> list[Batch]:
        """Everything that has come and was not taken; may be nothing."""
        batches, self._arrived = self._arrived, []
        self._waiting_messages = 0
        for subscription in self._subscriptions.values():
            subscription.taken(subscription.waiting)
        return batches

    async def wait(self, timeout_s: float | None = None, *, starved: bool = False) -> None:
        """Wait until something has come, or with `starved` until so much has that nsqd must wait.

        Returns at once when that is so, and when the consumer has ended; after `timeout_s` in any case.
        Cancelling it changes nothing.
        """
        if self.ended or (self.fill >= 1.0 if starved else self._arrived):
            return
        self._waiter = self._loop.create_future()
        self._waits_for_starved = starved
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def receive(self) -> list[Batch]:
        """Everything that has come, waiting for the first; [] when the consumer has ended."""
        while not self._arrived and not self.ended:
            await self.wait()
        return self.take()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while batches := await self.receive():
            for batch in batches:
                for message in batch:
                    yield message

    async def run(
        self, handler: Callable[[Message], Awaitable[None]], *, concurrency: int = 1
    ) -> None:
        """Call `handler` for every message: FIN when it returns, REQ and backoff when it raises.

        Up to `concurrency` handlers run at a time. Returns when the consumer has ended; cancelling it
        cancels the handlers and leaves their messages to nsqd.
        """
        queue: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=concurrency)
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._work(handler, queue))
            async for message in self:
                await queue.put(message)
            for _ in range(concurrency):
                await queue.put(None)

    async def _work(
        self, handler: Callable[[Message], Awaitable[None]], queue: asyncio.Queue[Message | None]
    ) -> None:
        while (message := await queue.get()) is not None:
            limit = self.options.max_attempts
            try:
                if limit and message.attempts > limit:
                    self.counts["given_up"] += 1
                    log.warning(
                        "giving up id=%s attempts=%d", message.id.decode(), message.attempts
                    )
                else:
                    await handler(message)
                message.finish()
                self._report(self._backoff.succeeded(message.received_s))
            except NotSettled:
                self.counts["not_settled"] += 1
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is its failure
                self._failed(message, error)

    def _failed(self, message: Message, error: Exception) -> None:
        self.counts["handler_failed"] += 1
        log.error("handler failed id=%s error=%r", message.id.decode(), error)
        delay_s = self.options.default_requeue_delay_s * message.attempts
        try:
            message.requeue(min(delay_s, self.options.max_requeue_delay_s))
        except NotSettled:
            self.counts["not_settled"] += 1
        self._report(self._backoff.failed(message.received_s, self._loop.time()))

    # Flow control

    def pause(self) -> None:
        """RDY 0 everywhere; what is in flight stays, and is touched."""
        self._paused = True
        self._share()

    def resume(self) -> None:
        self._paused = False
        self._share()

    async def stop(self, timeout_s: float) -> bool:
        """CLS everywhere, and wait until every nsqd has said CLOSE_WAIT; False when one did not.

        What has come until then is to be taken with `take` and settled. Cancelling it leaves the
        consumer stopping.
        """
        self._stopping = True
        for chore in self._chores[1:]:
            chore.cancel()
        for subscription in self._subscriptions.values():
            subscription.close_wait()
        self._check_all_closed()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_closed.wait()
        except TimeoutError:
            self._all_closed.set()
            self._wake()
            return False
        return True

    async def close(self) -> None:
        """After `stop` and settling: send what is buffered and close every connection."""
        connections = list(self._subscriptions)
        await asyncio.gather(*(connection.close() for connection in connections))

    # Receiver

    def messages_received(self, connection: Connection, messages: Messages) -> None:
        now_s = self._loop.time()
        subscription = self._subscriptions.get(connection)
        if subscription is None:
            connection.abort(ConnectionFailed(connection.address, "messages before RDY"))
            return
        if not self._arrived:
            self.first_arrival_s = now_s
        self.last_arrival_s = now_s
        self._arrived.append(subscription.receive(messages, now_s))
        self._waiting_messages += len(messages)
        self.counts["received"] += len(messages)
        self._bound_memory()
        if self._waiter is not None and (not self._waits_for_starved or self.fill >= 1.0):
            self._wake()

    def response_received(self, connection: Connection, data: bytes) -> None:
        subscription = self._subscriptions.get(connection)
        if data == CLOSE_WAIT and subscription is not None:
            subscription.silent = True
            self._check_all_closed()
        else:
            log.debug("< nsqd=%s response=%r", connection.address, data[:80])

    def error_received(self, connection: Connection, error: ServerError) -> None:
        self.counts[error.code] += 1
        if error.fatal:
            log.error("nsqd refused nsqd=%s error=%s", connection.address, error)
        else:
            log.debug("nsqd refused nsqd=%s error=%s", connection.address, error)

    def connection_lost(self, connection: Connection, cause: NsqToolsError) -> None:
        subscription = self._subscriptions.pop(connection, None)
        if subscription is None:
            return
        self.counts["unsettled_lost"] += subscription.in_flight
        if not self._stopping:
            log.warning(
                "connection lost nsqd=%s in_flight=%d error=%s",
                connection.address,
                subscription.in_flight,
                cause,
            )
        self._bound_memory()
        self._check_all_closed()
        if self._poller is not None:
            self._poller.poke()
        self._share()

    # Connections

    def _keep(self, address: str) -> None:
        if address not in self._keepers and not self._stopping:
            self._keepers[address] = self._tasks.create_task(self._keep_connected(address))

    async def _keep_connected(self, address: str) -> None:
        """Connect, subscribe, and do so again whenever the connection ends."""
        delay = ReconnectDelay(self._rng, max_s=self.options.lookupd_poll_interval_s)
        try:
            while not self._stopping and self._wanted(address):
                lived_s = await self._connect_once(address)
                if not self._stopping:
                    await asyncio.sleep(max(delay.after(lived_s), self._ask_first_s(address)))
        finally:
            self._keepers.pop(address, None)

    def _ask_first_s(self, address: str) -> float:
        """How long nsqlookupd, which is asked when a connection is lost, gets to take it off its list."""
        if address in self._nsqd_addresses:
            return 0.0
        return min(ASK_FIRST_S, 2 * self.options.lookupd_poll_interval_s)

    def _wanted(self, address: str) -> bool:
        """One that nsqlookupd no longer lists is not: that would make a deleted topic anew."""
        return address in self._nsqd_addresses or address in self._listed

    async def _connect_once(self, address: str) -> float:
        """Gives how long the connection lived, in seconds."""
        began_s = self._loop.time()
        connection = None
        try:
            connection = await connect(address, self.options, self, self._memory.buffer)
            answer = await connection.command(commands.sub(self.topic, self.channel), "SUB")
            if answer != OK:
                raise ConnectionFailed(address, f"SUB was answered with {answer[:80]!r}")
            began_s = self._loop.time()
            self._subscribed(connection)
            await connection.ended()
        except NsqToolsError as failure:
            self.counts["connect_failed"] += 1
            log.error("not connected nsqd=%s error=%s", address, failure)
            if connection is not None:
                connection.abort(failure)
            return 0.0
        except asyncio.CancelledError:
            if connection is not None:
                connection.abort(ConnectionFailed(address, "consumer closed"))
            raise
        return self._loop.time() - began_s

    def _subscribed(self, connection: Connection) -> None:
        now_s = self._loop.time()
        self._subscriptions[connection] = Subscription(connection, now_s, self._settled)
        log.info(
            "subscribed topic=%s channel=%s nsqd=%s", self.topic, self.channel, connection.address
        )
        if self._stopping:
            self._subscriptions[connection].close_wait()
        if self._is_full:
            connection.pause_reading()
        self._share()

    async def _discover(self) -> None:
        from nsqtools.client.lookup import LookupOptions, LookupPoller  # HTTP loads slowly

        options = self.options
        self._poller = LookupPoller(
            self._lookupd_addresses,
            self.topic,
            rng=self._rng,
            options=LookupOptions(
                lookupd_poll_interval_s=options.lookupd_poll_interval_s,
                lookupd_poll_jitter=options.lookupd_poll_jitter,
                lookupd_poll_timeout_s=options.lookupd_poll_timeout_s,
                auth_secret=options.auth_secret,
            ),
        )
        await self._poller.run(self._found)

    def _found(self, producers: frozenset[str]) -> None:
        self._listed = producers
        for address in sorted(producers):
            self._keep(address)

    # Chores

    async def _touch_held(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_INTERVAL_S)
            now_s = self._loop.time()
            for subscription in list(self._subscriptions.values()):
                self.counts["too_old_to_touch"] += subscription.touch_due(now_s)

    async def _redistribute(self) -> None:
        while True:
            await asyncio.sleep(self.options.rdy_redistribute_interval_s)
            self._share()

    def _report(self, changed: bool) -> None:
        if not changed:
            return
        pause_ends_s = self._backoff.pause_ends_at
        if pause_ends_s is not None and pause_ends_s > self._loop.time():
            log.warning("backing off level=%d", self._backoff.level)
            self._loop.call_at(pause_ends_s, self._share)
        self._share()

    def _share(self) -> None:
        """Give every connection the RDY that it should have now."""
        if self._stopping:
            return
        now_s = self._loop.time()
        by_address = {s.address: s for s in self._subscriptions.values()}
        limit = 0 if self._paused else self._backoff.allowance(self.options.max_in_flight, now_s)
        shares = share_rdy(
            [s.snapshot() for s in by_address.values()],
            max_in_flight=limit,
            now=now_s,
            rng=self._rng,
            timing=self._timing,
        )
        for address, rdy in shares.items():
            by_address[address].set_rdy(rdy, now_s)

    def _bound_memory(self) -> None:
        """Read no more while much is held; go on when half of it is settled."""
        held_bytes = sum(s.held_bytes for s in self._subscriptions.values())
        if held_bytes > self._memory.share_bytes and not self._is_full:
            self._is_full = True
            for connection in self._subscriptions:
                connection.pause_reading()
        elif self._is_full and held_bytes <= self._memory.share_bytes // 2:
            self._is_full = False
            for connection in self._subscriptions:
                connection.resume_reading()

    def _settled(self, subscription: Subscription) -> None:
        """With more connections than max-in-flight, an empty place is given to another."""
        if self._is_full:
            self._bound_memory()
        if not subscription.rdy and not subscription.in_flight and not self._paused:
            self._share()

    def _check_all_closed(self) -> None:
        if self._stopping and all(s.silent for s in self._subscriptions.values()):
            self._all_closed.set()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def settle_all(batches: Sequence[Batch]) -> int:
    """FIN for whole batches; gives how many messages could not be settled any more."""
    return sum(len(batch) for batch in batches if not batch.finish())
