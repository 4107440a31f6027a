"""What /metrics and /health say of a broker."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import PATIENCE_S
from tests.support.programs import NsqdProgram, Program
from tests.support.raw import RawClient
from tests.support.web import request

from nsqtools.broker.metrics import BrokerMetrics, tell_health
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.broker.troubles import PUBLISH
from nsqtools.observe.counters import Registry
from nsqtools.observe.health import Health
from nsqtools.options import load

if TYPE_CHECKING:
    from pathlib import Path

LOCAL = ("--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0")


def values(registry: Registry) -> dict[tuple[str, ...], float]:
    return {
        (
            sample.name.removeprefix("nsqtools_"),
            *(value for _, value in sample.labels),
        ): sample.value
        for sample in registry.snapshot()
    }


async def test_topics_and_channels_are_counted(tmp_path: Path) -> None:
    registry = Registry()
    broker = Broker(load(NsqdOptions, "nsqd", [*LOCAL, f"--data-path={tmp_path}"], {}))
    BrokerMetrics(broker, registry)
    async with broker, RawClient(broker.tcp_address) as consumer:
        await consumer.subscribe("t", "c", rdy=1)
        for _ in range(3):
            assert (await request(broker.http_address, "POST", "/pub?topic=t", b"ab")).status == 200
        async with asyncio.timeout(PATIENCE_S):
            while values(registry)["channel_in_flight_messages", "t", "c"] < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert values(registry) == {
            ("topic_messages_published_total", "t"): 3,
            ("topic_bodies_bytes_total", "t"): 6,
            ("channel_depth_messages", "t", "c"): 2,
            ("channel_in_flight_messages", "t", "c"): 1,
            ("channel_deferred_messages", "t", "c"): 0,
            ("channel_consumers_count", "t", "c"): 1,
            ("broker_connections_count",): 1,
            ("broker_connections_max_count",): broker.admission.tcp_max,
            ("broker_connections_refused_total",): 0,
        }
        answer = await request(broker.http_address, "POST", "/topic/delete?topic=t")
        assert answer.status == 200
        assert all(key[0].startswith("broker_connections_") for key in values(registry))


async def test_what_is_dropped_shows(tmp_path: Path) -> None:
    registry = Registry()
    flags = [*LOCAL, f"--data-path={tmp_path}", "--mem-queue-size=2"]
    broker = Broker(load(NsqdOptions, "nsqd", flags, {}))
    BrokerMetrics(broker, registry)
    async with broker, RawClient(broker.tcp_address) as client:
        await client.publish("t#ephemeral", *[b"x"] * 5)
        await client.subscribe("u", "c#ephemeral", rdy=0)
        await client.publish("u", *[b"x"] * 9)
        async with asyncio.timeout(PATIENCE_S):
            while sum("dropped" in key[0] for key in values(registry)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        found = values(registry)
        dropped = {key: value for key, value in found.items() if "dropped" in key[0]}
        assert sorted(dropped.values()) == [3, 7]
        answer = await request(broker.http_address, "GET", "/stats?format=json")
        ephemeral, plain = answer.json["topics"]
        assert ephemeral["dropped_count"] == 3
        assert "dropped_count" not in plain
        assert plain["channels"][0]["dropped_count"] == 7
        text = (await request(broker.http_address, "GET", "/stats")).body
        assert b"dropped: 3\n" in text
        assert b"dropped: 7\n" in text


@pytest.mark.slow
async def test_a_second_signal_ends_a_close_that_hangs(tmp_path: Path) -> None:
    hanging = (
        "import asyncio, sys\n"
        "from nsqtools.broker.server import Broker\n"
        "from nsqtools.cli.nsqd import main\n"
        "async def hang(self): await asyncio.sleep(3600)\n"
        "Broker._close_sessions = hang\n"
        "main(sys.argv[1:])\n"
    )
    async with Program("nsqd", "-c", hanging) as nsqd:
        await nsqd.start(*LOCAL, f"--data-path={tmp_path}")
        await nsqd.says("serving")
        nsqd.send(signal.SIGTERM)
        await nsqd.says("stopping reason=SIGTERM")
        assert await nsqd.end(signal.SIGTERM) == 130
        assert 'cut short what="closing the broker" reason=forced' in nsqd.told


async def test_its_health_is_what_ping_says(tmp_path: Path) -> None:
    broker = Broker(load(NsqdOptions, "nsqd", [*LOCAL, f"--data-path={tmp_path}"], {}))
    health = Health()
    tell_health(broker, health)
    assert health.failures == {}
    broker.troubles.failed(PUBLISH, "t", "No space left on device")
    tell_health(broker, health)
    assert health.failures == {"publishing": "NOK - No space left on device"}
    broker.troubles.recovered(PUBLISH, "t")
    tell_health(broker, health)
    assert health.failures == {}


@pytest.mark.slow
async def test_the_program_serves_its_status(tmp_path: Path) -> None:
    async with NsqdProgram(tmp_path, "--status-address=127.0.0.1:0") as nsqd:
        await nsqd.serve()
        await nsqd.says("serving")
        (port,) = re.findall(r"status is served address=127\.0\.0\.1:(\d+)", nsqd.told)
        address = f"127.0.0.1:{port}"
        assert (await request(address, "GET", "/ready")).status == 200
        assert (await request(address, "GET", "/health")).status == 200
        assert (await request(address, "GET", "/status")).json["program"] == "nsqd"
        assert (
            b"nsqtools_process_resident_bytes" in (await request(address, "GET", "/metrics")).body
        )
        assert await nsqd.end(signal.SIGTERM) == 0
