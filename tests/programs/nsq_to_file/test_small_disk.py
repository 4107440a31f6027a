"""A disk with too little room, under the whole program: nothing is lost, doubled or acknowledged too
early, and it goes on by itself when there is room."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import bodies_of, opened_by_stock_tool
from tests.pipeline.helpers import finished_files, publish, stats, until_settled, until_stats
from tests.programs.nsq_to_file.helpers import archiver, flags_of
from tests.support.disks import small_filesystem
from tests.support.programs import Program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow

# More than the disk has room for, compressed, too.
BODIES = [random.Random(number).randbytes(10_000).hex().encode() for number in range(150)]
SMALL = "1m"
LIMIT_BYTES = 1 << 20
LIMITED = (
    "import resource, sys;"
    f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, resource.RLIM_INFINITY));"
    "from nsqtools.cli.main import main; sys.argv[0] = 'nsqtools'; main()"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_filesystem(tmp_path / "small", SMALL)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_a_disk_that_is_full_again_and_again(
    compression: str, nsqd: Nsqd, small_disk: Path, tmp_path: Path
) -> None:
    """It is full when the run starts; then somebody takes finished files away, one at a time."""
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        fill(file.fileno())
    flags = (f"--compress={compression}", "--rotate-size=100k", "--max-in-flight=20")
    says = "the disk is full: topics wait until there is room"
    async with archiver(small_disk, *flags, nsqd=nsqd, says=says) as tool:
        for at in range(0, len(BODIES), 10):
            await publish(nsqd, *BODIES[at : at + 10])
        await tool.says("output failed, the topic waits and is not acknowledged")
        now = await stats(nsqd)
        assert now["depth"] + now["in_flight_count"] == len(BODIES)
        ballast.unlink()
        taken: list[Path] = []
        await until_stats(nsqd, lambda now: take_one(small_disk, tmp_path / "taken", taken, now))
        assert await tool.end(signal.SIGTERM) == 0
    files = [*taken, *finished_files(small_disk)]
    for path in files:
        assert opened_by_stock_tool(path, compression)
    assert Counter(body for path in files for body in bodies_of(path)) == Counter(BODIES)
    assert not list(small_disk.glob("*.part"))


def fill(fd: int) -> None:
    """All that there is room for."""
    try:
        while True:
            os.write(fd, bytes(1 << 12))
    except OSError:
        return


def take_one(folder: Path, to: Path, taken: list[Path], now: dict[str, int]) -> bool:
    """Take a finished file away; True when no message is left with nsqd."""
    to.mkdir(exist_ok=True)
    if files := finished_files(folder):
        taken.append(to / f"{len(taken)}-{files[0].name}")
        shutil.copyfile(files[0], taken[-1])
        files[0].unlink()
    return (now["message_count"], now["depth"], now["in_flight_count"]) == (len(BODIES), 0, 0)


async def test_a_limit_on_the_size_of_files_that_is_raised(nsqd: Nsqd, folder: Path) -> None:
    """What a shell's `ulimit -f` does; a file that can grow no more waits, and goes on when it may."""
    async with Program("nsq_to_file", "-c", LIMITED, "nsq_to_file") as tool:
        await tool.start(*flags_of(folder, "--max-in-flight=20", "--no-dedupe", nsqd=nsqd))
        for at in range(0, len(BODIES), 10):
            await publish(nsqd, *BODIES[at : at + 10])
        await tool.says("output failed, the topic waits and is not acknowledged")
        assert any("File too large" in line for line in tool.log)
        assert (await stats(nsqd))["depth"] > 50
        (part,) = folder.glob("*.part")
        assert part.stat().st_size <= LIMIT_BYTES
        tool.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        await until_settled(nsqd, len(BODIES))
        assert await tool.end(signal.SIGTERM) == 0
    (path,) = finished_files(folder)
    assert Counter(path.read_bytes().splitlines()) == Counter(BODIES)
