"""nsq_to_http and endpoints that send it elsewhere."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    publish,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.endpoints import Received, saying, serving
from tests.support.proxies import proxying
from tests.support.tls import make_certificate, serving_as

from nsqtools.outputs.http import following as following_module
from nsqtools.outputs.http import health as health_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.pipeline import delivery as delivery_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.nsqd import Nsqd

SECRET = "s3cr3t"
BODIES = [b"%d" % number for number in range(20)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_FIRST_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_MAX_S", 0.1)
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)


def sends_to(
    location: str | Callable[[Received], str], status: int = 307, *, path: str = "/"
) -> Callable[[Received], web.Response]:
    """A handler that redirects what asks for `path`."""

    def answer(one: Received) -> web.Response:
        if one.path.partition("?")[0] != path:
            return web.Response()
        where = location if isinstance(location, str) else location(one)
        return web.Response(status=status, headers={"Location": where})

    return answer


@pytest.mark.parametrize("status", [307, 308])
async def test_a_post_goes_on_as_it_is(nsqd: Nsqd, status: int) -> None:
    async with serving(sends_to("/new?x=1", status)) as endpoint:
        flags = (
            *(f"--post={endpoint.url()}", "--follow-redirects=1", "--header=X-A: {id}"),
            "--header=Content-Type: text/plain",
        )
        environ = {"NSQ_TO_HTTP_BEARER_TOKEN": SECRET, "NSQ_TO_HTTP_HMAC_KEY": SECRET}
        async with delivering(nsqd, *flags, environ=environ) as run:
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
            assert counted(run, "requests") == 2 * len(BODIES)
            assert counted(run, "redirects") == len(BODIES)
            assert counted(run, "status_3xx") == 0
        followed = [one for one in endpoint.received if one.path == "/new?x=1"]
        assert sorted(one.body for one in followed) == sorted(BODIES)
        for one in followed:
            assert one.method == "POST"
            assert one.headers["Authorization"] == f"Bearer {SECRET}"
            assert one.headers["Content-Type"] == "text/plain"
            assert {"X-A", "X-Nsq-Signature"} <= set(one.headers)
        assert len(endpoint.connections) <= len(BODIES), "connections are used again"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_get_goes_wherever_it_is_sent(nsqd: Nsqd, status: int) -> None:
    def where(one: Received) -> str:
        return f"/new?{one.path.partition('?')[2]}"

    async with serving(sends_to(where, status)) as endpoint:
        async with delivering(nsqd, f"--get={endpoint.url('/?m=%s')}", "--follow-redirects=1"):
            await publish(nsqd, b"a b")
            await until_settled(nsqd, 1)
        assert [one.path for one in endpoint.received] == ["/?m=a+b", "/new?m=a+b"]
        assert {one.method for one in endpoint.received} == {"GET"}


@pytest.mark.parametrize(
    ("flags", "handler", "error"),
    [
        (("--follow-redirects=0",), sends_to("/new"), ""),
        ((), sends_to("/new", 301), "301 makes a GET of a POST, without its body"),
        ((), sends_to("/new", 302), "302 makes a GET of a POST"),
        ((), sends_to("/new", 303), "303 makes a GET of a POST"),
        ((), sends_to("/"), "more than 3 redirects"),
        ((), sends_to(""), "it has no Location"),
        ((), sends_to("ftp://h/s3cr3t"), "no http or https URL"),
        ((), sends_to("http://me:s3cr3t@h/"), "credentials"),
        ((), sends_to("/s3cr3t ?"), "not one URL"),
        ((), sends_to("/new", 304), ""),
    ],
)
async def test_what_is_not_followed_is_an_answer(
    nsqd: Nsqd,
    folder: Path,
    flags: tuple[str, ...],
    handler: Callable[[Received], web.Response],
    error: str,
) -> None:
    await publish(nsqd, b"x")
    async with serving(handler) as endpoint:
        words = (f"--post={endpoint.url()}", f"--dead-letter-dir={folder}", "--follow-redirects=3")
        async with delivering(nsqd, *words, *flags):
            await until_settled(nsqd, 1)
        assert {one.path for one in endpoint.received} == {"/"}
        assert len(endpoint.received) == (4 if "more than" in error else 1)
    (path,) = folder.glob("*.jsonl")
    kept = json.loads(path.read_text())
    assert kept["status"] in (301, 302, 303, 304, 307)
    assert error in kept["error"]
    assert ("not followed: " in kept["error"]) is bool(error)
    assert SECRET not in kept["error"]


async def test_what_is_a_success_is_not_followed(nsqd: Nsqd) -> None:
    async with serving(sends_to("/new")) as endpoint:
        flags = (f"--post={endpoint.url()}", "--follow-redirects=3", "--ok-status=307")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
        assert [one.path for one in endpoint.received] == ["/"]


async def test_another_origin_gets_nothing_that_is_ours(nsqd: Nsqd) -> None:
    """Nor does the endpoint, when it is led back to."""
    async with serving() as other, serving() as endpoint:
        ways = {"/here": other.url("/there"), "/there": "/on", "/on": endpoint.url("/back")}

        def answer(one: Received) -> web.Response:
            if one.path not in ways:
                return web.Response()
            return web.Response(status=308, headers={"Location": ways[one.path]})

        endpoint.handler = other.handler = answer
        flags = (
            *(f"--post={endpoint.url('/here')}", "--follow-redirects=5", "--nsq-headers"),
            *(f"--header=X-Key: {SECRET}", "--header=Host: name.test", "--content-type=a/b"),
            "--compress=gzip",
        )
        environ = {"NSQ_TO_HTTP_BASIC_AUTH": f"me:{SECRET}", "NSQ_TO_HTTP_HMAC_KEY": SECRET}
        async with delivering(nsqd, *flags, environ=environ) as run:
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
            assert counted(run, "connections_opened") == 3
        (first, back), (there, on) = endpoint.received, other.received
        assert {"X-Key", "Authorization", "X-Nsq-Signature"} <= set(first.headers)
        assert (there.path, on.path, back.path) == ("/there", "/on", "/back")
        places = ((there, other.address), (on, other.address), (back, endpoint.address))
        for one, host in places:
            assert set(one.headers) == {
                *("Host", "User-Agent", "Content-Type", "Content-Encoding", "Content-Length"),
                *("X-Nsq-Topic", "X-Nsq-Message-Id", "X-Nsq-Timestamp", "X-Nsq-Attempts"),
            }
            assert (one.method, one.body, one.headers["Host"]) == ("POST", b"x", host)
            assert one.headers["Content-Type"] == "a/b"


async def test_our_certificate_stays_with_the_endpoint(nsqd: Nsqd, tmp_path: Path) -> None:
    make_certificate(tmp_path, "IP:127.0.0.1")
    peers: list[object] = []
    context = serving_as(tmp_path)
    context.load_verify_locations(tmp_path / "cert.pem")
    context.verify_mode = ssl.CERT_OPTIONAL

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        peers.append(writer.get_extra_info("peercert"))
        writer.write(
            b"HTTP/1.1 307 T\r\nLocation: https://%b/\r\nContent-Length: 0\r\n\r\n" % where
            if len(peers) == 1
            else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        )
        await reader.read()

    async with saying(script, context) as other, saying(script, context) as address:
        where = other.encode()
        flags = (
            *(f"--post=https://{address}/", "--follow-redirects=1"),
            f"--tls-ca={tmp_path / 'cert.pem'}",
            *(f"--tls-cert={tmp_path / 'cert.pem'}", f"--tls-key={tmp_path / 'key.pem'}"),
        )
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
    assert [bool(peer) for peer in peers] == [True, False]


async def test_from_https_to_http_nothing_goes(nsqd: Nsqd, tmp_path: Path) -> None:
    make_certificate(tmp_path, "IP:127.0.0.1")
    async with serving() as other, serving(tls=serving_as(tmp_path)) as endpoint:
        endpoint.handler = sends_to(lambda _: other.url("/"))
        flags = (
            *(f"--post={endpoint.url()}", "--follow-redirects=5"),
            f"--tls-ca={tmp_path / 'cert.pem'}",
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"x")
            await until_stats(nsqd, lambda now: now["deferred_count"] == 1)
            assert counted(run, "rejected") == 1
        assert other.received == []


async def test_from_http_to_https(nsqd: Nsqd, tmp_path: Path) -> None:
    make_certificate(tmp_path, "IP:127.0.0.1")
    async with serving() as endpoint, serving(tls=serving_as(tmp_path)) as other:
        endpoint.handler = sends_to(lambda _: other.url("/new"))
        flags = (
            *(f"--post={endpoint.url()}", "--follow-redirects=5"),
            f"--tls-ca={tmp_path / 'cert.pem'}",
        )
        async with delivering(nsqd, *flags):
            await publish(nsqd, *BODIES)
            await until_settled(nsqd, len(BODIES))
        assert sorted(other.bodies) == sorted(BODIES)


@pytest.mark.parametrize("status", [500, 404])
async def test_the_last_reply_judges(
    nsqd: Nsqd, folder: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with serving(status=status) as other, serving() as endpoint:
        endpoint.handler = sends_to(lambda _: other.url("/new"))
        flags = (
            *(f"--post={endpoint.url()}", "--follow-redirects=1", "--max-attempts=2"),
            f"--dead-letter-dir={folder}",
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
            tries = 2 if status == 500 else 1
            assert counted(run, f"status_{status // 100}xx") == tries
            assert counted(run, "redirects") == tries
    (path,) = folder.glob("*.jsonl")
    kept = json.loads(path.read_text())
    assert kept["status"] == status
    assert f"(after a redirect to {other.address})" in kept["error"]


async def test_a_place_that_is_dead_is_the_endpoints_trouble(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    async with saying(lambda *_: asyncio.sleep(0)) as dead:
        pass
    async with serving(sends_to(f"http://{dead}/")) as endpoint:
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1", "--n=4")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *BODIES)
            await until(lambda: counted(run, "circuits_opened") == 1)
            endpoint.handler = None
            await until_settled(nsqd, len(BODIES))
    assert f"after a redirect to {dead}" in caplog.text


async def test_requests_that_are_sent_on_keep_their_places(nsqd: Nsqd) -> None:
    """Never more at once than --n, and no faster than --rate."""

    async def slow(_: Received) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response()

    async with serving(slow) as other, serving() as endpoint:
        endpoint.handler = sends_to(lambda _: other.url("/new"))
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1", "--n=3", "--rate=200")
        async with delivering(nsqd, *flags) as run:
            began_s = asyncio.get_running_loop().time()
            await publish(nsqd, *[b"x"] * 60)
            await until_settled(nsqd, 60)
            took_s = asyncio.get_running_loop().time() - began_s
            assert counted(run, "requests") == 120
        assert endpoint.most_at_once <= 3
        assert other.most_at_once <= 3
        assert took_s > 0.8 * 120 / 200 - 0.1


async def test_an_adaptive_limit_counts_a_request_that_is_sent_on_once(nsqd: Nsqd) -> None:
    """And how quick an endpoint is, is how long it takes until the last reply."""

    async def slow(_: Received) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response()

    async with serving(slow) as other, serving() as endpoint:
        endpoint.handler = sends_to(lambda _: other.url("/new"))
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1", "--concurrency=auto", "--n=8")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *[b"x"] * 100)
            await until_settled(nsqd, 100)
            assert counted(run, "redirects") == 100
        assert 4 <= max(endpoint.most_at_once, other.most_at_once) <= 8


async def test_places_that_a_redirect_leads_to_are_bounded(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was not used longest makes room."""
    monkeypatch.setattr(following_module, "ORIGINS_MAX", 2)
    async with serving() as one, serving() as two, serving() as three, serving() as endpoint:
        places = {b"1": one, b"2": two, b"3": three}
        endpoint.handler = sends_to(lambda got: places[got.body].url("/new"))
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1", "--n=1")
        async with delivering(nsqd, *flags) as run:
            for number, body in enumerate((b"1", b"2", b"1", b"3", b"1", b"2")):
                await publish(nsqd, body)
                await until_settled(nsqd, number + 1)
            assert counted(run, "connections_opened") == 1 + 4
            await until(lambda: sum(map(is_closed, two.connections)) == 1)
        assert [len(place.connections) for place in places.values()] == [1, 2, 1]


def is_closed(transport: object) -> bool:
    return isinstance(transport, asyncio.Transport) and transport.is_closing()


async def test_what_it_took_is_what_all_of_it_took(
    nsqd: Nsqd, capsys: pytest.CaptureFixture[str]
) -> None:
    async def slow(one: Received) -> web.Response:
        if one.path == "/":
            await asyncio.sleep(0.1)
        return sends_to("/new")(one)

    async with serving(slow) as endpoint:
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1", "--print")
        async with delivering(nsqd, *flags):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
    (line,) = capsys.readouterr().out.splitlines()
    status, took, *_ = line.split(" ")
    assert status == "200"
    assert float(took.removesuffix("ms")) >= 100


async def test_more_places_at_once_than_there_is_room_for(
    nsqd: Nsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "ORIGINS_MAX", 1)
    free = asyncio.Event()

    async def hang(_: Received) -> web.Response:
        await free.wait()
        return web.Response()

    async with serving(hang) as one, serving() as two, serving() as endpoint:
        places = {b"1": one, b"2": two}
        endpoint.handler = sends_to(lambda got: places[got.body].url("/new"))
        flags = (f"--post={endpoint.url()}", "--follow-redirects=1")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"1")
            await until(lambda: one.at_once)
            await publish(nsqd, b"2")
            await until(lambda: counted(run, "rejected"))
            free.set()
            await until_stats(
                nsqd, lambda now: (now["deferred_count"], now["in_flight_count"]) == (1, 0)
            )
        assert two.received == []


async def test_sent_on_by_way_of_a_proxy(nsqd: Nsqd) -> None:
    async with serving() as other, serving() as endpoint, proxying(f"me:{SECRET}") as proxy:
        endpoint.handler = sends_to(lambda _: "/again")
        handlers = {
            "/": endpoint.handler,
            "/again": sends_to(lambda _: other.url("/new"), path="/again"),
        }
        endpoint.handler = lambda one: handlers[one.path](one)
        flags = (f"--post={endpoint.url()}", "--follow-redirects=2", f"--proxy={proxy.url()}")
        environ = {"NSQ_TO_HTTP_PROXY_AUTH": f"me:{SECRET}"}
        async with delivering(nsqd, *flags, environ=environ):
            await publish(nsqd, b"x")
            await until_settled(nsqd, 1)
        assert other.bodies == [b"x"]
        asked = [head.split(b" ")[1].decode() for head in proxy.heads]
        assert asked == [endpoint.url("/"), endpoint.url("/again"), other.url("/new")]
        everywhere = [*endpoint.received, *other.received]
        assert len({one.headers["Proxy-Authorization"] for one in everywhere}) == 1


async def test_a_redirect_is_told_as_one_where_none_is_followed(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serving(status=307) as endpoint,
        delivering(nsqd, f"--post={endpoint.url()}") as run,
    ):
        await publish(nsqd, b"x")
        await until(lambda: counted(run, "rejected") == 1)
    assert "got status code 307 (a redirect, not followed)" in caplog.text
