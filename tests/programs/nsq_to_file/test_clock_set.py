"""The machine's clock is put back an hour while nsq_to_file runs: files are rotated as before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.pipeline.helpers import archived, publish, until_settled
from tests.programs.nsq_to_file.helpers import flags_of
from tests.support.clients import until
from tests.support.programs import Program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow

# The clock is an hour behind as soon as there is a file of this name.
SHIM = """
import os, sys, time

def put_back(real, hour):
    return lambda: real() - hour if os.path.exists(sys.argv[0]) else real()

sys.argv[:1] = []
time.time, time.time_ns = put_back(time.time, 3600), put_back(time.time_ns, 3600 * 10**9)
from nsqtools.cli.main import main
main()
"""


@pytest.mark.parametrize("flag", ["--rotate-interval=500ms", "--rotate-idle=500ms"])
async def test_files_are_rotated_though_the_clock_went_back(
    flag: str, nsqd: Nsqd, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "an hour back"
    async with Program("", "-c", SHIM, str(mark), "nsq_to_file") as tool:
        await tool.start(*flags_of(folder, flag, nsqd=nsqd))
        await tool.says("subscribed")
        await publish(nsqd, b"before")
        await until_settled(nsqd, 1)
        mark.touch()
        await until(lambda: archived(folder) == [b"before"])
        await publish(nsqd, b"after")
        await until(lambda: archived(folder) == [b"before", b"after"])
