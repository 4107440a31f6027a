"""How large nsq_to_s3 becomes: not with the topics, nor with the files that they leave."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import CHANNEL, publish
from tests.programs.nsq_to_s3.test_run import until
from tests.support.programs import Program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.nsqd import Nsqd
    from tests.support.stores import StoreServer

RESIDENT_BYTES_MAX = 200_000_000
TOPICS = [f"t-{number}" for number in range(300)]
BODIES = [b"message %d of a topic" % number for number in range(50)]


@pytest.mark.slow
async def test_three_hundred_topics_of_small_files(
    nsqd: Nsqd, archive: Bucket, server: StoreServer, tmp_path: Path
) -> None:
    """Which are all sealed and uploaded at the same time."""
    for topic in TOPICS:
        await publish(nsqd, *BODIES, topic=topic)
    async with Program("nsq_to_s3") as tool:
        await tool.start(
            *(f"--topic={topic}" for topic in TOPICS),
            f"--channel={CHANNEL}",
            f"--nsqd-tcp-address={nsqd.tcp_address}",
            f"--bucket={archive.name}",
            f"--endpoint-url={server.endpoint_url}",
            f"--spool-dir={tmp_path / 'spool'}",
            f"--rotate-records={len(BODIES)}",
            "--rotate-idle=1s",
            "--sync-interval=20ms",
            "--log-level=warn",
        )
        spool = tmp_path / "spool"
        await until(
            lambda: not any(spool.glob("*.part")) and len(archive.archives()) >= len(TOPICS), tool
        )
        peak_bytes = tool.peak_bytes()
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    heads = [archive.head(key)[1] for key in archive.archives()]
    assert sum(int(told["records"]) for told in heads) == len(TOPICS) * len(BODIES)
    assert peak_bytes < RESIDENT_BYTES_MAX
