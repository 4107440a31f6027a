"""How large the programs become: not with the backlog, the topics, or the messages."""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import archived, finished_files
from tests.support.clients import producer_options, until
from tests.support.programs import PATIENCE_S, NsqdProgram, Program

from nsqtools.client.producer import Producer

if TYPE_CHECKING:
    from pathlib import Path

RESIDENT_BYTES_MAX = 150_000_000
TOPICS = [f"large-{number}" for number in range(8)]
MESSAGES = 25
BODY_BYTES = 1_000_000
# No file is finished, and renamed, because an hour is over.
NO_DATE = "--filename-format=<TOPIC><REV>.log"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@pytest.mark.slow
async def test_many_topics_of_large_messages(tmp_path: Path) -> None:
    folder, data_path = tmp_path / "archive", tmp_path / "nsqd"
    folder.mkdir()
    data_path.mkdir()
    body = random.Random(1).randbytes(BODY_BYTES // 2).hex().encode()
    async with NsqdProgram(data_path) as nsqd, Program("nsq_to_file") as tool:
        await nsqd.serve()
        async with Producer(nsqd.address, producer_options()) as producer:
            await producer.connected(PATIENCE_S)
            for topic in TOPICS:
                for _ in range(MESSAGES):
                    await producer.publish(topic, body)
        topics = [f"--topic={topic}" for topic in TOPICS]
        await tool.start(
            *topics, f"--nsqd-tcp-address={nsqd.address}", f"--output-dir={folder}", NO_DATE
        )
        total = len(TOPICS) * MESSAGES * (BODY_BYTES + len(b"\n"))
        await until(lambda: size_of(folder) == total)
        sizes = {"broker": nsqd.peak_bytes(), "archiver": tool.peak_bytes()}
        assert await tool.end(signal.SIGTERM) == 0, tool.told
        assert len(finished_files(folder)) == len(TOPICS)
    assert {name: size for name, size in sizes.items() if size > RESIDENT_BYTES_MAX} == {}


@pytest.mark.slow
async def test_a_hundred_topics_share_threads_compressors_and_memory(tmp_path: Path) -> None:
    """With a thread and a compressor each, a hundred took 273 MB."""
    folder, data_path = tmp_path / "archive", tmp_path / "nsqd"
    folder.mkdir()
    data_path.mkdir()
    names = [f"t-{number}" for number in range(100)]
    bodies = [random.Random(1).randbytes(100).hex().encode() for _ in range(200)]
    async with NsqdProgram(data_path) as nsqd, Program("nsq_to_file") as tool:
        await nsqd.serve()
        async with Producer(nsqd.address, producer_options()) as producer:
            await producer.connected(PATIENCE_S)
            for name in names:
                await producer.publish_many(name, bodies)
        topics = [f"--topic={name}" for name in names]
        await tool.start(
            *topics,
            f"--nsqd-tcp-address={nsqd.address}",
            f"--output-dir={folder}",
            "--compress=zstd",
            NO_DATE,
        )
        await until(lambda: len(list(folder.glob("*.part"))) == len(names))
        assert tool.peak_bytes() < RESIDENT_BYTES_MAX
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert len(finished_files(folder)) == len(names)
    assert len(archived(folder)) == len(names) * len(bodies)
