"""Archiving from a broker into a folder, and looking at both."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.support.nsqd import PATIENCE_S
from tests.support.raw import RawClient
from tests.support.web import channel_stats

from nsqtools.archive.claims import FOLDER_PREFIX
from nsqtools.archive.reader import open_archive
from nsqtools.lifecycle import Lifecycle
from nsqtools.options import load
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.run import Run
from nsqtools.pipeline.topic import TopicPipeline, TopicSpec
from nsqtools.programs.nsq_to_file.options import NsqToFileOptions
from nsqtools.programs.nsq_to_file.run import archive_spec, output_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from tests.support.nsqd import Nsqd

    from nsqtools.outputs.contract import Answer
    from nsqtools.wire.messages import Messages

CHANNEL = "archive"
POLL_S = 0.01


def archive_options(folder: Path, *flags: str) -> NsqToFileOptions:
    """Of a run of nsq_to_file; the topic is `t` unless topics are to be discovered."""
    argv = [f"--output-dir={folder}", f"--channel={CHANNEL}", "--filename-format=<TOPIC><REV>.log"]
    if not any(flag.startswith("--topic") for flag in flags):
        argv.append("--topic=t")
    if not any(flag.startswith("--sync-interval") for flag in flags):
        argv.append("--sync-interval=20ms")
    return load(NsqToFileOptions, "nsq_to_file", [*argv, *flags], {})


def pipeline_of(
    nsqd: Nsqd, folder: Path, *flags: str, output: type[FileOutput] = FileOutput
) -> TopicPipeline:
    options = archive_options(folder, f"--nsqd-tcp-address={nsqd.tcp_address}", *flags)
    folder.mkdir(exist_ok=True)
    spec = TopicSpec(
        topic="t",
        channel=options.channel,
        consumer=options.consumer(),
        nsqd_addresses=options.nsqd_tcp_address,
    )
    made = output(archive_spec(options, "t"), Workers(), sync_interval_s=options.sync_interval_s)
    return TopicPipeline(spec, made)


@asynccontextmanager
async def running(pipeline: TopicPipeline) -> AsyncIterator[None]:
    """The pipeline archives within the block, and ends in order behind it."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pipeline.run())
        yield
        pipeline.stop()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([task])


@asynccontextmanager
async def archiving(options: NsqToFileOptions) -> AsyncIterator[Run]:
    """A whole run, without its signals."""
    workers = Workers()
    archiver = Run(options, lambda topic: output_of(options, topic, workers))
    async with Lifecycle(PATIENCE_S, handle_signals=False) as life, asyncio.TaskGroup() as group:
        task = group.create_task(archiver.run(life))
        yield archiver
        life.stop("test")
        assert await task, "it did not end in order"


async def publish(nsqd: Nsqd, *bodies: bytes, topic: str = "t") -> None:
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish(topic, *bodies)


def finished_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (".part", ".tmp")
        and not path.parent.name.startswith(FOLDER_PREFIX)
    )


def archived(folder: Path) -> list[bytes]:
    """The bodies in all finished files, file by file."""
    found: list[bytes] = []
    for path in finished_files(folder):
        with open_archive(path) as archive:
            found += itertools.chain.from_iterable(batch.bodies for batch in archive.batches())
    return found


async def in_flight(nsqd: Nsqd, topic: str = "t") -> int:
    return int((await stats(nsqd, topic))["in_flight_count"])


async def stats(nsqd: Nsqd, topic: str = "t") -> dict[str, int]:
    """The archive's channel as nsqd sees it; all zero while there is none."""
    found: dict[str, int] | None = await channel_stats(nsqd, topic, CHANNEL)
    return found or dict.fromkeys(("depth", "in_flight_count", "timeout_count", "message_count"), 0)


async def until_stats(
    nsqd: Nsqd, condition: Callable[[dict[str, int]], bool], topic: str = "t"
) -> None:
    """Wait until the channel is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(await stats(nsqd, topic)):  # noqa: ASYNC110 - nsqd has no event for it
            await asyncio.sleep(POLL_S)


async def until_settled(nsqd: Nsqd, count: int, topic: str = "t") -> None:
    """Wait until so many messages went through the channel and none of them is left.

    It has to be so twice: nsqd takes these numbers one after the other, and a message that goes from
    the queue to a consumer meanwhile is in none of them.
    """
    for _ in range(2):
        await until_stats(
            nsqd,
            lambda now: (
                (now["message_count"], now["depth"], now["in_flight_count"]) == (count, 0, 0)
            ),
            topic,
        )
        await asyncio.sleep(POLL_S)


class GatedOutput(FileOutput):
    """A real output whose writes wait for a gate; it says when one has come."""

    gate: asyncio.Event
    reached: asyncio.Event

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        self.reached.set()
        await self.gate.wait()
        return await super().deliver(messages)
