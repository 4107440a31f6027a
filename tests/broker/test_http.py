"""nsqd's HTTP API (spec: nsqd-http, parts 1 and 2), on every broker that there is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd, as_built
from tests.support.raw import RawClient, bodies
from tests.support.web import (
    channel_stats,
    encode_request,
    exchange,
    get_stats,
    post,
    request,
    topic_stats,
    until_channel,
)

from nsqtools.broker import http
from nsqtools.broker.api import HttpError, parse_query
from nsqtools.broker.http import NoRoute, Redirect, Route, find_route
from nsqtools.broker.troubles import PUBLISH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd, StartNsqd

V1 = ("X-Nsq-Content-Type", "nsq; version=1.0")
JSON = "application/json; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
MAX_MSG = 8
MAX_BODY = 40


def i32(value: int) -> bytes:
    return struct.pack(">i", value)


def batch(*messages: bytes) -> bytes:
    return i32(len(messages)) + b"".join(i32(len(one)) + one for one in messages)


# Method, target, body, then status and text of the error.
ERRORS: list[tuple[str, str, bytes, int, str]] = [
    ("GET", "/nothing", b"", 404, "NOT_FOUND"),
    ("GET", "/", b"", 404, "NOT_FOUND"),
    ("GET", "/config/", b"", 404, "NOT_FOUND"),
    ("GET", "/config/a/b", b"", 404, "NOT_FOUND"),
    ("GET", "/pub", b"", 405, "METHOD_NOT_ALLOWED"),
    ("POST", "/stats", b"", 405, "METHOD_NOT_ALLOWED"),
    ("DELETE", "/config/log_level", b"", 405, "METHOD_NOT_ALLOWED"),
    # /pub, in the order of the checks
    ("POST", "/pub?topic=!", b"123456789", 413, "MSG_TOO_BIG"),
    ("POST", "/pub?topic=!&%zz", b"", 400, "MSG_EMPTY"),
    ("POST", "/pub?topic=!&%zz", b"x", 400, "INVALID_REQUEST"),
    ("POST", "/pub?topic=a;b", b"x", 400, "INVALID_REQUEST"),
    ("POST", "/pub", b"topic=t", 400, "MISSING_ARG_TOPIC"),
    ("POST", "/pub?topic", b"x", 400, "INVALID_TOPIC"),
    ("POST", "/pub?topic=%ff", b"x", 400, "INVALID_TOPIC"),
    ("POST", "/pub?topic=a+b", b"x", 400, "INVALID_TOPIC"),
    ("POST", "/pub?topic=!&topic=t", b"x", 400, "INVALID_TOPIC"),
    ("POST", "/pub?topic=t&defer=x", b"x", 400, "INVALID_DEFER"),
    ("POST", "/pub?topic=t&defer=", b"x", 400, "INVALID_DEFER"),
    ("POST", "/pub?topic=t&defer=1_0", b"x", 400, "INVALID_DEFER"),
    ("POST", "/pub?topic=t&defer=-1", b"x", 400, "INVALID_DEFER"),
    ("POST", "/pub?topic=t&defer=3600001", b"x", 400, "INVALID_DEFER"),
    # /mpub
    ("POST", "/mpub?topic=!", b"x" * 41, 413, "BODY_TOO_BIG"),
    ("POST", "/mpub?%", b"x", 400, "INVALID_REQUEST"),
    ("POST", "/mpub", b"x", 400, "MISSING_ARG_TOPIC"),
    ("POST", "/mpub?topic=!", b"x", 400, "INVALID_TOPIC"),
    ("POST", "/mpub?topic=t", b"1\n123456789\n", 413, "MSG_TOO_BIG"),
    ("POST", "/mpub?topic=t&binary=1", b"\0\0\0", 413, "BAD_BODY"),
    ("POST", "/mpub?topic=t&binary=1", i32(0), 413, "BAD_BODY"),
    ("POST", "/mpub?topic=t&binary=true", i32(8), 413, "BAD_BODY"),
    ("POST", "/mpub?topic=t&binary=1", i32(1) + b"\0", 413, "BAD_MESSAGE"),
    ("POST", "/mpub?topic=t&binary=1", i32(1) + i32(0), 413, "BAD_MESSAGE"),
    ("POST", "/mpub?topic=t&binary=1", i32(1) + i32(9) + b"123456789", 413, "BAD_MESSAGE"),
    ("POST", "/mpub?topic=t&binary=1", i32(2) + i32(1) + b"1" + i32(2) + b"1", 413, "BAD_MESSAGE"),
    # Topics
    ("POST", "/topic/create", b"", 400, "MISSING_ARG_TOPIC"),
    ("POST", "/topic/create?topic=!", b"", 400, "INVALID_TOPIC"),
    ("POST", "/topic/create?topic=t&a=%", b"", 400, "INVALID_REQUEST"),
    ("POST", "/topic/delete", b"", 400, "MISSING_ARG_TOPIC"),
    ("POST", "/topic/delete?topic=!", b"", 404, "TOPIC_NOT_FOUND"),
    ("POST", "/topic/empty?topic=!", b"", 400, "INVALID_TOPIC"),
    ("POST", "/topic/empty?topic=none", b"", 404, "TOPIC_NOT_FOUND"),
    ("POST", "/topic/pause", b"", 400, "MISSING_ARG_TOPIC"),
    ("POST", "/topic/pause?topic=!", b"", 404, "TOPIC_NOT_FOUND"),
    ("POST", "/topic/unpause?topic=none", b"", 404, "TOPIC_NOT_FOUND"),
    # Configuration
    ("GET", "/config/nothing", b"", 400, "INVALID_OPTION"),
    ("GET", "/config/log_level%2fx", b"", 404, "NOT_FOUND"),
    ("PUT", "/config/msg_timeout", b"1", 400, "INVALID_OPTION"),
    ("PUT", "/config/log_level", b"", 413, "INVALID_VALUE"),
    ("PUT", "/config/log_level", b"123456789", 413, "INVALID_VALUE"),
    ("PUT", "/config/log_level", b"loud", 400, "INVALID_VALUE"),
    ("PUT", "/config/nsqlookupd_tcp_addresses", b"[", 400, "INVALID_VALUE"),
    ("PUT", "/config/nsqlookupd_tcp_addresses", b"[1]", 400, "INVALID_VALUE"),
] + [
    ("POST", f"/channel/{action}{query}", b"", status, text)
    for action in ("create", "delete", "empty", "pause", "unpause")
    for query, status, text in (
        ("?%", 400, "INVALID_REQUEST"),
        ("?channel=c", 400, "MISSING_ARG_TOPIC"),
        ("?topic=!", 400, "INVALID_ARG_TOPIC"),
        ("?topic=none", 400, "MISSING_ARG_CHANNEL"),
        ("?topic=none&channel=!", 400, "INVALID_ARG_CHANNEL"),
        ("?topic=none&channel=c", 404, "TOPIC_NOT_FOUND"),
        *([] if action == "create" else [("?topic=there&channel=c", 404, "CHANNEL_NOT_FOUND")]),
    )
]


@pytest.fixture
async def small(start_nsqd: StartNsqd) -> Nsqd:
    return await start_nsqd(max_msg_size=MAX_MSG, max_body_size=MAX_BODY)


async def test_every_error(small: Nsqd) -> None:
    await post(small, "/topic/create?topic=there")
    for method, target, body, status, text in ERRORS:
        answer = await request(small, method, target, body)
        assert (method, target, body, answer.status) == (method, target, body, status)
        assert answer.body == b'{"message":"%b"}' % text.encode(), target
        assert answer.headers["Content-Type"] == JSON
        assert V1 in answer.headers.items()


async def test_chunked_bodies_meet_the_same_limits(small: Nsqd) -> None:
    chunked = {"Transfer-Encoding": "chunked"}

    def chunks(body: bytes) -> bytes:
        return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    answer = await request(small, "POST", "/pub?topic=t", chunks(b"12345678"), chunked)
    assert answer.body == b"OK"
    answer = await request(small, "POST", "/pub?topic=t", chunks(b"123456789"), chunked)
    assert (answer.status, answer.message) == (413, "MSG_TOO_BIG")
    lines = b"1234567\n" * 5
    answer = await request(small, "POST", "/mpub?topic=t", chunks(lines), chunked)
    assert answer.body == b"OK"
    answer = await request(small, "POST", "/mpub?topic=t", chunks(lines + b"\n"), chunked)
    assert (answer.status, answer.message) == (413, "BODY_TOO_BIG")
    assert (await topic_stats(small, "t"))["message_count"] == 6


async def test_allow_names_what_there_is(nsqd: Nsqd) -> None:
    answer = await request(nsqd, "OPTIONS", "/pub")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Allow"] == "OPTIONS, POST"
    answer = await request(nsqd, "POST", "/config/log_level")
    assert answer.headers["Allow"] == "GET, OPTIONS, PUT"
    assert (await request(nsqd, "OPTIONS", "/nothing")).status == 404


@pytest.mark.parametrize(
    ("method", "target", "status", "location"),
    [
        ("GET", "/stats/?format=json&x=%20", 301, "/stats?format=json&x=%20"),
        ("GET", "/PING", 301, "/ping"),
        ("GET", "//info", 301, "/info"),
        ("GET", "/a/../Stats", 301, "/stats"),
        ("POST", "/Pub?topic=t", 308, "/pub?topic=t"),
        ("POST", "/topic//create/?topic=t", 308, "/topic/create?topic=t"),
        ("PUT", "/CONFIG/log_level/", 308, "/config/log_level"),
    ],
)
async def test_a_path_that_is_nearly_right_is_redirected(
    nsqd: Nsqd, method: str, target: str, status: int, location: str
) -> None:
    answer = await request(nsqd, method, target)
    assert (answer.status, answer.headers["Location"]) == (status, location)


async def test_ping_is_plain(nsqd: Nsqd) -> None:
    answer = await request(nsqd, "GET", "/%70ing?whatever=%zz")
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.headers["Content-Type"] == TEXT
    assert V1 not in answer.headers.items()


async def test_info_has_the_real_ports(nsqd: Nsqd) -> None:
    info = (await request(nsqd, "GET", "/info")).json
    expected = [
        "version",
        "broadcast_address",
        "hostname",
        "http_port",
        "tcp_port",
        "start_time",
        "max_heartbeat_interval",
        "max_output_buffer_size",
        "max_output_buffer_timeout",
        "max_deflate_level",
        "topology_zone",
        "topology_region",
    ]
    assert list(info) == list(as_built(nsqd, dict.fromkeys(expected), info))
    assert nsqd.tcp_address.endswith(f":{info['tcp_port']}")
    assert nsqd.http_address.endswith(f":{info['http_port']}")
    assert info["max_heartbeat_interval"] == 60_000_000_000


async def test_what_is_published_arrives(small: Nsqd) -> None:
    await post(small, "/pub?topic=t&topic=%21", b"\0\n\xff")
    for target, body in (
        ("/mpub?topic=t", b"a\r\n\n\nb"),
        ("/mpub?topic=t&binary=0", b"c\n"),
        ("/mpub?topic=t&binary=true", batch(b"d", b"\n") + b"ignored"),
        ("/mpub?topic=t&binary=perhaps", batch(b"e")),
    ):
        answer = await request(small, "POST", target, body)
        assert (answer.status, answer.body) == (200, b"OK")
        assert answer.headers["Content-Type"] == TEXT
    assert (await request(small, "POST", "/mpub?topic=t")).body == b"OK"
    assert (await request(small, "POST", "/mpub?topic=t", b"\n\n")).body == b"OK"
    async with RawClient(small.tcp_address) as client:
        await client.subscribe("t", "c", rdy=100)
        expected = [b"\0\n\xff", b"a\r", b"b", b"c", b"d", b"\n", b"e"]
        assert sorted(bodies(await client.messages(7))) == sorted(expected)
        assert await client.is_quiet()


async def test_topics_come_and_go(nsqd: Nsqd) -> None:
    for _ in range(2):
        answer = await request(nsqd, "POST", "/topic/create?topic=t")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Content-Length"] == "0"
        assert "Content-Type" not in answer.headers
    await post(nsqd, "/pub?topic=t", b"x")
    await post(nsqd, "/topic/empty?topic=t")
    found = await topic_stats(nsqd, "t")
    assert (found["depth"], found["message_count"], found["channels"]) == (0, 1, [])
    for _ in range(2):
        await post(nsqd, "/channel/create?topic=t&channel=c")
    await post(nsqd, "/channel/delete?topic=t&channel=c")
    assert (await topic_stats(nsqd, "t"))["channels"] == []
    await post(nsqd, "/topic/delete?topic=t")
    assert await topic_stats(nsqd, "t") is None


async def test_an_ephemeral_topic_goes_with_its_last_channel(nsqd: Nsqd) -> None:
    await post(nsqd, "/topic/create?topic=t%23ephemeral")
    await post(nsqd, "/channel/create?topic=t%23ephemeral&channel=c")
    await post(nsqd, "/channel/delete?topic=t%23ephemeral&channel=c")
    async with asyncio.timeout(PATIENCE_S):
        while await topic_stats(nsqd, "t%23ephemeral") is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_pauses_and_empty_channels_survive_a_kill(nsqd: Nsqd) -> None:
    for topic in ("paused", "t"):
        await post(nsqd, f"/topic/create?topic={topic}")
        for channel in ("paused", "empty"):
            await post(nsqd, f"/channel/create?topic={topic}&channel={channel}")
    await post(nsqd, "/topic/pause?topic=paused")
    await post(nsqd, "/topic/unpause?topic=t")
    await post(nsqd, "/channel/pause?topic=t&channel=paused")
    await post(nsqd, "/pub?topic=t", b"x")
    await until_channel(nsqd, "t", "empty", depth=1)
    await post(nsqd, "/channel/empty?topic=t&channel=empty")
    await nsqd.restart(kill=True)
    assert (await topic_stats(nsqd, "paused"))["paused"] is True
    assert (await topic_stats(nsqd, "t"))["paused"] is False
    assert (await channel_stats(nsqd, "t", "paused"))["paused"] is True
    assert (await channel_stats(nsqd, "t", "empty"))["paused"] is False
    assert (await channel_stats(nsqd, "t", "empty"))["depth"] == 0


async def test_what_a_paused_topic_was_emptied_of_stays_away(nsqd: Nsqd) -> None:
    """Also behind what a channel still has to deliver, and after a restart."""
    await post(nsqd, "/topic/create?topic=t")
    await post(nsqd, "/channel/create?topic=t&channel=c")
    await post(nsqd, "/pub?topic=t", b"before")
    await until_channel(nsqd, "t", "c", depth=1)
    await post(nsqd, "/topic/pause?topic=t")
    await post(nsqd, "/pub?topic=t", b"dropped")
    await post(nsqd, "/topic/empty?topic=t")
    await post(nsqd, "/pub?topic=t", b"behind")
    await nsqd.restart()
    await post(nsqd, "/topic/unpause?topic=t")
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=10)
        assert sorted(bodies(await client.messages(2))) == [b"before", b"behind"]
        assert await client.is_quiet()


# /config


@pytest.fixture
def _log_level() -> Iterator[None]:
    logger = logging.getLogger("nsqtools")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("_log_level")
async def test_the_log_level_can_be_changed(nsqd: Nsqd) -> None:
    assert (await request(nsqd, "GET", "/config/log_level")).body == b"2"
    answer = await request(nsqd, "PUT", "/config/log_level", b"WARN")
    assert (answer.status, answer.body) == (200, b"3")
    assert answer.headers["Content-Type"] == JSON
    assert (await request(nsqd, "GET", "/config/log_level")).body == b"3"


async def test_lookupds_can_be_changed(nsqd: Nsqd) -> None:
    target = "/config/nsqlookupd_tcp_addresses"
    assert (await request(nsqd, "GET", target)).json in ([], None)
    answer = await request(nsqd, "PUT", target, b'["127.0.0.1:1"]')
    assert (answer.status, answer.json) == (200, ["127.0.0.1:1"])
    assert (await request(nsqd, "GET", target)).json == ["127.0.0.1:1"]
    assert (await request(nsqd, "PUT", target, b"[]")).json == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("msg_timeout", b"60000000000"),
        ("max_msg_size", b"1048576"),
        ("mem_queue_size", b"10000"),
        ("output_buffer_timeout", b"250000000"),
        ("sync_every", b"2500"),
    ],
)
async def test_options_are_shown(nsqd: Nsqd, key: str, value: bytes) -> None:
    assert (await request(nsqd, "GET", f"/config/{key}")).body == value


# Limits


async def test_keep_alive_and_pipelined_requests(nsqd: Nsqd) -> None:
    live = {"Connection": "keep-alive"}
    raw = b"".join(
        encode_request("POST", "/pub?topic=t", b"%d" % number, live) for number in range(20)
    )
    answer = await exchange(nsqd.http_address, raw + encode_request("GET", "/ping"))
    assert answer.body.count(b"HTTP/1.1 200 OK") == 20
    assert (await topic_stats(nsqd, "t"))["message_count"] == 20


async def test_a_client_may_wait_for_our_word_before_it_sends_the_body(nsqd: Nsqd) -> None:
    host, _, port = nsqd.http_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = encode_request("POST", "/pub?topic=t", b"", {"Expect": "100-continue"})
    writer.write(head.replace(b"Content-Length: 0", b"Content-Length: 4"))
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"body")
        assert (await reader.read()).endswith(b"\r\n\r\nOK")
    writer.close()
    await writer.wait_closed()


async def test_a_malformed_request_is_answered_and_not_logged_at_length(
    nsqd: Nsqd, caplog: pytest.LogCaptureFixture
) -> None:
    for raw in (b"NONSENSE\r\n\r\n", b"GET /ping HTTP/1.1\r\nBad Name: x\r\n\r\n"):
        assert (await exchange(nsqd.http_address, raw)).status == 400
    assert "Traceback" not in caplog.text


async def test_a_body_that_breaks_off_publishes_nothing(nsqd: Nsqd) -> None:
    host, _, port = nsqd.http_address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = encode_request("POST", "/pub?topic=t", b"").replace(b"Length: 0", b"Length: 4")
    writer.write(head + b"bod")
    writer.close()
    await writer.wait_closed()
    assert (await request(nsqd, "GET", "/ping")).body == b"OK"
    found = await topic_stats(nsqd, "t")
    assert found is None or found["message_count"] == 0


@pytest.fixture
async def embedded(tmp_path: Path) -> EmbeddedNsqd:
    """Ours, where the real nsqd has no limit to test."""
    return EmbeddedNsqd(tmp_path, {})


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("IDLE_TIMEOUT_S", b""),
        ("IDLE_TIMEOUT_S", b"POST /pub?topic=t HTT"),
        (
            "REQUEST_TIMEOUT_S",
            b"POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbod",
        ),
    ],
)
async def test_a_slow_client_is_cut_off(
    embedded: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes
) -> None:
    monkeypatch.setattr(http, limit, 0.1)
    await embedded.start()
    try:
        host, _, port = embedded.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
    finally:
        await embedded.stop()


async def test_connections_are_bounded(embedded: EmbeddedNsqd) -> None:
    await embedded.start()
    embedded.broker.admission.http_max = 2
    try:
        host, _, port = embedded.http_address.rpartition(":")
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        with pytest.raises((ConnectionResetError, IndexError)):
            await request(embedded, "GET", "/ping")
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        assert (await request(embedded, "GET", "/ping")).body == b"OK"
    finally:
        await embedded.stop()


async def test_bodies_are_bounded_together_and_one_may_always_finish(
    embedded: EmbeddedNsqd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BODY_WAIT_S", 0.1)
    await embedded.start()
    bodies_under_way = embedded.broker.bodies
    bodies_under_way.bytes_max = 10
    try:
        host, _, port = embedded.http_address.rpartition(":")
        head = encode_request("POST", "/pub?topic=t", b"x" * 16).removesuffix(b"x" * 8)
        held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        for number, (_, writer) in enumerate(held, 1):
            writer.write(head)
            await until(lambda: bodies_under_way.held_bytes == 8 * number)  # noqa: B023
        # The second has the turn: what comes now waits, and not for ever.
        answer = await request(embedded, "POST", "/pub?topic=t", b"x" * 8)
        assert (answer.status, answer.message) == (503, "OVERLOADED")
        for reader, writer in reversed(held):
            writer.write(b"x" * 8)
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.read()).endswith(b"OK")
            writer.close()
            await writer.wait_closed()
        await until(lambda: bodies_under_way.held_bytes == 0)
        assert (await request(embedded, "POST", "/pub?topic=t", b"x" * 11)).body == b"OK"
    finally:
        await embedded.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_batch_of_very_many_lines_is_whole(nsqd: Nsqd) -> None:
    lines = [b"%d" % number for number in range(40_000)]
    await post(nsqd, "/mpub?topic=t", b"\n".join(lines) + b"\n\n\n")
    await post(nsqd, "/mpub?topic=binary&binary=true", batch(*lines))
    for topic in ("t", "binary"):
        assert (await topic_stats(nsqd, topic))["message_count"] == 40_000
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe(topic, "c", rdy=2500)
            found: list[bytes] = []
            while len(found) < 40_000:
                messages = await client.messages(500)
                found += bodies(messages)
                client.finish(*messages)
        # The real nsqd hands over in no order (spec: tcp-protocol, part 7).
        assert sorted(found) == sorted(lines)


async def test_a_sick_disk_shows_in_ping_and_pub(embedded: EmbeddedNsqd) -> None:
    await embedded.start()
    try:
        embedded.broker.troubles.failed(PUBLISH, "t", "write /x: no space left on device")
        answer = await request(embedded, "GET", "/ping")
        assert (answer.status, answer.body) == (500, b"NOK - write /x: no space left on device")
        assert V1 not in answer.headers.items()
        topic = embedded.broker.topic("t")
        topic.exiting = True
        answer = await request(embedded, "POST", "/pub?topic=t", b"x")
        assert (answer.status, answer.message) == (503, "EXITING")
        embedded.broker.troubles.recovered(PUBLISH, "t")
        assert (await get_stats(embedded))["health"] == "OK", "an end is no trouble"
        topic.exiting = False
    finally:
        await embedded.stop()


async def test_a_bug_in_an_endpoint_is_answered_and_logged(
    embedded: EmbeddedNsqd, caplog: pytest.LogCaptureFixture
) -> None:
    await embedded.start()
    try:
        embedded.broker.start_time_s = "not a number"  # type: ignore[assignment]
        answer = await request(embedded, "GET", "/stats")
        assert (answer.status, answer.message) == (500, "INTERNAL_ERROR")
        assert "unexpected error path=/stats" in caplog.text
        assert (await request(embedded, "GET", "/ping")).body == b"OK"
    finally:
        await embedded.stop()


async def test_requests_are_logged_but_not_publishes(
    embedded: EmbeddedNsqd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nsqtools.broker.http")
    await embedded.start()
    try:
        await request(embedded, "POST", "/pub?topic=!", b"x")
        await request(embedded, "GET", "/nothing?a=b")
    finally:
        await embedded.stop()
    lines = [line for line in caplog.messages if "127.0.0.1:" in line and "listening" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("404 GET /nothing?a=b (127.0.0.1:")


FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://x:80"},
    {"Origin": ""},
    {"Origin": "chrome-extension://x"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
]
OWN = [
    {},
    {"Origin": "http://x"},
    {"Origin": "https://X", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin"},
]


async def test_a_web_page_of_another_site_cannot_change_anything(
    embedded: EmbeddedNsqd,
) -> None:
    await embedded.start()
    try:
        for headers in OWN:
            answer = await request(embedded, "POST", "/pub?topic=t", b"x", headers)
            assert (headers, answer.status) == (headers, 200)
        for headers in FOREIGN:
            for method, target in (
                ("POST", "/topic/delete?topic=t"),
                ("POST", "/TOPIC/delete?topic=t"),
                ("POST", "/pub?topic=t"),
                ("PUT", "/config/log_level"),
            ):
                answer = await request(embedded, method, target, b"error", headers)
                assert (headers, target, answer.status) == (headers, target, 403)
                assert answer.message.startswith("FORBIDDEN")
            assert (await request(embedded, "GET", "/stats", b"", headers)).status == 200
        assert (await topic_stats(embedded, "t"))["message_count"] == len(OWN)
    finally:
        await embedded.stop()


# Pure parts


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", {}),
        ("&&", {}),
        ("a=1&b=2&a=3", {"a": "1", "b": "2"}),
        ("a", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a+b=%41%2B+", {"a b": "A+ "}),
        ("a=%ff", {"a": "\ufffd"}),
    ],
)
def test_queries(raw: str, expected: dict[str, str]) -> None:
    assert parse_query(raw) == expected


@pytest.mark.parametrize("raw", ["%", "a=%4", "a=%g0", "a;b", "a=1&b=1;c=1"])
def test_malformed_queries(raw: str) -> None:
    with pytest.raises(HttpError, match="INVALID_REQUEST"):
        parse_query(raw)


@given(st.text(max_size=60))
def test_only_one_error_escapes_a_query(raw: str) -> None:
    with contextlib.suppress(HttpError):
        parsed = parse_query(raw)
        assert len(parsed) <= raw.count("&") + 1


@given(st.sampled_from(["GET", "POST", "PUT", "get"]), st.text("/configPub.~\0", max_size=30))
def test_every_path_leads_somewhere_and_no_redirect_leads_to_another(
    method: str, path: str
) -> None:
    found = find_route(method, path)
    if isinstance(found, Redirect):
        assert isinstance(find_route(method, found.path), Route)
    elif isinstance(found, NoRoute):
        assert method not in found.allowed
