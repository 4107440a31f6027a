"""Numbered messages, clients that note what they were told, and the account of both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import subprocess
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.support.programs import PATIENCE_S

from nsqtools.archive.files import BESIDE
from nsqtools.archive.reader import open_archive
from nsqtools.errors import ServerError
from nsqtools.wire import commands
from nsqtools.wire.frames import HEARTBEAT, OK, FrameDecoder, Response
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

STOCK_TOOLS = {"zstd": "zstdcat", "gzip": "zcat", "none": "cat"}
_READ_BYTES = 1 << 18
_LENGTHS = 61


def new_rng() -> random.Random:
    """Random moments that can be had again: the seed is printed, and taken from CRASH_SEED."""
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(1 << 32))
    print(f"CRASH_SEED={seed}")
    return random.Random(seed)


def patience_s(messages: int) -> float:
    """How long so many messages may take, all told."""
    return PATIENCE_S + messages / 10_000


def body_of(number: int, rounds: int = 0) -> bytes:
    """Text without a newline, of various lengths, that begins with the number; with `rounds` longer."""
    return b"%d %b" % (number, b"x" * (number % _LENGTHS + _LENGTHS * rounds))


def number_of(body: bytes) -> int:
    found, _, rest = body.partition(b" ")
    number = int(found)
    is_whole = body == body_of(number, len(rest) // _LENGTHS)
    assert is_whole, f"a body is not as it was published: {body!r}"
    return number


class Tally:
    """How often each number was there."""

    def __init__(self, total: int) -> None:
        self._counts = [0] * total

    def add(self, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            self._counts[number_of(body)] += 1

    @property
    def missing(self) -> list[int]:
        return [number for number, count in enumerate(self._counts) if not count]

    @property
    def repeated(self) -> int:
        """How many copies there are beyond the first of each."""
        return sum(count - 1 for count in self._counts if count > 1)


# Files


def published_files(output_dir: Path) -> list[Path]:
    others = (".part", *BESIDE)
    return sorted(path for path in output_dir.rglob("*.log*") if not path.name.endswith(others))


def unfinished_files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.part*"))


def bodies_of(path: Path) -> list[bytes]:
    """What our reader finds in a file."""
    with open_archive(path) as archive:
        return list(itertools.chain.from_iterable(batch.bodies for batch in archive.batches()))


def opened_by_stock_tool(path: Path, compression: str) -> bytes:
    """What the everyday tool makes of a file; it must not complain."""
    tool = STOCK_TOOLS[compression]
    done = subprocess.run([tool, str(path)], capture_output=True, check=False)
    assert done.returncode == 0, f"{tool} {path}: {done.stderr!r}"
    assert not done.stderr, f"{tool} {path}: {done.stderr!r}"
    return done.stdout


# Clients


class Cut(Exception):  # noqa: N818 - reads as the fact it states
    """The broker went away."""


class Received(NamedTuple):
    """What one read brought."""

    responses: list[bytes]
    errors: list[str]
    messages: list[Messages]


class Client:
    """A connection to the broker; everything that ends it is a `Cut`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._decoder = FrameDecoder()
        self._unclaimed_oks = 0

    async def __aenter__(self) -> Self:
        with _cuts():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self._writer.write(commands.MAGIC_V2)
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> Received:
        """Frames, as soon as there are any whole ones; heartbeats are answered."""
        received = Received([], [], [])
        while not any(received):
            with _cuts():
                await self._writer.drain()
                raw = await self._reader.read(_READ_BYTES)
            if not raw:
                raise Cut
            for event in self._decoder.receive(raw):
                if isinstance(event, Messages):
                    received.messages.append(event)
                elif isinstance(event, ServerError):
                    received.errors.append(event.code)
                elif isinstance(event, Response) and event.data == HEARTBEAT:
                    self.send(commands.NOP)
                elif isinstance(event, Response):
                    received.responses.append(event.data)
        return received

    async def expect_ok(self, count: int = 1) -> None:
        """Wait for so many answers to what publishes or subscribes; all have to be OK."""
        async with asyncio.timeout(PATIENCE_S):
            while self._unclaimed_oks < count:
                received = await self.receive()
                assert received == Received([OK] * len(received.responses), [], [])
                self._unclaimed_oks += len(received.responses)
        self._unclaimed_oks -= count

    async def publish(self, topic: str, numbers: Sequence[int], rounds: int = 0) -> None:
        self.send(commands.mpub(topic, [body_of(number, rounds) for number in numbers]))
        await self.expect_ok()

    async def subscribe(self, topic: str, channel: str, rdy: int) -> None:
        self.send(commands.sub(topic, channel))
        await self.expect_ok()
        self.send(commands.rdy(rdy))


@contextlib.contextmanager
def _cuts() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Cut from error
