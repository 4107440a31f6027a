"""Programs under attack, bounded so that no mistake of theirs can take the machine, and looked at."""

from __future__ import annotations

import contextlib
import resource
import signal
from typing import TYPE_CHECKING

from tests.support.endpoints import saying
from tests.support.programs import Program

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

# A program is 40 MB; what it may hold of messages, being encoded, is several times 32 MiB.
PEAK_MAX_BYTES = 300 << 20
# What it may reserve: what would take the machine ends the program first.
ADDRESSES_MAX_BYTES = 1 << 30
LOG_LINES_MAX = 100
LINE_LENGTH_MAX = 8400
NOBODY = "127.0.0.1:1"
CONSUMING = ("nsq_to_file", "nsq_to_http", "nsq_to_s3")
FORGED = "2026/01/31"


@contextlib.asynccontextmanager
async def attacked(name: str, *flags: str) -> AsyncIterator[Program]:
    """The program, bounded, with these flags; what it writes is among its log."""
    async with Program(name, hears_output=True) as tool:
        await tool.start(*flags)
        tool.bound(resource.RLIMIT_AS, ADDRESSES_MAX_BYTES)
        yield tool


@contextlib.asynccontextmanager
async def consuming(name: str, folder: Path, *flags: str) -> AsyncIterator[Program]:
    """One of CONSUMING, which gets its messages as `flags` say; where it delivers to nobody answers."""

    async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async with saying(silence) as endpoint:
        output = {
            "nsq_to_file": [f"--output-dir={folder}", "--sync-interval=20ms"],
            "nsq_to_http": [f"--post=http://{endpoint}/"],
            "nsq_to_s3": [
                f"--spool-dir={folder}",
                "--bucket=archive",
                f"--endpoint-url=http://{NOBODY}",
                "--sync-interval=20ms",
            ],
        }[name]
        shared = ["--channel=c", "--shutdown-timeout=2s"]
        async with attacked(name, *shared, *output, *flags) as tool:
            yield tool


async def check_sound(tool: Program) -> None:
    """It is small, has told little and nothing raw, and ends."""
    assert tool.peak_bytes() < PEAK_MAX_BYTES
    assert await tool.end(signal.SIGTERM) is not None
    check_log(tool)


def check_log(tool: Program) -> None:
    assert len(tool.log) < LOG_LINES_MAX, tool.told
    for line in tool.log:
        assert line.replace("\t", "").isprintable(), repr(line)
        assert not line.startswith(FORGED)
        assert len(line) < LINE_LENGTH_MAX
    assert "Traceback" not in tool.told, tool.told
    assert "MemoryError" not in tool.told, tool.told
