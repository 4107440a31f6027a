"""From any publisher through an nsqd into every kind of archive, and back out of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import ansq
import pytest
from tests.pipeline.helpers import (
    archive_options,
    archived,
    archiving,
    finished_files,
    until_settled,
    until_stats,
)
from tests.support.clients import consumer_options, producer_options, until
from tests.support.nsqd import PATIENCE_S
from tests.support.web import post

from nsqtools.archive.reader import open_archive
from nsqtools.client import handlers
from nsqtools.client.consumer import Consumer
from nsqtools.client.producer import Producer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

    from nsqtools.client.batch import Message

FORMATS = ("lines", "jsonl", "framed")
COMPRESSIONS = ("none", "gzip", "zstd")
TEXT = [b"message %d" % number for number in range(300)]
ANY_BYTES = [b"%d\n\x00\xff\xfe" % number for number in range(299)] + [b"x" * 100_000]
TOPIC = "orders"
SOON = (f"--topic={TOPIC}", "--sync-interval=50ms", "--consumer-opt=lookupd_poll_interval,20ms")
# ansq leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


async def publish_by_all_means(nsqd: Nsqd, bodies: list[bytes]) -> None:
    """A third each by our producer, by ansq and by HTTP, in this order."""
    third = len(bodies) // 3
    async with Producer(nsqd.tcp_address, producer_options()) as producer:
        await producer.connected(PATIENCE_S)
        await producer.publish_many(TOPIC, bodies[: third - 1])
        await producer.publish(TOPIC, bodies[third - 1])
    writer = await ansq.create_writer(nsqd_tcp_addresses=[nsqd.tcp_address])
    try:
        await writer.mpub(TOPIC, *bodies[third : 2 * third])
    finally:
        await writer.close()
    for body in bodies[2 * third :]:
        await post(nsqd, f"/pub?topic={TOPIC}", body)


@pytest.mark.parametrize(
    ("record_format", "compression"), [*itertools.product(FORMATS, COMPRESSIONS)]
)
async def test_every_kind_of_archive(
    record_format: str, compression: str, nsqd: Nsqd, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    bodies = TEXT if record_format == "lines" else ANY_BYTES
    began_ns = time.time_ns()
    options = archive_options(
        folder,
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        f"--format={record_format}",
        f"--compress={compression}",
        *SOON,
    )
    async with archiving(options):
        await publish_by_all_means(nsqd, bodies)
        await until_settled(nsqd, len(bodies), TOPIC)
    assert archived(folder) == bodies
    if record_format != "lines":
        check_what_nsqd_said(folder, len(bodies), began_ns)


def check_what_nsqd_said(folder: Path, count: int, began_ns: int) -> None:
    (path,) = finished_files(folder)
    ids: set[bytes] = set()
    with open_archive(path) as archive:
        assert archive.info.meta.get("topic", TOPIC) == TOPIC
        for batch in archive.batches():
            assert batch.messages is not None
            ids.update(batch.messages.ids)
            assert set(batch.messages.attempts) == {1}
            assert all(began_ns <= stamp <= time.time_ns() for stamp in batch.messages.timestamps)
    assert len(ids) == count
    assert {len(message_id) for message_id in ids} == {16}


async def test_two_nsqds_into_one_archive(start_nsqd: StartNsqd, tmp_path: Path) -> None:
    both = [await start_nsqd(), await start_nsqd()]
    folder = tmp_path / "archive"
    folder.mkdir()
    addresses = [f"--nsqd-tcp-address={nsqd.tcp_address}" for nsqd in both]
    options = archive_options(folder, "--format=jsonl", "--max-in-flight=7", *addresses, *SOON)
    async with archiving(options):
        for number, nsqd in enumerate(both):
            await publish_by_all_means(nsqd, TEXT[number::2])
        for nsqd in both:
            await until_settled(nsqd, len(TEXT) // 2, TOPIC)
    assert sorted(archived(folder)) == sorted(TEXT)
    found: dict[bytes, str] = {}
    for path in finished_files(folder):
        with open_archive(path) as archive:
            for batch in archive.batches():
                assert batch.nsqds is not None
                found.update(zip(batch.bodies, batch.nsqds, strict=True))
    assert {found[body] for body in TEXT[0::2]} == {both[0].tcp_address}
    assert {found[body] for body in TEXT[1::2]} == {both[1].tcp_address}


def is_empty(channel: dict[str, int]) -> bool:
    return not channel["depth"] and not channel["in_flight_count"]


@pytest.mark.parametrize("kill", [False, True], ids=["in order", "killed"])
async def test_an_nsqd_that_is_started_again(kill: bool, nsqd: Nsqd, tmp_path: Path) -> None:
    if kill and nsqd.is_real:
        pytest.skip("nsqd loses what it holds in memory when it is killed")
    folder = tmp_path / "archive"
    folder.mkdir()
    options = archive_options(folder, f"--nsqd-tcp-address={nsqd.tcp_address}", *SOON)
    async with archiving(options) as archiver:
        await publish_by_all_means(nsqd, TEXT[:150])
        await nsqd.restart(kill=kill)
        await publish_by_all_means(nsqd, TEXT[150:])
        await until(lambda: archiver._sum()["messages"] >= len(TEXT))
        # Some may have come twice, so there may be more to come.
        await until_stats(nsqd, lambda now: now["message_count"] >= 150 and is_empty(now), TOPIC)
    assert set(archived(folder)) == set(TEXT)


@pytest.mark.parametrize("compression", ["deflate", "snappy"])
async def test_a_compressed_connection_where_nsqd_has_it(compression: str, nsqd: Nsqd) -> None:
    """An nsqd that does not is spoken to in plain."""
    await publish_by_all_means(nsqd, ANY_BYTES)
    options = consumer_options(100, **{compression: "true"})
    async with Consumer(TOPIC, "c", options, nsqd_addresses=[nsqd.tcp_address]) as consumer:
        seen: list[bytes] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(seen) < len(ANY_BYTES):
                for batch in await consumer.receive():
                    seen += batch.messages.bodies
                    assert batch.finish() == 0
        assert await consumer.stop(PATIENCE_S)
        await consumer.close()
    assert sorted(seen) == sorted(ANY_BYTES)


async def test_handlers_that_fail_at_first(nsqd: Nsqd) -> None:
    attempts: dict[bytes, list[int]] = {}
    done = asyncio.Event()

    async def handle(message: Message) -> None:
        attempts.setdefault(message.body, []).append(message.attempts)
        if message.attempts == 1 and message.body.endswith(b"7"):
            raise ValueError("not yet")
        if (
            sum(counts[-1] > 1 or not body.endswith(b"7") for body, counts in attempts.items())
            == 30
        ):
            done.set()

    settings = {"default_requeue_delay": "0s", "max_backoff_duration": "0s"}
    options = consumer_options(10, **settings)
    async with Consumer(TOPIC, "c", options, nsqd_addresses=[nsqd.tcp_address]) as consumer:
        running = asyncio.create_task(handlers.handle(consumer, handle, concurrency=4))
        await publish_by_all_means(nsqd, TEXT[:30])
        async with asyncio.timeout(PATIENCE_S):
            await done.wait()
        assert await consumer.stop(PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            await running
        await consumer.close()
    assert set(attempts) == set(TEXT[:30])
    assert {tuple(counts) for body, counts in attempts.items() if body.endswith(b"7")} == {(1, 2)}
