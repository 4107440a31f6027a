"""Broker and archiver around a real nsqlookupd; where there is none these tests are skipped."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from tests.pipeline.helpers import archive_options, archived, archiving, publish, until_settled
from tests.support.nsqd import PATIENCE_S
from tests.support.web import until_channel

from nsqtools.ask import ask, check_status, new_session

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import StartNsqd

OFTEN = "--consumer-opt=lookupd_poll_interval,100ms"


async def until_nodes(http_address: str, count: int) -> None:
    """Wait until nsqlookupd knows so many nsqds."""
    async with asyncio.timeout(PATIENCE_S), new_session() as session:
        known = -1
        while known != count:
            status, body = await ask(
                session,
                f"http://{http_address}/nodes",
                http_address,
                connect_timeout_s=PATIENCE_S,
                timeout_s=PATIENCE_S,
            )
            check_status(status)
            known = len(json.loads(body)["producers"])


async def test_an_archive_finds_the_nsqds_of_its_topic(
    nsqlookupd: tuple[str, str], start_nsqd: StartNsqd, tmp_path: Path
) -> None:
    tcp_address, http_address = nsqlookupd
    flags = {"lookupd_tcp_address": tcp_address, "broadcast_address": "127.0.0.1"}
    first, later = [await start_nsqd(**flags) for _ in range(2)]
    folder = tmp_path / "archive"
    folder.mkdir()
    await publish(first, b"from the first")
    options = archive_options(folder, f"--lookupd-http-address={http_address}", OFTEN)
    async with archiving(options):
        await until_settled(first, 1)
        await publish(later, b"from one that got the topic later")
        await until_settled(later, 1)
    assert sorted(archived(folder)) == [b"from one that got the topic later", b"from the first"]


async def test_a_pattern_finds_topics_that_come_later(
    nsqlookupd: tuple[str, str], start_nsqd: StartNsqd, tmp_path: Path
) -> None:
    tcp_address, http_address = nsqlookupd
    nsqd = await start_nsqd(lookupd_tcp_address=tcp_address, broadcast_address="127.0.0.1")
    folder = tmp_path / "archive"
    folder.mkdir()
    options = archive_options(
        folder,
        "--topic-pattern=^orders",
        "--topic-refresh=100ms",
        f"--lookupd-http-address={http_address}",
        OFTEN,
    )
    async with archiving(options):
        await publish(nsqd, b"not wanted", topic="clicks")
        for topic in ("orders-eu", "orders-us"):
            await publish(nsqd, topic.encode(), topic=topic)
            await until_settled(nsqd, 1, topic)
    assert sorted(archived(folder)) == [b"orders-eu", b"orders-us"]


async def test_a_topic_has_the_channels_it_has_elsewhere_from_its_first_message_on(
    nsqlookupd: tuple[str, str], start_nsqd: StartNsqd, tmp_path: Path
) -> None:
    tcp_address, http_address = nsqlookupd
    flags = {"lookupd_tcp_address": tcp_address, "broadcast_address": "127.0.0.1"}
    folder = tmp_path / "archive"
    folder.mkdir()
    first = await start_nsqd(**flags)
    await publish(first, b"here")
    async with archiving(archive_options(folder, f"--lookupd-http-address={http_address}", OFTEN)):
        await until_settled(first, 1)
    second = await start_nsqd(**flags)
    # Only who is connected to nsqlookupd can ask it for the channels of a new topic.
    await until_nodes(http_address, 2)
    await publish(second, b"there")
    await until_channel(second, "t", "archive", depth=1)
    async with archiving(archive_options(folder, f"--lookupd-http-address={http_address}", OFTEN)):
        await until_settled(second, 1)
    assert sorted(archived(folder)) == [b"here", b"there"]
