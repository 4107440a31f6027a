"""`archive repair`, `index` and `compact`: what the new file holds, what it is called, what is kept."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import batch_of, read_bodies, read_payloads, spec, visible
from tests.programs.archive.helpers import (
    BODIES,
    COMMITS,
    Ran,
    archive_of,
    at_ms,
    command,
    numbered,
    run_apart,
)

from nsqtools import durable
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.recovery import recover
from nsqtools.archive.rewriting import new_file
from nsqtools.archive.writer import ArchiveWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Ran]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize("name", ["topic-000000.log.gz", "*.gz"])
def test_a_file_under_its_live_name_is_not_finished(run: Run, tmp_path: Path, name: str) -> None:
    """Its writer was killed: what replaced it would stand beside what recovery publishes of it."""
    gz = FileNaming(host="host", filename_format="<TOPIC><REV>.log.gz", pid=7)
    writer = ArchiveWriter(replace(spec(tmp_path, "jsonl", "gzip", naming=gz), live_name=True))
    for number in range(50):
        writer.commit([batch_of([b"%d" % number], number)])
    writer.abandon()
    shown = tmp_path / "topic-000000.log.gz"
    shown.write_bytes(shown.read_bytes() + shown.read_bytes()[:20])  # the beginning of a commit
    for command_name, *flags in (("compact", "--replace"), ("index",)):
        ran = run(command_name, *flags, tmp_path / name)
        assert b"left alone: it is not finished" in ran.out
    assert b": open: " in run("verify", tmp_path / name).out
    assert run("verify", tmp_path / name).code == 0
    assert len(run("cat", shown).out.splitlines()) == 50
    assert [found.published for found in recover(tmp_path)] == [str(shown)]
    assert [path.name for path in visible(tmp_path)] == [shown.name]


@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
def test_gzip_becomes_zstd_with_an_index(run: Run, tmp_path: Path, record_format: str) -> None:
    path = archive_of(tmp_path, record_format, "gzip", COMMITS)
    ran = run("index", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert names(tmp_path) == [path.name, path.name.replace(".gz", ".zst")]
    made = path.with_suffix(".zst")
    assert read_bodies(made) == (BODIES, None)
    assert run("verify", made).code == 0
    (told,) = run("ls", "--json", made).json
    assert (told["records"], told["topic"], told["channel"]) == (6, "topic", "channel")
    if record_format == "lines":
        assert told["first_ts_ns"] is None
        ran = run("cat", f"--since={at_ms(0)}", made)
        assert (ran.code, ran.out) == (4, b"")
        assert "lines keep no time" in ran.err
    else:
        assert read_payloads(made) == read_payloads(path)
        assert (told["first_ts_ns"], told["last_ts_ns"]) == (at_ms(0), at_ms(5))
    assert made.stat().st_mode == path.stat().st_mode
    assert made.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert run("index", path).code == 0  # the same file is there already
    made.write_bytes(b"mine")
    again = run("index", path)
    assert (again.code, made.read_bytes()) == (5, b"mine")
    assert "there is a file of this name already" in again.err


def test_files_of_nsqs_own_tool(run: Run, tmp_path: Path) -> None:
    lines = [b"line %d" % number for number in range(300_000)]
    text = b"\n".join(lines) + b"\n"
    (tmp_path / "one.log.gz").write_bytes(gzip.compress(text))
    many = [gzip.compress(text[at : at + 1001]) for at in range(0, 50_000, 1001)]
    (tmp_path / "many.log.gz").write_bytes(b"".join(many))
    assert run("index", "--replace", tmp_path).code == 0
    assert names(tmp_path) == ["many.log.zst", "one.log.zst"]
    assert read_bodies(tmp_path / "one.log.zst") == (lines, None)
    (told,) = run("ls", "--json", tmp_path / "one.log.zst").json
    assert (told["state"], told["records"], told["raw_bytes"]) == ("published", 300_000, len(text))
    bodies, _ = read_bodies(tmp_path / "many.log.zst")
    assert b"\n".join(bodies) == text[: 50 * 1001].removesuffix(b"\n")
    subprocess.run(["zstd", "-tq", *tmp_path.iterdir()], check=True)


def test_a_zstd_file_of_somebody_else(run: Run, tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % number for number in range(500_000))
    path = tmp_path / "x.log.zst"
    path.write_bytes(zstandard.compress(text))
    assert run("index", path).code == 0
    assert names(tmp_path) == ["x.indexed.log.zst", "x.log.zst"]
    assert zstandard.ZstdDecompressor().stream_reader(
        (tmp_path / "x.indexed.log.zst").read_bytes(), read_across_frames=True
    ).read() == text  # fmt: skip
    assert run("index", "--replace", path).code == 0
    assert path.read_bytes() == (tmp_path / "x.indexed.log.zst").read_bytes()
    assert "has an index" in run("index", path).text


def test_a_last_line_without_an_end_gets_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"one\ntwo"))
    assert run("index", "--replace", path).code == 0
    assert run("cat", tmp_path).out == b"one\ntwo\n"


def test_what_index_leaves_alone(run: Run, tmp_path: Path) -> None:
    archive_of(tmp_path, "lines", "none", COMMITS)
    damaged = archive_of(tmp_path / "b", "lines", "gzip", COMMITS)
    damaged.write_bytes(damaged.read_bytes()[:-5])
    (tmp_path / "x.zst.part").write_bytes(b"")
    ran = run("index", "--replace", tmp_path)
    assert ran.code == 4
    assert "it is not compressed" in ran.text
    assert "it is not finished" in ran.text
    assert "a cut gzip member at byte" in ran.err
    assert "hint: Run nsqtools archive repair" in ran.err
    assert names(damaged.parent) == [damaged.name]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
def test_small_commits_become_large(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    path = archive_of(tmp_path, record_format, compression, numbered(300))
    before = read_bodies(path)
    size, mode = path.stat().st_size, path.stat().st_mode
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    ran = run("compact", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    beside = tmp_path / path.name.replace(".log", ".compact.log")
    assert names(tmp_path) == sorted([path.name, beside.name])
    assert path.stat().st_size == size
    ran = run("compact", "--replace", path)
    assert ran.code == 0
    assert path.stat().st_size < size * 0.6
    assert path.stat().st_mode == mode
    assert path.stat().st_mtime_ns == 2_000_000_002
    assert read_bodies(path) == before
    assert path.read_bytes() == beside.read_bytes()
    assert run("verify", path).code == 0
    assert "left alone" in run("compact", "--replace", path).text


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
def test_files_put_together_become_one_of_large_commits(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    pieces = [
        archive_of(tmp_path / str(count), record_format, compression, numbered(count))
        for count in (1, 40, 3, 200)
    ]
    path = tmp_path / pieces[0].name
    path.write_bytes(b"".join([piece.read_bytes() for piece in pieces]))
    before, size = run("cat", path).out, path.stat().st_size
    ran = run("compact", "--replace", path)
    assert (ran.code, ran.err) == (0, "")
    assert path.stat().st_size < size * 0.6
    assert run("verify", path).code == 0
    assert run("cat", path).out == before
    assert read_bodies(path) == ([body for piece in pieces for body in read_bodies(piece)[0]], None)


@pytest.mark.parametrize("first", [b"one\ntwo", random.Random(1).randbytes(300).hex().encode()])
@pytest.mark.parametrize("record_format", ["lines", "jsonl"])
def test_behind_a_line_without_an_end_everything_stays_in_its_place(
    run: Run, tmp_path: Path, record_format: str, first: bytes
) -> None:
    """Another program's file with one of ours behind it; both begin with a header of zstd."""
    path = archive_of(tmp_path, record_format, "zstd", numbered(3))
    path.write_bytes(zstandard.compress(first) + path.read_bytes())
    before = run("cat", path)
    assert before.code == 0
    assert before.out.startswith(first)
    assert run("verify", path).code == 0
    made = tmp_path / "made.log.zst"
    assert run("index", f"--output={made}", path).code == 0
    assert run("cat", made).out == before.out
    assert run("verify", made).code == 0


def test_lines_of_which_too_many_were_noted(run: Run, tmp_path: Path) -> None:
    """Of framed messages behind a file of lines, notes count what are no lines."""
    parts = [archive_of(tmp_path / name, name, "zstd", numbered(5)) for name in ("lines", "framed")]
    path = tmp_path / "both.log.zst"
    path.write_bytes(b"".join([part.read_bytes() for part in parts]))
    assert run("verify", path).code == 4
    made = tmp_path / "made.log.zst"
    ran = run("index", f"--output={made}", path)
    assert (ran.code, made.exists()) == (4, False)
    assert "lines where 10 records were noted" in ran.err
    ran = run("repair", f"--output={made}", path)
    assert ran.code == 0
    assert "lines where 10 records were noted" in ran.text
    assert run("verify", made).code == 0


def test_compact_says_why_it_does_not_rewrite_what_another_program_wrote(
    run: Run, tmp_path: Path
) -> None:
    path = archive_of(tmp_path, "lines", "zstd", numbered(30))
    path.write_bytes(zstandard.compress(b"one\n" * 100) + path.read_bytes())
    before = path.read_bytes()
    assert run("verify", path).code == 0
    ran = run("compact", "--replace", path)
    assert ran.code == 4
    assert "not compacted: a frame that another program wrote" in ran.err
    assert (path.read_bytes(), names(tmp_path)) == (before, [path.name])


def test_what_compact_leaves_alone(run: Run, tmp_path: Path) -> None:
    archive_of(tmp_path, "lines", "none", numbered(30))
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"one\n") * 30)
    damaged = archive_of(tmp_path / "b", "lines", "zstd", numbered(30))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    ran = run("compact", "--replace", tmp_path)
    assert ran.code == 4
    assert ran.text.count("left alone") == 2
    assert "hint: Run nsqtools archive repair" in ran.err
    assert names(tmp_path / "b") == [damaged.name]


def test_a_link_is_kept_and_its_file_replaced(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path / "real", "lines", "zstd", numbered(300))
    size = path.stat().st_size
    link = tmp_path / "link.zst"
    link.symlink_to(path)
    assert run("compact", "--replace", link).code == 0
    assert link.is_symlink()
    assert path.stat().st_size < size


def test_a_file_that_is_written_to_meanwhile_is_not_replaced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path, "lines", "zstd", numbered(300))
    data = path.read_bytes()
    put_in_place = durable.take_after

    def write_first(*args: object) -> None:
        with path.open("ab") as file:
            file.write(data)
        put_in_place(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(durable, "take_after", write_first)
    ran = run("compact", "--replace", path)
    assert ran.code == 5
    assert "somebody changed the file meanwhile" in ran.err
    assert path.read_bytes() == data + data
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["index", "compact"])
def test_a_disk_that_fails_at_any_call_loses_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The old file or the new one is there, whole, whatever call fails."""
    compression = "gzip" if name == "index" else "zstd"
    wanted = numbered(40)
    number = 0
    while True:
        folder = tmp_path / str(number)
        path = archive_of(folder, "jsonl", compression, wanted)
        failing = FailingOs(fail_at=number)
        with monkeypatch.context() as patch:
            patch.setattr("nsqtools.durable.os", failing)
            patch.setattr("nsqtools.publish.os", failing)
            code = run(name, "--replace", path).code
        assert code in (0, 4, 5)
        found = [one for one in folder.iterdir() if one.is_file() and not one.name.startswith(".")]
        assert found
        for one in found:
            bodies, damage = read_bodies(one)
            assert (len(bodies), damage) == (400, None)
        if not failing.failed:
            break
        number += 1
    assert number > 8


def test_output_dir_and_output(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path / "a", "jsonl", "gzip", COMMITS)
    assert run("index", f"--output-dir={tmp_path}/new/deep", path).code == 0
    assert names(tmp_path / "new/deep") == [path.with_suffix(".zst").name]
    assert run("index", f"--output={tmp_path}/x", path).code == 0
    assert read_bodies(tmp_path / "x") == (BODIES, None)
    for words in (
        (f"--output={tmp_path}/y", path, tmp_path),
        (f"--output={tmp_path}/y", f"--output-dir={tmp_path}", path),
        ("--replace", f"--output={tmp_path}/y", path),
        ("-",),
        (),
    ):
        assert run("index", *words).code == 2


def test_repair_of_what_is_whole_or_open(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "jsonl", "zstd", COMMITS)
    assert "is whole: nothing to repair" in run("repair", tmp_path).text
    part = tmp_path / "y.zst.part"
    part.write_bytes(path.read_bytes()[:-170])
    assert "is not finished, and whole as far as it goes" in run("repair", part).text
    assert names(tmp_path) == [path.name, part.name]


def test_a_cut_gzip_file_of_somebody_else(run: Run, tmp_path: Path) -> None:
    made = random.Random(3)
    lines = [made.randbytes(20).hex().encode() for _ in range(3000)]
    data = gzip.compress(b"\n".join(lines) + b"\n")
    path = tmp_path / "x.log.gz"
    path.write_bytes(data[: len(data) // 2])
    assert run("verify", path).code == 4
    ran = run("repair", path)
    assert ran.code == 0
    assert f"a cut gzip member at byte {path.stat().st_size}\n" in ran.text
    assert "a line whose rest is lost" in ran.text
    bodies, damage = read_bodies(tmp_path / "x.repaired.log.gz")
    assert damage is None
    assert 1400 < len(bodies) < 1600
    assert bodies == lines[: len(bodies)]


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "zstd", numbered(100))
    assert run_apart("compact", "--replace", path).code == 0
    assert run_apart("verify", path).code == 0


def test_a_conversion_that_was_killed_between_its_two_steps_is_finished(
    run: Run, tmp_path: Path
) -> None:
    path = archive_of(tmp_path, "jsonl", "gzip", COMMITS)
    assert run("index", path).code == 0  # the new file is there, and the old one, too
    assert run("index", "--replace", path).code == 0
    assert names(tmp_path) == [path.with_suffix(".zst").name]
    assert read_bodies(path.with_suffix(".zst")) == (BODIES, None)


def test_a_file_without_its_index_gets_one(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", COMMITS)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"NSQI") - 8])
    assert run("verify", path).code == 4
    assert run("index", "--replace", path).code == 0
    assert run("verify", path).code == 0
    told = run("ls", "--json", path).json[0]
    assert (told["records"], told["first_ts_ns"]) == (6, at_ms(0))


def test_archives_that_were_put_together(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "zstd", COMMITS)
    path.write_bytes(path.read_bytes() * 3)
    assert run("verify", "--json", path).json[0]["records"] == 18
    assert run("index", "--replace", path).code == 0
    assert read_bodies(path) == (BODIES * 3, None)
    assert "has an index" in run("index", path).text


@pytest.mark.parametrize("command", ["index", "compact"])
def test_a_file_that_somebody_has_open_for_writing_is_not_replaced(
    run: Run, tmp_path: Path, command: str
) -> None:
    """As NSQ's nsq_to_file, which appends to its files under their final names."""
    path = archive_of(tmp_path, "lines", "gzip", numbered(20))
    data = path.read_bytes()
    with path.open("ab"):
        ran = run(command, "--replace", path)
        assert ran.code == 5
        assert "somebody has the file open for writing" in ran.err
        assert [one.read_bytes() for one in tmp_path.iterdir() if one.is_file()] == [data]
    assert run(command, "--replace", path).code == 0
    assert [one.read_bytes() for one in tmp_path.iterdir() if one.is_file()] != [data]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_what_ends_it_leaves_nothing_half_made(tmp_path: Path, number: signal.Signals) -> None:
    """A terminal that was closed left its temporary file for ever."""
    path = tmp_path / "x.log.gz"
    path.write_bytes(gzip.compress(b"a line of a log that goes on and on\n" * 1_000_000, 1) * 5)
    process = subprocess.Popen(command("index", path), stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".nsqtools-*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if process.returncode:  # it may have been done already
        assert (process.returncode, err) == (130, b"archive-index: interrupted\n")
    assert not list(tmp_path.glob(".nsqtools-*"))


@pytest.mark.parametrize("at", ["create", "lock_file"])
def test_what_ends_it_in_the_first_moment_leaves_nothing(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = getattr(durable, at)

    def interrupted(*arguments: Any) -> None:
        plain(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, at, interrupted)
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path):
        raise AssertionError("not made")
    assert not list(tmp_path.iterdir())


def test_repair_tells_how_many_lines_of_a_compressed_file_are_left_out(
    run: Run, tmp_path: Path
) -> None:
    path = archive_of(tmp_path, "jsonl", "gzip", COMMITS)
    path.write_bytes(gzip.compress(b"no record\n" * 20) + path.read_bytes())
    ran = run("repair", path)
    assert ran.code == 0
    assert ran.text.endswith(f" are {len(BODIES)} records; lost are 0 bytes, 20 records\n")
