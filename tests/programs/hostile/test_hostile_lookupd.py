"""The programs against a hostile nsqlookupd: what it names is bounded, and told within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from typing import TYPE_CHECKING

import pytest
from tests.programs.hostile.helpers import CONSUMING, PEAK_MAX_BYTES, check_sound, consuming
from tests.support.hostile import TERMINAL
from tests.support.lookupd import UNKNOWN, FakeLookupd, listing, lookupds, topic_list
from tests.support.programs import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.programs import Program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("credentials"),
]
every_program = pytest.mark.parametrize("name", CONSUMING)
# Where it takes long, and what it finds is in what they share.
one_program = pytest.mark.parametrize(
    "name", [CONSUMING[0], *[pytest.param(name, marks=pytest.mark.soak) for name in CONSUMING[1:]]]
)
TOPICS = 20_000
NAMES = [f"topic{n:05}" for n in range(TOPICS)]
FILES_MAX = 256
# Of a program that calls as many nsqds as it ever does, 10 KB each.
CALLING_PEAK_MAX_BYTES = 450 << 20


@pytest.fixture
async def lookupd() -> AsyncIterator[FakeLookupd]:
    async with lookupds(UNKNOWN) as [fake]:
        yield fake


@contextlib.asynccontextmanager
async def discovering(
    name: str, folder: Path, *lookupds: FakeLookupd, flags: tuple[str, ...] = ("--topic-pattern=.",)
) -> AsyncIterator[Program]:
    where = [f"--lookupd-http-address={one.address}" for one in lookupds]
    async with consuming(name, folder, *where, *flags) as tool:
        yield tool


@every_program
async def test_more_topics_than_max_topics_wait_and_that_is_told(
    name: str, lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/topics"] = topic_list(*NAMES)
    flags = ("--topic-pattern=.", "--max-topics=20")
    async with discovering(name, tmp_path, lookupd, flags=flags) as tool:
        await tool.says("topics beyond --max-topics wait")
        await tool.says("new topic topic=topic00019")
        await check_sound(tool)
        assert (
            f"{TOPICS - 20} topics of nsqlookupd are not consumed, such as topic00020" in tool.told
        )
        assert "topic=topic00020" not in tool.told


@every_program
async def test_any_number_of_topics_begins_at_a_pace(
    name: str, lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/topics"] = topic_list(*NAMES)
    async with discovering(name, tmp_path, lookupd) as tool:
        await tool.says("topics beyond --max-topics wait")
        await tool.says("new topic topic=topic00500")
        assert tool.peak_bytes() < PEAK_MAX_BYTES
        assert await tool.end(signal.SIGTERM) is not None
        assert "topic=topic04999" not in tool.told


@one_program
async def test_4096_addresses_that_refuse_are_told_in_some_lines(
    name: str, lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/lookup"] = listing(*(("127.0.0.1", n + 1) for n in range(4096)))
    async with discovering(name, tmp_path, lookupd, flags=("--topic=t",)) as tool:
        await tool.says("not connected")
        async with asyncio.timeout(PATIENCE_S):
            while len(lookupd.asked) < 3:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.05)
        await check_sound(tool)


@one_program
async def test_any_number_of_topics_asks_on_few_connections(name: str, tmp_path: Path) -> None:
    """Two answer, two take the question and never do."""
    count = 1000
    async with lookupds(*[topic_list(*NAMES[:count])] * 4) as fakes:
        for one in fakes:
            one.answers["/lookup"] = UNKNOWN
        for one in fakes[2:]:
            one.hangs = "/lookup"
        async with discovering(name, tmp_path, *fakes) as tool:
            tool.bound(resource.RLIMIT_NOFILE, FILES_MAX)
            await tool.says(f"new topic topic={NAMES[count - 1]}")
            async with asyncio.timeout(PATIENCE_S):
                # They have no event.
                while any(len(one.topics_asked()) < count for one in fakes[:2]):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            assert tool.open_files() < FILES_MAX // 2
            assert tool.peak_bytes() < PEAK_MAX_BYTES
            assert await tool.end(signal.SIGTERM) == 0
        assert "Too many open files" not in tool.told
        assert "lookupd failed" not in tool.told


@one_program
async def test_4096_addresses_for_each_topic_are_called_in_part(
    name: str, lookupd: FakeLookupd, tmp_path: Path
) -> None:
    lookupd.answers["/topics"] = topic_list(*NAMES[:1000])
    hosts = [(f"127.0.{n >> 8}.{n & 255}", 1) for n in range(1, 4097)]
    lookupd.answers["/lookup"] = listing(*hosts)
    async with discovering(name, tmp_path, lookupd) as tool:
        await tool.says("nsqds beyond the limit of a process wait")
        async with asyncio.timeout(3 * PATIENCE_S):  # ten seconds of work with nobody beside it
            while len(lookupd.topics_asked()) < 40:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.1)
        assert tool.peak_bytes() < CALLING_PEAK_MAX_BYTES
        assert await tool.end(signal.SIGTERM) is not None
        assert "Too many open files" not in tool.told
        assert "Traceback" not in tool.told


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
@every_program
async def test_what_cannot_be_a_name_is_refused_in_a_line(
    name: str,
    path: str,
    flag: str,
    answer: tuple[int, bytes],
    lookupd: FakeLookupd,
    tmp_path: Path,
) -> None:
    lookupd.answers[path] = answer
    async with discovering(name, tmp_path, lookupd, flags=(flag,)) as tool:
        await tool.says("127.0.0.1" if path == "/lookup" or answer[1][:1] in b"[ " else "refused")
        await check_sound(tool)
