"""A run of nsq_to_http in the loop of the test, from a broker to endpoints."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.support.nsqd import PATIENCE_S
from tests.support.raw import RawClient
from tests.support.web import channel_stats

from nsqtools.lifecycle import Lifecycle
from nsqtools.options import load
from nsqtools.pipeline.run import Run
from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions
from nsqtools.programs.nsq_to_http.run import Shared, output_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.support.nsqd import Nsqd

CHANNEL = "deliver"
POLL_S = 0.01


def options_of(
    nsqd: Nsqd, *flags: str, environ: Mapping[str, str] | None = None
) -> NsqToHttpOptions:
    """The topic is `t` unless others are named."""
    argv = [f"--nsqd-tcp-address={nsqd.tcp_address}", f"--channel={CHANNEL}", "--status-every=0"]
    if not any(flag.startswith("--topic") for flag in flags):
        argv.append("--topic=t")
    return load(NsqToHttpOptions, "nsq_to_http", [*argv, *flags], environ or {})


@asynccontextmanager
async def delivering(
    nsqd: Nsqd, *flags: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Run]:
    """A whole run, without its signals; it must end in order."""
    options = options_of(nsqd, *flags, environ=environ)
    async with (
        Shared(options) as shared,
        Lifecycle(PATIENCE_S, handle_signals=False) as life,
        asyncio.TaskGroup() as group,
    ):
        run = Run(options, lambda topic: output_of(options, topic, shared))
        task = group.create_task(run.run(life))
        yield run
        life.stop("test")
        assert await task, "it did not end in order"


async def publish(nsqd: Nsqd, *bodies: bytes, topic: str = "t") -> None:
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish(topic, *bodies)


async def stats(nsqd: Nsqd, topic: str = "t") -> dict[str, Any]:
    """The channel as nsqd sees it; all zero while there is none."""
    names = ("depth", "in_flight_count", "timeout_count", "message_count", "requeue_count")
    found: dict[str, Any] | None = await channel_stats(nsqd, topic, CHANNEL)
    return found or dict.fromkeys((*names, "deferred_count"), 0)


async def until_stats(
    nsqd: Nsqd, condition: Callable[[dict[str, Any]], bool], topic: str = "t"
) -> None:
    """Wait until the channel is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(await stats(nsqd, topic)):  # noqa: ASYNC110 - nsqd has no event for it
            await asyncio.sleep(POLL_S)


async def until_settled(nsqd: Nsqd, count: int, topic: str = "t") -> None:
    """Wait until so many messages went through the channel and none is left; it has to be so twice,
    because nsqd does not take all these numbers in one moment."""
    for _ in range(2):
        await until_stats(
            nsqd,
            lambda now: (
                (now["message_count"], now["depth"], now["in_flight_count"], now["deferred_count"])
                == (count, 0, 0, 0)
            ),
            topic,
        )
        await asyncio.sleep(POLL_S)


def counted(run: Run, name: str, topic: str = "t") -> float:
    """A counter of the topic's output."""
    for sample in run.registry.snapshot():
        if sample.name == f"nsqtools_output_{name}_total" and ("topic", topic) in sample.labels:
            return sample.value
    raise KeyError(name)


def removed(run: Run, by: str, topic: str = "t") -> float:
    """How many messages of a topic were filtered out by that."""
    labels = {("topic", topic), ("by", by)}
    for sample in run.registry.snapshot():
        if sample.name == "nsqtools_pipeline_removed_messages_total" and labels <= set(
            sample.labels
        ):
            return sample.value
    return 0.0
