"""Which file a message goes into, and under which name it is seen meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import read_bodies, visible
from tests.pipeline.helpers import CHANNEL, archive_options, publish
from tests.support.nsqd import PATIENCE_S

from nsqtools.errors import OptionsError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import Nsqd


async def start(nsqd: Nsqd, folder: Path, *flags: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "nsqtools", "nsq_to_file", "--topic=t", f"--channel={CHANNEL}"),
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        f"--output-dir={folder}",
        "--sync-interval=20ms",
        *flags,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


async def end(process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(PATIENCE_S):
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return err.decode()


async def test_a_backlog_goes_where_its_time_says(nsqd: Nsqd, tmp_path: Path) -> None:
    """Published in two seconds, archived in a third: two files."""
    await publish(nsqd, b"first")
    await asyncio.sleep(1.01)
    await publish(nsqd, b"second")
    await asyncio.sleep(1.01)
    folder = tmp_path / "archive"
    process = await start(
        nsqd,
        folder,
        "--partition-by=publish-time",
        "--datetime-format=%H%M%S",
        "--max-open-files=1",
        "--max-messages=2",
    )
    err = await end(process)
    assert [read_bodies(path)[0] for path in visible(folder)] == [[b"first"], [b"second"]]
    assert "archived messages=2" in err


async def test_the_open_file_is_followed(nsqd: Nsqd, tmp_path: Path) -> None:
    """`tail -F` of the name that the file keeps shows each line as it is archived, and once."""
    folder = tmp_path / "archive"
    process = await start(
        nsqd, folder, "--live-name", "--filename-format=<TOPIC><REV>.log", "--rotate-records=1000"
    )
    shown = folder / "t-000000.log"
    await publish(nsqd, b"one")
    tail = await asyncio.create_subprocess_exec(  # it waits for the file
        *("tail", "-n", "+1", "-F", shown),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert tail.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert await tail.stdout.readline() == b"one\n"
            await publish(nsqd, b"two")
            assert await tail.stdout.readline() == b"two\n"
            process.send_signal(signal.SIGTERM)
            await end(process)
    finally:
        tail.terminate()
        rest, _ = await tail.communicate()
    assert rest == b""
    assert visible(folder) == [shown]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--lateness=1m"], "--lateness has no meaning without --partition-by=publish-time"),
        (["--max-open-files=3"], "--max-open-files has no meaning without"),
        (["--partition-by=publish-time", "--max-open-files=0"], "--max-open-files"),
        (["--partition-by=time"], "should be one of arrival, publish-time"),
        (
            ["--partition-by=publish-time", "--filename-format=<TOPIC><REV>.log"],
            "needs <DATETIME> in --filename-format",
        ),
        (
            [
                "--partition-by=publish-time",
                "--filename-format=<TOPIC><REV>.<DATETIME>.log",
                "--datetime-format=x",
            ],
            "needs strftime's directives in --datetime-format",
        ),
        (
            ["--partition-by=publish-time", "--filename-format=<TOPIC>.<DATETIME>.log"],
            "missing <REV> in --filename-format",
        ),
        (
            ["--partition-by=publish-time", "--watermark"],
            "--watermark cannot be with --partition-by",
        ),
        (["--live-name", "--work-dir=/work"], "--live-name .* cannot be with --work-dir"),
        (
            ["--output=-", "--live-name", "--partition-by=publish-time"],
            "--output-dir, --live-name, --partition",
        ),
    ],
)
def test_what_makes_no_sense(flags: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=problem):
        archive_options(tmp_path, "--nsqd-tcp-address=h:1", *flags)
