"""Filters and transforms in front of an output: what comes out, and how messages are settled."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import (
    archive_options,
    archived,
    archiving,
    publish,
    running,
    until_settled,
    until_stats,
)
from tests.pipeline.test_settling import TEN, ScriptedOutput, pipeline_of
from tests.programs.nsq_to_http.helpers import delivering, removed
from tests.programs.nsq_to_http.helpers import until_settled as until_delivered
from tests.support.clients import until
from tests.support.endpoints import Received, serving
from tests.transform.test_steps import messages_of

from nsqtools.errors import OptionsError
from nsqtools.lifecycle import Lifecycle
from nsqtools.outputs.contract import DONE, Again, Answer, Feeding
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline import topic as topic_module
from nsqtools.pipeline import transforming as transforming_module
from nsqtools.pipeline.report import status_of, trouble_of
from nsqtools.pipeline.run import Run
from nsqtools.pipeline.transforming import TransformingOutput
from nsqtools.transform import hook as hook_module
from nsqtools.transform.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiohttp import web
    from tests.support.nsqd import Nsqd

    from nsqtools.pipeline.topic import TopicPipeline
    from nsqtools.transform.hook import Function

SPLITTER = """
def split(body):
    if body == b"none":
        return None
    if body == b"bad":
        raise ValueError("a bad message")
    return body.split(b",")
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_module, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(topic_module, "RETRY_MAX_S", 0.02)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With functions of the user."""
    (tmp_path / "splitter_of_test.py").write_text(SPLITTER)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "splitter_of_test", raising=False)
    return tmp_path


def transforming(
    nsqd: Nsqd,
    workers: Workers,
    output: ScriptedOutput,
    *flags: str,
    function: Function | None = None,
) -> TopicPipeline:
    options = archive_options(Path(), "--nsqd-tcp-address=127.0.0.1:4150", *flags)
    wrapped = TransformingOutput("t", output, Chain(options, function), workers.strand("t"))
    return pipeline_of(nsqd, wrapped)


def got(output: ScriptedOutput) -> list[bytes]:
    return sorted(body for bodies in output.got for body in bodies)


async def test_what_is_removed_is_finished_and_counted_apart(nsqd: Nsqd, workers: Workers) -> None:
    output = ScriptedOutput()
    pipeline = transforming(nsqd, workers, output, "--grep=[1-5]", "--grep-exclude=3")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
        status = status_of(pipeline)
    assert got(output) == [b"1", b"2", b"4", b"5"]
    assert (pipeline.counts.messages, pipeline.counts.body_bytes) == (4, 4)
    assert pipeline.counts.unsettled == 0
    assert pipeline.counts.removed_by == {"grep": 5, "grep-exclude": 1}
    assert (status["removed"], status["removed_by_grep_exclude"]) == (6, 1)


async def test_where_nothing_is_left_the_output_is_not_asked(nsqd: Nsqd, workers: Workers) -> None:
    output = ScriptedOutput()
    pipeline = transforming(nsqd, workers, output, "--sample=0")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert (output.got, pipeline.counts.removed_by) == ([], {"sample": 10})


async def test_what_is_wanted_again_comes_again_and_what_was_removed_does_not(
    nsqd: Nsqd, workers: Workers
) -> None:
    tries: Counter[bytes] = Counter()

    def answer(bodies: list[bytes]) -> Answer | Sequence[Answer]:
        tries.update(bodies)
        return [Again(0.01, "not yet") if tries[one] < 3 and one > b"6" else DONE for one in bodies]

    output = ScriptedOutput(answer)
    pipeline = transforming(nsqd, workers, output, "--grep-exclude=8")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert tries == Counter({b"%d" % n: 3 if n > 6 else 1 for n in range(10) if n != 8})
    assert (pipeline.counts.removed, pipeline.counts.messages) == (1, 9)


async def test_an_output_that_stands_gets_the_same_and_what_was_removed_is_counted_once(
    nsqd: Nsqd, workers: Workers
) -> None:
    stands = iter([True] * 4)

    def answer(_: list[bytes]) -> Answer:
        return Again(0.01, "full", stands=True) if next(stands, False) else DONE

    output = ScriptedOutput(answer)
    pipeline = transforming(nsqd, workers, output, "--grep=[1-5]")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert (pipeline.counts.removed, pipeline.counts.messages) == (5, 5)
    assert len(output.got) >= 5


async def test_an_output_that_raises_gets_the_same_again(nsqd: Nsqd, workers: Workers) -> None:
    left = iter(range(3))

    def answer(_: list[bytes]) -> Answer:
        if next(left, None) is not None:
            raise OSError("no")
        return DONE

    pipeline = transforming(nsqd, workers, ScriptedOutput(answer), "--grep=[1-5]")
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert (pipeline.counts.removed, pipeline.counts.messages) == (5, 5)


async def test_a_refusal_stays_with_nsqd_and_costs_no_other_message(
    nsqd: Nsqd, workers: Workers
) -> None:
    def function(body: bytes) -> bytes:
        if body in b"37":
            raise ValueError(body.decode())
        return body

    output = ScriptedOutput()
    pipeline = transforming(nsqd, workers, output, function=function)
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_stats(nsqd, lambda now: (now.get("deferred_count"), now["depth"]) == (2, 0))
        await until(lambda: pipeline.counts.messages == 8)
    assert pipeline.counts.reasons == {"--transform raised ValueError": 2}
    assert got(output) == [one for one in TEN if one not in b"37"]


async def test_of_several_only_those_that_are_not_done_come_again(
    nsqd: Nsqd, workers: Workers
) -> None:
    tries: Counter[bytes] = Counter()

    def answer(bodies: list[bytes]) -> Sequence[Answer]:
        tries.update(bodies)
        return [Again(0.01, "x") if one == b"b" and tries[one] < 4 else DONE for one in bodies]

    output = ScriptedOutput(answer)
    pipeline = transforming(nsqd, workers, output, function=lambda body: body.split(b","))
    async with running(pipeline):
        await publish(nsqd, b"a,b,c", b"d,e", b"f")
        await until_settled(nsqd, 3)
    assert tries == Counter({b"b": 4} | dict.fromkeys((b"a", b"c", b"d", b"e", b"f"), 1))
    assert pipeline.counts.messages == 3
    assert pipeline.totals()["made_messages"] == 5


async def test_several_are_delivered_in_the_outputs_bounds(nsqd: Nsqd, workers: Workers) -> None:
    output = ScriptedOutput(feeding=Feeding(wait_s=0.02, messages_max=4))
    pipeline = transforming(nsqd, workers, output, function=lambda body: [body] * 3)
    async with running(pipeline):
        await publish(nsqd, *TEN)
        await until_settled(nsqd, 10)
    assert got(output) == sorted(TEN * 3)
    assert max(map(len, output.got)) <= 4


async def test_batches_of_any_size_come_out_whole(nsqd: Nsqd, workers: Workers) -> None:
    bodies = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * (n % 97 * 50)) for n in range(3000)]
    output = ScriptedOutput()
    pipeline = transforming(
        nsqd, workers, output, "--grep=[02468],", "--whitelist-json-field=n", "--sample=0.5"
    )
    async with running(pipeline):
        for start in range(0, 3000, 700):
            await publish(nsqd, *bodies[start : start + 700])
        await until_settled(nsqd, 3000)
    counts = pipeline.counts
    assert counts.messages == len(got(output))
    assert counts.messages + counts.removed == 3000
    assert set(counts.removed_by) == {"sample", "grep"}
    assert {len(json.loads(body)) for body in got(output)} == {1}


async def test_a_function_works_in_a_thread_and_one_that_hangs_is_seen(
    nsqd: Nsqd, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_module, "HANGS_S", 0.01)
    goes_on, threads = threading.Event(), set()

    def function(body: bytes) -> bytes:
        threads.add(threading.current_thread())
        goes_on.wait(30)
        return body

    output = ScriptedOutput()
    pipeline = transforming(nsqd, workers, output, "--transform=m:f", function=function)
    async with running(pipeline):
        await publish(nsqd, b"x")
        await until(lambda: "--transform m:f has not returned for" in trouble_of(pipeline))
        goes_on.set()
        await until_settled(nsqd, 1)
        assert not trouble_of(pipeline)
    assert threading.main_thread() not in threads


async def test_of_a_slow_function_a_delivery_is_small(
    nsqd: Nsqd, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforming_module, "CALLS_S", 0.02)
    monkeypatch.setattr(transforming_module, "FIRST_CALLS", 3)

    def function(body: bytes) -> bytes:
        time.sleep(0.004)
        return body

    output = ScriptedOutput()
    pipeline = transforming(nsqd, workers, output, function=function)
    async with running(pipeline):
        await publish(nsqd, *[b"x"] * 30)
        await until_settled(nsqd, 30)
    assert len(got(output)) == 30
    assert max(map(len, output.got)) <= 5


async def test_a_quick_function_bounds_nothing(workers: Workers) -> None:
    options = archive_options(Path(), "--nsqd-tcp-address=127.0.0.1:4150")
    chain = Chain(options, lambda body: body)
    output = TransformingOutput("t", ScriptedOutput(), chain, workers.strand("t"))
    assert output.feeding.messages_max == 100
    await output.deliver([messages_of(*[b"x"] * 100)])
    assert output.feeding == output.inner.feeding


async def test_at_the_end_what_was_not_looked_at_goes_back(nsqd: Nsqd, workers: Workers) -> None:
    seen: list[bytes] = []

    def function(body: bytes) -> bytes:
        seen.append(body)
        time.sleep(0.05)
        return body

    output = ScriptedOutput(feeding=Feeding(wait_s=0.0, gives_back=True))
    pipeline = transforming(nsqd, workers, output, function=function)
    async with running(pipeline):
        await publish(nsqd, *[b"x"] * 100)
        await until(lambda: len(seen) > 1)
    assert len(seen) < 100
    assert len(got(output)) == pipeline.counts.messages < 100
    await until_stats(nsqd, lambda now: now["in_flight_count"] == 0)


# The tools


async def test_an_archive_of_what_is_wanted(nsqd: Nsqd, folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    flags: tuple[str, ...] = (
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        "--require-json-field=level",
    )
    flags += ("--require-json-value=error", "--whitelist-json-field=id", "--format=jsonl")
    async with archiving(archive_options(out, *flags)) as run:
        await publish(
            nsqd,
            b'{"level":"error","id":9007199254740993}',
            b'{"level":"info","id":2}',
            b'{"id":3}',
            b"no JSON",
        )
        await until_settled(nsqd, 4)
        counts = {by: removed(run, by) for by in ("non-json", "require-json-value")}
    assert archived(out) == [b'{"id":9007199254740993}']
    assert counts == {"non-json": 1.0, "require-json-value": 1.0}


@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
async def test_an_archive_of_several_made_of_one(
    nsqd: Nsqd, folder: Path, record_format: str
) -> None:
    """They come again as they are: with attempts above 1 each is looked up."""
    out = folder / "out"
    out.mkdir()
    flags: tuple[str, ...] = (f"--nsqd-tcp-address={nsqd.tcp_address}", f"--format={record_format}")
    flags += ("--transform=splitter_of_test:split", f"--transform-path={folder}")
    async with archiving(archive_options(out, *flags)):
        await publish(nsqd, b"a,b,c", b"none", b"d", b"bad", b",", b"e,e,e")
        await until_stats(nsqd, lambda now: (now.get("deferred_count"), now["depth"]) == (1, 0))
        await until_stats(nsqd, lambda now: now["in_flight_count"] == 0)
    assert sorted(archived(out)) == [b"", b"", b"a", b"b", b"c", b"d", b"e", b"e", b"e"]


async def test_several_made_of_one_go_to_every_endpoint(nsqd: Nsqd, folder: Path) -> None:
    """One of which an endpoint takes a part only later: neither loses another part by that."""
    tries: Counter[bytes] = Counter()

    def slow(one: Received) -> web.Response:
        from aiohttp import web as server

        tries[one.body] += 1
        return server.Response(status=503 if one.body == b"b" and tries[one.body] < 3 else 200)

    async with serving() as quick, serving(slow) as later:
        flags: tuple[str, ...] = (f"--post={quick.url()}", f"--post={later.url()}", "--mode=all")
        flags += ("--transform=splitter_of_test:split", f"--transform-path={folder}")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"a,b,c", b"d", b"e,f")
            await until_delivered(nsqd, 3)
    assert sorted(quick.bodies) == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert tries == Counter({b"b": 3} | dict.fromkeys((b"a", b"c", b"d", b"e", b"f"), 1))


async def test_several_made_of_one_are_refused_as_the_message_that_they_are(
    nsqd: Nsqd, folder: Path
) -> None:
    def picky(one: Received) -> web.Response:
        from aiohttp import web as server

        return server.Response(status=422 if one.body == b"b" else 200)

    dead = folder / "dead"
    async with serving(picky) as endpoint:
        flags: tuple[str, ...] = (f"--post={endpoint.url()}", f"--dead-letter-dir={dead}")
        flags += ("--transform=splitter_of_test:split", f"--transform-path={folder}")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"a,b,c", b"d")
            await until_delivered(nsqd, 2)
    assert sorted(endpoint.bodies) == [b"a", b"b", b"c", b"d"]
    (path,) = dead.glob("*.jsonl")
    assert json.loads(path.read_text())["body"] == "b"


async def test_a_function_that_there_is_not_ends_the_run_at_its_start(tmp_path: Path) -> None:
    flags = ("--nsqd-tcp-address=127.0.0.1:4150", "--transform=no_such_module:f")
    run = Run(archive_options(tmp_path, *flags), lambda _: ScriptedOutput())
    async with Lifecycle(1.0, handle_signals=False) as life:
        with pytest.raises(OptionsError, match="cannot use --transform no_such_module:f"):
            await run.run(life)
