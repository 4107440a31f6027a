"""An archiver on a channel with other consumers: it says that it gets only a part."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import CHANNEL, archive_options
from tests.support.clients import consumer_options, until
from tests.support.lookupd import lookupds
from tests.support.nsqd import PATIENCE_S

from nsqtools import ask as ask_module
from nsqtools.client.consumer import Consumer
from nsqtools.client.neighbours import clients_of
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline import neighbours as module
from nsqtools.pipeline.neighbours import describe, http_addresses, others
from nsqtools.pipeline.run import Run
from nsqtools.programs.nsq_to_file.run import output_of
from nsqtools.wire.stats import ChannelClient

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

OURS = ChannelClient("nsq_to_file/0.1.0 nsqtools/0.1.0", "web1")
NSQS = ChannelClient("nsq_to_file/1.3.0 go-nsq/1.1.0", "web1")
WORKER = ChannelClient("go-nsq/1.1.0", "web2")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK_S", 0.02)
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.05)


def test_only_other_programs_are_others() -> None:
    """NSQ's own nsq_to_file has files of its own."""
    assert others([OURS, NSQS, WORKER, OURS], "nsq_to_file") == [NSQS, WORKER]


def test_a_few_are_named() -> None:
    many = [WORKER, WORKER, *(ChannelClient(f"a{at}", "") for at in range(5))]
    assert describe(many) == (
        "shared with 7 other consumers: go-nsq/1.1.0 on web2, a0 on unknown, a1 on unknown, ..."
    )
    assert len(describe([ChannelClient("a" * 10_000, "h" * 10_000)])) < 300


def test_where_nsqd_is_asked() -> None:
    assert http_addresses([], ["a:4150", "b:5150", "[::1]:4150"]) == ["a:4151", "[::1]:4151"]
    assert http_addresses(["c:80"], ["a:4150"]) == ["c:80"]


async def test_says_so_in_log_and_health(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in the log, and as a note: it is not unhealthy. When the other is gone, so is the note."""
    options = archive_options(
        tmp_path,
        f"--nsqd-tcp-address={nsqd.tcp_address}",
    )
    workers = Workers()
    archiver = Run(
        options, lambda topic: output_of(options, topic, workers), neighbours_at=[nsqd.http_address]
    )
    async with Lifecycle(PATIENCE_S, handle_signals=False) as life, asyncio.TaskGroup() as group:
        task = group.create_task(archiver.run(life))
        other = Consumer("t", CHANNEL, consumer_options(), nsqd_addresses=[nsqd.tcp_address])
        async with other:
            await until(lambda: life.health.notes)
            assert "shared with 1 other consumer: " in life.health.notes["topic t"]
            assert life.health.is_ok
            await asyncio.sleep(0.2)
        assert caplog.text.count("only a part of its messages comes here") == 1
        await until(lambda: not life.health.notes)
        life.stop("test")
        assert await task
    workers.close()


async def test_nsqlookupd_says_where_nsqd_answers(nsqd: Nsqd) -> None:
    host, _, port = nsqd.http_address.rpartition(":")
    producers = [
        {"broadcast_address": host, "http_port": int(port)},
        {"broadcast_address": host, "http_port": 1},
        {"broadcast_address": "no port"},
    ]
    answer = (200, json.dumps({"producers": producers}).encode())
    other = Consumer("t", CHANNEL, consumer_options(), nsqd_addresses=[nsqd.tcp_address])
    async with lookupds(answer) as (fake,), other:
        await until(lambda: other.connections)
        found = await clients_of("t", CHANNEL, lookupd_addresses=[fake.address])
    assert len(found) == 1


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"no json"), (200, b" " * (ask_module.ANSWER_BYTES_MAX + 1))]
)
async def test_who_gives_no_answer_is_passed_over(
    answer: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with lookupds(answer) as (fake,):
        assert await clients_of("t", "c", nsqd_http_addresses=[fake.address]) == []
        assert await clients_of("t", "c", lookupd_addresses=[fake.address]) == []
    assert not caplog.messages
