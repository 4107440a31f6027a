"""/stats, key by key and line by line (spec: nsqd-http, 2.4)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import PATIENCE_S, as_built
from tests.support.raw import OK, RawClient
from tests.support.web import get_stats, post, request, until_channel

from nsqtools.broker.stats import go_duration, memory_stats
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.nsqd import Nsqd

CHANNEL_KEYS = [
    "channel_name",
    "depth",
    "backend_depth",
    "in_flight_count",
    "deferred_count",
    "message_count",
    "global_msg_count",
    "requeue_count",
    "timeout_count",
    "client_count",
    "clients",
    "paused",
    "e2e_processing_latency",
]
CLIENT_KEYS = [
    "client_id",
    "hostname",
    "version",
    "remote_address",
    "state",
    "ready_count",
    "in_flight_count",
    "message_count",
    "finish_count",
    "requeue_count",
    "connect_ts",
    "sample_rate",
    "deflate",
    "snappy",
    "user_agent",
    "topology_zone",
    "topology_region",
    "tls",
    "tls_cipher_suite",
    "tls_version",
    "tls_negotiated_protocol",
    "tls_negotiated_protocol_is_mutual",
]
E2E_OFF = {"count": 0, "percentiles": None}
IDENTITY = b'{"client_id":"cid","hostname":"hst","user_agent":"ua/1"}'


@pytest.fixture
async def consumer(nsqd: Nsqd) -> AsyncIterator[RawClient]:
    """Topic t with channel c and one consumer: one message finished, one in flight, one waiting."""
    async with RawClient(nsqd.tcp_address) as producer:
        await producer.publish("t", b"12", b"345", b"6")
    async with RawClient(nsqd.tcp_address) as client:
        assert await client.identify(IDENTITY) == OK
        await client.subscribe("t", "c")
        client.finish(await client.message())
        await client.message()
        await until_channel(nsqd, "t", "c", depth=1, message_count=3)
        async with asyncio.timeout(PATIENCE_S):
            # The producer is taken off the list when its end has been noticed.
            while (await get_stats(nsqd))["producers"] is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield client


async def test_json(nsqd: Nsqd, consumer: RawClient) -> None:
    found = await get_stats(nsqd)
    assert list(found) == ["version", "health", "start_time", "topics", "memory", "producers"]
    assert (found["version"], found["health"], found["producers"]) == ("1.3.0", "OK", None)
    assert list(found["memory"]) == list(memory_stats())
    (topic,) = found["topics"]
    (channel,) = topic.pop("channels")
    if not nsqd.is_real:
        retained = topic.pop("retained")
        assert retained["message_count"] == 3
        assert int(retained["next_id"], 16) - int(retained["first_id"], 16) == 3
        assert retained["bytes"] > 0
    assert list(topic.items()) == [
        ("topic_name", "t"),
        ("depth", 0),
        ("backend_depth", 0),
        ("message_count", 3),
        ("message_bytes", 6),
        ("paused", False),
        ("e2e_processing_latency", E2E_OFF),
    ]
    assert list(channel) == list(as_built(nsqd, dict.fromkeys(CHANNEL_KEYS), channel))
    (client,) = channel.pop("clients")
    expected: dict[str, object] = {
        "channel_name": "c",
        "depth": 1,
        "backend_depth": 0,
        "in_flight_count": 1,
        "deferred_count": 0,
        "message_count": 3,
        "global_msg_count": 2,
        "requeue_count": 0,
        "timeout_count": 0,
        "client_count": 1,
        "paused": False,
        "e2e_processing_latency": E2E_OFF,
    }
    assert channel == as_built(nsqd, expected, channel)
    assert list(client) == list(as_built(nsqd, dict.fromkeys(CLIENT_KEYS), client))
    assert client["remote_address"] == f"127.0.0.1:{consumer.port}"
    assert [client[key] for key in ("client_id", "hostname", "version", "user_agent")] == [
        "cid",
        "hst",
        "V2",
        "ua/1",
    ]
    numbers = ["state", "ready_count", "in_flight_count", "message_count", "finish_count"]
    assert [client[key] for key in numbers] == [3, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("parameters", "topics"),
    [
        ("topic=none", None),
        ("channel=none", []),
        ("topic=t&channel=none", []),
        ("topic=t&channel=c", ["t"]),
        ("channel=c", ["t"]),
        ("", ["t", "u"]),
    ],
)
async def test_filters(
    nsqd: Nsqd, consumer: RawClient, parameters: str, topics: list[str] | None
) -> None:
    await post(nsqd, "/topic/create?topic=u")
    found = (await get_stats(nsqd, parameters))["topics"]
    names = None if found is None else [topic["topic_name"] for topic in found]
    assert names == topics


async def test_a_channel_filter_shows_that_channel_only(nsqd: Nsqd, consumer: RawClient) -> None:
    await post(nsqd, "/channel/create?topic=t&channel=a")
    found = (await get_stats(nsqd))["topics"][0]["channels"]
    assert [channel["channel_name"] for channel in found] == ["a", "c"]
    found = (await get_stats(nsqd, "channel=c"))["topics"][0]["channels"]
    assert [channel["channel_name"] for channel in found] == ["c"]


@pytest.mark.parametrize(
    ("parameters", "clients", "memory"),
    [
        ("include_clients=false&include_mem=0", False, False),
        ("include_clients=0&include_mem=false", False, False),
        ("include_clients=perhaps&include_mem=", True, True),
        ("include_clients=1&include_mem=true", True, True),
    ],
)
async def test_what_is_included(
    nsqd: Nsqd, consumer: RawClient, parameters: str, clients: bool, memory: bool
) -> None:
    assert await consumer.ask(commands.pub("t", b"x")) == OK
    found = await get_stats(nsqd, parameters)
    assert ("memory" in found) is memory
    channel = found["topics"][0]["channels"][0]
    assert channel["client_count"] == 1
    assert (channel["clients"] is not None) is clients
    assert (found["producers"] is not None) is clients


async def test_an_empty_broker(nsqd: Nsqd) -> None:
    found = await get_stats(nsqd)
    assert (found["topics"], found["producers"]) == ([], None)
    text = (await request(nsqd, "GET", "/stats?include_mem=false")).body.decode()
    assert text.endswith("\n\nHealth: OK\n\nTopics: None\n\nProducers: None\n")


async def test_text(nsqd: Nsqd, consumer: RawClient) -> None:
    await post(nsqd, "/topic/create?topic=u")
    await post(nsqd, "/channel/create?topic=u&channel=x")
    await post(nsqd, "/topic/pause?topic=u")
    await post(nsqd, "/channel/pause?topic=u&channel=x")
    async with RawClient(nsqd.tcp_address) as producer:
        await producer.identify(IDENTITY)
        await producer.publish("u", b"1", b"2")
        text = (await request(nsqd, "GET", "/stats?format=text")).body.decode()
        name = f"hst:{consumer.port} ua/1".ljust(21)
        other = f"hst:{producer.port} ua/1".ljust(21)
    pattern = re.compile(
        r"nsqd v1\.3\.0 \(built w/[^)]*\)\n"
        r"start_time \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)\n"
        r"uptime [0-9.hmsµ]+\n\n"
        r"Health: OK\n\n"
        r"Memory:\n(   [a-z_0-9]{1,25} *\t\d+\n){9}\n"
    )
    head = pattern.match(text)
    assert head is not None, text
    text = re.sub(r"connected: \d+s\n", "connected: #\n", text[head.end() :])
    assert text == (
        "Topics:\n"
        "   [t              ] depth: 0     be-depth: 0     msgs: 3        e2e%: \n"
        "      [c                        ] depth: 1     be-depth: 0     inflt: 1    def: 0   "
        " re-q: 0     timeout: 0     msgs: 3        e2e%: \n"
        f"        [V2 {name}] state: 3 inflt: 1    rdy: 1    fin: 1        re-q: 0       "
        " msgs: 2        connected: #\n"
        "\n"
        "*P [u              ] depth: 2     be-depth: 0     msgs: 2        e2e%: \n"
        "   *P [x                        ] depth: 0     be-depth: 0     inflt: 0    def: 0   "
        " re-q: 0     timeout: 0     msgs: 0        e2e%: \n"
        "\n"
        "Producers:\n"
        f"   [V2 {other}] msgs: 2        topics: u=2 connected: #\n"
    )


async def test_a_client_cannot_forge_lines(nsqd: Nsqd) -> None:
    if nsqd.is_real:
        pytest.skip("nsqd writes what a client says of itself as it is")
    async with RawClient(nsqd.tcp_address) as client:
        await client.identify(b'{"hostname":"a\\n   [V2 b","user_agent":"\\u001b[2J"}')
        await client.publish("t", b"x")
        text = (await request(nsqd, "GET", "/stats")).body.decode()
    assert "[V2 a?   [V2 b:" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (6, "6s"),
        (59.5, "59.5s"),
        (60, "1m0s"),
        (155.605178989, "2m35.605178989s"),
        (3600, "1h0m0s"),
        (90061.5, "25h1m1.5s"),
    ],
)
def test_durations_are_go_s(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text
