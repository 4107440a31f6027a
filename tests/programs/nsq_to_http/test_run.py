"""nsq_to_http from a broker to HTTP endpoints: every message is delivered, or still with nsqd."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    publish,
    removed,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.endpoints import Received, serving

from nsqtools.outputs.http import health as health_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.outputs.http import output as output_module
from nsqtools.outputs.http.connection import Connection
from nsqtools.outputs.http.delivery import Delivery
from nsqtools.pipeline import delivery as delivery_module
from nsqtools.pipeline import topic as topic_module

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

BODIES = [b"%d" % number for number in range(200)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_FIRST_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_MAX_S", 0.1)


async def test_each_message_is_a_post(nsqd: Nsqd) -> None:
    async with serving() as endpoint, delivering(nsqd, f"--post={endpoint.url('/put')}") as run:
        await publish(nsqd, *BODIES)
        await until_settled(nsqd, len(BODIES))
        assert sorted(endpoint.bodies) == sorted(BODIES)
        one = endpoint.received[0]
        assert (one.method, one.path) == ("POST", "/put")
        assert one.headers["Content-Type"] == "application/octet-stream"
        assert one.headers["User-Agent"].startswith("nsq_to_http/")
        assert one.headers["Host"] == endpoint.address
        assert counted(run, "requests") == len(BODIES)


async def test_a_get_has_the_message_form_encoded_in_its_url(nsqd: Nsqd) -> None:
    body = b"a b&c=%s/\xff\n\xc3\xbc"
    async with serving() as endpoint:
        url = endpoint.url("/get?fixed=%20&m=%s")
        async with delivering(nsqd, f"--get={url}"):
            await publish(nsqd, body)
            await until_settled(nsqd, 1)
        (one,) = endpoint.received
    assert (one.method, one.body) == ("GET", b"")
    assert one.path == "/get?fixed=%20&m=a+b%26c%3D%25s%2F%FF%0A%C3%BC"
    assert "Content-Type" not in one.headers


async def test_topics_in_urls_and_headers(nsqd: Nsqd) -> None:
    async with serving() as endpoint:
        flags = (
            "--topic=orders",
            "--topic=clicks#ephemeral",
            f"--post={endpoint.url('/{topic}/{channel}?a={attempts}')}",
            "--header=X-Of: {topic} {nsqd}",
            "--header=Content-Type: text/plain",
            "--header=Host: other.test",
        )
        await publish(nsqd, b"1", topic="orders")
        async with delivering(nsqd, *flags):
            await until_settled(nsqd, 1, "orders")
            await publish(nsqd, b"2", topic="clicks#ephemeral")
            await until(lambda: len(endpoint.received) == 2)
        first, second = endpoint.received
    assert first.path == "/orders/deliver?a=1"
    assert first.headers["X-Of"] == f"orders {nsqd.tcp_address}"
    assert first.headers["Content-Type"] == "text/plain"
    assert first.headers["Host"] == "other.test"
    assert second.path == "/clicks%23ephemeral/deliver?a=1"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_may_mend_is_tried_again_in_hand(nsqd: Nsqd, status: int) -> None:
    """Each message fails once; nsqd does not hear of it."""
    seen: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        seen[one.body] += 1
        return web.Response(status=status if seen[one.body] == 1 else 200)

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}") as run:
        await publish(nsqd, *BODIES[:20])
        await until_settled(nsqd, 20)
        assert set(seen.values()) == {2}
        assert (await stats(nsqd))["requeue_count"] == 0
        assert counted(run, "retries") == 20


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 410, 413, 422])
async def test_what_is_never_taken_stays_with_nsqd(
    nsqd: Nsqd, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not followed elsewhere, and not lost: nsqd gets it back, to come again much later."""
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)

    def answer(one: Received) -> web.Response:
        bad = one.body == b"bad"
        return web.Response(status=status if bad else 200, headers={"Location": "/elsewhere"})

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}") as run:
        await publish(nsqd, b"good", b"bad", b"fine")
        await until_stats(
            nsqd, lambda now: (now["deferred_count"], now["in_flight_count"]) == (1, 0)
        )
        assert sorted(endpoint.bodies) == [b"bad", b"fine", b"good"]
        assert counted(run, "rejected") == 1


async def test_the_meaning_of_a_status_can_be_changed(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)
    seen: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        seen[one.body] += 1
        return web.Response(status=int(one.body) if seen[one.body] == 1 else 200)

    async with serving(answer) as endpoint:
        flags = (
            "--ok-status=409",
            "--retry-status=40x".replace("x", "4"),
            "--reject-status=501-502",
        )
        async with delivering(nsqd, f"--post={endpoint.url()}", *flags):
            await publish(nsqd, b"409", b"404", b"502", b"503")
            await until_stats(
                nsqd, lambda now: (now["deferred_count"], now["in_flight_count"]) == (1, 0)
            )
    assert seen == {b"409": 1, b"404": 2, b"502": 1, b"503": 2}


async def test_retry_after_is_heeded(nsqd: Nsqd) -> None:
    times: list[float] = []

    def answer(_: Received) -> web.Response:
        times.append(asyncio.get_running_loop().time())
        limited = len(times) == 1
        return web.Response(status=429 if limited else 200, headers={"Retry-After": "1"})

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}"):
        await publish(nsqd, b"1")
        await until_settled(nsqd, 1)
    assert times[1] - times[0] >= 0.95


async def test_one_endpoint_asks_for_a_pause_and_another_takes_its_messages(nsqd: Nsqd) -> None:
    busy = web.Response
    async with (
        serving(lambda _: busy(status=503, headers={"Retry-After": "60"})) as one,
        serving() as two,
        delivering(nsqd, f"--post={one.url()}", f"--post={two.url()}"),
    ):
        await publish(nsqd, *BODIES)
        await until_settled(nsqd, len(BODIES))
        assert sorted(two.bodies) == sorted(BODIES)
        assert 0 < len(one.bodies) < len(BODIES) / 2


async def test_a_long_pause_is_told(nsqd: Nsqd, caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: Received) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "86400"})

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}") as run:
        await publish(nsqd, b"1", b"2")
        await until(lambda: "asks for a pause" in caplog.text)
        assert endpoint.address in run._pipelines["t"].output.trouble()
    assert "seconds=86400" in caplog.text


async def test_an_endpoint_slower_than_the_message_timeout_gets_it_once(
    start_nsqd: StartNsqd,
) -> None:
    nsqd = await start_nsqd(msg_timeout="500ms")

    async def answer(_: Received) -> web.Response:
        await asyncio.sleep(1.8)
        return web.Response()

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}"):
        await publish(nsqd, *BODIES[:10])
        await until_settled(nsqd, 10)
        assert sorted(endpoint.bodies) == sorted(BODIES[:10])
        assert (await stats(nsqd))["timeout_count"] == 0


async def test_no_more_requests_at_once_than_were_asked_for(nsqd: Nsqd) -> None:
    async def answer(_: Received) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response()

    async with serving(answer) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--n=7"):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
        assert endpoint.most_at_once == 7
        assert len(endpoint.connections) == 7


async def test_a_dead_endpoint_holds_the_topic_until_it_is_back(nsqd: Nsqd) -> None:
    """nsqd is asked for nothing meanwhile, nothing is lost, nothing comes twice."""
    async with serving() as endpoint:
        port = int(endpoint.address.rpartition(":")[2])
        url = endpoint.url()
    async with delivering(nsqd, f"--post={url}", "--max-in-flight=10") as run:
        await publish(nsqd, *BODIES)
        await until(lambda: counted(run, "circuits_opened") >= 1)
        await until_stats(nsqd, lambda now: now["clients"][0]["ready_count"] == 0)
        assert (await stats(nsqd))["in_flight_count"] <= 10
        tried = counted(run, "requests")
        async with serving(port=port) as endpoint:
            await until_settled(nsqd, len(BODIES))
            assert sorted(endpoint.bodies) == sorted(BODIES)
    assert tried < 100


async def test_one_dead_endpoint_of_two_costs_nothing(nsqd: Nsqd) -> None:
    async with serving() as gone:
        pass
    for mode in ("round-robin", "hostpool", "epsilon-greedy"):
        async with serving() as endpoint:
            flags = (f"--post={gone.url()}", f"--post={endpoint.url()}", f"--mode={mode}")
            async with delivering(nsqd, f"--topic={mode}", *flags) as run:
                await publish(nsqd, *BODIES, topic=mode)
                await until_settled(nsqd, len(BODIES), mode)
                assert sorted(endpoint.bodies) == sorted(BODIES)
                assert counted(run, "network_errors", mode) < 50
                if mode == "round-robin":  # the others leave it alone before its circuit opens
                    assert gone.address in run._pipelines[mode].output.trouble()


async def test_all_endpoints_get_each_message_once(nsqd: Nsqd) -> None:
    """One of them fails at first: the others do not get the message again."""
    seen: Counter[bytes] = Counter()

    def flaky(one: Received) -> web.Response:
        seen[one.body] += 1
        return web.Response(status=500 if seen[one.body] == 1 else 200)

    async with serving() as one, serving(flaky) as two, serving() as three:
        flags = [f"--post={each.url()}" for each in (one, two, three)]
        async with delivering(nsqd, "--mode=all", *flags):
            await publish(nsqd, *BODIES[:20])
            await until_settled(nsqd, 20)
        assert sorted(one.bodies) == sorted(three.bodies) == sorted(BODIES[:20])
        assert seen == dict.fromkeys(BODIES[:20], 2)


async def test_a_fault_of_ours_holds_no_message_for_ever(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topic_module, "RETRY_MAX_S", 0.05)
    seen: list[int] = []

    def backoff_s(tries: int) -> float:
        seen.append(tries)
        if len(seen) == 1:
            raise ZeroDivisionError
        return 0.01

    monkeypatch.setattr(output_module, "backoff_s", backoff_s)

    def answer(_: Received) -> web.Response:
        return web.Response(status=429 if len(endpoint.received) < 3 else 200)

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}"):
        await publish(nsqd, b"1")
        await until_settled(nsqd, 1)
        assert endpoint.bodies == [b"1"] * 3


async def test_a_sample_leaves_a_trace(nsqd: Nsqd) -> None:
    async with serving() as endpoint:
        flags = (f"--post={endpoint.url()}", "--sample=0.5")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
            left_out = removed(run, "sample")
        assert 0 < left_out < len(BODIES)
        assert len(endpoint.received) + left_out == len(BODIES)


async def test_what_a_sample_chose_is_sent_though_it_has_to_be_tried_again(nsqd: Nsqd) -> None:
    """The choice is one of the message: a try that fails is no other chance to be left out."""
    tries: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        tries[one.body] += 1
        return web.Response(status=429 if tries[one.body] < 10 else 200)

    async with serving(answer) as endpoint:
        flags = (f"--post={endpoint.url()}", "--sample=0.5")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
            assert len(tries) + removed(run, "sample") == len(BODIES)
    assert set(tries.values()) == {10}


async def test_an_early_reply_is_no_success_whatever_its_status(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint cannot have what was not sent to its end; `test_pool` shows when that is known."""
    reply_of = Connection._reply
    early = [True, False]
    monkeypatch.setattr(
        Connection, "_reply", lambda self: reply_of(self)._replace(is_early=early.pop(0))
    )
    async with serving(status=409) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--ok-status=409") as run:
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
            assert counted(run, "network_errors") == 1
        assert endpoint.bodies == [b"x", b"x"]


async def test_a_clean_stop_gives_back_what_waits_for_another_try(nsqd: Nsqd) -> None:
    async with serving(status=503) as endpoint:
        async with delivering(nsqd, f"--post={endpoint.url()}", "--max-in-flight=5"):
            await publish(nsqd, *BODIES[:5])
            await until(lambda: len(endpoint.received) >= 5)
        await until_stats(nsqd, lambda now: now["depth"] + now["deferred_count"] == 5)
        assert (await stats(nsqd))["in_flight_count"] == 0


@pytest.mark.parametrize("status", [408, 429, 503])
async def test_the_first_failure_is_told(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """One in a hundred opens no circuit, and somebody wants to know all the same."""

    def answer(_: Received) -> web.Response:
        return web.Response(status=status if len(endpoint.received) == 1 else 200)

    async with serving(answer) as endpoint, delivering(nsqd, f"--post={endpoint.url()}"):
        await publish(nsqd, b"1")
        await until_settled(nsqd, 1)
    assert "a request failed, it will be tried again" in caplog.text
    assert f"{status}" in caplog.text


async def test_what_is_told_of_an_endpoint_says_which_topic(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(status=503) as endpoint:
        flags = ("--topic=orders", "--topic=clicks", f"--post={endpoint.url('/{topic}/{id}')}")
        await publish(nsqd, b"1", topic="orders")
        await publish(nsqd, b"1", topic="clicks")
        async with delivering(nsqd, *flags):
            wanted = {
                (what, f"topic={topic} url={endpoint.url(f'/{topic}/{{id}}')} ")
                for what in ("a request failed", "endpoint is in trouble")
                for topic in ("orders", "clicks")
            }
            await until(
                lambda: all(
                    any(what in one and which in one for one in caplog.messages)
                    for what, which in wanted
                )
            )


async def test_requests_without_an_answer_may_be_double(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nsqtools")

    async def answer(_: Received) -> web.Response:
        if len(endpoint.received) == 1:
            await asyncio.sleep(0.4)
        return web.Response()

    async with serving(answer) as endpoint:
        flags = (f"--post={endpoint.url()}", "--http-client-request-timeout=200ms")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"1")
            await until_settled(nsqd, 1)
            assert counted(run, "unanswered_messages") == 1
    assert endpoint.bodies == [b"1"] * 2
    assert any("possible_duplicates=1" in one for one in caplog.messages)


async def test_every_status(nsqd: Nsqd, tmp_path: Path) -> None:
    """Each message asks for one at first, and gets 200 when it comes again."""
    statuses = [status for status in range(200, 600) if status != 304]  # which has no body to end
    seen: Counter[bytes] = Counter()

    def answer(one: Received) -> web.Response:
        seen[one.body] += 1
        return web.Response(status=int(one.body) if seen[one.body] == 1 else 200)

    async with serving(answer) as endpoint:
        flags = (f"--dead-letter-dir={tmp_path}", "--dead-letter-max-ratio=1")
        async with delivering(nsqd, f"--post={endpoint.url()}", *flags):
            await publish(nsqd, *[b"%d" % status for status in statuses])
            await until_settled(nsqd, len(statuses))
    lines = [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    letters = [json.loads(line) for line in lines]
    mended = {408, 425, 429, *range(500, 600)}
    refused = {status for status in statuses if status >= 300} - mended
    assert {int(one["body"]): one["status"] for one in letters} == {one: one for one in refused}
    assert {int(body) for body, count in seen.items() if count == 2} == mended
    assert max(seen.values()) == 2


async def test_an_endpoint_that_comes_and_goes(nsqd: Nsqd) -> None:
    """Down and up again while messages are on their way: each arrives, none is given up."""
    wanted = {b"%d" % number for number in range(600)}
    got: set[bytes] = set()
    async with serving() as first:
        port = int(first.address.rpartition(":")[2])
    async with delivering(nsqd, f"--post=http://127.0.0.1:{port}/", "--n=5") as run:
        await publish(nsqd, *wanted)
        while len(got) < 500:
            got |= await some_of(port)
            await asyncio.sleep(0.02)
        async with serving(port=port) as endpoint:
            await until_settled(nsqd, 600)
        assert got | set(endpoint.bodies) == wanted
        assert counted(run, "rejected") == 0
    assert (await stats(nsqd))["requeue_count"] == 0


async def some_of(port: int) -> set[bytes]:
    """What an endpoint gets that is there for thirty messages."""
    async with serving(slowly, port=port) as endpoint:
        await until(lambda: len(endpoint.received) >= 30)
    return set(endpoint.bodies)


async def slowly(_: Received) -> web.Response:
    await asyncio.sleep(0.002)
    return web.Response()


async def test_an_endpoint_by_its_ipv6_address(nsqd: Nsqd) -> None:
    with contextlib.closing(socket.socket(socket.AF_INET6)) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    async with serving(host="::1") as endpoint, delivering(nsqd, f"--post={endpoint.url('/x')}"):
        await publish(nsqd, b"1")
        await until_settled(nsqd, 1)
        assert endpoint.bodies == [b"1"]
        assert endpoint.received[0].headers["Host"] == endpoint.address


async def test_what_was_delivered_is_held_by_nobody(nsqd: Nsqd) -> None:
    """Not until the collector comes: a large message is few objects to it, and many bytes."""
    async with serving() as endpoint, delivering(nsqd, f"--post={endpoint.url()}"):
        gc.collect()
        gc.disable()
        try:
            await publish(nsqd, *[b"x"] * 50)
            await until_settled(nsqd, 50)
            held = [one for one in gc.get_objects() if isinstance(one, Delivery)]
        finally:
            gc.enable()
    assert not held
