"""nsq_to_file as a program, from brokers into a folder."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.pipeline.helpers import CHANNEL
from tests.support.programs import Program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd

TEN = [b"message %d" % number for number in range(10)]
# Where no nsqd is: a port that needs root to listen on, and that nobody uses.
NOBODY = "127.0.0.1:1"


def flags_of(folder: Path, *flags: str, nsqd: Nsqd | str | None = None) -> list[str]:
    """Of topic `t`, with a short sync interval, unless the flags say otherwise."""
    defaults = {
        "--topic": "t",
        "--channel": CHANNEL,
        "--output-dir": str(folder),
        "--filename-format": "<TOPIC><REV>.log",
        "--sync-interval": "20ms",
    }
    if nsqd is not None:
        address = nsqd if isinstance(nsqd, str) else nsqd.tcp_address
        defaults["--nsqd-tcp-address"] = address
    given = {flag.partition("=")[0] for flag in flags}
    if "--topic-pattern" in given:
        del defaults["--topic"]
    return [*(f"{name}={value}" for name, value in defaults.items() if name not in given), *flags]


@asynccontextmanager
async def archiver(
    folder: Path, *flags: str, nsqd: Nsqd | str | None = None, says: str = "subscribed"
) -> AsyncIterator[Program]:
    """The program, once it has said so; it is killed at the end if it still runs."""
    async with Program("nsq_to_file") as tool:
        await tool.start(*flags_of(folder, *flags, nsqd=nsqd))
        await tool.says(says)
        yield tool


async def run_to_end(
    folder: Path, *flags: str, nsqd: Nsqd | str | None = None
) -> tuple[int | None, str]:
    """Exit status and log of a run that ends by itself."""
    async with Program("nsq_to_file") as tool:
        await tool.start(*flags_of(folder, *flags, nsqd=nsqd))
        status = await tool.end(None)
        return status, tool.told
