"""Where NSQ's own nsq_to_file doubles messages, writes what cannot be read back, or surprises (spec:
tools, 7.3): a test for each row."""

from __future__ import annotations

import asyncio
import re
import signal
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import read_payloads
from tests.archive.test_manifest import assert_fits, beside
from tests.pipeline.helpers import (
    CHANNEL,
    archived,
    finished_files,
    publish,
    stats,
    until_settled,
)
from tests.programs.nsq_to_file.helpers import (
    NOBODY,
    TEN,
    archiver,
    flags_of,
    run_to_end,
)
from tests.support.clients import until
from tests.support.lookupd import UNKNOWN, listing, lookupds, topic_list
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, PeerConnection, fins, ids_of, message, messages
from tests.support.programs import Program
from tests.support.web import post, topic_stats

from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

pytestmark = pytest.mark.slow

# What nobody should put into lines.
ODD = [b"two\nlines", b"", b"\n", bytes(range(256)), b"plain", b"\xff\xfe", b'{"a": 1}\r\n']


async def test_d1_a_sync_interval_beyond_the_message_timeout_doubles_nothing(
    start_nsqd: StartNsqd, folder: Path
) -> None:
    """What is held is touched; so nothing times out, and nothing is written twice."""
    nsqd = await start_nsqd(msg_timeout="1s")
    flags = ("--sync-interval=3s", "--no-dedupe", "--format=jsonl")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        for number in range(40):  # a trickle that never becomes quiet
            await publish(nsqd, b"%d" % number)
            await asyncio.sleep(0.05)
        await until_settled(nsqd, 40)
        assert (await stats(nsqd))["timeout_count"] == 0
        assert await tool.end(signal.SIGTERM) == 0
    assert sorted(map(int, archived(folder))) == list(range(40))
    assert not any("E_FIN_FAILED" in line for line in tool.log)


async def test_d2_a_kill_between_sync_and_fin_doubles_nothing(folder: Path) -> None:
    """The FINs of five messages are lost; nsqd delivers them again, with a new one, to the next life.
    They come in order, and together."""
    async with Peer() as peer, Program("nsq_to_file") as tool:
        await tool.start(*flags_of(folder, nsqd=peer.address))
        nsqd = await subscribed(peer)
        nsqd.send(messages(1, 2, 3, 4, 5))
        while not (together := await nsqd.read_some()).startswith(b"FIN "):
            assert together.startswith(b"RDY ")
        assert together == b"".join(fin + b"\n" for fin in fins(1, 2, 3, 4, 5))
        await tool.kill()
        await tool.start(*flags_of(folder, nsqd=peer.address))
        nsqd = await subscribed(peer)
        again = [message(number, attempts=2) for number in (5, 4, 3, 2, 1)]
        nsqd.send(b"".join([*again, message(6)]))
        await nsqd.until_told(*fins(1, 2, 3, 4, 5, 6))
        tool.send(signal.SIGTERM)
        await nsqd.until_told(b"CLS")
        nsqd.respond(b"CLOSE_WAIT")
        assert await tool.end(None) == 0
    assert len(archived(folder)) == 6
    assert any("duplicates=5" in line for line in tool.log)


async def subscribed(peer: Peer) -> PeerConnection:
    """The program's connection, with its first RDY behind it."""
    nsqd = await peer.accept()
    await nsqd.identify()
    await nsqd.expect(f"SUB t {CHANNEL}".encode())
    nsqd.respond()
    assert (await nsqd.command()).startswith(b"RDY ")
    return nsqd


@pytest.mark.parametrize("flag", ["--format=framed", "--format=jsonl"])
async def test_d3_any_bytes_come_back_with_time_id_and_attempts(flag: str, folder: Path) -> None:
    async with Peer() as peer, Program("nsq_to_file") as tool:
        await tool.start(*flags_of(folder, flag, f"--max-messages={len(ODD)}", nsqd=peer.address))
        nsqd = await subscribed(peer)
        frames = [message(at, body, attempts=at + 3) for at, body in enumerate(ODD)]
        nsqd.send(b"".join(frames))
        await nsqd.until_told(b"CLS")
        nsqd.respond(b"CLOSE_WAIT")
        assert await tool.end(None) == 0, tool.told
    (path,) = finished_files(folder)
    found = Messages(read_payloads(path))
    assert found.bodies == ODD
    assert found.ids == ids_of(range(len(ODD)))
    assert found.attempts == [at + 3 for at in range(len(ODD))]
    assert found.timestamps == [1_700_000_000_000_000_000 + at for at in range(len(ODD))]


async def test_d4_a_relative_work_dir_is_no_part_of_the_names(
    nsqd: Nsqd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "w").mkdir()
    await publish(nsqd, *TEN)
    status, told = await run_to_end(
        folder, "--output-dir=.", "--work-dir=./w", "--max-messages=10", nsqd=nsqd
    )
    assert status == 0, told
    (path,) = finished_files(folder)
    assert path.parent == folder
    assert archived(folder) == TEN


async def test_d4_one_folder_spelt_in_two_ways_is_one_folder(nsqd: Nsqd, folder: Path) -> None:
    await publish(nsqd, *TEN)
    status, told = await run_to_end(folder, f"--work-dir={folder}/", "--max-messages=10", nsqd=nsqd)
    assert status == 0, told
    assert finished_files(folder) == [folder / "t.log"], "its revision was not raised"


async def test_d5_only_directives_of_a_date_format_become_dates(nsqd: Nsqd, folder: Path) -> None:
    """And in UTC nothing flips back when summer ends."""
    await publish(nsqd, *TEN)
    status, told = await run_to_end(
        folder,
        *("--datetime-format=v1-2006-Jan-15-PM-%Y%j", "--utc", "--max-messages=10"),
        *("--filename-format=<TOPIC><REV>.<DATETIME>.log",),
        nsqd=nsqd,
    )
    assert status == 0, told
    (path,) = finished_files(folder)
    today = datetime.now(UTC)
    assert path.name == f"t.v1-2006-Jan-15-PM-{today:%Y%j}.log"


async def test_d6_an_idle_topic_makes_no_file_and_a_file_no_empty_member(
    nsqd: Nsqd, folder: Path
) -> None:
    flags = ("--rotate-interval=100ms", "--gzip", "--no-compact")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await asyncio.sleep(0.4)
        assert finished_files(folder) == []
        await publish(nsqd, *TEN)
        await until(lambda: len(finished_files(folder)) == 1)
        await asyncio.sleep(0.4)
        assert await tool.end(signal.SIGTERM) == 0
    (path,) = finished_files(folder)
    members = members_of(path.read_bytes())
    assert b"".join(members).splitlines() == TEN
    assert members[-1]


def members_of(data: bytes) -> list[bytes]:
    """What each gzip member holds."""
    found = []
    while data:
        member = zlib.decompressobj(wbits=31)
        found.append(member.decompress(data))
        data = member.unused_data
    return found


async def test_d7_an_idle_file_ends_in_its_time_and_sizes_are_those_on_the_disk(
    nsqd: Nsqd, folder: Path
) -> None:
    """Between two syncs, which are half a minute apart; and hundreds of kilobytes are a few when
    compressed."""
    flags = ("--rotate-idle=100ms", "--rotate-size=50k", "--sync-interval=30s", "--gzip")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        for count in range(1, 4):
            await publish(nsqd, b"x" * 300_000)
            await until_settled(nsqd, count)
        await until(lambda: finished_files(folder))
        assert await tool.end(signal.SIGTERM) == 0
    sizes = [path.stat().st_size for path in finished_files(folder)]
    assert max(sizes) < 50_000
    assert len(archived(folder)) == 3


async def test_d8_topics_are_found_at_once_though_an_nsqlookupd_is_down(
    nsqd: Nsqd, folder: Path
) -> None:
    """The next look would be in an hour."""
    async with lookupds(listing(address_of(nsqd))) as (fake,):
        fake.answers["/topics"] = topic_list("t")
        await publish(nsqd, *TEN)
        status, told = await run_to_end(
            folder,
            *("--topic-pattern=.", "--topic-refresh=1h", "--max-messages=10"),
            *(f"--lookupd-http-address={NOBODY}", f"--lookupd-http-address={fake.address}"),
        )
    assert status == 0, told
    assert archived(folder) == TEN


def address_of(nsqd: Nsqd) -> tuple[str, int]:
    host, _, port = nsqd.tcp_address.rpartition(":")
    return host, int(port)


async def test_d9_an_invalid_topic_pattern_is_refused(folder: Path) -> None:
    flags = ("--topic-pattern=logs(", f"--lookupd-http-address={NOBODY}")
    status, told = await run_to_end(folder, *flags)
    assert status == 2
    assert "--topic-pattern" in told
    assert "not a regular expression" in told


async def test_d9_topics_that_do_not_match_are_not_told_again_and_again(
    nsqd: Nsqd, folder: Path
) -> None:
    async with lookupds(listing(address_of(nsqd))) as (fake,):
        fake.answers["/topics"] = topic_list("logs", "other")
        flags = ("--topic-pattern=^logs", "--topic-refresh=20ms")
        async with archiver(folder, *flags, f"--lookupd-http-address={fake.address}") as tool:
            asked = len(fake.asked)
            await until(lambda: len(fake.asked) > asked + 10)
            assert await tool.end(signal.SIGTERM) == 0
    assert not any("other" in line for line in tool.log)


async def test_d10_a_deleted_topic_is_let_go_and_not_made_anew(nsqd: Nsqd, folder: Path) -> None:
    """Nor is an ephemeral one discovered."""
    async with lookupds(listing(address_of(nsqd))) as (fake,):
        fake.answers["/topics"] = topic_list("logs", "logs#ephemeral")
        flags = (
            *("--topic-pattern=^logs", "--topic-refresh=20ms"),
            *("--consumer-opt=lookupd_poll_interval,100ms",),
            f"--lookupd-http-address={fake.address}",
        )
        async with archiver(folder, *flags) as tool:
            await publish(nsqd, *TEN, topic="logs")
            await until_settled(nsqd, 10, "logs")
            fake.answers["/topics"] = topic_list()
            fake.answers["/lookup?topic=logs"] = UNKNOWN
            await post(nsqd, "/topic/delete?topic=logs")
            await tool.says("topic is gone")
            await until(lambda: archived(folder) == TEN)  # its file is finished
            asked = len(fake.asked)
            await until(lambda: len(fake.asked) > asked + 10)
            assert not [one for one in fake.asked[asked:] if "/lookup" in one], "nobody asks for it"
            assert await topic_stats(nsqd, "logs") is None
            assert await topic_stats(nsqd, "logs%23ephemeral") is None
            assert await tool.end(signal.SIGTERM) == 0


async def test_d11_many_nsqds_do_not_mean_tiny_batches(start_nsqd: StartNsqd, folder: Path) -> None:
    """Sixteen nsqds, and a window that NSQ's tool would part into sixteen and sync piece by piece."""
    nsqds = [await start_nsqd() for _ in range(16)]
    for nsqd in nsqds:
        for _ in range(5):
            await publish(nsqd, *[b"x" * 20] * 50)
    addresses = [f"--nsqd-tcp-address={nsqd.tcp_address}" for nsqd in nsqds]
    flags = ("--max-in-flight=800", "--sync-interval=30s")
    async with archiver(folder, *addresses, *flags) as tool:
        for nsqd in nsqds:
            await until_settled(nsqd, 250)
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    summary = next(line for line in tool.log if "archived messages=4000" in line)
    counts = dict(part.split("=") for part in summary.split() if part.count("=") == 1)
    assert int(counts["deliveries"]) < 60, "of 4,000 messages; 42 in each would be 95"
    assert len(archived(folder)) == 4000


async def test_d11_the_last_messages_of_many_nsqds_are_found(
    start_nsqd: StartNsqd, folder: Path
) -> None:
    """Only so many are wanted, and whichever nsqd has the last of them gets its turn soon."""
    nsqds = [await start_nsqd() for _ in range(16)]
    for nsqd in nsqds:
        await publish(nsqd, *[b"x" * 20] * 50)
    addresses = [f"--nsqd-tcp-address={nsqd.tcp_address}" for nsqd in nsqds]
    status, told = await run_to_end(folder, *addresses, "--max-messages=800")
    assert status == 0, told
    assert len(archived(folder)) == 800, "there were no more"


async def test_d12_a_finished_file_is_told_from_an_open_one_and_has_a_checksum(
    nsqd: Nsqd, folder: Path
) -> None:
    async with archiver(folder, "--manifest", nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        assert [path.name for path in folder.glob("[!.]*")] == ["t.log.part"]
        assert await tool.end(signal.SIGTERM) == 0
    assert sorted(path.name for path in folder.glob("[!.]*")) == [
        "t.log",
        beside(folder / "t.log").name,
    ]
    assert assert_fits(folder / "t.log").records == 10


async def test_d13_metrics_health_and_a_usage_of_its_own(
    nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "status"
    flags = (f"--status-address={socket}", "--log-prefix=[mine] ", "--log-level=info")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        counted = r'nsqtools_pipeline_delivered_messages_total\{.*topic="t".*\} 10\b'
        assert re.search(counted, await ask(socket, "/metrics"))
        assert await ask(socket, "/health") == "ok\n"
        assert await tool.end(signal.SIGTERM) == 0
    assert all(line.startswith("[mine] ") for line in tool.log), "lines of the client, too"
    status, told = await run_to_end(folder, "--help")
    assert status == 0
    assert "nsqd" not in told.partition("\n")[0]


async def ask(socket: Path, target: str) -> str:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert b" 200 " in head.splitlines()[0]
    return body.decode()
