"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import CHANNEL, publish, until_stats
from tests.support.endpoints import serving
from tests.support.kernel import (
    Refusal,
    names_asked_for,
    recording,
    refusal_of,
    refuse_in_turn,
    run_behind,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.support.endpoints import Endpoint
    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
# What of the kernel's calls is of dead letters alone, in a process of Python's.
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "link,linkat", "unlink,unlinkat", "flock")
# And what others make, too: on the files of dead letters alone.
CALLS_ON_FILES = ("openat", "newfstatat,statx", "getdents64")
LEFT = ("depth", "in_flight_count", "deferred_count")


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """It refuses whatever comes."""
    async with serving(lambda _: web.Response(status=400)) as running:
        yield running


async def deliver(
    nsqd: Nsqd, endpoint: Endpoint, folder: Path, before: Sequence[str]
) -> tuple[int, str]:
    return await run_behind(
        before,
        *("nsq_to_http", "--topic=t", f"--channel={CHANNEL}"),
        *(f"--nsqd-tcp-address={nsqd.tcp_address}", f"--post={endpoint.url()}"),
        *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1", "--max-in-flight=2"),
        *("--exit-when-idle=300ms", "--progress=never", "--status-every=0"),
    )


async def deliver_with(nsqd: Nsqd, endpoint: Endpoint, refusal: Refusal, folder: Path) -> None:
    """A run that is refused the call, and one that is not: then each message is a dead letter."""
    await publish(nsqd, *SIX)
    status, told = await deliver(nsqd, endpoint, folder, refusal.before)
    assert status in (0, 5), told
    assert "Traceback" not in told
    assert (await deliver(nsqd, endpoint, folder, []))[0] == 0
    await until_stats(nsqd, lambda now: not any(now[name] for name in LEFT))
    lines = [line for path in folder.glob("t.*") for line in path.read_text().splitlines()]
    bodies = {json.loads(line)["body"].encode() for line in lines}
    assert bodies == set(SIX), f"{refusal} {told}"
    assert not list(folder.glob("*.part*")), told


@pytest.mark.parametrize(("call", "number"), [("fdatasync", 1), ("link,linkat", 1)])
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, nsqd: Nsqd, endpoint: Endpoint, tmp_path: Path
) -> None:
    refusal, folder = refusal_of(tmp_path, call, number)
    await deliver_with(nsqd, endpoint, refusal, folder)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_call_n(
    call: str, nsqd: Nsqd, endpoint: Endpoint, tmp_path: Path
) -> None:
    await refuse_in_turn(tmp_path, call, partial(deliver_with, nsqd, endpoint))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS_ON_FILES)
async def test_a_kernel_that_refuses_call_n_on_a_file(
    call: str, nsqd: Nsqd, endpoint: Endpoint, tmp_path: Path
) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "recorded"
    folder.mkdir()
    await publish(nsqd, *SIX)
    assert (await deliver(nsqd, endpoint, folder, recording(trace)))[0] == 0
    names = names_asked_for(trace, folder)
    await refuse_in_turn(tmp_path, call, partial(deliver_with, nsqd, endpoint), names)
