"""The programs against a hostile nsqlookupd: what it names is bounded, and told within bounds."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest
from tests.programs.hostile.test_hostile_nsqd import PEAK_MAX_BYTES, check_log, check_sound
from tests.support.hostile import TERMINAL
from tests.support.lookupd import UNKNOWN, FakeLookupd, listing, lookupds, topic_list
from tests.support.programs import Program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOPICS = 20_000


@pytest.fixture
async def lookupd() -> AsyncIterator[FakeLookupd]:
    async with lookupds(UNKNOWN) as [fake]:
        yield fake


async def start(tool: Program, lookupd: FakeLookupd, folder: Path, *flags: str) -> None:
    source = ["--channel=c", f"--lookupd-http-address={lookupd.address}"]
    await tool.start(*source, f"--output-dir={folder}", "--shutdown-timeout=2s", *flags)


async def test_more_topics_than_max_topics_wait_and_that_is_told(
    lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/topics"] = topic_list(*(f"topic{n:05}" for n in range(TOPICS)))
    async with Program("nsq_to_file") as tool:
        await start(tool, lookupd, tmp_path, "--topic-pattern=.", "--max-topics=20")
        await tool.says("topics beyond --max-topics wait")
        await tool.says("new topic topic=topic00019")
        await check_sound(tool)
        assert (
            f"{TOPICS - 20} topics of nsqlookupd are not consumed, such as topic00020" in tool.told
        )
        assert "topic=topic00020" not in tool.told


@pytest.mark.slow
async def test_any_number_of_topics_begins_at_a_pace(lookupd: FakeLookupd, tmp_path: Path) -> None:
    lookupd.answers["/topics"] = topic_list(*(f"topic{n:05}" for n in range(TOPICS)))
    async with Program("nsq_to_file") as tool:
        await start(tool, lookupd, tmp_path, "--topic-pattern=.")
        await tool.says("topics beyond --max-topics wait")
        await tool.says("new topic topic=topic00500")
        assert tool.peak_bytes() < PEAK_MAX_BYTES
        assert await tool.end(signal.SIGTERM) is not None
        assert "topic=topic04999" not in tool.told


@pytest.mark.slow
async def test_4096_addresses_that_refuse_are_told_in_some_lines(
    lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/lookup"] = listing(*(("127.0.0.1", n + 1) for n in range(4096)))
    async with Program("nsq_to_file") as tool:
        await start(tool, lookupd, tmp_path, "--topic=t")
        await tool.says("not connected")
        while len(lookupd.asked) < 3:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
        await check_sound(tool)


@pytest.mark.parametrize(
    ("path", "flag", "answer"),
    [
        ("/topics", "--topic-pattern=.", topic_list(*[f"{n}{TERMINAL}" for n in range(5000)])),
        ("/lookup", "--topic=t", listing(*[(f"{n}{TERMINAL}", 1) for n in range(4096)])),
        ("/topics", "--topic-pattern=.", (200, b"[" * (1 << 20))),
        ("/topics", "--topic-pattern=.", (200, b" " * (64 << 20))),
        ("/lookup", "--topic=t", (200, b'{"producers":' + b"[" * 900_000)),
    ],
    ids=["topics", "hosts", "deep", "long", "deep producers"],
)
async def test_what_cannot_be_a_name_is_refused_in_a_line(
    path: str, flag: str, answer: tuple[int, bytes], lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers[path] = answer
    async with Program("nsq_to_file") as tool:
        await start(tool, lookupd, tmp_path, flag)
        await tool.says("127.0.0.1" if path == "/lookup" or answer[1][:1] in b"[ " else "refused")
        await check_sound(tool)
        check_log(tool)
