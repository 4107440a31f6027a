"""What is never taken is kept, with the reason, before it is finished; and can be published again."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    options_of,
    publish,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.endpoints import Received, serving
from tests.support.web import topic_stats

from nsqtools.archive.reader import open_archive
from nsqtools.errors import OptionsError
from nsqtools.options import load
from nsqtools.outputs.http import breaker as breaker_module
from nsqtools.outputs.http import dead_letter as dead_letter_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.outputs.http.breaker import BREAKER_MIN
from nsqtools.pipeline import delivery as delivery_module
from nsqtools.replay.options import FileToNsqOptions
from nsqtools.replay.run import run as replay

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.http.dead_letter import DeadLetterTopic

GOOD = [b"good %d" % number for number in range(60)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.02)
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)


def _probe_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_S", 0.01)
    monkeypatch.setattr(breaker_module, "HELD_S", 0.5)


def by_body(one: Received) -> web.Response:
    """A body that begins with a number gets that status."""
    word = one.body.split()[0]
    status = int(word) if word.isdigit() else 200
    return web.Response(status=status, text="no \x1b[1m such thing" if status >= 300 else "")


def letters(folder: Path) -> list[dict[str, object]]:
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().split("\n")
    ]
    return [json.loads(line) for line in lines if line]


async def test_what_is_refused_is_kept_with_status_and_error(nsqd: Nsqd, folder: Path) -> None:
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *GOOD, b"400 \xff\n", b"404 text")
            await until_settled(nsqd, len(GOOD) + 2)
            assert counted(run, "dead_lettered") == 2
            assert (await stats(nsqd))["requeue_count"] == 0
    first, second = sorted(letters(folder), key=lambda one: str(one["status"]))
    assert (first["status"], first["tries"], first["attempts"], first["topic"]) == (400, 1, 1, "t")
    assert first["nsqd"] == nsqd.tcp_address
    assert first["error"] == "got status code 400: no \\x1b[1m such thing"
    assert (second["status"], second["body"]) == (404, "404 text")


async def test_the_archive_can_be_read_like_any_other(nsqd: Nsqd, folder: Path) -> None:
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"400 \xff\n")
            await until_settled(nsqd, 1)
    (path,) = folder.glob("*.jsonl")
    with open_archive(path) as archive:
        (batch,) = archive.batches()
        assert archive.info.record_format == "jsonl"
    assert batch.bodies == [b"400 \xff\n"]
    assert batch.messages is not None
    assert batch.messages.attempts == [1]
    assert batch.failures is not None
    assert batch.failures[0] is not None
    assert batch.failures[0].status == 400


async def test_what_was_tried_often_enough_is_given_up(nsqd: Nsqd, folder: Path) -> None:
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--max-attempts=3")
        async with delivering(nsqd, *flags):
            await publish(nsqd, *GOOD, b"429 busy")
            await until_settled(nsqd, len(GOOD) + 1)
        assert endpoint.bodies.count(b"429 busy") == 3
    (one,) = letters(folder)
    assert (one["status"], one["tries"]) == (429, 3)


async def test_what_is_too_old_is_given_up_when_it_fails(nsqd: Nsqd, folder: Path) -> None:
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--max-age=1s")
        async with delivering(nsqd, *flags):
            await publish(nsqd, *GOOD, b"429 busy")
            await until_settled(nsqd, len(GOOD) + 1)
        assert endpoint.bodies.count(b"429 busy") > 1
    assert [one["status"] for one in letters(folder)] == [429]


async def test_without_a_dead_letter_it_stays_with_nsqd(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(by_body) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--max-attempts=2") as run:
            await publish(nsqd, b"429 busy")
            await until_stats(nsqd, lambda now: now["deferred_count"] == 1)
            assert counted(run, "rejected") == 1
        assert endpoint.bodies == [b"429 busy"] * 2
    assert "there is no dead letter: they stay with nsqd" in caplog.text


async def test_an_outage_empties_no_topic_into_the_dead_letter(
    nsqd: Nsqd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _probe_soon(monkeypatch)
    async with serving(status=403) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--max-in-flight=50")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *[b"%d" % at for at in range(300)])
            await until(lambda: len(endpoint.received) > 60)
            lost = counted(run, "dead_lettered")
            assert lost == BREAKER_MIN, "until it was known that it is an outage"
            assert (await stats(nsqd))["depth"] >= 200, "the rest was left with nsqd"
            endpoint.status = 200
            await until_settled(nsqd, 300)
            assert counted(run, "dead_lettered") == lost
    assert len(letters(folder)) == lost


async def test_without_a_dead_letter_an_outage_defers_nothing(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential has run out: nsqd is not to hold the whole topic back for a quarter of an hour."""
    _probe_soon(monkeypatch)
    async with (
        serving(status=401) as endpoint,
        delivering(nsqd, f"--post={endpoint.url()}", "--max-in-flight=50") as run,
    ):
        await publish(nsqd, *[b"%d" % at for at in range(300)])
        await until(lambda: len(endpoint.received) > 60)
        assert counted(run, "rejected") == BREAKER_MIN
        assert (await stats(nsqd))["deferred_count"] == BREAKER_MIN
        assert "401" in run._pipelines["t"].output.trouble()
        endpoint.status = 200
        await until_stats(nsqd, lambda now: now["depth"] + now["in_flight_count"] == 0)
        assert counted(run, "rejected") == BREAKER_MIN


async def test_in_an_outage_a_batch_is_not_parted_into_all_its_messages(
    nsqd: Nsqd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_module, "PROBE_S", 0.2)
    async with serving(status=401) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}"),
            *("--batch-size=100", "--batch-wait=50ms", "--n=1"),
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *[b"%d" % at for at in range(500)])
            await until(lambda: bool(run._pipelines["t"].output.trouble()))
            before = len(endpoint.received)
            await asyncio.sleep(0.7)
            assert 0 < len(endpoint.received) - before < 4 * 8


async def test_bad_messages_before_good_ones_are_no_outage(
    nsqd: Nsqd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the breaker looks at: the good ones behind them are sent."""
    _probe_soon(monkeypatch)
    bad = [b"422 %d" % at for at in range(300)]
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--n=10")
        await publish(nsqd, *bad, *GOOD)
        async with delivering(nsqd, *flags) as run:
            await until(lambda: set(GOOD) <= set(endpoint.bodies))
            # They say that it is none, and some of the others may go.
            await until(lambda: counted(run, "dead_lettered") > BREAKER_MIN)


async def test_parts_of_a_delivery_are_one_try(nsqd: Nsqd, folder: Path) -> None:
    """A batch that is refused for its size is no try, and its parts are one."""
    tries: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        if one.body.count(b"\n") > 1:
            return web.Response(status=413)
        tries[one.body] += 1
        return web.Response(status=429 if tries[one.body] < 3 else 200)

    async with serving(answer) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--max-attempts=4"),
            *("--batch-size=16", "--batch-wait=50ms"),
        )
        async with delivering(nsqd, *flags):
            await publish(nsqd, *GOOD[:16])
            await until_settled(nsqd, 16)
    assert letters(folder) == []
    assert sum(tries.values()) == 48


async def test_a_topic_of_dead_letters(nsqd: Nsqd) -> None:
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", "--dead-letter-topic={topic}.dead")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *GOOD, b"400 x", b"404 y")
            await until_settled(nsqd, len(GOOD) + 2)
            assert counted(run, "dead_lettered") == 2
    assert (await topic_stats(nsqd, "t.dead"))["message_count"] == 2


async def test_nothing_is_finished_before_its_dead_letter_is_there(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No nsqd takes the dead letter: the message stays in hand."""
    monkeypatch.setattr(dead_letter_module, "TOPIC_RETRY_S", 0.05)
    async with serving(by_body) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", "--dead-letter-topic=dead"),
            "--dead-letter-nsqd-tcp-address=127.0.0.1:1",
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"400 x")
            await until(lambda: endpoint.received)
            await until_stats(nsqd, lambda now: now["in_flight_count"] == 1)
            await asyncio.sleep(0.2)
            assert len(endpoint.received) == 1, "only its dead letter is missing"
            assert counted(run, "dead_lettered") == 0
        now = await stats(nsqd)
        assert now["depth"] + now["deferred_count"] == 1


async def test_a_dead_letter_that_cannot_be_kept_is_one_failure(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried: that its nsqd is down is no outage of the endpoint."""
    monkeypatch.setattr(dead_letter_module, "TOPIC_RETRY_S", 0.01)
    kept: list[bytes] = []
    keep_one = dead_letter_module.DeadLetterTopic._keep_one

    async def noted(self: DeadLetterTopic, body: bytes) -> Answer:
        kept.append(body)
        return await keep_one(self, body)

    monkeypatch.setattr(dead_letter_module.DeadLetterTopic, "_keep_one", noted)
    async with serving(by_body) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", "--dead-letter-topic=dead"),
            "--dead-letter-nsqd-tcp-address=127.0.0.1:1",
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *GOOD[:10], *[b"400 %d" % at for at in range(9)])
            await until(lambda: len(kept) > 11)
            assert counted(run, "rejected") == 9
            assert not run._pipelines["t"].output.trouble()
        assert len(endpoint.received) == 19


async def test_dead_letters_of_a_status_are_published_again(
    nsqd: Nsqd, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(by_body) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", f"--dead-letter-dir={folder}"),
            *("--max-attempts=1", "--dead-letter-max-ratio=1"),
        )
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"502 a", b"400 b", b"502 c", b"503 d", b"429 e")
            await until_settled(nsqd, 5)
    for where, expected in (
        (["status=502"], 2),
        (["status=5xx"], 3),
        (["status=400", "status=503"], 2),
        (["error=code 4", "status=4xx"], 2),
        (["error=no such words"], 0),
    ):
        topic = f"again{len(capsys.readouterr().out)}_{expected}"
        argv = [f"--topic={topic}", f"--nsqd-tcp-address={nsqd.tcp_address}", str(folder)]
        argv += [f"--where={one}" for one in where]
        assert await replay(load(FileToNsqOptions, "file_to_nsq", argv, {})) == 0
        told = capsys.readouterr().out
        assert f"published {expected} messages" in told
        assert f"{5 - expected} messages left out by --where" in told


async def test_a_file_without_failures_cannot_be_selected_from(
    nsqd: Nsqd, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "plain.log"
    path.write_text("a\nb\n")
    argv = ["--topic=x", f"--nsqd-tcp-address={nsqd.tcp_address}", "--where=status=1", str(path)]
    assert await replay(load(FileToNsqOptions, "file_to_nsq", argv, {})) != 0
    assert "keeps no status and no error" in capsys.readouterr().out


def test_a_dead_letter_topic_is_not_consumed(nsqd: Nsqd) -> None:
    options = options_of(nsqd, "--post=http://h/", "--dead-letter-topic={topic}.dead")
    assert options.wants_topic("t")
    assert options.wants_topic(".dead")
    assert not options.wants_topic("t.dead")
    for flags in (
        ("--dead-letter-topic=t",),
        ("--dead-letter-topic={topic}",),
        ("--dead-letter-topic={topic}.dead", f"--topic={'t' * 62}"),
        ("--dead-letter-topic={topic}.dead", "--topic=t#ephemeral"),
    ):
        with pytest.raises(OptionsError, match=r"--dead-letter-topic"):
            options_of(nsqd, "--post=http://h/", *flags)


async def test_a_file_of_a_run_that_was_killed_is_finished_at_the_next_start(
    nsqd: Nsqd, folder: Path
) -> None:
    left = folder.with_name("left")
    async with serving(by_body) as endpoint:
        flags = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"400 x")
            await until_settled(nsqd, 1)
            shutil.copytree(folder, left)  # what a kill would leave
        (part,) = left.glob("*.part")
        part.write_bytes(part.read_bytes() + b'{"torn')
        async with delivering(nsqd, f"--post={endpoint.url()}", f"--dead-letter-dir={left}"):
            await until(lambda: letters(left))
    assert [one["body"] for one in letters(left)] == ["400 x"]
    assert not list(left.glob("*.part"))


async def test_a_dead_letter_that_has_to_wait_is_one_failure(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried to keep it: that says nothing of what is sent."""
    monkeypatch.setattr(dead_letter_module, "TOPIC_RETRY_S", 0.01)
    async with serving(by_body) as endpoint:
        flags = (
            f"--post={endpoint.url()}",
            "--dead-letter-topic=dead",
            "--dead-letter-nsqd-tcp-address=127.0.0.1:1",
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *GOOD)
            await until_settled(nsqd, len(GOOD))
            await publish(nsqd, b"400 bad")
            await until(lambda: b"400 bad" in endpoint.bodies)
            await asyncio.sleep(1.0)
            assert counted(run, "rejected") == 1
            (pipeline,) = run._pipelines.values()
            assert "dead letter topic dead" in pipeline.trouble
            assert endpoint.bodies.count(b"400 bad") == 1
