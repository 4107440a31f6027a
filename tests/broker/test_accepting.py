"""How many connections there may be, and what happens when descriptors run out."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import PATIENCE_S, EmbeddedNsqd
from tests.support.programs import NsqdProgram
from tests.support.raw import OK, RawClient

from nsqtools.broker.accepting import Admission
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.outside import is_local
from nsqtools.broker.server import Broker
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("descriptors_max", [256, 1024, 20_000, 1 << 20])
def test_files_always_have_their_part(descriptors_max: int) -> None:
    admission = Admission(descriptors_max)
    connections = admission.tcp_max + admission.http_max
    assert connections + admission.files_max < descriptors_max
    assert admission.tcp_max >= descriptors_max // 4
    assert admission.admits(200, admission.tcp_max - 1, admission.tcp_max, "TCP") is (
        descriptors_max > 256
    )
    assert not admission.admits(10, admission.tcp_max, admission.tcp_max, "TCP")


def test_the_last_descriptors_are_left(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(1024)
    assert admission.admits(900, 3, 100, "TCP")
    for descriptor in (990, 991):
        assert not admission.admits(descriptor, 3, 100, "TCP")
    assert admission.refused_count == 2
    assert len(caplog.messages) == 1
    assert "too few descriptors" in caplog.messages[0]


async def test_a_connection_too_many_is_closed_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    nsqd.broker.admission.tcp_max = 2
    try:
        async with RawClient(nsqd.tcp_address) as first, RawClient(nsqd.tcp_address) as second:
            for client in (first, second):
                assert await client.ask(commands.pub("t", b"x")) == OK
            for _ in range(5):
                async with RawClient(nsqd.tcp_address) as late:
                    with contextlib.suppress(ConnectionResetError):
                        assert await late.ended() == b""
        assert nsqd.broker.admission.refused_count == 5
        assert sum("connections are refused" in line for line in caplog.messages) == 1
        await until(lambda: not nsqd.broker.sessions)
        async with RawClient(nsqd.tcp_address) as again:
            assert await again.ask(commands.pub("t", b"x")) == OK
    finally:
        await nsqd.stop()


@pytest.mark.slow
async def test_without_descriptors_it_waits_and_goes_on(tmp_path: Path) -> None:
    async with NsqdProgram(tmp_path) as nsqd:
        await nsqd.serve()
        # Below what it has counted with: now accepting itself fails.
        nsqd.limit(resource.RLIMIT_NOFILE, nsqd.open_files() + 3)
        async with contextlib.AsyncExitStack() as exits:
            for _ in range(10):
                await exits.enter_async_context(RawClient(nsqd.address))
            await nsqd.says("connections cannot be accepted")
            await asyncio.sleep(2.5)
        async with RawClient(nsqd.address) as client:
            nsqd.limit(resource.RLIMIT_NOFILE, nsqd.open_files() + 100)
            assert await client.ask(commands.pub("t", b"x")) == OK
        assert sum("cannot be accepted" in line for line in nsqd.log) == 1
        assert await nsqd.end(signal.SIGTERM) == 0


async def test_a_path_that_a_dead_broker_left_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "nsqd.sock"
    options = NsqdOptions(data_path=tmp_path / "data", tcp_address=str(path), http_address="")
    options.data_path.mkdir()
    for _ in range(2):
        async with Broker(options) as broker:
            assert (broker.tcp_port, broker.http_port) == (-1, -1)
            _, writer = await asyncio.open_unix_connection(path)
            await until(lambda: len(broker.sessions) == 1)
            (session,) = broker.sessions
            assert session.remote_address == "@"
            writer.close()
            await writer.wait_closed()
        assert path.exists(), "what a dead one leaves"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:4150", True),
        ("[::1]:4150", True),
        ("localhost:1", True),
        ("/run/nsqd.sock", True),
        ("0.0.0.0:4150", False),
        (":4150", False),
        ("[::]:4150", False),
        ("nsq.example:4150", False),
    ],
)
def test_who_can_reach_an_address(address: str, expected: bool) -> None:
    assert is_local(address) is expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "level"), [("127.0.0.1", "INFO: open to this machine"), ("", "WARNING: open")]
)
async def test_the_start_says_who_can_come_in(tmp_path: Path, host: str, level: str) -> None:
    async with NsqdProgram(tmp_path) as nsqd:
        await nsqd.start(f"--tcp-address={host}:0")
        await nsqd.says("serving")
        assert sum(level in line for line in nsqd.log) == 1


async def test_the_timeouts_for_nsqlookupd_are_taken(tmp_path: Path) -> None:
    flags: dict[str, str | int | float | bool] = {
        "http_client_connect_timeout": "300ms",
        "http_client_request_timeout": "400ms",
    }
    nsqd = EmbeddedNsqd(tmp_path, flags)
    await nsqd.start()
    try:
        assert nsqd.broker.registrar is not None
        timing = nsqd.broker.registrar._timing
        assert (timing.http_connect_timeout_s, timing.http_request_timeout_s) == (0.3, 0.4)
    finally:
        await nsqd.stop()
