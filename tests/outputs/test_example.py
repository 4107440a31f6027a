"""The output in examples/: whoever adds one begins there."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import publish
from tests.support.clients import until
from tests.support.programs import Program
from tests.support.web import channel_stats

if TYPE_CHECKING:
    from tests.support.nsqd import Nsqd

EXAMPLE = Path(__file__).parents[2] / "examples" / "output.py"


@pytest.mark.slow
async def test_the_example_of_an_output_runs(nsqd: Nsqd, tmp_path: Path) -> None:
    into = tmp_path / "shouts"
    async with Program("shout", str(EXAMPLE)) as shout:
        await shout.start("--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", f"--into={into}")
        await shout.says("subscribed topic=t channel=shout")
        await publish(nsqd, b"hello", b"world")
        await until(lambda: (into / "t").exists() and (into / "t").read_bytes().count(b"\n") == 2)
        while (await channel_stats(nsqd, "t", "shout") or {})["in_flight_count"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await shout.end(signal.SIGTERM) == 0, shout.told
    assert (into / "t").read_bytes() == b"HELLO\nWORLD\n"
    assert "shouted messages=2" in shout.told
