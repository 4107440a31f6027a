"""The demonstration, stage by stage, with the parts that the programs are made of.

publish   the log, a message a line, into topic `demo` of an embedded broker
archive   the topic, as zstd, with rotation, every message acknowledged after fsync
replay    the archive into topic `demo-replay`
verify    what came back against what went in
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.naming import FileNaming, host_identifier
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveSpec
from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.client.batch import settle_all
from nsqtools.client.consumer import Consumer
from nsqtools.client.options import ConsumerOptions, ProducerOptions
from nsqtools.clock import SystemClock
from nsqtools.demo.log_input import LINE_BYTES_MAX, LogInput, choose_input
from nsqtools.demo.stages import BodyDigest, Stage, print_stages
from nsqtools.errors import OptionsError
from nsqtools.observe.log import configure
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.topic import TopicPipeline, TopicSpec
from nsqtools.replay.chunks import ChunkLimits, chunks, sort_out
from nsqtools.replay.inputs import find_inputs
from nsqtools.replay.player import Player

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from nsqtools.demo.options import DemoOptions

TOPIC = "demo"
REPLAY_TOPIC = "demo-replay"
CHANNEL = "archive"
MAX_IN_FLIGHT = 2500
SYNC_INTERVAL_S = 0.2
# Nothing came back for so long: nothing will.
STALL_S = 10.0
IN_FLIGHT_MPUBS = 8
ROTATE_SIZE_MIN_BYTES = 4096
LIMITS = ChunkLimits(
    messages_max=500, msg_size_max_bytes=LINE_BYTES_MAX, body_size_max_bytes=LINE_BYTES_MAX + 4096
)


@dataclass(slots=True)
class Skipped:
    """Lines that cannot be messages."""

    empty: int = 0
    too_long: int = 0


async def play(options: DemoOptions) -> int:
    """Run it all and print the table; 0 when the streams are identical."""
    configure(options.log_level, "[demo] ")
    folder = _folder(options)
    log_input = choose_input(options.input, options.messages, folder)
    demo = Demo(options, folder, log_input)
    broker_options = NsqdOptions(
        data_path=folder / "broker",
        tcp_address="127.0.0.1:0",
        http_address="",
        max_msg_size_bytes=LIMITS.msg_size_max_bytes,
        max_body_size_bytes=LIMITS.body_size_max_bytes,
    )
    print(f"input    {log_input.description}, {log_input.size_bytes:,} bytes")
    async with Broker(broker_options) as broker:
        with _progress(log_input.size_bytes) as demo.progress:
            stages = await demo.run(broker.tcp_address)
    return demo.report(stages)


def _folder(options: DemoOptions) -> Path:
    """A folder of its own for each run: a former run's messages would be a difference."""
    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="nsqtools-demo-"))
    durable.make_directories(folder)
    for part in (folder / "broker", folder / "archive"):
        durable.make_directories(part)
        durable.check_writable(part)
        if any(part.iterdir()):
            raise OptionsError([f"--output-dir: {part} is not empty"])
    return folder


class Demo:
    """One run of the demonstration."""

    def __init__(self, options: DemoOptions, folder: Path, log_input: LogInput) -> None:
        self.archive = folder / "archive"
        self.progress: Tell = lambda _stage, _bytes: None
        self._options = options
        self._input = log_input
        self._sent = BodyDigest()
        self._came_back = BodyDigest()
        self._skipped = Skipped()
        self._replayed = 0

    async def run(self, nsqd: str) -> list[Stage]:
        stages = [await self._publish(nsqd), await self._archive(nsqd)]
        stages += [await self._replay(nsqd), await self._verify(nsqd)]
        return stages

    def report(self, stages: list[Stage]) -> int:
        """Print what happened; the exit code."""
        print_stages(stages)
        if self._skipped.empty:
            print(f"skipped  {self._skipped.empty:,} empty lines: nsqd refuses an empty message")
        if self._skipped.too_long:
            limit = LIMITS.msg_size_max_bytes
            print(f"skipped  {self._skipped.too_long:,} lines longer than {limit:,} bytes")
        identical = self._sent == self._came_back
        print(
            f"verdict  {'identical' if identical else 'DIFFERENT'}:"
            f" {self._sent.messages:,} messages ({self._sent.body_bytes:,} bytes) published,"
            f" {self._came_back.messages:,} ({self._came_back.body_bytes:,} bytes) came back"
        )
        print(f"digest   {self._sent.hexdigest()} in")
        print(f"         {self._came_back.hexdigest()} out")
        self._print_files()
        return 0 if identical else 1

    def _print_files(self) -> None:
        files = self._files()
        print(f"archive  {self.archive} ({len(files)} file{'' if len(files) == 1 else 's'})")
        if files:
            print("look     ls -l", self.archive)
            print(f"         zstdcat {files[0]} | head")
            print(
                "replay   file_to_nsq --topic=TOPIC --nsqd-tcp-address=127.0.0.1:4150", self.archive
            )

    async def _publish(self, nsqd: str) -> Stage:
        began_s = time.perf_counter()
        async with _player(nsqd, TOPIC) as player:
            for bodies in self._input.batches():
                kept = sort_out(bodies, LIMITS)
                self._skipped.empty += kept.empty
                self._skipped.too_long += len(kept.too_big)
                await self._send(player, kept.bodies, "publish")
                self._sent.add(kept.bodies)
            await player.finish()
        return self._stage("publish", player, began_s)

    async def _replay(self, nsqd: str) -> Stage:
        began_s = time.perf_counter()
        async with _player(nsqd, REPLAY_TOPIC) as player:
            for bodies in self._archived():
                await self._send(player, bodies, "replay")
            await player.finish()
        self._replayed = player.counts.messages
        return self._stage("replay", player, began_s)

    async def _send(self, player: Player, bodies: Iterable[bytes], stage: str) -> None:
        for chunk in chunks(list(bodies), LIMITS):
            await player.play(chunk)
            self.progress(stage, sum(map(len, chunk)))

    def _archived(self) -> Iterator[list[bytes]]:
        if not self._sent.messages:
            return
        for source in find_inputs([str(self.archive)]):
            with source.opened() as reader:
                for batch in reader.batches():
                    yield batch.bodies

    def _files(self) -> list[Path]:
        """The finished files, without the folder of claims beside them."""
        return sorted(path for path in self.archive.iterdir() if path.is_file())

    async def _archive(self, nsqd: str) -> Stage:
        began_s = time.perf_counter()
        host = host_identifier("")
        spec = ArchiveSpec(
            topic=TOPIC,
            channel=CHANNEL,
            host=host,
            output_dir=self.archive,
            work_dir=self.archive,
            naming=FileNaming(host=host),
            compression="zstd",
            rotation=RotationPolicy(rotate_size_bytes=self._rotate_size_bytes()),
        )
        topic = TopicSpec(
            topic=TOPIC,
            channel=CHANNEL,
            consumer=_consumer_options(),
            nsqd_addresses=(nsqd,),
        )
        workers = Workers()
        output = FileOutput(spec, workers, sync_interval_s=SYNC_INTERVAL_S)
        pipeline = TopicPipeline(topic, output)
        running = asyncio.create_task(pipeline.run())
        told = 0
        while pipeline.counts.messages < self._sent.messages and not running.done():
            await asyncio.wait([running], timeout=0.02)
            self.progress("archive", pipeline.counts.body_bytes - told)
            told = pipeline.counts.body_bytes
        pipeline.stop()
        await running
        workers.close()
        counts = pipeline.counts
        return Stage(
            name="archive",
            messages=counts.messages,
            body_bytes=counts.body_bytes,
            seconds=time.perf_counter() - began_s,
            disk_bytes=sum(path.stat().st_size for path in self._files()),
        )

    def _rotate_size_bytes(self) -> int:
        """A few files, of whatever is archived: a log shrinks to about a tenth."""
        wanted = self._options.rotate_size_bytes
        return wanted or max(ROTATE_SIZE_MIN_BYTES, self._input.size_bytes // 40)

    async def _verify(self, nsqd: str) -> Stage:
        began_s = time.perf_counter()
        async with Consumer(
            REPLAY_TOPIC, "verify", _consumer_options(), nsqd_addresses=[nsqd]
        ) as consumer:
            missing = self._replayed
            while missing > 0 and (came := await self._take_back(consumer, STALL_S)):
                missing -= came
            seconds = time.perf_counter() - began_s
            # Anything beyond what was replayed would be a difference, too.
            await self._take_back(consumer, SYNC_INTERVAL_S)
            await consumer.stop(1.0)
            await consumer.close()
        return Stage(
            name="verify",
            messages=self._came_back.messages,
            body_bytes=self._came_back.body_bytes,
            seconds=seconds,
        )

    async def _take_back(self, consumer: Consumer, wait_s: float) -> int:
        """What comes next, within `wait_s`, into the digest; how many."""
        await consumer.inbox.wait(wait_s)
        batches = consumer.inbox.take()
        for batch in batches:
            self._came_back.add(batch.messages.bodies)
            self.progress("verify", batch.messages.size_bytes)
        settle_all(batches)
        return sum(len(batch.messages) for batch in batches)

    def _stage(self, name: str, player: Player, began_s: float) -> Stage:
        return Stage(
            name=name,
            messages=player.counts.messages,
            body_bytes=player.counts.body_bytes,
            seconds=time.perf_counter() - began_s,
        )


@contextlib.asynccontextmanager
async def _player(nsqd: str, topic: str) -> AsyncIterator[Player]:
    options = ProducerOptions(user_agent="nsqtools-demo")
    clock = SystemClock()
    async with Player(topic, [nsqd], options, in_flight=IN_FLIGHT_MPUBS, clock=clock) as player:
        yield player


def _consumer_options() -> ConsumerOptions:
    return ConsumerOptions(max_in_flight=MAX_IN_FLIGHT, user_agent="nsqtools-demo")


if TYPE_CHECKING:
    Tell = Callable[[str, int], None]


@contextlib.contextmanager
def _progress(size_bytes: int) -> Iterator[Tell]:
    """A bar for each stage on a terminal; nothing elsewhere, it is over soon."""
    if not sys.stderr.isatty():
        yield lambda _stage, _bytes: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks = {
            stage: bars.add_task(stage, total=max(1, size_bytes))
            for stage in ("publish", "archive", "replay", "verify")
        }
        yield lambda stage, count: bars.advance(tasks[stage], count)
