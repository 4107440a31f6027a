"""`archive ls`: what it tells of each kind of file, how it is shown, and what it opens."""

from __future__ import annotations

import builtins
import errno
import gzip
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from tests.archive.helpers import COMPRESSIONS, PAIRS, unfinished_file
from tests.programs.archive.helpers import (
    BODIES,
    COMMITS,
    Ran,
    archive_of,
    at_ms,
    noise,
    run_apart,
)

from nsqtools.archive.examination import Examined, State
from nsqtools.archive.files import FoundFile, open_file
from nsqtools.programs.archive.gaps import find_gaps

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Ran]


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_what_is_told_of_every_pair(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    ran = run("ls", "--json", tmp_path)
    (told,) = ran.json
    assert (ran.code, ran.err) == (0, "")
    assert told["name"] == str(path)
    assert (told["format"], told["compression"], told["state"]) == (
        record_format,
        compression,
        "published",
    )
    assert told["records"] == len(BODIES)
    assert told["stored_bytes"] == path.stat().st_size
    assert told["raw_bytes"] >= sum(map(len, BODIES)) + len(BODIES)
    knows_times = record_format != "lines" or compression == "zstd"
    times = (at_ms(0), at_ms(5)) if knows_times else (None, None)
    assert (told["first_ts_ns"], told["last_ts_ns"]) == times
    knows_topic = compression != "none" or record_format != "lines"
    assert told["topic"] == ("topic" if knows_topic else "")


def test_quick_reads_no_more_than_it_must(run: Run, tmp_path: Path) -> None:
    for compression in COMPRESSIONS:
        archive_of(tmp_path / compression, "lines", compression, COMMITS)
    told = run("ls", "--json", "--quick", tmp_path).json
    assert [one["records"] for one in told] == [None, None, 6]
    assert {one["state"] for one in told} == {"published"}


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_an_open_file(run: Run, tmp_path: Path, record_format: str, compression: str) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, COMMITS)
    for size, records in ((ends[0], 4), (ends[0] + 3, 4), (len(data), 6)):
        (tmp_path / "x.log.part").write_bytes(data[:size])
        ran = run("ls", "--json", tmp_path)
        (told,) = ran.json
        assert (ran.code, told["state"]) == (0, "open")
        assert told["records"] == records


def test_a_sealed_file_that_waits_for_its_place(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", COMMITS)
    path.rename(tmp_path / "topic.zst.part")
    assert run("ls", "--json", tmp_path).json[0]["state"] == "sealed"


def test_damaged_files_are_listed_with_the_others(run: Run, tmp_path: Path) -> None:
    sound = archive_of(tmp_path / "a", "framed", "zstd", COMMITS)
    data = bytearray(sound.read_bytes())
    for name, change_at in (("b", -9), ("c", 2), ("d", 9)):
        changed = bytearray(data)
        changed[change_at] ^= 0xFF
        (tmp_path / f"{name}.zst").write_bytes(changed)
    (tmp_path / "e.zst").write_bytes(data[:-30])
    ran = run("ls", "--json", tmp_path)
    assert ran.code == 4
    states = {Path(told["name"]).name: told["state"] for told in ran.json}
    assert states.pop(sound.name) == "published"
    assert states == dict.fromkeys(("b.zst", "c.zst", "d.zst", "e.zst"), "damaged")


def test_foreign_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nsq.log.gz").write_bytes(gzip.compress(b"one\ntwo\n") + gzip.compress(b"three\n"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "plain.txt").write_bytes(b"a\nb")
    ran = run("ls", "--json", tmp_path)
    told = {Path(one["name"]).name: one for one in ran.json}
    assert ran.code == 0
    assert {name: one["state"] for name, one in told.items()} == {
        "empty": "foreign",
        "nsq.log.gz": "foreign",
        "picture.png": "foreign",
        "plain.txt": "published",  # as a plain archive is
    }
    assert (told["nsq.log.gz"]["records"], told["plain.txt"]["records"]) == (3, 2)


def test_what_is_left_out_of_a_folder(run: Run, tmp_path: Path) -> None:
    kept = archive_of(tmp_path, "lines", "zstd", COMMITS)
    (tmp_path / ".nsqtools-0").mkdir(exist_ok=True)
    (tmp_path / ".nsqtools-0" / "x.claim").write_bytes(b"{}")
    (tmp_path / ".nsqtools-7-ab.tmp").write_bytes(b"x")
    (tmp_path / ".hidden").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.log").symlink_to("/etc/passwd")
    assert [told["name"] for told in run("ls", "--json", tmp_path).json] == [str(kept)]


@pytest.mark.parametrize("command", ["verify", "cat", "ls", "compact", "index", "repair"])
def test_links_that_are_not_followed_are_told(command: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / "link.zst"
    link.symlink_to(archive_of(tmp_path, "lines", "zstd", COMMITS))
    told = run(command, tmp_path / "in").err
    assert "left out: 1 link in a folder" in told
    assert str(link) in told
    assert "left out" not in run(command, link).err


def test_what_is_no_file_is_told_and_the_rest_is_listed(run: Run, tmp_path: Path) -> None:
    kept = archive_of(tmp_path, "lines", "zstd", COMMITS)
    os.mkfifo(tmp_path / "pipe")
    ran = run("ls", tmp_path / "pipe", "/dev/zero", kept)
    assert ran.code == 5
    assert ran.err.count("not a regular file") == 2
    assert str(kept) in ran.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(run: Run, tmp_path: Path) -> None:
    kept = archive_of(tmp_path / "b", "lines", "zstd", COMMITS)
    closed = tmp_path / "a"
    closed.mkdir(mode=0o000)
    ran = run("ls", tmp_path)
    assert ran.code == 5
    assert "ermission denied" in ran.err
    assert str(kept) in ran.text


def test_an_unreadable_folder_ends_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = archive_of(tmp_path / "b", "lines", "zstd", COMMITS)
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    ran = run("ls", tmp_path)
    assert ran.code == 5
    assert ran.err == f"archive-ls: list {tmp_path}/a: Permission denied\n"
    assert str(kept) in ran.text


def test_names_that_are_nothing_are_a_mistake(run: Run, tmp_path: Path) -> None:
    ran = run("ls", tmp_path / "none", f"{tmp_path}/*.zst", tmp_path)
    assert (ran.code, ran.out) == (2, b"")
    assert ran.err.splitlines() == [
        f"archive-ls: {tmp_path}/none: no such file",
        f"archive-ls: {tmp_path}/*.zst: no file matches",
        "hint: Read nsqtools archive ls --help.",
    ]


def test_an_empty_folder_is_no_mistake(run: Run, tmp_path: Path) -> None:
    ran = run("ls", "--json", tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, b"", "")


def test_a_plain_table_for_programs(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "jsonl", "zstd", COMMITS)
    heads, row = run("ls", path).text.splitlines()
    found = dict(zip(heads.split("\t"), row.split("\t"), strict=True))
    assert found["records"] == "6"
    assert found["first"] == "2023-11-14T22:13:20Z"
    assert found["last"] == "2023-11-14T22:13:20.005Z"
    assert found["stored"] == str(path.stat().st_size)
    assert found["gap"] == "-"


def test_a_table_on_a_terminal(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive_of(tmp_path / "long-folder-name", "jsonl", "zstd", COMMITS)
    archive_of(tmp_path / "漢", "lines", "none", COMMITS)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    heads, *rows, summary = run("ls", tmp_path).text.splitlines()
    assert summary.startswith("2 files, 12 records, ")
    at = heads.index("state")
    assert [row[at : at + 9] for row in rows[:1]] == ["published"]
    assert rows[1][at - 1 : at + 8] == "published"  # a character that is two columns wide
    assert "2023-11-14T22:13:20Z" in rows[0]


def test_long_names_leave_room_on_a_narrow_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a-long-name-" * 6)
    path = archive_of(folder, "jsonl", "zstd", COMMITS)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for columns in (160, 120, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        heads, row, _ = run("ls", folder).text.splitlines()
        assert max(len(heads), len(row)) <= columns
        name = row.partition("  ")[0]
        start, _, end = name.partition("\N{HORIZONTAL ELLIPSIS}")
        assert str(path).startswith(start)
        assert str(path).endswith(end)
        assert {"state", "records", "last", "stored"} <= set(heads.split())
    monkeypatch.setenv("COLUMNS", "400")
    assert str(path) in run("ls", folder).text


def test_names_cannot_confuse_a_terminal(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\x1b[31m\n\xff\tb.zst")
    shutil.move(archive_of(tmp_path, "lines", "zstd", COMMITS), tmp_path / name)
    (tmp_path / "\x1b[2J.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    ran = run("ls", tmp_path)
    assert "\x1b" not in ran.text + ran.err
    assert len(ran.text.splitlines()) == 3
    told = run("ls", "--json", tmp_path).json
    assert str(tmp_path / name) in [one["name"] for one in told]


def test_each_file_is_opened_once_and_sealed_ones_are_not_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand files cost ten thousand opens and the reads of their indexes."""
    path = archive_of(tmp_path, "lines", "zstd", noise(20))
    many = 50
    for number in range(many):
        shutil.copy(path, tmp_path / f"copy-{number:03}.zst")
    opened: list[str] = []
    read: list[int] = []
    plain_open, plain_fdopen = os.open, os.fdopen

    def counted_open(name: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(name))
        return plain_open(name, *args, **kwargs)

    def counted_fdopen(*args: Any, **kwargs: Any) -> Any:
        return Counted(plain_fdopen(*args, **kwargs), read)

    monkeypatch.setattr(os, "open", counted_open)
    monkeypatch.setattr(os, "fdopen", counted_fdopen)
    monkeypatch.setattr(builtins, "open", None)
    ran = run("ls", "--json", tmp_path)
    monkeypatch.undo()
    assert ran.code == 0
    assert sorted(opened) == sorted(map(str, tmp_path.glob("*.zst")))
    assert len(ran.json) == many + 1
    assert {told["records"] for told in ran.json} == {200}
    assert sum(read) < 0.1 * sum(file.stat().st_size for file in tmp_path.glob("*.zst"))


class Counted:
    """A file that counts what is read of it."""

    def __init__(self, file: Any, read: list[int]) -> None:
        self._file = file
        self._read = read

    def read(self, count: int) -> bytes:
        data: bytes = self._file.read(count)
        self._read.append(len(data))
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def examined(name: str, first_s: float, last_s: float, records: int = 100) -> Examined:
    return Examined(
        name=name,
        stored_bytes=1,
        state=State.PUBLISHED,
        topic="t",
        records=records,
        first_ts_ns=int(first_s * 10**9),
        last_ts_ns=int(last_s * 10**9),
    )


def test_gaps_that_are_unusual() -> None:
    hours = [examined(f"{at}", at * 3600, at * 3600 + 3599) for at in range(10)]
    assert find_gaps(hours, None) == {}
    del hours[4]
    assert find_gaps(hours, None) == {"5": 3601.0}
    assert find_gaps(hours, 7200) == {}
    assert len(find_gaps(hours, 0.5)) == 8


def test_a_gap_is_none_where_messages_are_rare() -> None:
    rare = [examined("a", 0, 36_000, records=11), examined("b", 43_000, 80_000, records=11)]
    assert find_gaps(rare, None) == {}
    often = [examined("a", 0, 36_000, records=36_000), examined("b", 43_000, 80_000, records=9)]
    assert find_gaps(often, None) == {}
    assert find_gaps([often[0], examined("c", 43_000, 80_000, records=37_000)], None) == {"c": 7000}


def test_files_that_overlap_have_no_gap_between_them() -> None:
    files = [examined("a", 0, 7200), examined("b", 0, 3600), examined("c", 7210, 8000)]
    assert find_gaps(files, 60) == {}


def test_gaps_are_of_one_topic(run: Run, tmp_path: Path) -> None:
    ran = run("ls", "--json", "--gap=1ms", archive_of(tmp_path, "lines", "zstd", COMMITS))
    assert [told["gap_before_s"] for told in ran.json] == [None]


@pytest.mark.slow
def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "gzip", COMMITS)
    ran = run_apart("ls", "--json", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json[0]["records"] == 6
    ran = run_apart("ls", "--progress=always", path)
    assert ran.out.count(b"\n") == 2
    assert "\r" in ran.err


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_file_that_is_finished_after_the_folder_was_listed_is_told_by_its_name(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """It was a file that cannot be read, and its messages were not printed."""
    for name in ("ls", "verify", "cat"):
        folder = tmp_path / name
        path = archive_of(folder, "lines", "none", COMMITS)
        part = folder / f"{path.name}.part"
        part.hardlink_to(path)
        if not is_listed:
            path.unlink()
        module = f"nsqtools.programs.archive.{name}"

        def publish_first(at: FoundFile, part: Path = part, path: Path = path, **how: bool) -> Any:
            if at.path == part and part.exists():
                part.replace(path) if not is_listed else part.unlink()
            return open_file(at, **how)

        monkeypatch.setattr(f"{module}.open_file", publish_first)
        ran = run(name, *(["--with-open"] if name == "cat" else []), folder)
        assert (ran.code, ran.err) == (0, ""), name
        if name == "cat":
            assert ran.out == b"".join(body + b"\n" for body in BODIES)
        else:
            assert ran.text.count(path.name) == 1, ran.text
            assert ".part" not in ran.text


def test_a_disk_that_fails_when_the_finished_file_is_looked_for_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a fault of ours, and the end of the run."""
    path = archive_of(tmp_path, "lines", "none", COMMITS)
    part = path.rename(f"{path}.part")
    stat = os.stat

    def broken(at: Any, **how: Any) -> os.stat_result:
        if at == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(at))
        return stat(at, **how)

    def gone(at: FoundFile, **how: bool) -> Any:
        part.unlink()
        monkeypatch.setattr(os, "stat", broken)
        return open_file(at, **how)

    monkeypatch.setattr("nsqtools.programs.archive.ls.open_file", gone)
    ran = run("ls", tmp_path)
    assert (ran.code, ran.err) == (5, f"archive-ls: look at {path}: Input/output error\n")
