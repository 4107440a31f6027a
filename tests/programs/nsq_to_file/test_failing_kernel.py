"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import publish, until_settled
from tests.programs.nsq_to_file.helpers import flags_of
from tests.support.kernel import Refusal, refusal_of, refuse_in_turn, run_behind

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = [pytest.mark.slow]

SIX = [b"message %d" % number for number in range(6)]
# What of the kernel's calls is of archives alone, in a process of Python's.
CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "link,linkat", "unlink,unlinkat", "flock")


async def archive_with(nsqd: Nsqd, refusal: Refusal, folder: Path) -> None:
    """A run that is refused the call, and one that is not: then each message is archived, once."""
    topic = folder.name
    await publish(nsqd, *SIX, topic=topic)
    flags = flags_of(
        folder,
        *(f"--topic={topic}", "--rotate-records=4", "--gzip", "--manifest", "--watermark"),
        *("--max-in-flight=2", "--exit-when-idle=300ms"),
        nsqd=nsqd,
    )
    status, told = await run_behind(refusal.before, "nsq_to_file", *flags)
    assert status in (0, 5), told
    assert "Traceback" not in told
    assert (await run_behind([], "nsq_to_file", *flags))[0] == 0
    await until_settled(nsqd, len(SIX), topic)
    files = sorted(folder.glob(f"{topic}*.gz"))
    assert sorted(chain.from_iterable(map(bodies_of, files))) == SIX, f"{refusal} {told}"
    assert not list(folder.glob("*.part*")), told


@pytest.mark.parametrize(("call", "number"), [("fdatasync", 1), ("link,linkat", 2)])
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, nsqd: Nsqd, tmp_path: Path
) -> None:
    refusal, folder = refusal_of(tmp_path, call, number)
    await archive_with(nsqd, refusal, folder)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_call_n(call: str, nsqd: Nsqd, tmp_path: Path) -> None:
    await refuse_in_turn(
        tmp_path, call, lambda refusal, folder: archive_with(nsqd, refusal, folder)
    )
