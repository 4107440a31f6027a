"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.replay.support import bodies_of
from tests.replay.test_failing_disk import BODIES, broker
from tests.replay.test_run import archive
from tests.support.kernel import Refusal, refusal_of, refuse_those_of, run_traced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.broker.server import Broker

__all__ = ["broker"]
pytestmark = pytest.mark.slow

CALLS = ("openat", "newfstatat,statx", "getdents64", "lseek", "read", "close")
COMPRESSIONS = ("none", "gzip", "zstd")


def prepare(folder: Path) -> None:
    for compression, bodies in zip(COMPRESSIONS, BODIES, strict=True):
        archive(folder / compression, bodies, "jsonl", compression)


async def replay(broker: Broker, folder: Path, flags: Sequence[str]) -> tuple[int, str]:
    return await run_traced(
        flags,
        *("file_to_nsq", f"--topic={folder.name}", f"--nsqd-tcp-address={broker.tcp_address}"),
        str(folder),
    )


async def replay_with(broker: Broker, refusal: Refusal) -> None:
    """A run that is refused the call: done is what it says is done, and two files have their turn."""
    folder, topic = refusal.folder, refusal.folder.name
    prepare(folder)
    status, told = await replay(broker, folder, refusal.flags)
    bodies = set(await bodies_of(broker, topic)) if topic in broker.topics else set()
    whole = [set(each) <= bodies for each in BODIES]
    what = f"{refusal}: {status} {told}"
    if status == 0:
        assert all(whole), what
    elif refusal.is_of_the_folder:
        assert status in (2, 5), what
        assert "Traceback" not in told, what
        # A name that is nothing is told before anything is sent.
        assert sum(whole) >= len(BODIES) - 1 if status == 5 else not bodies, what


@pytest.mark.parametrize(("call", "number"), [("read", 1), ("read", 4)])
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, broker: Broker, tmp_path: Path
) -> None:
    refusal = refusal_of(tmp_path, call, number)
    await replay_with(broker, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_any_call(call: str, broker: Broker, tmp_path: Path) -> None:
    recorded = refusal_of(tmp_path, call, 0)
    prepare(recorded.folder)
    status, told = await replay(broker, recorded.folder, recorded.recording)
    assert status == 0, told
    await refuse_those_of(recorded, partial(replay_with, broker))
