"""`archive cat`: which messages, in which format, and what it reads of a file for them."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import re2
from tests.archive.helpers import PAIRS, batch_of, read_payloads, unfinished_file
from tests.programs.archive.helpers import (
    BODIES,
    COMMITS,
    Ran,
    archive_of,
    at_ms,
    command,
    noise,
    numbered,
    run_apart,
)

from nsqtools.archive.stream import Source
from nsqtools.options import REGEX
from nsqtools.transform.search import Search

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Ran]

LINES = b"".join(body + b"\n" for body in BODIES)


def bodies_of(jsonl: bytes) -> list[bytes]:
    return [json.loads(line)["body"].encode() for line in jsonl.splitlines()]


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_as_it_is_and_in_every_format(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    path = archive_of(tmp_path / "a", record_format, compression, COMMITS)
    assert run("cat", "--format=lines", path).out == LINES
    assert run("cat", "--format=raw", path).out == b"".join(BODIES)
    plain = archive_of(tmp_path / "b", record_format, "none", COMMITS).read_bytes()
    ran = run("cat", path)
    assert (ran.code, ran.err) == (0, "")
    if record_format == "framed":
        (tmp_path / "again").write_bytes(ran.out)
        assert read_payloads(tmp_path / "again") == read_payloads(path)
    else:
        assert ran.out == plain
    if record_format == "lines":
        for wanted in ("jsonl", "framed"):
            ran = run("cat", f"--format={wanted}", path)
            assert (ran.code, ran.out) == (4, b"")
            assert "lines keep no time and no id" in ran.err
        return
    found = run("cat", "--format=jsonl", path).out
    assert bodies_of(found) == BODIES
    assert {json.loads(line)["topic"] for line in found.splitlines()} == {
        "" if (record_format, compression) == ("framed", "x") else "topic"
    }
    (tmp_path / "framed").write_bytes(run("cat", "--format=framed", path).out)
    assert read_payloads(tmp_path / "framed") == read_payloads(path)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_range_of_time_and_a_pattern(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    ran = run("cat", "--format=lines", "--grep=^(last|a)", path)
    assert (ran.code, ran.out) == (0, b"a\tb\nlast\n")
    ran = run("cat", "--format=lines", f"--since={at_ms(3)}", f"--until={at_ms(5)}", path)
    if record_format != "lines":
        assert (ran.code, ran.out) == (0, b"a\tb\n" + BODIES[4] + b"\n")
        assert ran.err == ""
    elif compression == "zstd":
        assert (ran.code, ran.out) == (0, LINES)  # both commits overlap
        assert ran.err.count("whole commits are printed") == 1
        ran = run("cat", f"--since={at_ms(4)}", "--grep=last", path, path.parent)
        assert ran.out == b"last\n"
        assert ran.err.count("whole commits are printed") == 1
    else:
        assert (ran.code, ran.out) == (4, b"")
        assert "lines keep no time, and there is no index to select by" in ran.err


@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
def test_a_minute_of_an_open_file(run: Run, tmp_path: Path, record_format: str) -> None:
    data, ends = unfinished_file(tmp_path, record_format, "zstd", numbered(5))
    part = tmp_path / "x.zst.part"
    part.write_bytes(data[: ends[-1] - 3])
    ran = run("cat", "--format=lines", f"--since={at_ms(20)}", f"--until={at_ms(30)}", part)
    assert ran.code == 0, ran.err
    assert [int(line) for line in ran.out.split()] == list(range(20, 30))
    assert len(run("cat", "--format=lines", part).out.split()) == 40


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_an_open_file_as_far_as_it_is_whole(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, COMMITS)
    (tmp_path / "x.part").write_bytes(data[: ends[0] + 5])
    ran = run("cat", tmp_path)
    assert (ran.code, ran.out) == (0, b"")
    assert "left out: 1 file not finished" in ran.err
    for words in (("--with-open", tmp_path), (tmp_path / "x.part",)):
        ran = run("cat", "--format=lines", *words)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out == b"".join(body + b"\n" for body in BODIES[:4])


def test_damage_is_told_behind_what_is_whole_and_the_next_file_follows(
    run: Run, tmp_path: Path
) -> None:
    bad = archive_of(tmp_path / "a", "lines", "zstd", COMMITS)
    data = bad.read_bytes()
    bad.write_bytes(data[: data.rindex(b"NSQC")])
    good = archive_of(tmp_path / "b", "framed", "zstd", COMMITS)
    ran = run("cat", "--format=lines", bad, good)
    assert ran.code == 4
    assert ran.out == b"".join(body + b"\n" for body in BODIES[:4]) + LINES
    assert ran.err.startswith(f"archive-cat: {bad}: a commit without its note at byte ")


def test_files_of_somebody_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\ntwo"))
    (tmp_path / "b").write_bytes(b"three")
    assert run("cat", tmp_path).out == b"one\ntwo\nthree\n"
    assert run("cat", "--grep=t", tmp_path).out == b"two\nthree\n"


def test_a_body_that_holds_a_newline_is_told(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "zstd", [[batch_of([b"a\nb", b"c"])]])
    ran = run("cat", "--format=lines", path)
    assert (ran.code, ran.out) == (0, b"a\nb\nc\n")
    assert ran.err.startswith("archive-cat: with a newline within")


def test_jsonl_is_handed_on_as_it_stands(run: Run, tmp_path: Path) -> None:
    lines = [
        b'{"id":"0123456789abcdef","ts":5,"attempts":1,"nsqd":"","topic":"a","body":"x"}\n',
        b'{"ts":7, "id":"0123456789abcdef","attempts":1,"nsqd":"n:1","topic":"b","body_b64":"/w=="}\n',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines))
    assert run("cat", tmp_path).out == b"".join(lines)
    assert run("cat", "--since=6000000000000000000", tmp_path).out == b""
    assert run("cat", "--grep=x", tmp_path).out == lines[0]


def test_framed_on_a_terminal_is_readable(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path, "framed", "zstd", COMMITS)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert bodies_of(run("cat", path).out) == BODIES


def test_little_is_read_for_a_little_time(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path, "lines", "zstd", noise(200))
    read: list[int] = []
    plain = Source._read

    def counted(self: Source, count: int) -> bytes:
        data = plain(self, count)
        read.append(len(data))
        return data

    monkeypatch.setattr(Source, "_read", counted)
    ran = run("cat", f"--since={at_ms(1000)}", f"--until={at_ms(1010)}", path)
    assert ran.out.count(b"\n") == 10
    # The index, the frames, and what is read at a time: some pieces of 256 KiB.
    assert sum(read) < 1 << 20
    assert path.stat().st_size > 5 << 19


@pytest.mark.parametrize(
    "pattern",
    ["a", "^a", "b$", "^$", "", "x*", "[^a]", r"\s", r"a\nb", r"\Aa", r"b\z", "(?i)A", "é", "^ab$",
     r"\bb", "a|$", "."],
)  # fmt: skip
def test_a_block_of_lines_is_searched_as_its_lines_are(pattern: str) -> None:
    lines = [b"a", b"", b"ab", b"b", b"\xff a", "é".encode(), b"B a b", b"", b"xx"]
    grep = Search(REGEX.parse(pattern))
    wanted = [line + b"\n" for line in lines if re2.compile(pattern).search(line)]
    assert list(grep.lines(b"".join(line + b"\n" for line in lines))) == wanted
    assert [lines[at] + b"\n" for at in grep.positions(lines)] == wanted
    assert list(grep.lines(b"")) == []


def test_a_pattern_that_is_none_is_a_mistake(run: Run, tmp_path: Path) -> None:
    ran = run("cat", "--grep=(", tmp_path)
    assert ran.code == 2
    assert "not a regular expression" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_standard_input(tmp_path: Path, record_format: str, compression: str) -> None:
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    ran = run_apart("cat", "--format=lines", "-", stdin=path.read_bytes())
    assert (ran.code, ran.out, ran.err) == (0, LINES, "")
    ran = run_apart("verify", "-", stdin=path.read_bytes())
    assert ran.code == 0, ran.out
    assert "whole are 6 records" in ran.text


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_as_it_ends_stock_tools(tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", noise(200))
    words = " ".join(command("cat", path))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -n1 >/dev/null; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cat", "verify"])
def test_ctrl_c_ends_it_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        command(name, tmp_path / "pipe"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with (tmp_path / "pipe").open("wb", buffering=0) as writing:
        writing.write(b"a line\n")
        time.sleep(0.3)  # it waits for more
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err.decode() == f"archive-{name}: interrupted\n"


@pytest.mark.slow
def test_a_full_disk_is_no_traceback(tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", COMMITS)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            command("cat", path), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 5
    assert done.stderr == b"archive-cat: write standard output: No space left on device\n"


def test_no_thread_is_left(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", COMMITS)
    before = threading.active_count()
    run("cat", path)
    run("verify", path)
    assert threading.active_count() == before


@pytest.mark.slow
def test_ctrl_c_ends_a_search_that_finds_nothing(tmp_path: Path) -> None:
    line = b"y" * 999 + b"\n"
    with subprocess.Popen(["zstd", "-q1", "-o", tmp_path / "x.zst"], stdin=subprocess.PIPE) as made:
        assert made.stdin is not None
        for _ in range(1000):
            made.stdin.write(line * 1000)
    process = subprocess.Popen(
        command("cat", "--grep=(?-m)z", tmp_path / "x.zst"), stderr=subprocess.PIPE
    )
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"archive-cat: interrupted\n")
    assert time.monotonic() - began_s < 2
