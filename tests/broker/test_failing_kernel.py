"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread of the broker.

What it said OK to is there after a restart, and what was FINed and answered behind it stays away.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
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
    "read",
    "pread64",
    "write",
    "writev,pwritev",
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "rename,renameat,renameat2",
    "unlink,unlinkat",
    "flock",
    "close",
)
CHANNELS = ("read", "unread")
# What comes late: what is being read when the last message is there.
QUIET_S = 0.3


class Life:
    """What a broker on this kernel has said: of which channels, and of which messages it has, and which
    of them it was told are done."""

    def __init__(self) -> None:
        self.channels: set[str] = set()
        self.good: set[bytes] = set()
        self.finished: set[bytes] = set()


async def publish(address: str, life: Life) -> None:
    """Each message once, on a new connection when the last one was ended."""
    numbers = iter(range(ROUNDS))
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
                if await client.ask(commands.sub("t", name)) == OK:
                    life.channels.add(name)
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


async def live_with(more: Sequence[str], refusal: Refusal) -> None:
    """A life in which the call is refused, and another one, which has all that the first said OK to."""
    life, folder = Life(), refusal.folder
    status, told = await one_life(folder, more, refusal.flags, life)
    what = f"{refusal} {status} {told}"
    if refusal.is_of_the_folder:
        assert status in (0, 5), what
        assert "Traceback" not in told, what
    async with NsqdProgram(folder, *FLAGS) as nsqd:
        await nsqd.serve()
        for channel in life.channels:
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


durability = pytest.mark.parametrize("more", [[], ["--durable"]], ids=["written", "durable"])


@durability
@pytest.mark.parametrize(
    ("call", "number"), [("openat", 4), ("writev,pwritev", 3), ("fdatasync", 1)]
)
async def test_a_kernel_that_refuses_a_call(
    call: str, number: int, more: Sequence[str], tmp_path: Path
) -> None:
    refusal = refusal_of(tmp_path, call, number)
    await live_with(more, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@durability
@pytest.mark.parametrize("call", CALLS)
async def test_a_kernel_that_refuses_any_call(
    call: str, more: Sequence[str], tmp_path: Path
) -> None:
    recorded, life = refusal_of(tmp_path, call, 0), Life()
    status, told = await one_life(recorded.folder, more, recorded.recording, life)
    assert status == 0, told
    assert len(life.good) == ROUNDS
    assert life.finished
    await refuse_those_of(recorded, partial(live_with, more))
