"""Several messages in a request: done together, parted when they are refused."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    options_of,
    publish,
    until_settled,
    until_stats,
)
from tests.support.endpoints import Received, serving

from nsqtools.errors import OptionsError
from nsqtools.outputs.http import bodies as bodies_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.pipeline import delivery as delivery_module

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

BODIES = [b'{"n":%d}' % number for number in range(230)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.02)
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)


def lines(one: Received) -> list[bytes]:
    return one.body.removesuffix(b"\n").split(b"\n")


async def test_a_request_has_as_many_as_may_be(nsqd: Nsqd) -> None:
    await publish(nsqd, *BODIES)
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--batch-size=100", "--batch-wait=50ms")
        async with delivering(nsqd, *flags) as run:
            await until_settled(nsqd, len(BODIES))
            assert counted(run, "requests") == len(endpoint.received) < 10
        got = [body for one in endpoint.received for body in lines(one)]
        assert sorted(got) == sorted(BODIES)
        assert max(len(lines(one)) for one in endpoint.received) == 100


async def test_a_batch_has_no_more_bytes_than_may_be(nsqd: Nsqd) -> None:
    await publish(nsqd, b"x" * 5000, *[b"y" * 100] * 50)
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--batch-size=1000", "--batch-bytes=2000")
        async with delivering(nsqd, *flags):
            await until_settled(nsqd, 51)
        sizes = [len(one.body) for one in endpoint.received]
    assert max(sizes) == 5001, "the large one went alone"
    assert 101 < sorted(sizes)[-2] <= 2000


async def test_an_array_and_its_content_type(nsqd: Nsqd) -> None:
    await publish(nsqd, *BODIES, b"no json")
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--batch-size=50", "--batch-format=json")
        async with delivering(nsqd, *flags) as run:
            await until_stats(
                nsqd, lambda now: (now["deferred_count"], now["in_flight_count"]) == (1, 0)
            )
            assert counted(run, "rejected") == 1
        got = [value for one in endpoint.received for value in json.loads(one.body)]
        assert sorted(one["n"] for one in got) == list(range(len(BODIES)))
        assert {one.headers["Content-Type"] for one in endpoint.received} == {"application/json"}


@pytest.mark.parametrize("on_loop", [True, False])
async def test_compressed_bodies(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch, *, on_loop: bool
) -> None:
    monkeypatch.setattr(bodies_module, "COMPRESSED_ON_LOOP_BYTES", 1 << 20 if on_loop else 0)
    got: list[bytes] = []

    def answer(one: Received) -> web.Response:
        # aiohttp has undone it already where it knows how.
        body = zlib.decompress(one.body, 31) if one.body[:2] == b"\x1f\x8b" else one.body
        got.extend(body.removesuffix(b"\n").split(b"\n"))
        return web.Response()

    async with serving(answer) as endpoint:
        flags = (f"--post={endpoint.url()}", "--batch-size=100", "--compress=gzip")
        async with delivering(nsqd, *flags):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
        assert {one.headers["Content-Encoding"] for one in endpoint.received} == {"gzip"}
    assert sorted(got) == sorted(BODIES)


@pytest.mark.parametrize("status", [400, 413])
async def test_a_bad_message_is_found_and_costs_its_neighbours_nothing(
    nsqd: Nsqd, folder: Path, status: int
) -> None:
    taken: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        if b'{"n":117}' in lines(one):
            return web.Response(status=status)
        taken.update(lines(one))
        return web.Response()

    await publish(nsqd, *BODIES)
    async with serving(answer) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", "--batch-size=100"),
            *(f"--dead-letter-dir={folder}", "--batch-wait=20ms"),
        )
        async with delivering(nsqd, *flags) as run:
            await until_settled(nsqd, len(BODIES))
            assert counted(run, "split_batches") <= 8
            assert counted(run, "dead_lettered") == 1
    assert taken == dict.fromkeys(set(BODIES) - {b'{"n":117}'}, 1)
    (path,) = folder.glob("*.jsonl")
    assert json.loads(path.read_text())["body"] == '{"n":117}'


async def test_a_batch_is_tried_again_as_one(nsqd: Nsqd) -> None:
    seen: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        seen.update(lines(one))
        return web.Response(status=503 if len(endpoint.received) == 1 else 200)

    await publish(nsqd, *BODIES[:40])
    async with serving(answer) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--batch-size=40") as run:
            await until_settled(nsqd, 40)
            assert counted(run, "retries") == len(lines(endpoint.received[0]))
        assert set(seen.values()) <= {1, 2}
        assert lines(endpoint.received[0]) in [lines(one) for one in endpoint.received[1:]]


async def test_all_endpoints_get_each_batch_once(nsqd: Nsqd) -> None:
    taken: Counter[bytes] = Counter()

    def flaky(one: Received) -> web.Response:
        if len(two.received) % 2:
            return web.Response(status=500)
        taken.update(lines(one))
        return web.Response()

    await publish(nsqd, *BODIES)
    async with serving() as one, serving(flaky) as two:
        flags = (f"--post={one.url()}", f"--post={two.url()}", "--mode=all", "--batch-size=20")
        async with delivering(nsqd, *flags):
            await until_settled(nsqd, len(BODIES))
        assert Counter(body for each in one.received for body in lines(each)) == taken
    assert taken == dict.fromkeys(BODIES, 1)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--get=http://h/%s", "--batch-size=2"), "--batch-size needs --post"),
        (("--get=http://h/%s", "--compress=gzip"), "--compress needs --post"),
        (("--post=http://h/{id}", "--batch-size=2"), "--batch-size: a URL"),
        (("--post=http://h/", "--header=A: {attempts}", "--batch-size=2"), "--batch-size: a URL"),
    ],
)
def test_what_cannot_be(nsqd: Nsqd, flags: tuple[str, ...], problem: str) -> None:
    with pytest.raises(OptionsError, match=problem):
        options_of(nsqd, *flags)


async def test_messages_that_cannot_be_told_from_two_are_counted(nsqd: Nsqd) -> None:
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--batch-size=2", "--batch-wait=20ms")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *[b"a\nb", b"c"] * 10)
            await until_settled(nsqd, 20)
            assert counted(run, "ambiguous_messages") == 10
