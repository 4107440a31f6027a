"""A consumer of one channel, over every nsqd that has the topic.

The batch is the unit: `receive` gives everything that has come since it was last asked, and settling
what came is one write a connection. While one batch is being worked on the next arrives; max-in-flight
bounds both. `async for message in consumer` and `handlers.handle` are made of that.

What the consumer does by itself: connect (`nsqds`), share RDY out (`rdy`), answer heartbeats, TOUCH
what is held for long, ask for no more than memory allows, and give back nothing that was not settled.
It never drops a message; what came by a connection that is lost is forgotten unless it was taken,
because nsqd delivers it again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Self

from nsqtools.client.connection import connect
from nsqtools.client.inbox import Inbox
from nsqtools.client.memory import FULL_AT, ConsumerMemory, MessageCost
from nsqtools.client.nsqds import Nsqds
from nsqtools.client.rdy import CHANGE_MIN, PROBE_S, STRICT_PROBE_S, LowRdyTiming, share_rdy
from nsqtools.client.subscription import Subscription
from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed, NsqToolsError, OptionsError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.wire import commands
from nsqtools.wire.frames import BODY_SIZE_MAX_BYTES, CLOSE_WAIT, ERROR_CODES, OK, refused_fin
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from nsqtools.client.batch import Batch, Message
    from nsqtools.client.connection import Connection
    from nsqtools.client.discovery import Discovery
    from nsqtools.client.options import ConsumerOptions
    from nsqtools.errors import ServerError
    from nsqtools.wire.frames import Oversized
    from nsqtools.wire.messages import Messages

# How often held messages are looked at; a small part of the shortest msg_timeout (1 s).
TOUCH_INTERVAL_S = 0.2
# How soon RDY is shared anew when some nsqd may send nothing more.
SHARE_AGAIN_S = 0.1
# How long nsqd keeps a message that is larger than what is accepted, before it sends it again.
OVERSIZED_DELAY_MS = 900_000


class Consumer:
    """See the module. Use as `async with`; leaving it closes every connection at once.

    Give `nsqd_addresses`, or `lookupd_addresses`, or both. A graceful end is `stop()`, then settling
    what `receive` still gives, then leaving. `inbox` is what has come, for those who decide how much
    of it to take.
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
        discovery: Discovery | None = None,
        on_lost: Callable[[str], None] = lambda _: None,
        on_refused: Callable[[str, bytes], None] = lambda _, __: None,
    ) -> None:
        """`on_lost` is called with the nsqd's address when a connection has ended: what it brought
        cannot be settled any more. `on_refused` gets the address and the id when nsqd takes no FIN."""
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
        self.inbox = Inbox()
        self.last_failures: dict[str, str] = {}
        """Why each nsqd that is not connected now is not, by address."""
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._log = get_log("client").bind(topic=topic, channel=channel)
        self._not_reached = Repeated(self._log, "not connected", clock=SystemClock())
        self._memory = memory or ConsumerMemory()
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._subscriptions: dict[Connection, Subscription] = {}
        self._nsqds = Nsqds(
            topic,
            options,
            nsqd_addresses=nsqd_addresses,
            lookupd_addresses=lookupd_addresses,
            connect_once=self._connect_once,
            rng=self._rng,
            discovery=discovery,
        )
        self._allowed: int | None = None
        self._strictly = self._paused = self._stopping = False
        self._held_bytes = self._shared_limit = 0
        self._cost = MessageCost()
        self._is_full = self._reads_nothing = self._has_left = False
        self._shared_s = 0.0
        self._all_closed = asyncio.Event()
        self._holds = asyncio.Event()
        self._timing = LowRdyTiming(
            low_rdy_idle_timeout_s=options.low_rdy_idle_timeout_s,
            low_rdy_timeout_s=options.low_rdy_timeout_s,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._memory.enter()
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._nsqds.start(self._tasks)
        self._touching = self._tasks.create_task(self._touch_held())
        self._sharing = self._tasks.create_task(self._redistribute())
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._stopping = True
        self._all_closed.set()
        self.inbox.end()
        self._nsqds.close()
        self._touching.cancel()
        self._sharing.cancel()
        self._has_left = True
        self._memory.leave(self._held_bytes)
        await self._tasks.__aexit__(None, None, None)

    # Receiving

    @property
    def connections(self) -> int:
        """How many connections are subscribed."""
        return len(self._subscriptions)

    @property
    def unconnected(self) -> dict[str, str]:
        """Every nsqd that should be subscribed and is not, with the reason; "" as long as none is
        known, and as key where no nsqd is known yet."""
        wanted = self._nsqds.wanted
        if not wanted:
            return {"": "no nsqd is known to have the topic"}
        here = {subscription.address for subscription in self._subscriptions.values()}
        return {address: self.last_failures.get(address, "") for address in sorted(wanted - here)}

    @property
    def has_asked(self) -> bool:
        """Whether some nsqlookupd has answered, or none is to be asked."""
        return self._nsqds.has_asked

    @property
    def failing_lookupds(self) -> dict[str, int]:
        """How many times in a row each nsqlookupd that is failing now has failed."""
        return self._nsqds.failing_lookupds

    @property
    def in_flight(self) -> int:
        """Messages that were delivered and not settled."""
        return sum(s.in_flight for s in self._subscriptions.values())

    @property
    def oldest_age_s(self) -> float:
        """How long the oldest unsettled message has been here, 0 without one."""
        came = [s.oldest_s for s in self._subscriptions.values() if s.oldest_s is not None]
        return self._loop.time() - min(came) if came else 0.0

    @property
    def held_bytes(self) -> int:
        """What the messages that are not settled take in memory, roughly."""
        return self._held_bytes

    @property
    def ended(self) -> bool:
        """Whether no message will come any more."""
        return self._stopping and self._all_closed.is_set()

    async def receive(self) -> list[Batch]:
        """Everything that has come, waiting for the first; [] when the consumer has ended."""
        while not self.inbox.batches and not self.ended:
            await self.inbox.wait()
        return self.inbox.take()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while batches := await self.receive():
            for batch in batches:
                for message in batch:
                    yield message

    # Flow control

    def pause(self) -> None:
        """RDY 0 everywhere; what is in flight stays, and is touched."""
        self._paused = True
        self._share()

    def resume(self) -> None:
        self._paused = False
        self._share()

    def allow(self, messages: int, *, strictly: bool = False) -> None:
        """At most so many in flight from now on, up to max-in-flight: what backoff decides; `strictly`:
        how many are still wanted. Also before it is entered."""
        self._allowed, self._strictly = messages, strictly
        if self._subscriptions:
            self._share()

    async def stop(self, timeout_s: float) -> bool:
        """CLS everywhere, and wait until every nsqd has said CLOSE_WAIT; False when one did not.

        What has come until then is to be taken and settled. Cancelling it leaves the consumer
        stopping.
        """
        self._stopping = True
        self._nsqds.stop()
        self._sharing.cancel()
        self._read_or_not()
        for subscription in self._subscriptions.values():
            subscription.close_wait()
        self._check_all_closed()
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_closed.wait()
        except TimeoutError:
            self._all_closed.set()
            self.inbox.end()
            return False
        return True

    async def close(self) -> None:
        """After `stop` and settling: send what is buffered and close every connection."""
        for subscription in self._subscriptions.values():
            subscription.flush()
        connections = list(self._subscriptions)
        await asyncio.gather(*(connection.close() for connection in connections))

    def give_back(self) -> int:
        """REQ for everything that is not settled, so that nsqd need not wait for its time to be over;
        gives how many messages that were."""
        return sum(subscription.give_back() for subscription in self._subscriptions.values())

    # Receiver

    def messages_received(self, connection: Connection, messages: Messages) -> None:
        now_s = self._loop.time()
        subscription = self._subscriptions.get(connection)
        if subscription is None:
            connection.abort(ConnectionFailed(connection.address, "messages before RDY"))
            return
        if subscription.is_flooded(len(messages), now_s):
            reason = f"nsqd sends far more messages than it was asked for (RDY {subscription.rdy})"
            connection.abort(ConnectionFailed(connection.address, reason))
            return
        batch = subscription.receive(messages, now_s)
        self.counts["received"] += len(messages)
        self._held_bytes += batch.size_bytes
        self._memory.hold(0 if self._has_left else batch.size_bytes)
        self._holds.set()
        self._weigh(batch)
        self._bound_memory()
        self.inbox.put(batch, subscription, now_s)
        if (
            subscription.in_flight >= subscription.rdy
            and len(self._subscriptions) > 1
            and now_s - self._shared_s >= SHARE_AGAIN_S
        ):
            self._share()

    def oversized_received(self, connection: Connection, message: Oversized) -> None:
        """Back it goes, to come again much later: there may be another consumer that takes it."""
        self.counts["oversized"] += 1
        self._log.error(
            "a message is too large and was left with nsqd",
            nsqd=connection.address,
            id=message.id.decode("latin-1"),
            attempts=message.attempts,
            bytes=message.size_bytes,
            max=BODY_SIZE_MAX_BYTES,
        )
        connection.send(commands.req([message.id], OVERSIZED_DELAY_MS))

    def response_received(self, connection: Connection, data: bytes) -> None:
        subscription = self._subscriptions.get(connection)
        if data == CLOSE_WAIT and subscription is not None:
            subscription.silent = True
            self._check_all_closed()
        else:
            connection.count_noise("responses")
            self._log.debug("< response", nsqd=connection.address, response=repr(data[:80]))

    def error_received(self, connection: Connection, error: ServerError) -> None:
        self.counts[error.code if error.code in ERROR_CODES else "other_errors"] += 1
        if (refused := refused_fin(error.code, error.description)) is not None:
            self._on_refused(connection.address, refused)
        subscription = self._subscriptions.get(connection)
        if error.fatal:
            self._log.error("nsqd refused", nsqd=connection.address, error=error)
            connection.abort(error)
        elif subscription is not None and not subscription.may_refuse():
            reason = "nsqd sends errors without end"
            connection.abort(ConnectionFailed(connection.address, reason))
        else:
            self._log.debug("nsqd refused", nsqd=connection.address, error=error)

    def connection_lost(self, connection: Connection, cause: NsqToolsError) -> None:
        subscription = self._subscriptions.pop(connection, None)
        if subscription is None:
            return
        self.counts["connections_lost"] += 1
        self.counts["unsettled_lost"] += subscription.in_flight
        self.counts["untaken_lost"] += self.inbox.drop(subscription)
        self._note_why(connection.address, cause)
        self._on_lost(connection.address)
        if not self._stopping:
            self._log.warning(
                "connection lost",
                nsqd=connection.address,
                in_flight=subscription.in_flight,
                error=cause,
            )
        self._bound_memory()
        self._check_all_closed()
        self._nsqds.lost()
        self._share()

    # Connections

    def _note_why(self, address: str, cause: NsqToolsError) -> None:
        """Why this one is not connected; of those that nsqlookupd no longer names nothing is kept."""
        self.last_failures[address] = str(cause)
        if len(self.last_failures) > len(self._nsqds.wanted):
            for gone in self.last_failures.keys() - self._nsqds.wanted:
                del self.last_failures[gone]

    async def _connect_once(self, address: str) -> float:
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
            self._not_connected(address, failure)
            if connection is not None:
                connection.abort(failure)
            return 0.0
        except asyncio.CancelledError:
            if connection is not None:
                connection.abort(ConnectionFailed(address, "consumer closed"))
            raise
        return self._loop.time() - began_s

    def _not_connected(self, address: str, failure: NsqToolsError) -> None:
        self.counts["connect_failed"] += 1
        self._note_why(address, failure)
        self._not_reached.failed(failure, nsqd=address)

    def _subscribed(self, connection: Connection) -> None:
        self.last_failures.pop(connection.address, None)
        subscription = self._subscriptions[connection] = Subscription(
            connection, self._loop.time(), settled=self._settled, released=self._released
        )
        self._log.info("subscribed", nsqd=connection.address)
        if self._stopping:
            subscription.close_wait()
        if self._reads_nothing:
            connection.pause_reading()
        self._share()

    # Chores

    async def _touch_held(self) -> None:
        while True:
            await self._holds.wait()
            await asyncio.sleep(TOUCH_INTERVAL_S)
            now_s = self._loop.time()
            for subscription in list(self._subscriptions.values()):
                self.counts["too_old_to_touch"] += subscription.touch_due(now_s)
            if not self._held_bytes:
                self._holds.clear()

    async def _redistribute(self) -> None:
        interval_s = self.options.rdy_redistribute_interval_s
        while True:
            probe_s = STRICT_PROBE_S if self._strictly else PROBE_S
            await asyncio.sleep(min(interval_s, probe_s))
            for subscription in () if self._reads_nothing else self._subscriptions.values():
                subscription.reads(self._loop.time())
            is_crowded = len(self._subscriptions) > self._limit()
            if is_crowded or self._loop.time() - self._shared_s >= interval_s:
                self._share()

    def _share(self) -> None:
        """Give every connection the RDY that it should have now."""
        if self._stopping:
            return
        self._shared_s = now_s = self._loop.time()
        by_key = {s.key: s for s in self._subscriptions.values()}
        self._shared_limit = self._limit()
        shares = share_rdy(
            [s.snapshot(now_s) for s in by_key.values()],
            max_in_flight=self._shared_limit,
            now=now_s,
            rng=self._rng,
            timing=self._timing,
            strictly=self._strictly,
        )
        for key, rdy in shares.items():
            by_key[key].set_rdy(rdy, now_s)
        self.inbox.window = sum(shares.values())

    @property
    def max_in_flight(self) -> int:
        """How many messages may be held at a time, with as many nsqds as are connected now. A few of each
        would have the way there and back cost more than the messages."""
        options = self.options
        return max(options.max_in_flight, options.max_in_flight_per_nsqd * len(self._subscriptions))

    @property
    def _allowance(self) -> int:
        limit = self.max_in_flight
        return limit if self._allowed is None else min(self._allowed, limit)

    def _limit(self) -> int:
        """How many messages to ask for: what is allowed, and fits in memory."""
        if self._paused or self._is_full:
            return 0
        share_bytes, allowance = self._memory.share_bytes, self._allowance
        if allowance * self._cost.size_bytes <= share_bytes:
            return allowance
        # Nobody has to wait for his turn before there was anything to weigh.
        least = 1 if self.counts["received"] else max(1, len(self._subscriptions))
        return min(allowance, max(least, int(share_bytes / self._cost.size_bytes)))

    def _weigh(self, batch: Batch) -> None:
        """Learn what a message costs, and ask for as many as that means."""
        self._cost.learn(batch.size_bytes / len(batch))
        limit, shared = self._limit(), self._shared_limit
        all_again = limit == self._allowance != shared
        if all_again or limit > shared * CHANGE_MIN or limit * CHANGE_MIN < shared:
            self._share()

    def _bound_memory(self) -> None:
        """Ask for nothing while much more is held than was meant, and read nothing while all consumers
        together hold far too much; go on when that is over."""
        share_bytes = self._memory.share_bytes
        if self._held_bytes > (share_bytes if self._is_full else FULL_AT * share_bytes):
            if not self._is_full:
                self._is_full = True
                self._share()
        elif self._is_full:
            self._is_full = False
            self._share()
        self._read_or_not()

    def _read_or_not(self) -> None:
        reads_nothing = self._is_full and self._memory.is_overfull(at_the_end=self._stopping)
        if reads_nothing == self._reads_nothing:
            return
        self._reads_nothing = reads_nothing
        if reads_nothing:
            self._memory.when_less(self._read_or_not)
        for connection in self._subscriptions:
            if reads_nothing:
                connection.pause_reading()
            else:
                connection.resume_reading()

    def _released(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        if not self._has_left:
            self._memory.release(size_bytes)
        if self._is_full:
            self._bound_memory()

    def _settled(self, subscription: Subscription) -> None:
        """With more connections than max-in-flight, an empty place is given to another."""
        if not subscription.rdy and not subscription.in_flight and not self._paused:
            self._share()

    def _check_all_closed(self) -> None:
        if self._stopping and all(s.silent for s in self._subscriptions.values()):
            self._all_closed.set()
            self.inbox.end()
