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
    WRITING,
    Refusal,
    refusal_of,
    refuse_those_of,
    run_traced,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.support.endpoints import Endpoint
    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow

SIX = [b"message %d" % number for number in range(6)]
LEFT = ("depth", "in_flight_count", "deferred_count")


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """It refuses whatever comes."""
    async with serving(lambda _: web.Response(status=400)) as running:
        yield running


async def deliver(
    nsqd: Nsqd, endpoint: Endpoint, folder: Path, flags: Sequence[str]
) -> tuple[int, str]:
    return await run_traced(
        flags,
        *("nsq_to_http", "--topic=t", f"--channel={CHANNEL}"),
        *(f"--nsqd-tcp-address={nsqd.tcp_address}", f"--post={endpoint.url()}"),
        *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1", "--max-in-flight=2"),
        *("--exit-when-idle=300ms", "--progress=never", "--status-every=0"),
    )


async def deliver_with(nsqd: Nsqd, endpoint: Endpoint, refusal: Refusal) -> None:
    """A run that is refused the call, and one that is not: then each message is a dead letter."""
    folder = refusal.folder
    await publish(nsqd, *SIX)
    status, told = await deliver(nsqd, endpoint, folder, refusal.flags)
    if refusal.is_of_the_folder:
        assert status in (0, 5), told
        assert "Traceback" not in told, told
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
    refusal = refusal_of(tmp_path, call, number)
    await deliver_with(nsqd, endpoint, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", [*WRITING, "link,linkat"])
async def test_a_kernel_that_refuses_any_call(
    call: str, nsqd: Nsqd, endpoint: Endpoint, tmp_path: Path
) -> None:
    recorded = refusal_of(tmp_path, call, 0)
    await publish(nsqd, *SIX)
    assert (await deliver(nsqd, endpoint, recorded.folder, recorded.recording))[0] == 0
    await refuse_those_of(recorded, partial(deliver_with, nsqd, endpoint))
