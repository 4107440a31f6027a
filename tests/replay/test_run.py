"""file_to_nsq whole: files in, a topic of an embedded broker out, and a report that accounts for all."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.replay.support import (
    DEADLINE_S,
    OK_FRAME,
    HastyClock,
    ScriptedNsqd,
    bodies_of,
    embedded,
    published,
    refusal,
    until,
)

from nsqtools.archive.naming import FileNaming
from nsqtools.archive.writer import ArchiveSpec, ArchiveWriter
from nsqtools.errors import OptionsError, ServerError
from nsqtools.options import load
from nsqtools.replay import run as run_module
from nsqtools.replay.inputs import find_inputs
from nsqtools.replay.options import FileToNsqOptions
from nsqtools.replay.progress import LogProgress
from nsqtools.replay.run import run
from nsqtools.wire.messages import Messages, encode_payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from nsqtools.broker.server import Broker

TOPIC = "replayed"
SECOND_NS = 10**9
# Whatever bytes there are: text, all 256 values, what is no UTF-8, what looks like our own formats.
ANY_BYTES = [
    b"plain",
    "größe ✓".encode(),
    bytes(range(256)),
    b"\xff\xfe\x00",
    b"\0" * 300,
    b'{"ts":1,"body":"x"}',
    b"NSQ",
    b" ",
    b"\r",
    *[b"message %d" % number for number in range(700)],
]
WITHOUT_NEWLINES = [body.replace(b"\n", b"|") for body in ANY_BYTES]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    async with embedded(tmp_path / "broker") as running:
        yield running


def archive(
    folder: Path,
    bodies: Sequence[bytes],
    record_format: str = "lines",
    compression: str = "none",
    commit: int = 100,
) -> Path:
    """An archive of these bodies; the first was published 1 s after the epoch, the next at 2 s."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = ArchiveSpec(
        topic="orders",
        channel="c",
        host="h",
        output_dir=folder,
        work_dir=folder,
        naming=FileNaming(host="h"),
        record_format=record_format,
        compression=compression,
        compact=False,
    )
    writer = ArchiveWriter(spec)
    payloads = [
        encode_payload(at * SECOND_NS, 1, b"%016x" % at, body) for at, body in enumerate(bodies, 1)
    ]
    for at in range(0, len(payloads), commit):
        writer.commit([Messages(payloads[at : at + commit], nsqd="127.0.0.1:4150")])
    writer.close()
    published_file = writer.finish()
    assert published_file is not None
    return Path(published_file.location)


def options_for(address: str, *argv: object) -> FileToNsqOptions:
    words = [f"--topic={TOPIC}", f"--nsqd-tcp-address={address}", *map(str, argv)]
    return load(FileToNsqOptions, "file_to_nsq", words, {})


async def replay(broker: Broker, *argv: object) -> int:
    async with asyncio.timeout(DEADLINE_S):
        return await run(options_for(broker.tcp_address, *argv))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
async def test_every_archive_comes_back_byte_for_byte(
    broker: Broker,
    tmp_path: Path,
    record_format: str,
    compression: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bodies = WITHOUT_NEWLINES if record_format == "lines" else ANY_BYTES
    path = archive(tmp_path / "files", bodies, record_format, compression)
    assert await replay(broker, path) == 0
    assert await bodies_of(broker, TOPIC) == bodies
    size = sum(map(len, bodies))
    assert capsys.readouterr().out.startswith(
        f"published {len(bodies)} messages ({size} bytes) from 1 file(s) to topic {TOPIC} in "
    )


async def test_logs_folders_and_globs_in_one_run(broker: Broker, tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.log", tmp_path / "b.log.gz"
    plain.write_bytes(b"plain 1\nplain 2")
    packed.write_bytes(gzip.compress(b"packed 1\n") + gzip.compress(b"packed 2\n"))
    archive(tmp_path / "folder" / "x", [b"framed 1\n", b"framed 2"], "framed", "zstd")
    (tmp_path / "folder" / "y.log.part").write_bytes(b"not finished\n")
    argv = [plain, tmp_path / "*.gz", tmp_path / "folder", "--in-flight=1"]
    assert await replay(broker, *argv) == 0
    assert await bodies_of(broker, TOPIC) == [
        b"plain 1",
        b"plain 2",
        b"packed 1",
        b"packed 2",
        b"framed 1\n",
        b"framed 2",
    ]


async def test_a_format_that_is_named_is_not_guessed(broker: Broker, tmp_path: Path) -> None:
    path = archive(tmp_path / "files", [b"body"], "jsonl")
    assert await replay(broker, path, "--format=lines") == 0
    assert await bodies_of(broker, TOPIC) == [path.read_bytes().rstrip(b"\n")]


@contextlib.contextmanager
def stdin_of(monkeypatch: pytest.MonkeyPatch, given: bytes | None) -> Iterator[None]:
    """Standard input is a pipe with these bytes; None: nothing comes, and it stays open."""
    reads, writes = os.pipe()
    if given is not None:
        os.write(writes, given)
        os.close(writes)
    with os.fdopen(reads, "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        yield
    if given is None:
        os.close(writes)


@pytest.mark.parametrize("packed", [False, True])
async def test_standard_input(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    given = b"one\ntwo\n\nthree"
    with stdin_of(monkeypatch, gzip.compress(given) if packed else given):
        assert await replay(broker, "-") == 0
    assert await bodies_of(broker, TOPIC) == [b"one", b"two", b"three"]


@pytest.mark.parametrize("record_format", ["jsonl", "framed"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_a_range_of_time_is_exact(
    broker: Broker, tmp_path: Path, record_format: str, compression: str
) -> None:
    bodies = [b"at %d" % second for second in range(1, 101)]
    path = archive(tmp_path / "files", bodies, record_format, compression, commit=7)
    assert await replay(broker, path, "--since=20", "--until=41") == 0
    assert await bodies_of(broker, TOPIC) == bodies[19:40]


async def test_a_range_that_lines_keep_roughly_is_told(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = [b"at %d" % second for second in range(1, 101)]
    path = archive(tmp_path / "files", bodies, "lines", "zstd", commit=10)
    assert await replay(broker, path, "--since=25", "--until=41") == 0
    published = await bodies_of(broker, TOPIC)
    assert set(bodies[24:40]) <= set(published)
    assert "1 file(s) of lines keep no time" in capsys.readouterr().out
    assert await replay(broker, path) == 0
    assert "keep no time" not in capsys.readouterr().out


async def test_a_range_that_cannot_be_applied_is_told(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "a.log"
    plain.write_bytes(b"no time in here\n")
    framed = archive(tmp_path / "files", [b"one", b"two", b"three"], "framed")
    assert await replay(broker, plain, framed, "--since=2") == 4
    assert await bodies_of(broker, TOPIC) == [b"two", b"three"]
    assert f"not read to its end: {plain}: lines keep no time" in capsys.readouterr().out


async def test_progress_is_seen_within_a_batch_of_the_file(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "files", [b"%d" % at for at in range(1000)])
    seen: list[int] = []
    monkeypatch.setattr(
        LogProgress, "advanced", lambda _self, _source, _offset, messages: seen.append(messages)
    )
    assert await replay(broker, path, "--batch-size=10", "--in-flight=1") == 0
    assert len(seen) == 100
    assert len(set(seen)) > 50, seen


async def test_a_rate_spreads_the_messages(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HastyClock()
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0 + sum(clock.slept))
    monkeypatch.setattr(run_module, "SystemClock", lambda: clock)
    path = archive(tmp_path / "files", [b"%d" % at for at in range(100)])
    assert await replay(broker, path, "--rate=20") == 0
    assert len(await bodies_of(broker, TOPIC)) == 100
    assert sum(clock.slept) == pytest.approx(98 / 20)  # two at once, and the first need not wait


async def test_what_is_not_sent_is_counted_and_told(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n\n\n" + b"x" * 101 + b"\ntwo\n" + b"y" * 100 + b"\n")
    assert await replay(broker, path, "--max-msg-size=100") == 1
    assert await bodies_of(broker, TOPIC) == [b"one", b"two", b"y" * 100]
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1:] == [
        "2 messages skipped: empty, which nsqd refuses",
        "1 messages not sent: larger than 100 bytes",
    ]
    assert f"file={path} record=3 near_byte=0 size=101" in shown.err


async def test_of_many_that_are_too_large_a_few_are_told(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"xx\n" * 100)
    assert await replay(broker, path, "--max-msg-size=1") == 1
    shown = capsys.readouterr()
    assert "100 messages not sent" in shown.out
    assert shown.err.count("is not sent") == 20


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["lines", "framed"])
async def test_a_damaged_file_gives_what_is_before_the_damage_and_the_next_file_goes_on(
    broker: Broker,
    tmp_path: Path,
    record_format: str,
    compression: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bodies = [os.urandom(30).replace(b"\n", b"|") for _ in range(500)]
    path = archive(tmp_path / "files", bodies, record_format, compression)
    other = tmp_path / "other.log"
    other.write_bytes(b"from the next file\n")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert await replay(broker, path, other, "--in-flight=1") == 4
    *came, last = await bodies_of(broker, TOPIC)
    assert last == b"from the next file"
    assert came == bodies[: len(came)]
    assert 100 <= len(came) < 300
    assert len(came) % 100 == 0
    shown = capsys.readouterr()
    damaged = [line for line in shown.out.splitlines() if line.startswith("not read to its end")]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"not read to its end: {path}: ")
    assert damaged[0].endswith(f", after {len(came)} whole records")
    offset = int(damaged[0].partition(" at byte ")[2].partition(",")[0])
    assert 0 < offset <= len(data) // 2
    assert f'error="{path}: ' in shown.err


async def test_a_file_that_goes_away_costs_no_other(
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [tmp_path / name for name in ("a.log", "b.log", "c.log")]
    for path in paths:
        path.write_bytes(path.name.encode() + b"\n")
    found = find_inputs([str(tmp_path / "*.log")])
    paths[1].unlink()
    monkeypatch.setattr(run_module, "find_inputs", lambda *_: found)
    assert await replay(broker, "any", "--in-flight=1") == 5
    assert await bodies_of(broker, TOPIC) == [b"a.log", b"c.log"]
    assert f"not read to its end: open {paths[1]}: No such file" in capsys.readouterr().out


async def test_names_that_are_nothing_end_it_before_anything_is_sent(
    broker: Broker, tmp_path: Path
) -> None:
    (tmp_path / "a.log").write_bytes(b"x\n")
    with pytest.raises(OptionsError, match="no such file"):
        await replay(broker, tmp_path / "a.log", tmp_path / "b.log")
    assert TOPIC not in broker.topics


async def test_an_nsqd_that_is_down_at_the_start_is_waited_for(tmp_path: Path) -> None:
    path = archive(tmp_path / "files", [b"one", b"two"])
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
    running = asyncio.create_task(run(options_for(address, path)))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not running.done()
    async with asyncio.timeout(DEADLINE_S), embedded(tmp_path / "broker", address) as broker:
        assert await running == 0
        assert await bodies_of(broker, TOPIC) == [b"one", b"two"]


async def test_a_topic_that_nsqd_refuses_ends_it_and_the_report_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "files", [b"%d" % at for at in range(5000)])
    async with asyncio.timeout(DEADLINE_S):
        nsqd = ScriptedNsqd(lambda _: OK_FRAME)
        nsqd.script = lambda _: (
            OK_FRAME if len(nsqd.asked) <= 2 else refusal("E_UNAUTHORIZED no longer")
        )
        async with nsqd.listening():
            with pytest.raises(BaseExceptionGroup) as caught:
                await run(options_for(nsqd.address, path, "--in-flight=1"))
    matched, rest = caught.value.split(ServerError)
    assert matched is not None
    assert rest is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("published 1000 messages")
    assert lines[1].endswith("messages given up without an answer: may be there or not")
    assert lines[2].endswith("messages read and never sent")


async def test_sigterm_stops_reading_and_waits_for_the_answers(
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The rate holds it up for hours; the signal comes when the first messages are there."""
    path = archive(tmp_path / "files", [b"%d" % at for at in range(1000)])
    running = asyncio.create_task(replay(broker, path, "--rate=0.001"))
    await until(lambda: published(broker, TOPIC) == 1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 130
    assert await bodies_of(broker, TOPIC) == [b"0"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("published 1 messages")


async def test_sigterm_ends_a_replay_of_a_pipe_in_which_nothing_comes(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stdin_of(monkeypatch, None):
        running = asyncio.create_task(replay(broker, "-"))
        await until(lambda: bool(broker.sessions))
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == 130
    assert capsys.readouterr().out.startswith("published 0 messages")


async def test_progress_goes_to_standard_error_only(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "files", [b"%d" % at for at in range(1000)])
    assert await replay(broker, path, "--progress=always") == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert "replaying" in shown.err
    assert "[file_to_nsq] " in shown.err  # log lines come out above it
    assert shown.err.rstrip().endswith("\x1b[2K")  # and the bar goes when it is over


@pytest.mark.slow
async def test_the_program_itself(broker: Broker, tmp_path: Path) -> None:
    """A silent pipe on standard input, SIGTERM, and a process that ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nsqtools",
        "file_to_nsq",
        f"--topic={TOPIC}",
        f"--nsqd-tcp-address={broker.tcp_address}",
        "-",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdin is not None
        process.stdin.write(b"one\n" + b"x" * 200 + b"\n")
        await until(lambda: published(broker, TOPIC) == 2)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE_S):
            assert process.stdout is not None
            out = await process.stdout.read()
            assert await process.wait() == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    assert out.startswith(b"published 2 messages (203 bytes) from 1 file(s)")


@pytest.mark.slow
async def test_the_program_says_what_is_damaged(broker: Broker, tmp_path: Path) -> None:
    path = archive(tmp_path / "files", [b"%d" % at for at in range(500)], "framed", "zstd")
    path.write_bytes(path.read_bytes()[:-900])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "nsqtools",
        "file_to_nsq",
        f"--topic={TOPIC}",
        f"--nsqd-tcp-address={broker.tcp_address}",
        str(path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 4
    came = await bodies_of(broker, TOPIC)
    assert came == [b"%d" % at for at in range(len(came))]
    assert out.startswith(b"published %d messages" % len(came))
    assert f"not read to its end: {path}: ".encode() in out
    assert b"ERROR: file not read to its end error=" in err
