"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import CHANNEL, publish, until_settled
from tests.support.kernel import (
    WRITING,
    Refusal,
    refusal_of,
    refuse_those_of,
    run_traced,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.nsqd import Nsqd
    from tests.support.stores import StoreServer

    Spooling = Callable[[Path, Sequence[str]], Awaitable[tuple[int, str]]]

# What a store does is not asked here: one of them is enough.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["moto"], indirect=True)]

SIX = [b"message %d" % number for number in range(6)]


@pytest.fixture
def spooling(nsqd: Nsqd, server: StoreServer, archive: Bucket) -> Spooling:
    """Runs nsq_to_s3 with this spool, each with a topic of the spool's name."""

    async def run(folder: Path, flags: Sequence[str]) -> tuple[int, str]:
        return await run_traced(
            flags,
            *("nsq_to_s3", f"--topic={folder.name}", f"--channel={CHANNEL}"),
            *(f"--nsqd-tcp-address={nsqd.tcp_address}", f"--bucket={archive.name}"),
            *(f"--endpoint-url={server.endpoint_url}", f"--spool-dir={folder}"),
            *("--sync-interval=20ms", "--rotate-records=4", "--manifest", "--max-in-flight=2"),
            *("--exit-when-idle=300ms", "--progress=never"),
        )

    return run


async def spool_with(
    spooling: Spooling, nsqd: Nsqd, archive: Bucket, scratch: Path, refusal: Refusal
) -> None:
    """A run that is refused the call, and one that is not: then each message is in the bucket, once."""
    folder = refusal.folder
    topic = folder.name
    await publish(nsqd, *SIX, topic=topic)
    status, told = await spooling(folder, refusal.flags)
    if refusal.is_of_the_folder:
        assert status in (0, 5), told
        assert "Traceback" not in told, told
    assert (await spooling(folder, []))[0] == 0
    await until_settled(nsqd, len(SIX), topic)
    keys = [key for key in archive.archives() if key.startswith(f"{topic}/")]
    bodies = [body for key in keys for body in archive.bodies(scratch, key)]
    assert sorted(bodies) == SIX, f"{refusal} {told}"
    assert not list(folder.glob("*.part*")), told


@pytest.mark.parametrize(("call", "number"), [("fdatasync", 1), ("unlink,unlinkat", 1)])
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, spooling: Spooling, nsqd: Nsqd, archive: Bucket, tmp_path: Path
) -> None:
    refusal = refusal_of(tmp_path, call, number)
    await spool_with(spooling, nsqd, archive, tmp_path, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", WRITING)
async def test_a_kernel_that_refuses_any_call(
    call: str, spooling: Spooling, nsqd: Nsqd, archive: Bucket, tmp_path: Path
) -> None:
    recorded = refusal_of(tmp_path, call, 0)
    await publish(nsqd, *SIX, topic=recorded.folder.name)
    assert (await spooling(recorded.folder, recorded.recording))[0] == 0
    await refuse_those_of(recorded, partial(spool_with, spooling, nsqd, archive, tmp_path))
