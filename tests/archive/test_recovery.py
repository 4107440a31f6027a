"""Files of dead writers, and what else may lie in a work directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import (
    NAMING,
    PAIRS,
    START_NS,
    ManualClock,
    batch_of,
    read_bodies,
    spec,
    unfinished_file,
)

from nsqtools import durable
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.reader import open_archive
from nsqtools.archive.recovery import recover
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError

COMMITS = [[batch_of([b"one", b"two"])], [batch_of([b"three"], 2)], [batch_of([b"four"], 3)]]
BODIES = [b"one", b"two", b"three", b"four"]


def leave_behind(folder: Path, record_format: str, compression: str) -> Path:
    """A `.part` file with `COMMITS` whose writer is gone."""
    writer = ArchiveWriter(spec(folder, record_format, compression), clock=ManualClock())
    created = writer.commit(COMMITS[0]).created
    for commit in COMMITS[1:]:
        writer.commit(commit)
    writer.abandon()
    assert created is not None
    return created


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_file_left_behind_is_published(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    part = leave_behind(tmp_path, record_format, compression)
    (result,) = recover(tmp_path, tmp_path, naming=NAMING)
    assert result.path == part
    assert result.published == part.with_suffix("")
    assert (result.records, result.cut_bytes) == (4, 0)
    assert read_bodies(result.published) == (BODIES, None)
    if record_format != "lines" or compression == "zstd":
        assert (result.first_ts_ns, result.last_ts_ns) == (START_NS, START_NS + 3_000_000)
    with open_archive(result.published) as reader:
        assert reader.info.sealed
        assert reader.info.records == (4 if compression == "zstd" else None)
    assert recover(tmp_path, tmp_path) == []


def test_a_recovered_zstd_file_is_the_file_its_writer_would_have_made(tmp_path: Path) -> None:
    leave_behind(tmp_path / "dead", "lines", "zstd")
    (result,) = recover(tmp_path / "dead", tmp_path / "dead")
    writer = ArchiveWriter(spec(tmp_path / "alive", "lines", "zstd"), clock=ManualClock())
    for commit in COMMITS:
        writer.commit(commit)
    (published,) = writer.close()
    assert result.published is not None
    assert result.published.read_bytes() == published.path.read_bytes()


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    writer.commit(COMMITS[0])
    assert recover(tmp_path, tmp_path) == []
    writer.commit(COMMITS[1])
    (published,) = writer.close()
    assert published.messages == 3


def test_a_killed_process_leaves_a_file_that_is_recovered(tmp_path: Path) -> None:
    script = (
        "import sys, os, time; from pathlib import Path\n"
        "from tests.archive.helpers import *\n"
        "writer = ArchiveWriter(spec(Path(sys.argv[1]), 'framed', 'zstd'))\n"
        "writer.commit([batch_of([b'one', b'two'])])\n"
        "os.write(1, b'ready'); time.sleep(60)\n"
    )
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        assert recover(tmp_path, tmp_path) == []
        process.send_signal(signal.SIGKILL)
    (result,) = recover(tmp_path, tmp_path)
    assert result.published is not None
    assert read_bodies(result.published) == ([b"one", b"two"], None)


def test_from_a_work_dir_to_the_same_place_in_the_output_dir(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    part = leave_behind(work, "lines", "none").rename(work / "a-000004.log.part")
    (work / "deep" / "er").mkdir(parents=True)
    part.rename(work / "deep" / "er" / part.name)
    (output / "deep" / "er").mkdir(parents=True)
    (output / "deep" / "er" / "a-000004.log").write_bytes(b"taken")
    (result,) = recover(work, output)
    assert result.published == output / "deep" / "er" / "a-000005.log"
    assert (output / "deep" / "er" / "a-000004.log").read_bytes() == b"taken"


def test_nothing_to_recover(tmp_path: Path) -> None:
    assert recover(tmp_path / "missing", tmp_path / "output") == []
    (tmp_path / ".part").write_bytes(b"x\n")
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "link.part").symlink_to("/etc/hostname")
    assert recover(tmp_path, tmp_path) == []


def test_files_that_are_not_ours_are_left_alone_and_reported(tmp_path: Path) -> None:
    naming = FileNaming(host="h", filename_format="logs/<TOPIC>.<HOST><REV>.<DATETIME>.log")
    (tmp_path / "film.mkv.part").write_bytes(b"half a film\n...")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "t.other-host.2023-11-14_22.log.part").write_bytes(b"a\nb")
    left, taken = recover(tmp_path, tmp_path, naming=naming)
    assert left.published is None
    assert left.reason == "left alone: not a name of ours"
    assert (tmp_path / "film.mkv.part").read_bytes() == b"half a film\n..."
    assert (taken.records, taken.cut_bytes) == (1, 1)
    assert taken.reason == "cut: a cut line"


def test_folders_that_others_keep_to_themselves_are_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the folder is /tmp, where there always are some."""
    part = leave_behind(tmp_path, "framed", "none")
    (tmp_path / "private").mkdir()
    listing = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (result,) = recover(tmp_path, tmp_path)
    assert result.path == part

    with pytest.raises(StorageError):
        recover(tmp_path / "private", tmp_path)


def test_no_deeper_than_names_can_be(tmp_path: Path) -> None:
    leave_behind(tmp_path / "deep", "framed", "none")
    assert recover(tmp_path, tmp_path, naming=NAMING) == []
    assert NAMING.filename_format.count("/") == 0


def test_a_file_with_our_header_is_taken_whatever_its_name(tmp_path: Path) -> None:
    leave_behind(tmp_path, "framed", "none").rename(tmp_path / "renamed.part")
    naming = FileNaming(host="h", filename_format="<TOPIC>.<DATETIME>.x")
    (result,) = recover(tmp_path, tmp_path, naming=naming)
    assert result.published == tmp_path / "renamed"


@pytest.mark.parametrize(
    ("record_format", "compression"),
    [("framed", "none"), ("framed", "gzip"), ("lines", "zstd"), ("jsonl", "none")],
)
def test_damage_in_the_middle_loses_nothing(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, COMMITS)
    part = tmp_path / "topic-000000.log.part"
    broken = bytearray(data)
    middle = (ends[0] + ends[1]) // 2
    broken[middle : middle + 3] = b"\x01\x02\x03"
    part.write_bytes(broken)
    (result,) = recover(tmp_path, tmp_path)
    assert result.published is not None
    assert result.records == 2
    assert result.reason.startswith("kept as topic-000000.log.part.bad: ")
    assert read_bodies(result.published) == ([b"one", b"two"], None)
    assert (tmp_path / "topic-000000.log.part.bad").read_bytes() == broken
    assert result.cut_bytes == len(data) - ends[0]
    assert len(list(tmp_path.iterdir())) == 2
    assert recover(tmp_path, tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x28\xb5\x2f\xfd somebody else's frame",
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03 somebody else's member",
        b"\x5a\x2a\x4d\x18\x05\x00\x00\x00wrong and more",
        b"\x88NSQA\r\n\x1a damaged\n",
    ],
)
def test_what_cannot_be_understood_is_kept(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(data)
    (tmp_path / "x.part.bad").write_bytes(b"an older one")
    (result,) = recover(tmp_path, tmp_path)
    assert result.published is None
    assert result.records == 0
    assert result.reason.startswith("kept as x.part.bad.1: ")
    assert (tmp_path / "x.part.bad.1").read_bytes() == data
    assert not (tmp_path / "x.part").exists()


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_move_that_was_cut_between_link_and_unlink(compression: str, tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path, "framed", compression), clock=ManualClock())
    writer.commit(COMMITS[0])
    (published,) = writer.close()
    part = published.path.with_name(published.path.name + ".part")
    os.link(published.path, part)
    (result,) = recover(tmp_path, tmp_path)
    assert result.published == published.path
    assert result.reason == "finished a move that was cut"
    assert list(tmp_path.iterdir()) == [published.path]


def test_a_copy_that_was_cut_before_the_unlink_is_not_published_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = leave_behind(tmp_path, "lines", "none")
    monkeypatch.setattr(durable, "os", FailingOs(0, code=errno.EXDEV, only={"link"}))
    real_unlink = durable._unlink

    def refuse(path: Path) -> None:
        if path == part:
            raise StorageError("remove", path, OSError(errno.EIO, "power cut"))
        real_unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "_unlink", refuse)
        with pytest.raises(StorageError):
            recover(tmp_path, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["topic.log", "topic.log.part"]
    (result,) = recover(tmp_path, tmp_path)
    assert result.published == tmp_path / "topic.log"
    assert list(tmp_path.iterdir()) == [tmp_path / "topic.log"]


def test_old_temporary_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / ".nsqtools-1-abc.tmp"
    old.write_bytes(b"half a copy")
    recover(tmp_path, tmp_path)
    assert old.exists()
    with durable.lock(old):
        assert durable.remove_leftovers(tmp_path, now=old.stat().st_ctime + 61) == 0
    assert durable.remove_leftovers(tmp_path, now=old.stat().st_ctime + 61) == 1
    assert not old.exists()


@pytest.mark.parametrize(("record_format", "compression"), [("framed", "none"), ("lines", "zstd")])
@pytest.mark.parametrize("damage", [False, True])
def test_a_filesystem_that_fails_at_any_call(
    record_format: str,
    compression: str,
    damage: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, COMMITS)
    broken = bytearray(data[: ends[2] - 3])
    if damage:
        broken[ends[1] - 40] ^= 1
    expected = BODIES[:2] if damage else BODIES[:3]
    for fail_at in range(200):
        folder = tmp_path / str(fail_at)
        folder.mkdir()
        (folder / "topic.log.part").write_bytes(broken)
        failing = FailingOs(fail_at)
        monkeypatch.setattr(durable, "os", failing)
        try:
            recover(folder, folder)
        except StorageError:
            failing.heal()
            recover(folder, folder)
        published = [path for path in folder.iterdir() if not path.name.endswith(".bad")]
        assert [read_bodies(path) for path in published] == [(expected, None)]
        kept = list(folder.glob("*.bad"))
        assert [path.read_bytes() for path in kept] == ([bytes(broken)] if damage else [])
        if not failing.failed:
            break
    assert fail_at > 5
