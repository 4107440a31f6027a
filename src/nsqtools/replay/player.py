"""Publishing: batches of bodies in, every one answered by some nsqd, or counted as refused.

Each nsqd has a fixed number of senders; each takes the next MPUB from one queue, so that a faster nsqd
gets more, and one that is down gets none. What was not answered goes back into the queue, for
whichever nsqd is up (it may then be there twice: nsqd cannot say); what nsqd refuses is cut in halves
until the message that it refuses stands alone, so that one bad message does not cost its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from nsqtools.client.producer import Producer
from nsqtools.errors import ConnectionFailed, NsqToolsError, ServerError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from nsqtools.client.options import ProducerOptions
    from nsqtools.clock import Clock

# What nsqd says when the message or the batch is at fault; anything else is nsqd's own trouble.
_REFUSED = ("E_BAD_MESSAGE", "E_BAD_BODY")
# What will not be better at the next try.
_HOPELESS = ("E_BAD_TOPIC", "E_UNAUTHORIZED", "E_AUTH_FIRST", "E_AUTH_FAILED", "E_INVALID")
RETRY_S = 0.5
# How often one that waits for a connection looks whether it waits in vain.
REFUSAL_CHECK_S = 0.2
# MPUBs that are read and wait for a sender, for each nsqd.
READ_AHEAD = 2
# Each refused message is told, up to this many; after that they are only counted.
TOLD_MAX = 20


@dataclass(slots=True)
class PlayerCounts:
    """Messages, bytes of bodies and MPUBs that nsqd said OK to; what it refused; what was sent again.

    `unanswered` are the messages that were taken and are not settled yet; of those, `sent` were sent
    once at least, and may be there.
    """

    messages: int = 0
    body_bytes: int = 0
    mpubs: int = 0
    refused: int = 0
    sent_again: int = 0
    unanswered: int = 0
    sent: int = 0


class Player:
    """Publishes to one topic over several nsqds; `async with`, then `play`, then `finish`.

    Leaving it without `finish` gives up what is not answered. What no retry will cure (E_BAD_TOPIC,
    E_UNAUTHORIZED and the like, a refused handshake) ends the block with a group that holds the
    ServerError or HandshakeRefused. One that is down is waited for.
    """

    def __init__(
        self,
        topic: str,
        addresses: Sequence[str],
        options: ProducerOptions,
        *,
        in_flight: int,
        clock: Clock,
    ) -> None:
        self.counts = PlayerCounts()
        self._topic = topic
        self._in_flight = in_flight
        self._clock = clock
        self._producers = [Producer(address, options) for address in dict.fromkeys(addresses)]
        # With each MPUB, whether it was sent before. Bounded by `play`: what comes back must never wait
        # for room.
        self._queue: asyncio.Queue[tuple[Sequence[bytes], bool]] = asyncio.Queue()
        self._mpubs = 0
        self._mpubs_max = len(self._producers) * (in_flight + READ_AHEAD)
        self._settled = asyncio.Event()
        self._log = get_log("replay")
        self._trouble = Repeated(self._log, "publishing failed, it is tried again", clock=clock)

    async def __aenter__(self) -> Self:
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        for producer in self._producers:
            await producer.__aenter__()
        self._senders = [
            self._group.create_task(self._send(producer))
            for producer in self._producers
            for _ in range(self._in_flight)
        ]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sender in self._senders:
            sender.cancel()
        for producer in self._producers:
            await producer.__aexit__(None, None, None)
        await self._group.__aexit__(exc_type, exc, traceback)

    async def play(self, bodies: Sequence[bytes]) -> None:
        """Take one MPUB's messages; waits while as many as may wait are not settled."""
        while self._mpubs >= self._mpubs_max:
            await self._wait_for_settled()
        self._mpubs += 1
        self.counts.unanswered += len(bodies)
        self._queue.put_nowait((bodies, False))

    async def finish(self) -> None:
        """Wait until everything was answered. Cancelling it gives the rest up."""
        while self._mpubs:
            await self._wait_for_settled()

    async def _wait_for_settled(self) -> None:
        self._settled.clear()
        await self._settled.wait()

    async def _send(self, producer: Producer) -> None:
        while True:
            await _connected(producer)
            bodies, was_sent = await self._queue.get()
            if not producer.is_connected:
                self._queue.put_nowait((bodies, was_sent))  # another nsqd may be up
                continue
            self.counts.sent += 0 if was_sent else len(bodies)
            if not await self._publish(producer, bodies):
                self._queue.put_nowait((bodies, True))
                await self._clock.sleep(RETRY_S)

    async def _publish(self, producer: Producer, bodies: Sequence[bytes]) -> bool:
        """Publish, or refuse, all of them; False when they are to be tried again."""
        try:
            await producer.send(commands.mpub(self._topic, bodies))
        except ServerError as refusal:
            if refusal.code in _HOPELESS:
                raise
            if refusal.code in _REFUSED:
                self._divide(producer, bodies, refusal)
                return True
            self._failed(bodies, refusal)
            return False
        except ConnectionFailed as failure:
            self._failed(bodies, failure)
            return False
        if self._trouble.is_failing:
            self._trouble.recovered("publishing works again")
        self.counts.messages += len(bodies)
        self.counts.body_bytes += sum(map(len, bodies))
        self.counts.mpubs += 1
        self._settle(len(bodies))
        return True

    def _divide(self, producer: Producer, bodies: Sequence[bytes], refusal: ServerError) -> None:
        if len(bodies) == 1:
            self.counts.refused += 1
            if self.counts.refused <= TOLD_MAX:
                self._log.error(
                    "nsqd refused a message",
                    nsqd=producer.address,
                    size=len(bodies[0]),
                    error=refusal,
                )
            self._settle(1)
            return
        middle = len(bodies) // 2
        self._mpubs += 1
        self.counts.sent -= len(bodies)  # nsqd took none of them
        for half in (bodies[:middle], bodies[middle:]):
            self._queue.put_nowait((half, False))

    def _settle(self, messages: int) -> None:
        """One MPUB is off the books."""
        self._mpubs -= 1
        self.counts.unanswered -= messages
        self.counts.sent -= messages
        self._settled.set()

    def _failed(self, bodies: Sequence[bytes], failure: NsqToolsError) -> None:
        self.counts.sent_again += len(bodies)
        self._trouble.failed(failure)


async def _connected(producer: Producer) -> None:
    """Wait for a connection, as long as that may help."""
    while not producer.is_connected:
        if producer.is_refused:
            raise producer.last_failure
        with contextlib.suppress(NsqToolsError):
            await producer.connected(REFUSAL_CHECK_S)
