"""What a run tells of itself: health, readiness, metrics; and that topics do not share their fate."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.pipeline.helpers import archive_options, archived, publish, until_settled
from tests.support.clients import until
from tests.support.lookupd import UNKNOWN, listing, lookupds, topic_list
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer
from tests.support.web import request

from nsqtools import publish as publish_module
from nsqtools.errors import ArchiveError
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.counters import exposition
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline import run as run_module
from nsqtools.pipeline.report import trouble_of
from nsqtools.pipeline.run import Run
from nsqtools.pipeline.topic import _UnderWay
from nsqtools.programs.nsq_to_file.run import output_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd

    from nsqtools.outputs.contract import Output


@asynccontextmanager
async def run_of(
    folder: Path, *flags: str, bad: frozenset[str] = frozenset()
) -> AsyncIterator[tuple[Run, Lifecycle]]:
    """A run whose outputs cannot be made for the topics in `bad`."""
    folder.mkdir(exist_ok=True)
    options = archive_options(folder, *flags)
    workers = Workers()

    def output(topic: str) -> Output:
        if topic in bad:
            raise ArchiveError(f"{topic} is a link that leads elsewhere")
        return output_of(options, topic, workers)

    run = Run(options, output)
    async with Lifecycle(PATIENCE_S, handle_signals=False) as life, asyncio.TaskGroup() as group:
        task = group.create_task(run.run(life))
        yield run, life
        life.stop("test")
        assert await task, "it did not end in order"
    workers.close()


async def test_ready_means_subscribed_everywhere(nsqd: Nsqd, tmp_path: Path) -> None:
    async with Peer() as silent:
        flags = (
            f"--nsqd-tcp-address={nsqd.tcp_address}",
            f"--nsqd-tcp-address={silent.address}",
            "--topic=t",
            "--topic=other",
        )
        async with run_of(tmp_path / "archive", *flags) as (run, life):
            connections = [await silent.accept() for _ in range(2)]
            await until(lambda: sum(p.consumer.connections for p in run._pipelines.values()) == 2)
            await asyncio.sleep(2 * run_module.WATCH_FIRST_S)
            assert set(life.health.waits) == {"topic t", "topic other"}
            assert life.health.is_ok, "nothing has failed yet"
            for connection in connections:
                await connection.identify()
                assert (await connection.command()).startswith(b"SUB ")
                connection.respond(b"OK")
            await until(lambda: life.health.is_ready)
            assert life.health.is_ok
    assert not life.health.waits


async def test_one_that_cannot_be_reached_is_told_and_not_waited_for(
    nsqd: Nsqd, tmp_path: Path
) -> None:
    async with Peer() as dead:
        pass
    flags = (f"--nsqd-tcp-address={nsqd.tcp_address}", f"--nsqd-tcp-address={dead.address}")
    async with run_of(tmp_path / "archive", *flags) as (_, life):
        await until(lambda: life.health.is_ready)
        assert "topic t" in life.health.failures
        assert dead.address in life.health.failures["topic t"]


async def test_a_topic_whose_output_cannot_be_made_stops_alone(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "archive"
    flags = (f"--nsqd-tcp-address={nsqd.tcp_address}", "--topic=t", "--topic=bad")
    async with run_of(folder, *flags, bad=frozenset({"bad"})) as (run, life):
        await until(lambda: "topic bad" in life.health.failures)
        await until(lambda: life.health.is_ready)
        await publish(nsqd, b"one")
        await until_settled(nsqd, 1)
        assert life.health.failures == {"topic bad": "bad is a link that leads elsewhere"}
        failing = run.registry.snapshot()
        assert {
            sample.labels[0][1]: sample.value
            for sample in failing
            if sample.name == "nsqtools_pipeline_failing_topics"
        } == {"t": 0, "bad": 1}
    assert archived(folder) == [b"one"]
    assert "bad is a link" in caplog.text


async def test_when_no_topic_can_be_begun_the_run_ends_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with run_of(
            tmp_path / "archive", "--nsqd-tcp-address=127.0.0.1:1", bad=frozenset({"t"})
        ):
            await asyncio.sleep(PATIENCE_S)
    assert caught.group_contains(ArchiveError, match="leads elsewhere")


async def test_metrics_tell_what_was_done(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    async with run_of(folder, f"--nsqd-tcp-address={nsqd.tcp_address}") as (run, life):
        await until(lambda: life.health.is_ready)
        await publish(nsqd, b"one", b"three")
        await until_settled(nsqd, 2)
        text = exposition(run.registry.snapshot())
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    of = '{topic="t"}'
    assert values[f"nsqtools_pipeline_delivered_messages_total{of}"] == "2"
    assert values[f"nsqtools_pipeline_delivered_body_bytes_total{of}"] == "8"
    assert values[f"nsqtools_consumer_connected_nsqds{of}"] == "1"
    assert values[f"nsqtools_output_disk_bytes_total{of}"] == "10"
    assert 0 <= float(values[f"nsqtools_pipeline_lag_seconds{of}"]) < PATIENCE_S
    assert float(values[f"nsqtools_pipeline_last_delivery_timestamp_seconds{of}"]) > 1.7e9
    assert values[f"nsqtools_pipeline_oldest_unsettled_seconds{of}"] == "0.0"


async def test_status_is_served(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nsqtools")
    flags = (f"--nsqd-tcp-address={nsqd.tcp_address}", "--status-address=127.0.0.1:0")
    async with run_of(tmp_path / "archive", *flags) as (_, life):
        await until(lambda: life.health.is_ready)
        address = caplog.text.partition("status is served address=")[2].split()[0]
        answer = await request(address, "GET", "/status")
        assert answer.status == 200
        told = answer.json
        assert told["topics"]["t"]["consumer_connected_nsqds"] == 1
        assert told["ready"] is True


async def test_a_list_of_topics_that_comes_late_is_soon_known(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At a start everything comes up together; the minute of --topic-refresh would be lost."""
    monkeypatch.setattr(run_module, "FIRST_LIST_S", 0.02)
    port = int(nsqd.tcp_address.rpartition(":")[2])
    async with lookupds((500, b"")) as (fake,):
        flags = (
            "--topic-pattern=.",
            f"--lookupd-http-address={fake.address}",
            "--topic-refresh=1m",
        )
        async with run_of(tmp_path / "archive", *flags) as (run, life):
            await until(lambda: len(fake.asked) >= 3)
            assert "list of topics" in life.health.failures
            fake.answers["/lookup"] = listing(("127.0.0.1", port))
            fake.answers["/topics"] = topic_list("t")
            await until(lambda: set(run._pipelines) == {"t"})
            await until(lambda: life.health.is_ready and life.health.is_ok)
    said = [r for r in caplog.records if "could not retrieve the list" in r.getMessage()]
    assert len(said) == 1


async def test_of_two_nsqlookupds_one_that_answers_is_not_said_to_be_silent(tmp_path: Path) -> None:
    """The one knows no nsqd of the topic; the other might."""
    async with lookupds(UNKNOWN, (500, b"")) as (knowing, failing):
        flags = (
            "--topic=t",
            f"--lookupd-http-address={knowing.address}",
            f"--lookupd-http-address={failing.address}",
        )
        async with run_of(tmp_path / "archive", *flags) as (run, _):
            await until(lambda: bool(knowing.asked) and len(failing.asked) >= 2)
            (pipeline,) = run._pipelines.values()
            told = f"no nsqd to consume from, and no answer of {failing.address}"
            await until(lambda: trouble_of(pipeline) == told)


async def test_a_finished_file_that_cannot_be_published_is_told_though_messages_flow(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "archive"
    async with run_of(folder, f"--nsqd-tcp-address={nsqd.tcp_address}") as (run, life):
        await until(lambda: life.health.is_ready)
        await publish(nsqd, b"one")
        await until_settled(nsqd, 1)
        with monkeypatch.context() as patch:
            patch.setattr(publish_module, "os", FailingOs(0, failures=1 << 30, only={"link"}))
            run.rotate()
            (pipeline,) = run._pipelines.values()
            await until(lambda: bool(trouble_of(pipeline)))
            assert not pipeline.trouble, "commits go on"
            run._tell_health()
            assert "topic t" in life.health.failures
            await publish(nsqd, b"two")
            await until_settled(nsqd, 2)
    assert sorted(archived(folder)) == [b"one", b"two"]


async def test_a_delivery_that_hangs_is_told(nsqd: Nsqd, tmp_path: Path) -> None:
    """A dead disk gives no error."""
    async with run_of(tmp_path / "archive", f"--nsqd-tcp-address={nsqd.tcp_address}") as (
        run,
        life,
    ):
        await until(lambda: life.health.is_ready)
        (pipeline,) = run._pipelines.values()
        assert trouble_of(pipeline) == ""
        limit = asyncio.timeout(None)
        pipeline._under_way[limit] = _UnderWay(pipeline._clock.monotonic() - 60, [])
        assert trouble_of(pipeline) == "a delivery has been under way for 60 s"
        del pipeline._under_way[limit]


async def test_a_delivery_that_its_output_gathers_is_no_trouble(
    nsqd: Nsqd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for others by design; only beyond that does it hang."""
    async with run_of(tmp_path / "archive", f"--nsqd-tcp-address={nsqd.tcp_address}") as (
        run,
        life,
    ):
        await until(lambda: life.health.is_ready)
        (pipeline,) = run._pipelines.values()
        gathering = replace(pipeline.output.feeding, holds_s=55.0)
        monkeypatch.setattr(pipeline.output, "feeding", gathering)
        limit = asyncio.timeout(None)
        pipeline._under_way[limit] = _UnderWay(pipeline._clock.monotonic() - 60, [])
        assert trouble_of(pipeline) == ""
        pipeline._under_way[limit] = _UnderWay(pipeline._clock.monotonic() - 100, [])
        assert trouble_of(pipeline) == "a delivery has been under way for 100 s"
