"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread of the broker.

What it said OK to is there after a restart, and what was FINed and answered behind it stays away.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.support.kernel import STOPPED, Refusal, refusal_of, refuse_those_of, traced
from tests.support.programs import NsqdProgram
from tests.support.raw import MESSAGE, OK, RawClient, parse_message

from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

ROUNDS = 14
# Large enough for a new segment every few rounds.
BODY = b"%04d" + b"x" * 1000
FLAGS = (
    *("--max-bytes-per-file=4096", "--mem-queue-size=5"),
    *("--sync-every=4", "--sync-timeout=20ms"),
)
CALLS = (
    "openat",
    "newfstatat,statx",
    "getdents64",
    "pread64",
    "writev,pwritev",
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename,renameat,renameat2",
    "unlink,unlinkat",
    "flock",
    "close",
)
CHANNELS = ("read", "unread")
# What comes late: what is being read when the last message is there.
QUIET_S = 0.3


@dataclass
class Life:
    """What brokers have said that they have, and what they were told is done."""

    good: set[bytes] = field(default_factory=set)
    finished: set[bytes] = field(default_factory=set)


async def publish(address: str, life: Life) -> None:
    """Each message once, on a new connection when the last one was ended."""
    numbers = iter(range(len(life.good), len(life.good) + ROUNDS))
    for _ in range(ROUNDS):
        with contextlib.suppress(OSError, EOFError):
            async with RawClient(address) as client:
                for number in numbers:
                    if await client.ask(commands.pub("t", BODY % number)) == OK:
                        life.good.add(BODY % number)


async def finish(client: RawClient, life: Life) -> None:
    """Every second message, until the connection ends."""
    client.send(commands.rdy(ROUNDS))
    with contextlib.suppress(OSError, EOFError):
        while True:
            frame_type, data = await client.frame()
            if frame_type == MESSAGE and int(data[26:30]) % 2:
                message = parse_message(data)
                life.finished.add(message.body)
                client.finish(message)


async def live(address: str, life: Life) -> None:
    clients = {name: RawClient(address) for name in CHANNELS}
    async with contextlib.AsyncExitStack() as exits:
        for name, client in clients.items():
            with contextlib.suppress(OSError, EOFError):
                await exits.enter_async_context(client)
                await client.ask(commands.sub("t", name))
        finishing = asyncio.create_task(finish(clients["read"], life))
        await publish(address, life)
        await asyncio.sleep(QUIET_S)
        finishing.cancel()
        await asyncio.wait([finishing])


async def what_is_there(address: str, channel: str) -> list[bytes]:
    """All of a channel: until what was published last came, and nothing any more."""
    last = f"the last of {channel}".encode()
    async with RawClient(address) as client, RawClient(address) as publisher:
        await client.subscribe("t", channel, 2500)
        await publisher.publish("t", last)
        found: list[bytes] = []
        while last not in found:
            found.append((await client.message()).body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                while True:
                    found.append((await client.message()).body)
        return found


@dataclass
class Left:
    """What a broker has left that was killed: every life begins on a copy of its folder."""

    folder: Path
    life: Life

    def copy(self, folder: Path) -> Life:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return deepcopy(self.life)


async def left_behind(folder: Path) -> Left:
    folder.mkdir()
    left = Left(folder, Life())
    async with NsqdProgram(folder, *FLAGS) as nsqd:
        await nsqd.serve()
        await live(nsqd.address, left.life)
        await nsqd.kill()
    assert len(left.life.good) == ROUNDS
    assert left.life.finished
    return left


async def live_with(left: Left, more: Sequence[str], refusal: Refusal) -> None:
    """A life in which the call is refused, and another one, which has all that the first said OK to."""
    folder = refusal.folder
    life = left.copy(folder)
    status, told = await one_life(folder, more, refusal.flags, life)
    what = f"{refusal} {status} {told}"
    if refusal.is_of_the_folder:
        assert status in (0, 5), what
        assert "Traceback" not in told, what
    async with NsqdProgram(folder, *FLAGS) as nsqd:
        await nsqd.serve()
        for channel in CHANNELS:
            found = await what_is_there(nsqd.address, channel)
            wanted = life.good - (life.finished if channel == "read" else set())
            assert wanted <= set(found), f"{channel}: {what}"
            assert len(found) == len(set(found)), f"{channel}: {what}"
        assert await nsqd.end(signal.SIGTERM) == 0, nsqd.told


async def one_life(
    folder: Path, more: Sequence[str], strace: Sequence[str], life: Life
) -> tuple[int | None, str]:
    """Exit status and log of a broker under strace."""
    async with NsqdProgram(folder, *FLAGS, *more, command=[str(STOPPED), "nsqd"]) as nsqd:
        await nsqd.start()
        async with traced(nsqd.pid, strace):
            is_up = await nsqd.is_up()
            if is_up:
                await live(nsqd.address, life)
            status = await nsqd.end(signal.SIGTERM if is_up else None)
        return status, nsqd.told


@pytest.mark.parametrize(
    ("more", "calls"),
    [
        ([], [("openat", 4), ("pread64", 3)]),
        (["--durable"], [("writev,pwritev", 3), ("fdatasync", 1)]),
    ],
    ids=["written", "durable"],
)
async def test_a_kernel_that_refuses_a_call(
    more: Sequence[str], calls: Sequence[tuple[str, int]], tmp_path: Path
) -> None:
    left = await left_behind(tmp_path / "left")
    for call, number in calls:
        refusal = refusal_of(tmp_path, call, number)
        await live_with(left, more, refusal)
        assert refusal.came, call


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("more", [[], ["--durable"]], ids=["written", "durable"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_any_call(
    call: str, more: Sequence[str], tmp_path: Path
) -> None:
    left = await left_behind(tmp_path / "left")
    recorded = refusal_of(tmp_path, call, 0)
    life = left.copy(recorded.folder)
    status, told = await one_life(recorded.folder, more, recorded.recording, life)
    assert status == 0, told
    assert len(life.good) == 2 * ROUNDS
    await refuse_those_of(recorded, partial(live_with, left, more))
