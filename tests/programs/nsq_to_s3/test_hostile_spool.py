"""A spool in which everything lies that a neighbour may leave there: what is ours goes to the bucket."""

from __future__ import annotations

import signal
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import CHANNEL, publish, until_settled
from tests.support.hostile_folders import hostile, looks
from tests.support.programs import Program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow
TEN = [b"message %d" % number for number in range(10)]


@pytest.mark.parametrize("ack", ["spool", "upload"])
async def test_a_hostile_spool(
    ack: str, nsqd: Nsqd, archive: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = hostile(tmp_path / "hostile" / "spool")
    before = looks(folder)
    await publish(nsqd, *TEN)
    async with Program("nsq_to_s3") as tool:
        await tool.start(
            *("--topic=t", f"--channel={CHANNEL}", f"--nsqd-tcp-address={nsqd.tcp_address}"),
            *(f"--bucket={archive.name}", f"--endpoint-url={proxy.endpoint_url}"),
            *(f"--spool-dir={folder}", f"--ack={ack}", "--rotate-interval=1s"),
        )
        await until_settled(nsqd, len(TEN))
        assert await tool.end(signal.SIGTERM) == 0, tool.told
        assert "other users can write" not in tool.told
    bodies = chain.from_iterable(archive.bodies(tmp_path, key) for key in archive.archives())
    assert sorted(bodies) == sorted(TEN)
    after = looks(folder)
    assert {name: after.get(name) for name in before} == before
