"""A handler for every message: FIN when it returns, REQ and backoff when it raises.

For those who want messages one by one. What works on many at once takes batches from the consumer
instead (`Consumer.receive`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from nsqtools.client.backoff import Backoff, BackoffOptions
from nsqtools.errors import NotSettled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nsqtools.client.batch import Message
    from nsqtools.client.consumer import Consumer

log = logging.getLogger("nsqtools.client")

# Some event loops call a timer up to a millisecond early.
_TIMER_SLACK_S = 0.001


async def handle(
    consumer: Consumer,
    handler: Callable[[Message], Awaitable[None]],
    *,
    concurrency: int = 1,
    rng: random.Random | None = None,
) -> None:
    """Call `handler` for every message, up to `concurrency` of them at a time.

    Returns when the consumer has ended; cancelling it cancels the handlers and leaves their messages
    to nsqd.
    """
    workers = _Workers(consumer, handler, rng or random.Random())  # noqa: S311 - jitter
    queue: asyncio.Queue[Message | None] = asyncio.Queue(maxsize=concurrency)
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(workers.work(queue))
        async for message in consumer:
            await queue.put(message)
        for _ in range(concurrency):
            await queue.put(None)
    workers.end()


class _Workers:
    """What the handlers of one consumer share: its backoff."""

    def __init__(
        self,
        consumer: Consumer,
        handler: Callable[[Message], Awaitable[None]],
        rng: random.Random,
    ) -> None:
        options = consumer.options
        self._consumer = consumer
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._backoff = Backoff(
            BackoffOptions(
                strategy=options.backoff_strategy,
                max_backoff_duration_s=options.max_backoff_duration_s,
                multiplier_s=options.backoff_multiplier_s,
            ),
            rng,
        )

    async def work(self, queue: asyncio.Queue[Message | None]) -> None:
        counts = self._consumer.counts
        while (message := await queue.get()) is not None:
            limit = self._consumer.options.max_attempts
            try:
                if limit and message.attempts > limit:
                    counts["given_up"] += 1
                    log.warning(
                        "giving up id=%s attempts=%d", message.id.decode(), message.attempts
                    )
                else:
                    await self._handler(message)
                message.finish()
                self._report(self._backoff.succeeded(message.received_s))
            except NotSettled:
                counts["not_settled"] += 1
            except asyncio.CancelledError as leaked:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._failed(message, RuntimeError(f"something inside was cancelled: {leaked}"))
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is its failure
                self._failed(message, error)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _failed(self, message: Message, error: Exception) -> None:
        options = self._consumer.options
        self._consumer.counts["handler_failed"] += 1
        log.error("handler failed id=%s error=%r", message.id.decode(), error)
        delay_s = options.default_requeue_delay_s * message.attempts
        try:
            message.requeue(min(delay_s, options.max_requeue_delay_s))
        except NotSettled:
            self._consumer.counts["not_settled"] += 1
        self._report(self._backoff.failed(message.received_s, self._loop.time()))

    def _report(self, changed: bool) -> None:
        if not changed:
            return
        if self._backoff.pause_ends_at is not None and not self._allowance():
            log.warning("backing off level=%d", self._backoff.level)
        self._allow()

    def _allowance(self) -> int:
        max_in_flight = self._consumer.options.max_in_flight
        return self._backoff.allowance(max_in_flight, self._loop.time())

    def _allow(self) -> None:
        """Tell the consumer how much may be in flight, and look again when a pause is over."""
        self.end()
        allowance = self._allowance()
        self._consumer.allow(allowance)
        ends_s = self._backoff.pause_ends_at
        if not allowance and ends_s is not None:
            self._timer = self._loop.call_at(ends_s + _TIMER_SLACK_S, self._allow)
