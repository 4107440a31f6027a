"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import publish, until_settled
from tests.programs.nsq_to_file.helpers import flags_of
from tests.support.kernel import WRITING, Refusal, refusal_of, refuse_those_of, run_traced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = [pytest.mark.slow]

SIX = [b"message %d" % number for number in range(6)]


async def archive(nsqd: Nsqd, folder: Path, flags: Sequence[str]) -> tuple[int, str]:
    return await run_traced(
        flags,
        "nsq_to_file",
        *flags_of(
            folder,
            *(f"--topic={folder.name}", "--rotate-records=4", "--gzip", "--manifest"),
            *("--watermark", "--max-in-flight=2", "--exit-when-idle=300ms"),
            nsqd=nsqd,
        ),
    )


async def archive_with(nsqd: Nsqd, refusal: Refusal) -> None:
    """A run that is refused the call, and one that is not: then each message is archived, once."""
    folder, topic = refusal.folder, refusal.folder.name
    await publish(nsqd, *SIX, topic=topic)
    status, told = await archive(nsqd, folder, refusal.flags)
    if refusal.is_of_the_folder:
        assert status in (0, 5), told
        assert "Traceback" not in told, told
    assert (await archive(nsqd, folder, []))[0] == 0
    await until_settled(nsqd, len(SIX), topic)
    files = sorted(folder.glob(f"{topic}*.gz"))
    assert sorted(chain.from_iterable(map(bodies_of, files))) == SIX, f"{refusal} {told}"
    assert not list(folder.glob("*.part*")), told


@pytest.mark.parametrize(("call", "number"), [("fdatasync", 1), ("link,linkat", 2)])
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, nsqd: Nsqd, tmp_path: Path
) -> None:
    refusal = refusal_of(tmp_path, call, number)
    await archive_with(nsqd, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("call", [*WRITING, "link,linkat", "ftruncate"])
async def test_a_kernel_that_refuses_any_call(call: str, nsqd: Nsqd, tmp_path: Path) -> None:
    recorded = refusal_of(tmp_path, call, 0)
    await publish(nsqd, *SIX, topic=recorded.folder.name)
    assert (await archive(nsqd, recorded.folder, recorded.recording))[0] == 0
    await refuse_those_of(recorded, partial(archive_with, nsqd))
