"""What nsq_to_s3 has uploaded, read again where it is: by file_to_nsq and by nsqtools archive."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.archive.helpers import START_NS, payload, write_file
from tests.pipeline.helpers import CHANNEL, publish
from tests.programs.archive.conftest import run
from tests.programs.archive.helpers import BODIES, COMMITS
from tests.replay.conftest import _logs_as_before
from tests.replay.support import until
from tests.support.nsqd import PATIENCE_S
from tests.support.programs import Program
from tests.support.raw import RawClient

from nsqtools import durable
from nsqtools.archive.examination import Examined, examine
from nsqtools.archive.files import MANIFEST_SUFFIX
from nsqtools.archive.manifest import Manifest
from nsqtools.errors import OptionsError
from nsqtools.options import load
from nsqtools.programs.archive import verify
from nsqtools.replay.inputs import find_inputs
from nsqtools.replay.options import FileToNsqOptions
from nsqtools.replay.run import run as run_replay
from nsqtools.stores.named import NamedObjects
from nsqtools.stores.options import StoreAccess
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.programs.archive.helpers import Ran
    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd
    from tests.support.stores import StoreServer

    Run = Callable[..., Ran]

__all__ = ["_logs_as_before", "run"]

ANY_BYTES = [b"plain", "größe ✓".encode(), b"\xff\xfe", b'{"ts":1,"body":"x"}', b"NSQ", b" "]
MINUTE_NS = 60 * 10**9
HOUR_MESSAGES = 1800


@pytest.fixture
def reach(proxy: FaultProxy) -> list[str]:
    """The flags of every program that reads the bucket."""
    return [f"--endpoint-url={proxy.endpoint_url}", "--store-timeout=1m"]


@pytest.fixture
def where(archive: Bucket) -> str:
    return f"s3://{archive.name}"


def replay_options(nsqd: Nsqd, *argv: object) -> FileToNsqOptions:
    words = ["--topic=again", f"--nsqd-tcp-address={nsqd.tcp_address}", *map(str, argv)]
    return load(FileToNsqOptions, "file_to_nsq", words, {})


async def replay(nsqd: Nsqd, *argv: object) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await run_replay(replay_options(nsqd, *argv))


async def bodies_of(nsqd: Nsqd, topic: str, count: int) -> list[bytes]:
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe(topic, "look", rdy=count)
        found = await client.messages(count)
        assert await client.is_quiet()
        return [message.body for message in found]


def upload(archive: Bucket, folder: Path, key: str, record_format: str, compression: str) -> bytes:
    """An archive of BODIES under a key; gives its bytes."""
    folder.mkdir(exist_ok=True)
    data = write_file(folder, record_format, compression, COMMITS).read_bytes()
    archive.put(key, data)
    return data


@pytest.mark.parametrize(
    ("record_format", "compression"), [("lines", "none"), ("jsonl", "gzip"), ("framed", "zstd")]
)
async def test_a_topic_that_was_uploaded_comes_back(
    record_format: str,
    compression: str,
    nsqd: Nsqd,
    reach: list[str],
    where: str,
    tmp_path: Path,
    run: Run,
) -> None:
    async with RawClient(nsqd.tcp_address) as client, RawClient(nsqd.tcp_address) as other:
        await other.subscribe("t", CHANNEL, rdy=0)  # each channel gets all that comes from here on
        await client.subscribe("t", "before", rdy=len(ANY_BYTES))
        await publish(nsqd, *ANY_BYTES)
        before = {m.id: m.timestamp_ns for m in await client.messages(len(ANY_BYTES))}
    async with Program("nsq_to_s3") as tool:
        await tool.start(
            "--topic=t",
            f"--channel={CHANNEL}",
            f"--nsqd-tcp-address={nsqd.tcp_address}",
            f"--bucket={where.removeprefix('s3://')}",
            f"--spool-dir={tmp_path / 'spool'}",
            f"--max-messages={len(ANY_BYTES)}",
            f"--format={record_format}",
            f"--compress={compression}",
            "--manifest",
            *reach,
        )
        assert await tool.end(None) == 0, tool.told
    assert await replay(nsqd, f"{where}/t/", *reach) == 0
    assert sorted(await bodies_of(nsqd, "again", len(ANY_BYTES))) == sorted(ANY_BYTES)
    if record_format != "lines":
        printed = run("cat", *reach, "--format=jsonl", where).json
        kept = {one["id"].encode(): one["ts"] for one in printed}
        assert kept == before
    checked = run("verify", *reach, "--json", where)
    assert checked.code == 0, checked.err
    assert [(one["records"], one["state"]) for one in checked.json] == [(6, "published")]


@pytest.fixture
def hour(archive: Bucket, tmp_path: Path) -> int:
    """The object `hour.log.zst`, of an hour in commits of half a minute; gives its size."""
    noise = random.Random(3)
    step_ns = 60 * MINUTE_NS // HOUR_MESSAGES
    commits = [
        [
            Messages(
                [
                    payload(at, noise.randbytes(2000).hex().encode(), ts_ns=START_NS + at * step_ns)
                    for at in range(first, first + 15)
                ],
                nsqd="n",
            )
        ]
        for first in range(0, HOUR_MESSAGES, 15)
    ]
    data = write_file(tmp_path, "framed", "zstd", commits).read_bytes()
    archive.put("hour.log.zst", data)
    return len(data)


async def test_a_minute_of_an_object_is_read_with_few_of_its_bytes(
    nsqd: Nsqd, reach: list[str], where: str, hour: int, proxy: FaultProxy, run: Run
) -> None:
    since_ns = START_NS + 31 * MINUTE_NS
    flags = [*reach, f"--since={since_ns}", f"--until={since_ns + MINUTE_NS}", f"{where}/hour"]
    printed = run("cat", *flags, "--format=jsonl").json
    assert [one["ts"] for one in printed] == list(range(since_ns, since_ns + MINUTE_NS, 2 * 10**9))
    assert 0 < proxy.answered_bytes < hour // 10
    proxy.answered_bytes = 0
    assert await replay(nsqd, *flags) == 0
    found = await bodies_of(nsqd, "again", len(printed))
    assert found == [one["body"].encode() for one in printed]
    assert 0 < proxy.answered_bytes < hour // 10
    # The start, the end, and what is wanted, each at once; twice.
    assert proxy.count("GET", "hour.log.zst") == 6
    proxy.answered_bytes = 0
    assert run("ls", *reach, f"{where}/hour").code == 0
    assert proxy.count("GET", "hour.log.zst") == 8
    assert 0 < proxy.answered_bytes < hour // 30


def test_a_name_is_an_object_or_all_that_begin_so(
    archive: Bucket,
    server: StoreServer,
    reach: list[str],
    where: str,
    tmp_path: Path,
    run: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file among them has its turn, what is named twice comes once, what is beside archives never."""
    path = write_file(tmp_path, "lines", "none", COMMITS)
    for key in ("t/b.log", "t/a.log", "t/a.log.1", "u.log", f"t/a.log{MANIFEST_SUFFIX}"):
        upload(archive, tmp_path / "made", key, "lines", "none")
    if server.name == "moto":  # the other one takes no such key
        archive.put("t/", b"")

    def names(*wanted: object) -> list[str]:
        listed = run("ls", *reach, "--json", *wanted)
        assert listed.code == 0, listed.err
        return [one["name"].removeprefix(f"{where}/") for one in listed.json]

    assert names(f"{where}/t/") == ["t/a.log", "t/a.log.1", "t/b.log"]
    for key in ("v/.nsqtools-check-1", "v/.hidden.host.000000.nsq", "v/x.log.part", "v/x.bad"):
        upload(archive, tmp_path / "made", key, "framed", "none")
    assert names(f"{where}/v") == ["v/.hidden.host.000000.nsq", "v/x.bad", "v/x.log.part"]
    assert names(f"{where}/v/.nsqtools-check-1") == ["v/.nsqtools-check-1"]
    with NamedObjects(load(StoreAccess, "x", reach, {})) as remotes:
        (source,) = find_inputs([f"{where}/v/"], remotes)
        assert source.name == f"{where}/v/.hidden.host.000000.nsq"
        assert source.size_bytes == len(archive.read("v/.hidden.host.000000.nsq"))
        assert "left out: not finished, hidden, or links" in caplog.text
        assert "files=3" in caplog.text
        with pytest.raises(OptionsError, match="no finished object has a name that begins so"):
            find_inputs([f"{where}/v/x"], remotes)
    assert names(f"{where}/t/a") == ["t/a.log", "t/a.log.1"]
    assert names(f"{where}/t/a.log") == ["t/a.log"]
    assert names(f"{where}/u", path, f"{where}/t/a", where) == [
        "u.log",
        str(path),
        "t/a.log",
        "t/a.log.1",
        "t/b.log",
        *names(f"{where}/v"),
    ]
    missing = run("cat", *reach, f"{where}/none", f"{where}/u.log", "s3://Wrong/x")
    assert missing.code == 2
    assert missing.out == b""
    gone = run("cat", *reach, f"{where}/none", f"{where}/u.log")
    assert (gone.code, gone.out) == (2, b"")
    assert f"{where}/none: no object has this name" in gone.err


@pytest.mark.parametrize("command", ["repair", "index", "compact"])
def test_what_writes_takes_no_objects(command: str, run: Run) -> None:
    ran = run(command, "s3://bucket/x.log")
    assert ran.code == 2
    assert "s3://bucket/x.log: an object stays as it is: download it" in ran.err


@pytest.mark.parametrize("kind", ["reset", "cut-answer"])
def test_a_store_that_fails_now_and_then(
    kind: Any,
    archive: Bucket,
    reach: list[str],
    where: str,
    proxy: FaultProxy,
    tmp_path: Path,
    run: Run,
) -> None:
    upload(archive, tmp_path, "t.log.zst", "framed", "zstd")
    proxy.fail(kind, "GET", times=2)
    proxy.fail(kind, "t.log.zst", times=1)
    assert run("cat", *reach, "--format=raw", where).out == b"".join(BODIES)


async def test_an_object_that_cannot_be_read_is_told_and_costs_no_other(
    nsqd: Nsqd,
    archive: Bucket,
    reach: list[str],
    where: str,
    proxy: FaultProxy,
    tmp_path: Path,
    run: Run,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    for key in ("a.log", "b.log", "c.log"):
        upload(archive, tmp_path, key, "lines", "none")
    proxy.fail_with(403, "AccessDenied", "GET", "/b.log", times=10_000)
    once = b"".join(body + b"\n" for body in BODIES)
    printed = run("cat", *reach, where)
    assert (printed.code, printed.out) == (5, once * 2)
    assert f"archive-cat: read {where}/b.log: 403 AccessDenied" in printed.err
    assert f"s3:GetObject on arn:aws:s3:::{archive.name}/b.log" in printed.err
    for command in ("ls", "verify"):
        ran = run(command, *reach, where)
        assert ran.code == 5
        assert f"read {where}/b.log: 403 AccessDenied" in ran.err
        assert ran.text.count("c.log") == 1
    assert await replay(nsqd, *reach, where) == 5
    said = capsysbinary.readouterr().out.decode()
    assert said.startswith("published 10 messages")
    assert f"not read to its end: read {where}/b.log: 403 AccessDenied" in said


def test_a_store_that_does_not_let_us_look(
    archive: Bucket, reach: list[str], where: str, proxy: FaultProxy, tmp_path: Path, run: Run
) -> None:
    """Who may read an object need not be allowed to list."""
    upload(archive, tmp_path, "t/a.log", "lines", "none")
    nothing = run("ls", *reach, f"{where}-not/t/")
    assert nothing.code == 5
    assert f"list {where}-not/: 404 NoSuchBucket" in nothing.err
    assert "--bucket" not in nothing.err
    proxy.fail_with(403, "AccessDenied", "list-type", times=10_000)
    assert run("cat", *reach, f"{where}/t/a.log").code == 0
    refused = run("cat", *reach, f"{where}/t/", str(tmp_path / "topic.log"))
    assert refused.code == 5
    assert f"s3:ListBucket on arn:aws:s3:::{archive.name}" in refused.err
    assert refused.out == b"".join(body + b"\n" for body in BODIES)
    proxy.heal()
    proxy.fail("reset", times=10_000)
    cut = run("cat", *reach, where)
    assert cut.code == 5
    assert f"list {where}/: connection" in cut.err


async def test_a_replay_of_what_cannot_be_listed_sends_nothing(
    nsqd: Nsqd, reach: list[str], where: str, tmp_path: Path
) -> None:
    path = write_file(tmp_path, "lines", "none", COMMITS)
    words = ["--topic=again", f"--nsqd-tcp-address={nsqd.tcp_address}", *reach, str(path)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nsqtools", "file_to_nsq", *words, f"{where}-not/x"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 5, err
    assert f"list {where}-not/: 404 NoSuchBucket".encode() in err
    assert out == b""


def test_damage_is_named_by_key_and_offset(
    archive: Bucket, reach: list[str], where: str, tmp_path: Path, run: Run
) -> None:
    whole = upload(archive, tmp_path, "whole.log.zst", "framed", "zstd")
    at = whole.index(b"\x28\xb5\x2f\xfd") + 12
    archive.put("bad.log.zst", whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    ran = run("verify", *reach, "--json", where)
    assert ran.code == 4
    states = {one["name"].rpartition("/")[2]: one for one in ran.json}
    assert states["whole.log.zst"]["state"] == "published"
    assert states["bad.log.zst"]["state"] == "damaged"
    (first, *_) = states["bad.log.zst"]["damages"]
    shown = run("verify", *reach, f"{where}/bad.log.zst").text
    assert f"{where}/bad.log.zst: damaged: " in shown
    assert f"at byte {first['start']}" in shown
    printed = run("cat", *reach, f"{where}/bad.log.zst")
    assert printed.code == 4
    assert f"{where}/bad.log.zst: " in printed.err


def test_what_its_manifest_says_is_compared(
    archive: Bucket, reach: list[str], where: str, proxy: FaultProxy, tmp_path: Path, run: Run
) -> None:
    path = write_file(tmp_path, "lines", "gzip", COMMITS)
    with path.open("rb") as file:
        found = examine(file, str(path), whole=True)
    facts: dict[str, Any] = {
        "topic": "t",
        "channel": "c",
        "host": "h",
        "format": "lines",
        "compression": "gzip",
        "records": 6,
        "first_ts": None,
        "first_id": None,
        "last_ts": None,
        "last_id": None,
        "content_bytes": found.content_bytes,
        "stored_bytes": found.stored_bytes,
        "sha256": durable.sha256_of(path),
    }
    archive.put("t.log.gz", path.read_bytes())

    def verified(said: bytes) -> Ran:
        archive.put(f"t.log.gz{MANIFEST_SUFFIX}", said)
        return run("verify", *reach, where)

    assert verified(Manifest(**facts).encode()).code == 0
    gets = [line for line in proxy.lines if line.startswith("GET") and "t.log.gz HTTP" in line]
    assert len(gets) == 1  # it is read once, its SHA-256 included
    for wrong in ({"records": 7}, {"stored_bytes": 1}, {"sha256": "0"}):
        ran = verified(Manifest(**facts | wrong).encode())
        assert ran.code == 4
        assert "not what its manifest says" in ran.text
    assert "no manifest" in verified(b"{}").text


def test_what_it_was_put_with_is_compared(
    server: StoreServer, archive: Bucket, reach: list[str], where: str, run: Run
) -> None:
    """Text without a manifest has nothing else to be compared with."""
    client = server.client()
    for key, data in (("same.log", b"one\n"), ("other.log", b"One\n")):
        digest = hashlib.sha256(b"one\n").hexdigest()
        client.put_object(Bucket=archive.name, Key=key, Body=data, Metadata={"sha256": digest})
    client.close()
    ran = run("verify", *reach, where)
    assert ran.code == 4
    assert f"{where}/other.log: damaged: not what was put: another SHA-256" in ran.text
    assert f"{where}/same.log: published" in ran.text


def test_an_object_that_changes_while_it_is_read_is_told(
    archive: Bucket,
    reach: list[str],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    archive.put("t.log", b"one\n")

    def change_first(*given: Any, **how: Any) -> Examined:
        archive.put("t.log", b"two\n")
        return examine(*given, **how)

    monkeypatch.setattr(verify, "examine", change_first)
    ran = run("verify", *reach, where)
    assert ran.code == 5
    assert f"read {where}/t.log: the object was changed while it was read" in ran.err

    def remove_first(*given: Any, **how: Any) -> Examined:
        archive.delete("t.log")
        return examine(*given, **how)

    monkeypatch.setattr(verify, "examine", remove_first)
    ran = run("verify", *reach, where)
    assert ran.code == 5
    assert f"{where}/t.log: no such object" in ran.err


async def test_a_key_may_be_anything(
    nsqd: Nsqd,
    server: StoreServer,
    archive: Bucket,
    reach: list[str],
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    keys = ["%2e%2e/x.log", "a b+c?d#e.log", "\x1b[31m\u202e.log", "k" * 200 + "/" + "l" * 200]
    if server.name == "moto":  # the other one keeps files, and refuses these
        keys += ["../../x.log", "/etc//x.log", "m" * 1024]
    else:
        keys += ["\x1b[31m\r\n.log"]
    for key in keys:
        archive.put(key, b"one\n")
    listed = run("ls", *reach, where)
    assert listed.code == 0, listed.err
    assert listed.text.count("\n") == 1 + len(keys)
    assert not {"\x1b", "\r", "\u202e"} & set(listed.text)
    named = [one["name"] for one in run("ls", *reach, "--json", where).json]
    if server.name == "moto":  # the other one lists control characters as pictures of them
        assert sorted(named) == sorted(f"{where}/{key}" for key in keys)
    checked = run("verify", *reach, *named)
    assert checked.code == 0, checked.err
    assert run("cat", *reach, where).out == b"one\n" * len(keys)
    assert await replay(nsqd, *reach, *named) == 0
    assert await bodies_of(nsqd, "again", len(keys)) == [b"one"] * len(keys)
    wrong = run("cat", *reach, f"{where}/none\x1b[31m\r")
    assert (wrong.code, "\x1b" in wrong.err) == (2, False)
    archive.put("\x1b[31m.log", b"\x00NSQ")
    capsysbinary.readouterr()
    assert await replay(nsqd, *reach, f"{where}/\x1b[31m.log", "--format=framed") == 4
    told = capsysbinary.readouterr()
    assert b"not read to its end: " in told.out
    assert b"\x1b" not in told.out + told.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("words", [("GET", "list-type"), ("GET", "t.log")], ids=["list", "read"])
async def test_sigterm_ends_a_replay_of_a_store_that_stalls(
    words: tuple[str, ...],
    nsqd: Nsqd,
    archive: Bucket,
    reach: list[str],
    where: str,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    """Of the program itself: no thread that waits for an answer may keep it from its end."""
    upload(archive, tmp_path, "t.log", "lines", "none")
    proxy.fail("stall", *words, times=10_000)
    async with Program("file_to_nsq") as tool:
        await tool.start("--topic=again", f"--nsqd-tcp-address={nsqd.tcp_address}", *reach, where)
        await until(lambda: proxy.count(*words) > 0)
        assert await tool.end(signal.SIGTERM) == 130, tool.told


def test_a_file_needs_no_boto3(tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", "zstd", COMMITS)
    for command in ("ls", "cat", "verify"):
        code = (
            "import sys; from nsqtools.cli.archive import SUITE;"
            " from nsqtools.cli.command import execute;"
            f" code = execute(SUITE.commands[{command!r}], [{str(path)!r}]);"
            " print(code, sorted({'boto3', 'botocore', 'urllib3'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.splitlines()[-1] == b"0 []", done.stderr
