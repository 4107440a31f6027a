"""The one place where tests get a broker from.

Every test that takes `nsqd` or `start_nsqd` runs against the embedded broker; and against the real
nsqd, too, when NSQD_BINARY names one. Nothing may pass on one and fail on the other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.support.nsqd import EmbeddedNsqd, Flag, Nsqd, ProcessNsqd, Program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nsqd import StartNsqd

NSQD_BINARY = os.environ.get("NSQD_BINARY", "")
NSQLOOKUPD_BINARY = os.environ.get("NSQLOOKUPD_BINARY", "")
BROKERS = ("embedded", "real") if NSQD_BINARY else ("embedded",)

# Machines are noisy: how long an example took says nothing about the code.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no-clock")


@pytest.fixture(params=BROKERS)
async def start_nsqd(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StartNsqd]:
    """Starts brokers that end with the test, each with a data path of its own."""
    numbers = itertools.count()
    async with contextlib.AsyncExitStack() as exits:

        async def start(**flags: Flag) -> Nsqd:
            data_path = tmp_path / f"nsqd-{next(numbers)}"
            data_path.mkdir()
            nsqd: Nsqd
            if request.param == "real":
                nsqd = ProcessNsqd((NSQD_BINARY,), data_path, flags, is_real=True)
            else:
                nsqd = EmbeddedNsqd(data_path, flags)
            exits.push_async_callback(nsqd.stop)
            await nsqd.start()
            return nsqd

        yield start


@pytest.fixture
async def nsqd(start_nsqd: StartNsqd) -> Nsqd:
    """A broker with default options."""
    return await start_nsqd()


@pytest.fixture
async def nsqlookupd() -> AsyncIterator[tuple[str, str]]:
    """TCP and HTTP address of a real nsqlookupd; the test is skipped where there is none."""
    if not NSQLOOKUPD_BINARY:
        pytest.skip("NSQLOOKUPD_BINARY names no nsqlookupd")
    program = Program((NSQLOOKUPD_BINARY,))
    try:
        await program.start(["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"])
        yield f"127.0.0.1:{program.ports['TCP']}", f"127.0.0.1:{program.ports['HTTP']}"
    finally:
        await program.end(signal.SIGTERM)
