"""A plain file becomes shorter while file_to_nsq reads it: that is said, and is no success."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from tests.support.kernel import run_traced
from tests.support.nsqd import PATIENCE_S
from tests.support.web import topic_stats

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

LINES = 100_000
# Behind what is read at once, and read to its end long before all would have been.
LEFT_BYTES = 300 * 1024
RATE = 2000


@pytest.mark.slow
async def test_a_file_that_shrinks_is_told_with_its_name(nsqd: Nsqd, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_bytes(b"".join(b"%0199d\n" % number for number in range(LINES)))
    flags = ("--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", f"--rate={RATE}")
    running = asyncio.create_task(run_traced([], "file_to_nsq", *flags, str(path)))
    async with asyncio.timeout(PATIENCE_S):
        while not (await topic_stats(nsqd, "t") or {}).get("message_count"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    os.truncate(path, LEFT_BYTES)
    status, told = await running
    assert status in (4, 5), told
    assert "became shorter" in told
    assert str(path) in told
