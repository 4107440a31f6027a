"""Every program that reads or writes a folder, on one in which everything lies that may.

Nothing hangs, nothing of anybody else's is changed or shown, and SIGTERM ends each in time.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.crash.accounting import bodies_of as bodies_in
from tests.pipeline.helpers import publish, until_settled
from tests.programs.archive.helpers import command
from tests.programs.nsq_to_file.helpers import TEN, archiver
from tests.support.endpoints import serving
from tests.support.hostile_folders import SECRET, Looks, hostile, looks, take_names
from tests.support.nsqd import PATIENCE_S
from tests.support.programs import Program
from tests.support.raw import RawClient
from tests.support.web import topic_stats

if TYPE_CHECKING:
    from tests.support.nsqd import Nsqd

pytestmark = pytest.mark.slow

# As many names as a search must pass over one by one, and more.
PLANTED = 40
# What was there as a file of its own: nothing of a neighbour's is kept from a reader who may read it.
READABLE = {b"of a neighbour", b"escape", b"not utf8"}


def unchanged(before: Looks, folder: Path) -> bool:
    after = looks(folder)
    return {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("work", ["", "work"])
async def test_nsq_to_file(work: str, nsqd: Nsqd, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "hostile" / "archive")
    flags = ["--rotate-records=1", "--gzip", "--manifest", "--watermark"]
    if work:
        flags.append(f"--work-dir={hostile(tmp_path / 'other' / work)}")
    take_names(folder, "t", ".log.gz", PLANTED)
    before = looks(folder)
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await publish(nsqd, *TEN)
        await until_settled(nsqd, len(TEN))
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert unchanged(before, folder)
    made = [path for path in folder.glob("t-*.gz") if path.name not in before]
    assert sorted(chain.from_iterable(map(bodies_in, made))) == sorted(TEN)
    assert not [path for path in made if path.stat().st_uid != folder.stat().st_uid]


async def test_nsq_to_http_and_its_dead_letters(nsqd: Nsqd, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "hostile" / "dead")
    before = looks(folder)
    async with (
        serving(lambda _: web.Response(status=400)) as endpoint,
        Program("nsq_to_http") as tool,
    ):
        await tool.start(
            f"--nsqd-tcp-address={nsqd.tcp_address}",
            *("--topic=t", "--channel=archive", f"--post={endpoint.url()}"),
            *(f"--dead-letter-dir={folder}", "--dead-letter-max-ratio=1"),
        )
        await tool.says("subscribed")
        await publish(nsqd, *TEN)
        await until_settled(nsqd, len(TEN))
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert unchanged(before, folder)
    made = [path for path in folder.glob("t.*.jsonl") if path.name not in before]
    assert sum(len(path.read_bytes().splitlines()) for path in made) == len(TEN)


async def bodies_of(nsqd: Nsqd, topic: str) -> list[bytes]:
    async with RawClient(nsqd.tcp_address) as client:
        found = await topic_stats(nsqd, topic)
        count = found["message_count"] if found else 0
        await client.subscribe(topic, "look", max(count, 1))
        return [message.body for message in await client.messages(count)]


async def test_file_to_nsq(nsqd: Nsqd, tmp_path: Path) -> None:
    """It reads the files of a folder; what cannot be read is told, and the next one is read."""
    folder = hostile(tmp_path / "hostile" / "logs")
    (folder / "zz.log").write_bytes(b"last\n")
    before = looks(folder)
    async with Program("file_to_nsq") as tool:
        await tool.start("--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", str(folder))
        assert await tool.end(None) == 4, tool.told
        assert "left out" in tool.told
        assert "noise.log.gz" in tool.told
        assert "\x1b" not in tool.told
    bodies = await bodies_of(nsqd, "t")
    assert READABLE | {b"last"} <= set(bodies)
    assert SECRET not in bodies
    assert looks(folder) == before


async def test_sigterm_ends_file_to_nsq_in_a_file_without_an_end(
    nsqd: Nsqd, tmp_path: Path
) -> None:
    folder = hostile(tmp_path / "hostile" / "logs", sparse=True)
    async with Program("file_to_nsq") as tool:
        await tool.start("--topic=t", f"--nsqd-tcp-address={nsqd.tcp_address}", str(folder))
        await tool.says("left out")
        assert await tool.end(signal.SIGTERM) == 130, tool.told


READING = ("ls", "cat", "verify")
WRITING = ("repair", "index", "compact")


@pytest.mark.parametrize("name", READING + WRITING)
def test_archive(name: str, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "hostile" / "archive")
    before = looks(folder)
    done = subprocess.run(
        command(name, folder), capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode in (0, 1, 4, 5), done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    assert unchanged(before, folder)


def test_spool_ls(tmp_path: Path) -> None:
    folder = hostile(tmp_path / "hostile" / "spool")
    words = command("ls", folder)
    words[words.index("archive")] = "spool"
    done = subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["cat", "verify", "compact"])
def test_sigterm_ends_archive_in_a_file_without_an_end(name: str, tmp_path: Path) -> None:
    folder = hostile(tmp_path / "hostile" / "archive", sparse=True)
    process = subprocess.Popen(
        command(name, folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        until_open(process, "sparse.log")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (130, 143, -signal.SIGTERM, 4, 5), told
    assert b"Traceback" not in told


def until_open(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait until a process reads a file."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s and process.poll() is None:
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if fd.readlink().name == name:
                    return
        time.sleep(0.01)
    raise AssertionError(f"it did not open {name}")
