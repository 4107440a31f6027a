"""Where messages go that will never be taken.

A message is done when its dead letter is durable, and not before.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import TYPE_CHECKING, Protocol

from nsqtools.archive.failures import FailedMessages, Failure
from nsqtools.clock import SystemClock
from nsqtools.errors import ConnectionFailed, NsqToolsError, ServerError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.contract import DONE, Again, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.client.producer import Producer
    from nsqtools.outputs.contract import Answer, Output
    from nsqtools.wire.messages import Messages

    Dead = tuple[Messages, int, Failure]
    """A message, by its batch and its number there, and why."""

# How long to wait for an nsqd that takes no dead letter.
TOPIC_RETRY_S = 5.0
# How long an nsqd may take to answer; the dead letter may stand in its topic twice then.
ANSWER_MAX_S = 30.0
# What nsqd says of a message that it will never take.
_NEVER_TAKEN = ("E_BAD_MESSAGE", "E_BAD_TOPIC")


class DeadLetter(Protocol):
    """A place for dead letters; it owns its errors."""

    async def open(self) -> None:
        """Get ready. What it raises is told, and it is called again."""

    async def keep(self, dead: Sequence[Dead]) -> Sequence[Answer]:
        """Keep them durably; an answer for each. Cancelling it may leave some there."""

    def trouble(self) -> str:
        """What does not work although dead letters are kept; nothing when all is well."""

    def rotate(self) -> None:
        """Finish what is being filled, soon."""

    async def close(self) -> None:
        """Finish what is open. Called again when it has raised."""

    async def abandon(self) -> None:
        """Let go of everything as a crash would."""


class DeadLetterArchive:
    """An archive: an output that takes messages with their failures."""

    def __init__(self, output: Output) -> None:
        self._output = output

    async def open(self) -> None:
        await self._output.open()

    async def keep(self, dead: Sequence[Dead]) -> Sequence[Answer]:
        batches = [
            FailedMessages(
                [messages.payloads[at] for messages, at, _ in group],
                [failure for _, _, failure in group],
                nsqd=nsqd,
            )
            for nsqd, group in _by_nsqd(dead)
        ]
        answer: Answer | Sequence[Answer] = await self._output.deliver(batches)
        # It keeps all or nothing.
        return [answer if isinstance(answer, Again) else DONE] * len(dead)

    def trouble(self) -> str:
        return self._output.trouble()

    def rotate(self) -> None:
        self._output.rotate()

    async def close(self) -> None:
        await self._output.close()

    async def abandon(self) -> None:
        await self._output.abandon()


def _by_nsqd(dead: Sequence[Dead]) -> list[tuple[str, list[Dead]]]:
    ordered = sorted(dead, key=lambda one: one[0].nsqd)
    return [(nsqd, list(group)) for nsqd, group in itertools.groupby(ordered, lambda d: d[0].nsqd)]


class DeadLetterTopic:
    """A topic: bodies alone, published to the first of several nsqds that takes them."""

    def __init__(self, topic: str, producers: Sequence[Producer]) -> None:
        """The producers belong to the caller, who has entered them."""
        self._topic = topic
        self._producers = producers
        self._trouble = Repeated(
            get_log("http"), "a dead letter could not be published", clock=SystemClock()
        )

    async def open(self) -> None:
        """The producers connect by themselves."""

    async def keep(self, dead: Sequence[Dead]) -> Sequence[Answer]:
        """One by one: an MPUB of some messages can be larger than nsqd takes."""
        return [await self._keep_one(messages.bodies[at]) for messages, at, _ in dead]

    async def _keep_one(self, body: bytes) -> Answer:
        """By the first nsqd that takes it. What nsqd will never take stays where it is."""
        failure: NsqToolsError | None = None
        for producer in self._producers:
            try:
                async with asyncio.timeout(ANSWER_MAX_S):
                    await producer.publish(self._topic, body)
            except TimeoutError:
                failure = ConnectionFailed(producer.address, "no answer to PUB in time")
            except NsqToolsError as refusal:
                failure = refusal
                if isinstance(refusal, ServerError) and refusal.code in _NEVER_TAKEN:
                    break
            else:
                self._trouble.recovered("dead letters can be published again", topic=self._topic)
                return DONE
        reason = str(failure or "no nsqd is connected")
        self._trouble.failed(reason, topic=self._topic)
        if isinstance(failure, ServerError) and failure.code in _NEVER_TAKEN:
            return Refused(f"dead letter topic {self._topic}: {failure}")
        wait_s = random.uniform(0.5, 1.0) * TOPIC_RETRY_S  # noqa: S311
        return Again(wait_s, f"dead letter topic {self._topic}: {reason}", stands=True)

    def trouble(self) -> str:
        """There is nothing to finish, so nothing that fails."""
        return ""

    def rotate(self) -> None:
        """There is nothing to finish."""

    async def close(self) -> None:
        """The producers are their owner's to close."""

    async def abandon(self) -> None:
        """The same."""
