"""The status endpoint, asked over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.web import encode_request, exchange, parse_answer, request

from nsqtools.errors import ConnectionFailed
from nsqtools.observe import page_server
from nsqtools.observe.counters import Registry
from nsqtools.observe.health import Health
from nsqtools.observe.options import StatusOptions
from nsqtools.observe.status import StatusServer
from nsqtools.options import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LOCAL = "127.0.0.1:0"


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
async def address(registry: Registry, health: Health) -> AsyncIterator[str]:
    status = {"topics": ["orders"], "from": object}
    async with StatusServer(LOCAL, registry, health, status=lambda: status) as server:
        yield f"127.0.0.1:{server.port}"


async def test_readiness_says_what_is_waited_for(address: str, health: Health) -> None:
    health.waiting("topic orders", "a subscription at\n10.0.0.1:4150")
    answer = await request(address, "GET", "/ready")
    assert answer.status == 503
    assert answer.body.decode().splitlines() == [
        "program: its start",
        "topic orders: a subscription at 10.0.0.1:4150",
    ]
    health.started()
    health.ready("topic orders")
    answer = await request(address, "GET", "/ready")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert answer.headers["Server"] == "nsqtools"


async def test_health_says_what_fails(address: str, health: Health) -> None:
    assert (await request(address, "GET", "/health")).status == 200
    health.failing("topic orders", "No space left on device")
    answer = await request(address, "GET", "/health")
    assert answer.status == 503
    assert answer.body == b"topic orders: No space left on device\n"


async def test_what_others_say_is_escaped(address: str, health: Health) -> None:
    health.failing("topic a", "gone\nnote: \x1b[2J\u202eall is well")
    health.note("topic b", "shared with \x9b31m")
    answer = await request(address, "GET", "/health")
    assert answer.body == (
        b"topic a: gone note: \\x1b[2J\\u202eall is well\nnote: topic b: shared with \\x9b31m\n"
    )


async def test_health_has_notes(address: str, health: Health) -> None:
    """Which make nobody unhealthy, and go with their part."""
    health.note("topic orders", "shared with\n2 others")
    answer = await request(address, "GET", "/health")
    assert (answer.status, answer.body) == (200, b"ok\nnote: topic orders: shared with 2 others\n")
    assert (await request(address, "GET", "/status")).json["notes"] == health.notes
    health.forget("topic orders")
    assert (await request(address, "GET", "/health")).body == b"ok\n"


async def test_metrics_are_read_by_prometheus(
    address: str, registry: Registry, health: Health
) -> None:
    written = registry.counter("nsqtools_archive_messages_written_total", "messages", "topic")
    written.labels(topic="orders").add(7)
    health.failing("disk", "full")
    answer = await request(address, "GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
        if not family.name.startswith("nsqtools_process_")
    }
    assert values == {
        ("nsqtools_health_failing_parts",): 1,
        ("nsqtools_health_waiting_parts",): 1,
        ("nsqtools_archive_messages_written_total", "orders"): 7,
    }


async def test_status_is_json(address: str, health: Health) -> None:
    health.started()
    health.failing("disk", "full")
    found = (await request(address, "GET", "/status")).json
    assert found == {
        "topics": ["orders"],
        "from": "<class 'object'>",
        "healthy": False,
        "failing": {"disk": "full"},
        "ready": True,
        "waiting": {},
        "notes": {},
    }


async def test_only_questions_are_answered(address: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = await request(address, method, "/health", b"body")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert (await request(address, "GET", "/debug")).status == 404
    head = await request(address, "HEAD", "/health")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "3", b"")


async def test_a_connection_ends_with_its_answer(address: str) -> None:
    raw = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    assert (await exchange(address, raw)).status == 200


async def test_a_page_that_fails_tells_nothing(
    registry: Registry, health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    def status() -> dict[str, str]:
        raise ValueError("inner matters")

    async with StatusServer(LOCAL, registry, health, status=status) as server:
        answer = await request(f"127.0.0.1:{server.port}", "GET", "/status")
    assert answer.status == 500
    assert b"inner" not in answer.body
    assert 'status page failed path=/status error="inner matters"' in caplog.messages


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n",
        b"GET /health HTTP/1.1\r\nA: " + b"x" * 5000 + b"\r\n\r\n",
        b"\x00\xff nonsense\r\n\r\n",
    ],
)
async def test_what_is_too_large_is_refused_in_silence(
    address: str, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert (await exchange(address, raw)).status == 400
    assert caplog.messages == []


async def test_a_slow_client_is_cut_off(
    registry: Registry, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "CONNECTION_TIMEOUT_S", 0.05)
    async with StatusServer(LOCAL, registry, health) as server, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_connections_are_bounded(
    registry: Registry, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "CONNECTIONS_MAX", 2)
    async with StatusServer(LOCAL, registry, health) as server, asyncio.timeout(5):
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        for opened in (writer, *(other for _, other in held)):
            opened.close()


async def test_over_a_socket_in_the_file_system(
    registry: Registry, health: Health, tmp_path: Path
) -> None:
    path = tmp_path / "status"
    async with StatusServer(str(path), registry, health), asyncio.timeout(5):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode_request("GET", "/health"))
        assert parse_answer(await reader.read()).status == 200
        writer.close()
    assert not path.exists()


async def test_an_address_that_is_taken(registry: Registry, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionFailed, match=f"{address}: cannot listen"):
            async with StatusServer(address, registry, health):
                pass


async def test_it_is_off_by_default(registry: Registry, health: Health) -> None:
    options = load(StatusOptions, "sample", [], {})
    async with StatusServer(options.status_address, registry, health) as server:
        assert server.port == 0
    assert load(StatusOptions, "sample", ["--status-address=/run/x"], {}).status_address == "/run/x"


async def test_a_socket_that_another_run_answers_at_is_not_taken(tmp_path: Path) -> None:
    path = str(tmp_path / "status.sock")
    async with StatusServer(path, Registry(), Health()):
        with pytest.raises(ConnectionFailed, match="another program serves its status there"):
            async with StatusServer(path, Registry(), Health()):
                pass
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(encode_request("GET", "/ready"))
        assert b" 503 " in await reader.readline()
        writer.close()
    assert not (tmp_path / "status.sock").exists()
