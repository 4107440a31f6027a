"""What is kept beyond what channels need, and moving a channel in it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.disks import at_once, open_files
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.raw import RawClient, bodies
from tests.support.web import channel_stats, get_stats, request

from nsqtools.broker import upkeep as upkeep_module
from nsqtools.broker.block import build_block
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import Memory, MemoryBudget
from nsqtools.broker.retention import RETENTION, Retention, number_at
from nsqtools.broker.segment import Segment
from nsqtools.cli.main import main
from nsqtools.options import render_time_ns
from nsqtools.wire.bodies import measured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nsqd import Flag

SECOND_NS = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Retention()),
        ("24h", Retention(age_s=86400.0)),
        ("10GiB", Retention(size_bytes=10 << 30)),
        ("500k", Retention(size_bytes=500_000)),
        ("3000k", Retention(size_bytes=3_000_000)),
    ],
)
def test_a_time_or_a_size(text: str, expected: Retention) -> None:
    assert RETENTION.parse(text) == expected
    assert RETENTION.parse(RETENTION.render(expected)) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "-1h", "-5", "10 GiB", "1d", "24"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match=r"should|unit"):
        RETENTION.parse(text)


def segments(tmp_path: Path, *written_s: int) -> list[Segment]:
    """Each of 100 bytes and ten messages, written last at that second."""
    return [
        Segment(
            path=tmp_path / f"{at}.log",
            first=10 * at,
            ordinal=10 * at,
            end=10 * at + 10,
            size_bytes=100,
            written_ns=second * SECOND_NS,
        )
        for at, second in enumerate(written_s)
    ]


@pytest.mark.parametrize(
    ("retention", "end"),
    [
        (Retention(), 30),
        (Retention(age_s=15.0), 20),
        (Retention(age_s=100.0), None),
        (Retention(age_s=0.5), 30),
        (Retention(size_bytes=100), 30),
        (Retention(size_bytes=101), 20),
        (Retention(size_bytes=1000), None),
    ],
)
def test_whole_segments_are_kept(tmp_path: Path, retention: Retention, end: int | None) -> None:
    assert retention.end(segments(tmp_path, 10, 20, 30, 40), 40 * SECOND_NS) == end


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiskLog]:
    """60 messages, two in each second from 1000 on, in several segments."""
    made = DiskLog(
        tmp_path_factory.mktemp("log"),
        memory=Memory(1, MemoryBudget(1)),
        segment_size_max_bytes=1000,
        now_ms=1,
        files=open_files(),
        defer=at_once,
    )
    for second in range(30):
        made.append(build_block(made.end, measured([b"x" * 50] * 2), (1000 + second) * SECOND_NS))
    assert len(made.segments) > 4
    yield made
    made.close()
    made.sync()


@given(st.integers(990 * SECOND_NS, 1040 * SECOND_NS))
def test_a_time_is_found(log: DiskLog, time_ns: int) -> None:
    second = max(0, -(-(time_ns - 1000 * SECOND_NS) // SECOND_NS))
    expected = None if second >= 30 else log.start + 2 * second
    assert number_at(log.segments, time_ns) == expected


async def seek(nsqd: EmbeddedNsqd, to: str, channel: str = "c") -> int:
    answer = await request(nsqd, "POST", f"/channel/seek?topic=t&channel={channel}&to={to}")
    return answer.status


async def what_is_retained(nsqd: EmbeddedNsqd) -> dict[str, int]:
    found: dict[str, int] = (await get_stats(nsqd))["topics"][0]["retained"]
    return found


async def test_a_channel_goes_back_and_forward_and_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "PASS_INTERVAL_S", 0.01)
    flags: dict[str, Flag] = {"max_bytes_per_file": 4096, "retain": "1h", "mem_queue_size": 5}
    nsqd = EmbeddedNsqd(tmp_path, flags)
    await nsqd.start()
    try:
        everything = [b"%02d" % number + b"x" * 500 for number in range(40)]
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=100)
            await client.publish("t", *everything[:20])
            client.finish(*await client.messages(20))
            await asyncio.sleep(0.05)
            between = render_time_ns(time.time_ns())
            await asyncio.sleep(0.05)
            await client.publish("t", *everything[20:])
            client.finish(*await client.messages(20))
            (topic,) = (await get_stats(nsqd))["topics"]
            assert topic["retained"]["message_count"] == 40
            assert await seek(nsqd, "oldest") == 200
            assert bodies(await client.messages(40)) == everything
            # They are held now; to seek again takes them away.
            assert await seek(nsqd, between) == 200
            again = await client.messages(20)
            assert bodies(again) == everything[20:]
            assert {message.attempts for message in again} == {1}
            assert await seek(nsqd, "newest") == 200
            await client.publish("t", b"new")
            assert (await client.message()).body == b"new"
            assert await seek(nsqd, "oldest") == 200
        await nsqd.restart(kill=True)
        assert (await channel_stats(nsqd, "t", "c"))["depth"] == 41
        assert await seek(nsqd, "tomorrow") == 400
        assert await seek(nsqd, "oldest", "none") == 404
    finally:
        await nsqd.stop()


async def test_a_time_in_an_ephemeral_topic(tmp_path: Path) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    try:
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t#ephemeral", "c", rdy=0)
            await client.publish("t#ephemeral", b"one", b"two")
            await asyncio.sleep(0.002)
            between = time.time_ns()
            await client.publish("t#ephemeral", b"three")
            path = "/channel/seek?topic=t%23ephemeral&channel=c&to="
            for to, depth in (("1971-01-01", 3), (str(between), 1), ("2099-01-01", 0)):
                answer = await request(nsqd, "POST", path + to)
                assert json.loads(answer.body)["depth"] == depth
    finally:
        await nsqd.stop()


async def test_what_is_not_retained_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep_module, "PASS_INTERVAL_S", 0.01)
    flags: dict[str, Flag] = {"max_bytes_per_file": 4096, "retain": "10KiB", "sync_timeout": "10ms"}
    nsqd = EmbeddedNsqd(tmp_path, flags)
    await nsqd.start()
    try:
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=100)
            for _ in range(30):
                await client.publish("t", b"x" * 1000)
                client.finish(await client.message())
            async with asyncio.timeout(PATIENCE_S):
                while (await what_is_retained(nsqd))["bytes"] > 20_000:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            retained = await what_is_retained(nsqd)
            assert retained["bytes"] > 10_240
            # More may have gone meanwhile; from here on the channel holds what there is.
            assert await seek(nsqd, "oldest") == 200
            stats = await channel_stats(nsqd, "t", "c")
            waiting = stats["depth"] + stats["in_flight_count"]
            assert 0 < waiting < 30
            assert len(await client.messages(waiting)) == waiting
    finally:
        await nsqd.stop()


async def test_a_new_channel_can_begin_with_what_is_retained(tmp_path: Path) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {"retain": "1h", "start_from": "oldest"})
    await nsqd.start()
    try:
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "first", rdy=10)
            await client.publish("t", b"1", b"2")
            client.finish(*await client.messages(2))
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "late", rdy=10)
            assert bodies(await client.messages(2)) == [b"1", b"2"]
    finally:
        await nsqd.stop()


async def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {"retain": "1h"})
    await nsqd.start()

    async def run(*words: str) -> int:
        def in_thread() -> int:
            with pytest.raises(SystemExit) as ended:
                main(["seek", f"--nsqd-http-address={nsqd.http_address}", *words])
            return int(ended.value.code or 0)

        return await asyncio.to_thread(in_thread)

    try:
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=10)
            await client.publish("t", b"1", b"2")
            client.finish(*await client.messages(2))
        assert await run("--topic=t", "--channel=c", "--to=oldest") == 0
        assert "2 messages wait" in capsys.readouterr().out
        # As nanoseconds this would be a number that is taken for one of a coarser unit.
        assert await run("--topic=t", "--channel=c", "--to=1971-01-01") == 0
        assert "2 messages wait" in capsys.readouterr().out
        assert await run("--topic=t", "--channel=none", "--to=oldest") == 3
        assert "CHANNEL_NOT_FOUND" in capsys.readouterr().err
        assert await run("--topic=t") == 2
        assert "name --channel" in capsys.readouterr().err
    finally:
        await nsqd.stop()
