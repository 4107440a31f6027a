"""nsq_to_http and a real nginx: what a server does that nobody here wrote."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    publish,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.endpoints import Received, saying, serving
from tests.support.nginx import MISSING, find, nginx
from tests.support.tls import make_certificate

from nsqtools.outputs.http import health as health_module
from nsqtools.outputs.http import outcome as outcome_module
from nsqtools.pipeline import delivery as delivery_module

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.skipif(not find(), reason=MISSING)
BODIES = [b"%03d" % number for number in range(200)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr(outcome_module, "BACKOFF_MAX_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_FIRST_S", 0.05)
    monkeypatch.setattr(health_module, "OPEN_MAX_S", 0.1)
    monkeypatch.setattr(delivery_module, "REFUSED_DELAY_S", 60.0)


async def test_connections_that_end_after_a_few_requests(nsqd: Nsqd, tmp_path: Path) -> None:
    """nginx says so with the last reply: no request is lost, and none is made twice."""
    async with (
        nginx(tmp_path, "keepalive_requests 3; location / { return 200 ok; }") as server,
        delivering(nsqd, f"--post={server.url()}", "--n=5") as run,
    ):
        await publish(nsqd, *BODIES)
        await until_settled(nsqd, len(BODIES))
        per_connection = Counter(one.connection for one in server.asked)
        assert server.count(200) == len(server.asked) == len(BODIES)
        assert set(per_connection.values()) <= {1, 2, 3}
        assert counted(run, "network_errors") == 0
        assert counted(run, "connections_opened") == len(per_connection)


async def test_connections_that_are_closed_under_us(nsqd: Nsqd, tmp_path: Path) -> None:
    async with (
        nginx(tmp_path, "keepalive_timeout 20ms; location / { return 204; }") as server,
        delivering(nsqd, f"--post={server.url()}", "--n=1") as run,
    ):
        for number in range(5):
            await publish(nsqd, b"x")
            await until_settled(nsqd, number + 1)
            await asyncio.sleep(0.02 * (number % 3))  # before, about when, and after it is closed
        assert server.count(204) == len(server.asked) == 5
        assert counted(run, "network_errors") == counted(run, "retries") == 0


async def test_a_batch_that_is_too_large_is_parted(
    nsqd: Nsqd, tmp_path: Path, folder: Path
) -> None:
    """Until its parts fit; one message that never fits is a dead letter."""
    bodies = [b"%03d" % number + b"x" * 97 for number in range(40)]
    await publish(nsqd, *bodies, b"y" * 2000)
    async with serving() as behind:
        location = f"client_max_body_size 1k; location / {{ proxy_pass http://{behind.address}; }}"
        async with nginx(tmp_path, location) as server:
            flags = (
                *(f"--post={server.url()}", "--batch-size=50", "--batch-wait=50ms"),
                *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1"),
            )
            async with delivering(nsqd, *flags) as run:
                await until_settled(nsqd, len(bodies) + 1)
                assert counted(run, "dead_lettered") == 1
                assert counted(run, "split_batches") >= 4
            assert server.count(413) >= 5
        taken = [body for one in behind.received for body in one.body.splitlines()]
    assert sorted(taken) == bodies
    (path,) = folder.glob("*.jsonl")
    kept = json.loads(path.read_text())
    assert (kept["status"], kept["body"]) == (413, "y" * 2000)
    assert "got status code 413: <html>" in kept["error"]


async def test_a_server_whose_upstream_is_down(nsqd: Nsqd, tmp_path: Path) -> None:
    async with saying(lambda *_: asyncio.sleep(0)) as dead:
        pass
    port = int(dead.rpartition(":")[2])
    async with (
        nginx(tmp_path, f"location / {{ proxy_pass http://{dead}; }}") as server,
        delivering(nsqd, f"--post={server.url()}") as run,
    ):
        await publish(nsqd, *BODIES[:20])
        await until(lambda: counted(run, "status_5xx") > 5)
        async with serving(port=port) as behind:
            await until_settled(nsqd, 20)
            assert sorted(behind.bodies) == BODIES[:20]
        assert counted(run, "rejected") == 0
        assert server.count(502) == counted(run, "status_5xx")


async def test_a_server_whose_upstream_hangs(nsqd: Nsqd, tmp_path: Path) -> None:
    seen: Counter[bytes] = Counter()

    async def slow_at_first(one: Received) -> web.Response:
        seen[one.body] += 1
        if seen[one.body] == 1:
            await asyncio.sleep(0.5)
        return web.Response()

    async with serving(slow_at_first) as behind:
        location = f"proxy_pass http://{behind.address}; proxy_read_timeout 100ms;"
        async with (
            nginx(tmp_path, f"location / {{ {location} }}") as server,
            delivering(nsqd, f"--post={server.url()}") as run,
        ):
            await publish(nsqd, b"1", b"2")
            await until_settled(nsqd, 2)
            assert (server.count(504), server.count(200)) == (2, 2)
            assert counted(run, "retries") == 2
            assert (await stats(nsqd))["requeue_count"] == 0


async def test_tls(nsqd: Nsqd, tmp_path: Path) -> None:
    make_certificate(tmp_path, "DNS:example.test")
    async with (
        nginx(tmp_path, "location / { return 200; }", certificate=tmp_path) as server,
        delivering(
            nsqd,
            *(f"--post={server.url()}", f"--tls-ca={tmp_path / 'cert.pem'}", "--n=4"),
            "--tls-server-name=example.test",
        ) as run,
    ):
        await publish(nsqd, *BODIES)
        await until_settled(nsqd, len(BODIES))
        assert server.count(200) == len(server.asked) == len(BODIES)
        assert counted(run, "connections_opened") <= 4


async def test_tls_with_a_wrong_name(nsqd: Nsqd, tmp_path: Path) -> None:
    make_certificate(tmp_path, "DNS:example.test")
    async with (
        nginx(tmp_path, "location / { return 200; }", certificate=tmp_path) as server,
        delivering(nsqd, f"--post={server.url()}", f"--tls-ca={tmp_path / 'cert.pem'}") as run,
    ):
        await publish(nsqd, b"x")
        await until(lambda: counted(run, "network_errors"))
        assert server.asked == []
    await until_stats(nsqd, lambda now: now["depth"] + now["deferred_count"] == 1)


async def test_a_server_that_limits_requests(nsqd: Nsqd, tmp_path: Path) -> None:
    zone = "limit_req_zone $server_addr zone=all:1m rate=100r/s;"
    # `return` would answer before a limit is looked at.
    async with serving() as behind:
        location = f"limit_req zone=all burst=5 nodelay; proxy_pass http://{behind.address};"
        async with (
            nginx(
                tmp_path, f"limit_req_status 429; location / {{ {location} }}", http=zone
            ) as server,
            delivering(nsqd, f"--post={server.url()}", "--n=20") as run,
        ):
            await publish(nsqd, *BODIES[:50])
            await until_settled(nsqd, 50)
            assert sorted(behind.bodies) == BODIES[:50]
            assert server.count(429) == counted(run, "status_4xx") > 0
            assert counted(run, "rejected") == 0


@pytest.mark.parametrize("status", [200, 404])
async def test_replies_that_are_compressed(
    nsqd: Nsqd, tmp_path: Path, folder: Path, status: int
) -> None:
    """In chunks, because nginx does not know their length; connections are kept all the same."""
    lines = "gzip on; gzip_min_length 0; gzip_types text/plain; default_type text/plain;"
    reply = "a reply that can be compressed well " * 20
    async with nginx(tmp_path, f'{lines} location / {{ return {status} "{reply}"; }}') as server:
        flags = (
            *(f"--post={server.url()}", "--n=1", "--header=Accept-Encoding: gzip"),
            *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1"),
        )
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *BODIES[:10])
            await until_settled(nsqd, 10)
            assert counted(run, "connections_opened") == 1
            assert counted(run, "dead_lettered") == (0 if status == 200 else 10)
        assert server.count(status) == 10
    for path in folder.glob("*.jsonl"):
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert {one["status"] for one in kept} == {404}
        assert all(one["error"].startswith(r"got status code 404: \x1f") for one in kept)


@pytest.mark.parametrize(("status", "taken"), [(307, 20), (308, 20), (301, 0), (302, 0)])
async def test_redirects(nsqd: Nsqd, tmp_path: Path, folder: Path, status: int, taken: int) -> None:
    async with serving() as behind:
        lines = f"location = / {{ return {status} /new?x=1; }}"
        lines += f" location /new {{ proxy_pass http://{behind.address}; }}"
        async with nginx(tmp_path, lines) as server:
            flags = (
                *(f"--post={server.url()}", "--follow-redirects=1"),
                *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1"),
            )
            async with delivering(nsqd, *flags) as run:
                await publish(nsqd, *BODIES[:20])
                await until_settled(nsqd, 20)
                assert counted(run, "redirects") == taken
                assert counted(run, "dead_lettered") == 20 - taken
            assert server.count(status) == 20
        assert sorted(behind.bodies) == BODIES[:taken]
        assert {one.path for one in behind.received} <= {"/new?x=1"}
