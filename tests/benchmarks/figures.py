"""The figures: each takes one sample, with everything on this machine's cores at once."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.benchmarks import data, uploads
from tests.benchmarks.endpoint import server_argv
from tests.benchmarks.nsqd import free_port, our_program
from tests.benchmarks.processes import ROOT, BenchError, Usage, since, wait_until
from tests.benchmarks.table import Sample
from tests.support.bucket import Bucket
from tests.support.stores import ENVIRONMENT, StoreServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.benchmarks.nsqd import Nsqd
    from tests.benchmarks.processes import Child, Children

CHANNEL = "bench"
IN_FLIGHT_MAX = 2500
NSQ_IN_FLIGHT = 200
# NSQ's nsq_to_file holds its last messages until its --sync-interval is over (spec: tools, 1.5), 30 s
# unless told otherwise: that is no measure of its speed.
NSQ_SYNC_INTERVAL = "--sync-interval=1s"
MANY = 50
FORMATS = ("lines", "framed", "jsonl")
COMPRESSIONS = {"none": (), "gzip": ("--gzip-level=6",), "zstd": ("--zstd-level=3",)}
REPLAY_TIMEOUT_S = 600.0
ENDPOINT_TIMEOUT_S = 20.0
# One PUB at a time is slow: NSQ's to_nsq gets no more than this.
TO_NSQ_MESSAGES_MAX = 100_000
STARTS = 5
RECEIVE_BUFFER_BYTES = 1 << 20
_SUMMARY = re.compile(r"INFO: archived messages=(\d+) .*deliveries=(\d+)")
_REPLAYED = re.compile(r"^published (\d+) messages .* s: ([\d,]+) messages/s$", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Bench:
    """What the figures of one run share: the broker, the messages, the floor of the network."""

    children: Children
    nsqd: Nsqd
    messages: Path
    mixed: Path
    """Messages of many sizes."""
    count: int
    loopback: Sample
    archives: dict[str, Path] = field(default_factory=dict)
    topics: int = field(default=0)

    def new_topic(self, channel: str = "") -> str:
        self.topics += 1
        topic = f"bench-{self.topics}"
        self.nsqd.create(topic, channel)
        return topic

    def new_backlog(self, *, is_mixed: bool = False) -> str:
        """A topic whose channel holds every message, on disk but for the newest."""
        topic = self.new_topic(CHANNEL)
        port = self.nsqd.tcp_port
        messages = self.mixed if is_mixed else self.messages
        self.children.traffic("writer", "write", port, topic, messages, self.count)
        self.nsqd.wait_for_backlog(topic, CHANNEL, self.count)
        return topic


def loopback(children: Children, messages: Path, count: int) -> Sample:
    """The floor of the network: frames from one process, received without looking at them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(REPLAY_TIMEOUT_S)
        port = server.getsockname()[1]
        sender = children.start_traffic("sender", "send", port, messages, count)
        peer, _ = server.accept()
        with peer:
            cpu_from_s = time.process_time()
            received = _receive_all(peer)
            cpu_s = time.process_time() - cpu_from_s
    _, seconds, usage = children.end_traffic(sender)
    if received != count * data.FRAME_BYTES:
        raise BenchError(f"{received} bytes came over loopback")
    receiver = Usage(name="receiver", cpu_s=cpu_s, peak_bytes=RECEIVE_BUFFER_BYTES)
    return Sample(messages=count, seconds=seconds, usages=(usage, receiver))


def _receive_all(peer: socket.socket) -> int:
    buffer = bytearray(RECEIVE_BUFFER_BYTES)
    received = 0
    while size := peer.recv_into(buffer):
        received += size
    return received


def ingest(bench: Bench, *, is_mixed: bool = False) -> Sample:
    """Two connections publish MPUBs, each waits for its OK."""
    messages = bench.mixed if is_mixed else bench.messages
    topic = bench.new_topic()
    broker = bench.nsqd.child
    broker.reset_peak()
    before = broker.usage()
    moved, seconds, writer = bench.children.traffic(
        "writer", "write", bench.nsqd.tcp_port, topic, messages, bench.count
    )
    used = since(before, broker.usage())
    _expect(bench.nsqd.published(topic), moved, "messages in the topic")
    bench.nsqd.delete(topic)
    return Sample(
        messages=moved,
        seconds=seconds,
        floor_per_s=bench.loopback.rate,
        usages=(used, writer),
    )


def delivery(bench: Bench) -> Sample:
    """Two connections take a backlog and FIN every message."""
    topic = bench.new_backlog()
    broker = bench.nsqd.child
    broker.reset_peak()
    before = broker.usage()
    moved, seconds, reader = bench.children.traffic(
        "reader", "read", bench.nsqd.tcp_port, topic, CHANNEL, bench.count
    )
    used = since(before, broker.usage())
    _expect(moved, bench.count, "messages delivered")
    bench.nsqd.wait_for_backlog(topic, CHANNEL, 0)
    bench.nsqd.delete(topic)
    return Sample(
        messages=moved,
        seconds=seconds,
        floor_per_s=bench.loopback.rate,
        usages=(used, reader),
    )


def archive(
    bench: Bench,
    argv: list[str],
    flags: list[str],
    *,
    is_ours: bool = True,
    is_mixed: bool = False,
) -> Sample:
    """nsq_to_file empties a channel, from its subscription until the last message is acknowledged; the
    floor is the slower of the network's and the disk's."""
    topic = bench.new_backlog(is_mixed=is_mixed)
    folder = bench.children.folder / f"archive-{topic}"
    folder.mkdir()
    broker = bench.nsqd.child
    broker.reset_peak()
    before = broker.usage()
    words = _archive_flags(topic, [bench.nsqd.tcp_address], folder)
    archiver = bench.children.start("archiver", [*argv, *words, *flags])
    span = bench.nsqd.time_emptying(topic, CHANNEL, archiver)
    used = since(before, broker.usage())
    usage = archiver.terminate()
    bench.nsqd.delete(topic)
    _expect(span.messages, bench.count, "messages in the channel at the start")
    floor = _disk_floor(bench, archiver, folder) if is_ours else None
    sample = Sample(
        messages=span.messages,
        seconds=span.seconds,
        start_s=span.start_s,
        floor_per_s=floor and min(floor, bench.loopback.rate),
        usages=(used, usage),
        body_bytes=data.size_bytes(bench.mixed if is_mixed else bench.messages, bench.count),
        disk_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    )
    _keep_for_replay(bench, folder, flags)
    return sample


def many(bench: Bench, brokers: int) -> Sample:
    """nsq_to_file empties the channels of so many nsqds, which share the messages and a process."""
    topic = bench.new_topic()
    folder = bench.children.folder / f"archive-{topic}"
    folder.mkdir()
    shares = bench.children.folder / f"brokers-{topic}"
    shares.mkdir()
    words = [str(shares), str(bench.messages), CHANNEL, str(brokers), str(bench.count)]
    served = bench.children.start(
        "brokers", [sys.executable, "-m", "tests.benchmarks.many", *words]
    )
    wait_until(lambda: "ports" in served.stdout, served, REPLAY_TIMEOUT_S, "a backlog is there")
    ports = json.loads(served.stdout.splitlines()[0])["ports"]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    flags = [*_archive_flags(CHANNEL, addresses, folder), "--compress=none"]
    archiver = bench.children.start("archiver", [*our_program("nsq_to_file"), *flags])
    used = served.wait(REPLAY_TIMEOUT_S)
    usage = archiver.terminate()
    told = json.loads(served.stdout.splitlines()[1])
    _expect(told["messages"], bench.count, "messages in the channels at the start")
    floor = _disk_floor(bench, archiver, folder)
    shutil.rmtree(folder)
    shutil.rmtree(shares)
    bench.nsqd.delete(topic)
    return Sample(
        messages=bench.count,
        seconds=told["seconds"],
        start_s=told["start_s"],
        floor_per_s=min(floor, bench.loopback.rate),
        usages=(used, usage),
    )


def _archive_flags(topic: str, addresses: list[str], folder: Path) -> list[str]:
    return [
        f"--topic={topic}",
        f"--channel={CHANNEL}",
        *[f"--nsqd-tcp-address={address}" for address in addresses],
        f"--output-dir={folder}",
    ]


def _disk_floor(bench: Bench, archiver: Child, folder: Path) -> float:
    """Messages a second that the disk alone would take: the same bytes, synced as often."""
    summary = _SUMMARY.search(archiver.stderr)
    if summary is None:
        raise BenchError(f"nsq_to_file gave no summary\n{archiver.stderr[-2000:]}")
    _expect(int(summary[1]), bench.count, "messages archived")
    target = bench.children.folder / "floor"
    _, seconds, _ = bench.children.traffic("store", "store", folder, target, summary[2])
    target.unlink()
    return bench.count / seconds


def _keep_for_replay(bench: Bench, folder: Path, flags: list[str]) -> None:
    for record_format in FORMATS:
        if {f"--format={record_format}", "--compress=zstd"} <= set(flags):
            if (former := bench.archives.get(record_format)) is not None:
                shutil.rmtree(former)
            bench.archives[record_format] = folder
            return
    shutil.rmtree(folder)


def replay(bench: Bench, record_format: str) -> Sample:
    """file_to_nsq publishes the zstd archive that was just made; the rate is its own."""
    if record_format not in bench.archives:
        OURS[f"{record_format}-zstd"](bench)
    topic = bench.new_topic()
    broker = bench.nsqd.child
    broker.reset_peak()
    before = broker.usage()
    words = [f"--topic={topic}", f"--nsqd-tcp-address={bench.nsqd.tcp_address}"]
    player = bench.children.start(
        "replayer", [*our_program("file_to_nsq"), *words, str(bench.archives[record_format])]
    )
    usage = player.wait(REPLAY_TIMEOUT_S)
    used = since(before, broker.usage())
    report = _REPLAYED.search(player.stdout)
    if report is None:
        raise BenchError(f"file_to_nsq gave no report\n{player.stdout}{player.stderr[-2000:]}")
    _expect(int(report[1]), bench.count, "messages replayed")
    _expect(bench.nsqd.published(topic), bench.count, "messages in the topic")
    bench.nsqd.delete(topic)
    return Sample(
        messages=bench.count,
        seconds=bench.count / int(report[2].replace(",", "")),
        floor_per_s=bench.loopback.rate,
        usages=(used, usage),
    )


def to_nsq(bench: Bench, argv: list[str]) -> Sample:
    """NSQ's to_nsq publishes lines from standard input."""
    topic = bench.new_topic()
    count = min(bench.count, TO_NSQ_MESSAGES_MAX)
    lines = bench.children.folder / f"lines-{topic}"
    lines.write_bytes(b"".join(line + b"\n" for line in data.messages(count)))
    broker = bench.nsqd.child
    before = broker.usage()
    words = [f"--topic={topic}", f"--nsqd-tcp-address={bench.nsqd.tcp_address}"]
    began_s = time.perf_counter()
    usage = bench.children.start("to_nsq", [*argv, *words], stdin=lines).wait(REPLAY_TIMEOUT_S)
    seconds = time.perf_counter() - began_s
    used = since(before, broker.usage())
    _expect(bench.nsqd.published(topic), count, "messages in the topic")
    bench.nsqd.delete(topic)
    return Sample(messages=count, seconds=seconds, usages=(used, usage))


def deliver(bench: Bench, argv: list[str], flags: list[str]) -> Sample:
    """nsq_to_http empties a channel into an endpoint on this machine, over 100 connections."""
    topic = bench.new_backlog()
    port = free_port()
    folder = bench.children.folder / f"endpoint-{topic}"
    folder.mkdir()
    server = bench.children.start("endpoint", server_argv(folder, port))
    wait_until(lambda: _listens(port), server, ENDPOINT_TIMEOUT_S, "the endpoint listens")
    broker = bench.nsqd.child
    broker.reset_peak()
    before = broker.usage()
    words = [
        f"--topic={topic}",
        f"--channel={CHANNEL}",
        f"--nsqd-tcp-address={bench.nsqd.tcp_address}",
        f"--post=http://127.0.0.1:{port}/put",
        *("--n=100", "--status-every=0", _FAST),
    ]
    deliverer = bench.children.start("deliverer", [*argv, *words, *flags])
    span = bench.nsqd.time_emptying(topic, CHANNEL, deliverer)
    used = since(before, broker.usage())
    usage = deliverer.terminate()
    server.kill()
    bench.nsqd.delete(topic)
    _expect(span.messages, bench.count, "messages in the channel at the start")
    return Sample(
        messages=span.messages,
        seconds=span.seconds,
        start_s=span.start_s,
        floor_per_s=bench.loopback.rate,
        usages=(used, usage),
    )


def upload(bench: Bench, server_name: str) -> Sample:
    """nsq_to_s3 empties a channel into its spool, while files of 4 MB are uploaded to a store on this
    machine; the clock ends with the last acknowledgement."""
    topic = bench.new_backlog()
    spool, kept = (bench.children.folder / f"{name}-{topic}" for name in ("spool", "store"))
    kept.mkdir()
    os.environ.update(ENVIRONMENT)
    broker = bench.nsqd.child
    broker.reset_peak()
    with StoreServer(server_name, kept) as server, Bucket(server, CHANNEL).create() as bucket:
        before = broker.usage()
        words = [
            f"--topic={topic}",
            f"--channel={CHANNEL}",
            f"--nsqd-tcp-address={bench.nsqd.tcp_address}",
            f"--bucket={CHANNEL}",
            f"--endpoint-url={server.endpoint_url}",
            f"--spool-dir={spool}",
            "--rotate-size=4M",
        ]
        uploader = bench.children.start("uploader", [*our_program("nsq_to_s3"), *words])
        span = bench.nsqd.time_emptying(topic, CHANNEL, uploader)
        used = since(before, broker.usage())
        usage = uploader.terminate()
        archived = sum(int(bucket.head(key)[1]["records"]) for key in bucket.archives())
    shutil.rmtree(kept)
    shutil.rmtree(spool)
    bench.nsqd.delete(topic)
    _expect(archived, bench.count, "messages in the bucket")
    return Sample(
        messages=span.messages,
        seconds=span.seconds,
        start_s=span.start_s,
        floor_per_s=bench.loopback.rate,
        usages=(used, usage),
    )


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def version_s() -> float:
    """Seconds until `nsq_to_file --version` has ended: the median of a few starts."""
    times = []
    for _ in range(STARTS):
        began_s = time.perf_counter()
        subprocess.run(
            [*our_program("nsq_to_file"), "--version"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def _ours(*flags: str, is_mixed: bool = False) -> Callable[[Bench], Sample]:
    argv = our_program("nsq_to_file")
    return lambda bench: archive(bench, argv, list(flags), is_mixed=is_mixed)


def _archive_of(record_format: str, compression: str, *flags: str) -> Callable[[Bench], Sample]:
    words = [f"--format={record_format}", f"--compress={compression}"]
    return _ours(*words, *COMPRESSIONS[compression], *flags)


def _delivered(*flags: str) -> Callable[[Bench], Sample]:
    return lambda bench: deliver(bench, our_program("nsq_to_http"), list(flags))


def _theirs(folder: Path, *flags: str) -> Callable[[Bench], Sample]:
    argv = [str(folder / "nsq_to_file"), NSQ_SYNC_INTERVAL]
    return lambda bench: archive(bench, argv, list(flags), is_ours=False)


_FAST = f"--max-in-flight={IN_FLIGHT_MAX}"
_AS_NSQ = f"--max-in-flight={NSQ_IN_FLIGHT}"
# What is measured with our tools, against whichever broker.
OURS: dict[str, Callable[[Bench], Sample]] = {
    "ingest": ingest,
    "delivery": delivery,
    "lines-none-200": _archive_of("lines", "none", _AS_NSQ),
    **{
        f"{record_format}-{compression}": _archive_of(record_format, compression, _FAST)
        for record_format in FORMATS
        for compression in COMPRESSIONS
    },
    "mixed-ingest": functools.partial(ingest, is_mixed=True),
    "mixed-lines-none": _ours("--format=lines", "--compress=none", _FAST, is_mixed=True),
    "two-connections": _archive_of("lines", "none", "--connections-per-nsqd=2"),
    "four-connections": _archive_of("lines", "none", "--connections-per-nsqd=4"),
    **{f"replay-{each}": functools.partial(replay, record_format=each) for each in FORMATS},
    "http": _delivered(),
    "http-100": _delivered("--batch-size=100"),
    **{f"s3-{server}": functools.partial(upload, server_name=server) for server in uploads.SERVERS},
}
# What is measured with brokers of its own.
EMBEDDED: dict[str, Callable[[Bench], Sample]] = {
    "one-nsqd": functools.partial(many, brokers=1),
    "many-nsqds": functools.partial(many, brokers=MANY),
}


def nsq_figures(folder: Path) -> dict[str, Callable[[Bench], Sample]]:
    """The same of NSQ's own tools, which `folder` holds."""
    return {
        "nsq-none-200": _theirs(folder, _AS_NSQ),
        "nsq-none": _theirs(folder, _FAST),
        "nsq-gzip-200": _theirs(folder, "--gzip", _AS_NSQ),
        "nsq-gzip": _theirs(folder, "--gzip", _FAST),
        "nsq-http": lambda bench: deliver(bench, [str(folder / "nsq_to_http")], []),
        "nsq-to_nsq": lambda bench: to_nsq(bench, [str(folder / "to_nsq")]),
    }


def _expect(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise BenchError(f"{found} {what}, {wanted} were expected")
