"""nsq_to_file to standard output, as a program."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import read_bodies
from tests.pipeline.helpers import CHANNEL, archive_options, publish
from tests.support.nsqd import PATIENCE_S
from tests.support.web import channel_stats

from nsqtools.errors import OptionsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.nsqd import Nsqd

TEN = [b"message %d" % number for number in range(10)]


async def start(
    nsqd: Nsqd, *flags: str, stdout: int, preexec: Callable[[], None] | None = None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "nsqtools", "nsq_to_file", "--topic=t", f"--channel={CHANNEL}", "--output=-"),
        f"--nsqd-tcp-address={nsqd.tcp_address}",
        "--sync-interval=20ms",
        *flags,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        preexec_fn=preexec,
    )


async def end(process: asyncio.subprocess.Process) -> tuple[bytes, str]:
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return out, err.decode()


async def test_lines_to_a_pipe(nsqd: Nsqd) -> None:
    await publish(nsqd, *TEN)
    process = await start(nsqd, "--max-messages=10", stdout=asyncio.subprocess.PIPE)
    out, err = await end(process)
    assert process.returncode == 0, err
    assert out.splitlines() == TEN
    assert "written messages=10" in err


async def test_jsonl_in_zstd_to_a_file(nsqd: Nsqd, tmp_path: Path) -> None:
    await publish(nsqd, *TEN)
    path = tmp_path / "out"
    with path.open("wb") as file:
        flags = ("--format=jsonl", "--compress=zstd", "--max-messages=10")
        process = await start(nsqd, *flags, stdout=file.fileno())
        _, err = await end(process)
    assert process.returncode == 0, err
    assert read_bodies(path) == (TEN, None)


async def test_sigterm_completes_the_stream(nsqd: Nsqd) -> None:
    await publish(nsqd, *TEN)
    process = await start(nsqd, "--format=jsonl", stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        bodies = [json.loads(await process.stdout.readline())["body"] for _ in TEN]
    assert bodies == [body.decode() for body in TEN]
    process.terminate()
    out, err = await end(process)
    assert (process.returncode, out) == (0, b""), err


async def test_what_a_transform_prints_is_no_part_of_the_stream(nsqd: Nsqd, tmp_path: Path) -> None:
    code = "import os\ndef talk(body):\n    print('within')\n    os.write(1, b'below')\n    return body\n"
    (tmp_path / "talking.py").write_text(code)
    await publish(nsqd, *TEN)
    flags = ("--transform=talking:talk", f"--transform-path={tmp_path}", "--max-messages=10")
    process = await start(nsqd, *flags, stdout=asyncio.subprocess.PIPE)
    out, err = await end(process)
    assert process.returncode == 0, err
    assert out.splitlines() == TEN
    assert (err.count("within"), err.count("below")) == (10, 10)


async def test_standard_output_that_is_closed_takes_nothing(nsqd: Nsqd) -> None:
    """Its number was that of a descriptor of the loop, and what was written went there."""
    await publish(nsqd, *TEN)
    process = await start(nsqd, stdout=asyncio.subprocess.DEVNULL, preexec=partial(os.close, 1))
    _, err = await end(process)
    assert process.returncode == 5, err
    assert "write standard output: Bad file descriptor" in err.splitlines()[-1]
    left: dict[str, int] | None = await channel_stats(nsqd, "t", CHANNEL)
    assert left is not None
    assert left["depth"] == 10


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
async def test_closed_standard_streams_do_no_harm_to_files(
    nsqd: Nsqd, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    """The run was aborted, with standard error closed before the first message."""

    def preexec() -> None:
        for number in closed:
            os.close(number)

    await publish(nsqd, *TEN)
    flags = ("--output=", f"--output-dir={tmp_path}", "--max-messages=10")
    command = ("--on-publish=sh -c 'echo said; echo told >&2'", "--filename-format=<TOPIC>.log")
    process = await start(nsqd, *flags, *command, stdout=asyncio.subprocess.PIPE, preexec=preexec)
    _, err = await end(process)
    assert process.returncode == 0, err
    assert (tmp_path / "t.log").read_bytes().splitlines() == TEN


async def test_nobody_reads_any_more(nsqd: Nsqd) -> None:
    """The run ends, says why, and what was not written is with nsqd."""
    process = await start(nsqd, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await publish(nsqd, b"first")
    async with asyncio.timeout(PATIENCE_S):
        assert await process.stdout.readline() == b"first\n"
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    await publish(nsqd, *TEN)
    async with asyncio.timeout(PATIENCE_S):
        assert process.stderr is not None
        err = (await process.stderr.read()).decode()
        assert await process.wait() == 5, err
    assert "write standard output: Broken pipe" in err.splitlines()[-1]
    left: dict[str, int] | None = await channel_stats(nsqd, "t", CHANNEL)
    assert left is not None
    assert (left["depth"], left["in_flight_count"]) == (10, 0)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--topic=a", "--topic=b"], "takes one --topic"),
        (["--topic-pattern=x", "--lookupd-http-address=h:1"], "takes one --topic"),
        (["--topic=a", "--manifest", "--rotate-size=1M"], "--manifest, --rotate-size"),
        (["--topic=a"], "makes no files: it cannot be with --output-dir$"),
        (["--topic=a", "--output=x"], "should be one of -"),
    ],
)
def test_what_makes_no_sense(flags: list[str], problem: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match=problem):
        archive_options(tmp_path, "--nsqd-tcp-address=h:1", "--output=-", *flags)
