"""Files of dead writers, and what else may lie in a work directory."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import (
    PAIRS,
    START_NS,
    batch_of,
    claimed,
    claims,
    close,
    read_bodies,
    spec,
    unfinished_file,
    visible,
)

from nsqtools import durable
from nsqtools.archive.claims import foreign_folders
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.reader import open_archive
from nsqtools.archive.recovery import claims_by_topic, recover
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import StorageError

COMMITS = [[batch_of([b"one", b"two"])], [batch_of([b"three"], 2)], [batch_of([b"four"], 3)]]
BODIES = [b"one", b"two", b"three", b"four"]


def leave_behind(folder: Path, record_format: str, compression: str) -> Path:
    """A `.part` file with `COMMITS` whose writer is gone."""
    writer = ArchiveWriter(spec(folder, record_format, compression), clock=ManualClock())
    (created,) = writer.commit(COMMITS[0]).created
    for commit in COMMITS[1:]:
        writer.commit(commit)
    writer.abandon()
    return created


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_file_left_behind_is_published(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    part = leave_behind(tmp_path, record_format, compression)
    (result,) = recover(tmp_path)
    assert result.path == part
    assert result.published == str(part.with_suffix(""))
    assert (result.records, result.cut_bytes) == (4, 0)
    assert read_bodies(Path(result.published)) == (BODIES, None)
    if record_format != "lines" or compression == "zstd":
        assert (result.first_ts_ns, result.last_ts_ns) == (START_NS, START_NS + 3_000_000)
    with open_archive(Path(result.published)) as reader:
        assert reader.info.sealed
        assert reader.info.records == (4 if compression == "zstd" else None)
    assert list(recover(tmp_path)) == []
    assert claims(tmp_path) == []


def test_a_recovered_zstd_file_is_the_file_its_writer_would_have_made(tmp_path: Path) -> None:
    leave_behind(tmp_path / "dead", "lines", "zstd")
    (result,) = recover(tmp_path / "dead")
    writer = ArchiveWriter(spec(tmp_path / "alive", "lines", "zstd"), clock=ManualClock())
    for commit in COMMITS:
        writer.commit(commit)
    (published,) = close(writer)
    assert result.published is not None
    assert Path(result.published).read_bytes() == Path(published.location).read_bytes()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_recovery_compacts_as_the_writer_does(compression: str, tmp_path: Path) -> None:
    results = []
    for folder in (tmp_path / "dead", tmp_path / "alive"):
        writer = ArchiveWriter(spec(folder, "framed", compression, compact=True))
        for number in range(50):
            writer.commit([batch_of([b"body %d" % number], number)])
        if folder.name == "dead":
            writer.abandon()
            results += [result.published for result in recover(folder)]
        else:
            results += [published.location for published in close(writer)]
    one, other = (Path(result or "").read_bytes() for result in results)
    assert one == other
    assert len(one) < 1500


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    writer.commit(COMMITS[0])
    assert list(recover(tmp_path)) == []
    writer.commit(COMMITS[1])
    writer.rotate()
    assert list(recover(tmp_path)) == []
    (published,) = close(writer)
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
        assert list(recover(tmp_path)) == []
        process.send_signal(signal.SIGKILL)
    (result,) = recover(tmp_path)
    assert result.published is not None
    assert read_bodies(Path(result.published)) == ([b"one", b"two"], None)


def test_the_claim_says_where_it_belongs(tmp_path: Path) -> None:
    """Two runs share a work directory; the name at the destination is taken since."""
    work = tmp_path / "work"
    for output in ("one", "two"):
        (tmp_path / output).mkdir()
        part = claimed(
            work,
            b"%s\n" % output.encode(),
            "lines",
            "none",
            f"d/{output}-000004.log",
            output_dir=tmp_path / output,
        )
        assert part == work / "d" / f"{output}-000004.log.part"
    (tmp_path / "two" / "d").mkdir()
    (tmp_path / "two" / "d" / "two-000004.log").write_bytes(b"taken")
    results = {result.published for result in recover(work)}
    one, two = tmp_path / "one/d/one-000004.log", tmp_path / "two/d/two-000005.log"
    assert results == {str(one), str(two)}
    assert (one.read_bytes(), two.read_bytes()) == (b"one\n", b"two\n")
    assert (tmp_path / "two/d/two-000004.log").read_bytes() == b"taken"
    assert visible(work) == []


@pytest.mark.parametrize("datetime_format", ["%Y/%m/%d/%H", "%Y"])
def test_a_name_with_folders_in_it_is_found(datetime_format: str, tmp_path: Path) -> None:
    naming = FileNaming(
        host="a/b",
        filename_format="<TOPIC>/<HOST><REV>.<DATETIME>",
        utc=True,
        datetime_format=datetime_format,
    )
    writer = ArchiveWriter(spec(tmp_path, naming=naming), clock=ManualClock())
    writer.commit(COMMITS[0])
    writer.abandon()
    (result,) = recover(tmp_path)
    assert result.published is not None
    assert read_bodies(Path(result.published)) == ([b"one", b"two"], None)


def test_what_nobody_claimed_is_not_touched(tmp_path: Path) -> None:
    """The names are as a writer gives them, and one begins as our files do."""
    leave_behind(tmp_path, "framed", "none").rename(tmp_path / "topic-000007.log.part")
    for claim in claims(tmp_path):
        claim.unlink()
    (tmp_path / "film.part").write_bytes(b"half a film\n...")
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    assert list(recover(tmp_path)) == []
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before


@pytest.mark.parametrize(
    "start", [b"\x1f\x8b\x08 like gzip", b"\x28\xb5\x2f\xfd like zstd", b"\x89NSQA\r", b"{}"]
)
def test_lines_are_lines_whatever_they_begin_with(start: bytes, tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    writer.commit([batch_of([start, b"two"])])
    writer.abandon()
    (result,) = recover(tmp_path)
    assert result.published is not None
    assert Path(result.published).read_bytes() == start + b"\ntwo\n"


def test_one_topic_only(tmp_path: Path) -> None:
    for topic in ("one", "two"):
        writer = ArchiveWriter(spec(tmp_path, topic=topic), clock=ManualClock())
        writer.commit(COMMITS[0])
        writer.abandon()
    claims = claims_by_topic(tmp_path)
    assert {topic: len(paths) for topic, paths in claims.items()} == {"one": 1, "two": 1}
    (result,) = recover(tmp_path, claims=claims["two"])
    assert result.path == tmp_path / "two.log.part"
    assert [path.name for path in visible(tmp_path)] == ["one.log.part", "two.log"]


def test_a_folder_that_was_moved_keeps_its_files(tmp_path: Path) -> None:
    """Mounted elsewhere, or renamed by somebody who needs room: nothing is made at its old place."""
    old, new = tmp_path / "old", tmp_path / "new"
    writer = ArchiveWriter(spec(old), clock=ManualClock())
    writer.commit(COMMITS[0])
    writer.abandon()
    old.rename(new)
    (result,) = recover(new)
    assert result.published == str(new / "topic.log")
    assert not old.exists()


def test_claims_that_were_given_to_us_are_ours(tmp_path: Path) -> None:
    """A run of another user died, and somebody changed the owner of everything."""
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    writer.commit(COMMITS[0])
    writer.abandon()
    (tmp_path / f".nsqtools-{os.geteuid()}").rename(tmp_path / ".nsqtools-12345")
    (result,) = recover(tmp_path)
    assert result.published == str(tmp_path / "topic.log")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_claims_of_another_user_are_told_of(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    writer.commit(COMMITS[0])
    writer.abandon()
    folder = tmp_path / f".nsqtools-{os.geteuid()}"
    os.chown(folder, 12345, 12345)
    assert list(recover(tmp_path)) == []
    assert foreign_folders(tmp_path) == [folder]
    assert (tmp_path / "topic.log.part").exists()


def test_results_come_one_by_one(tmp_path: Path) -> None:
    for number in range(3):
        claimed(tmp_path, b"x\n", "lines", "none", f"{number}.log")
    results = recover(tmp_path)
    assert len(visible(tmp_path)) == 3
    assert next(results).published is not None
    assert len([path for path in visible(tmp_path) if path.suffix == ".part"]) == 2


def test_one_that_cannot_be_recovered_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [tmp_path / name for name in ("a", "b", "c", "d")]
    for output in outputs:
        claimed(tmp_path, b"x\n", "lines", "none", f"{output.name}.log", output_dir=output)
    outputs[0].mkdir()
    outputs[1].write_bytes(b"no folder")
    (tmp_path / "c.log.part").unlink()
    (tmp_path / "c.log.part").symlink_to("/etc/hostname")
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if b'"d.log"' in os.pread(fd, 10_000, 0):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    results = {result.path.name: result for result in recover(tmp_path)}
    assert results.pop("a.log.part").published == str(outputs[0] / "a.log")
    assert all(result.failed for result in results.values())
    assert "No locks available" in " ".join(result.reason for result in results.values())
    assert {"b.log.part", "c.log.part"} < results.keys()
    assert len(claims(tmp_path)) == 3
    monkeypatch.undo()
    outputs[1].unlink()
    for output in outputs[1:]:
        output.mkdir()
    published = {result.path.name for result in recover(tmp_path) if result.published}
    assert published == {"b.log.part", "d.log.part"}


def test_a_file_that_cannot_be_looked_at_is_not_gone(tmp_path: Path) -> None:
    """Its folder leads nowhere for a while: its claim stays, and what is in it is published later."""
    work, folder = tmp_path / "work", tmp_path / "work" / "sub"
    folder.mkdir(parents=True)
    claimed(work, b"x\n", "lines", "none", "sub/a.log")
    folder.rename(tmp_path / "away")
    folder.symlink_to("sub")
    (result,) = recover(work)
    assert result.failed, result.reason
    assert len(claims(work)) == 1
    folder.unlink()
    (tmp_path / "away").rename(folder)
    (result,) = recover(work)
    assert result.published == str(folder / "a.log")


@pytest.mark.parametrize(("record_format", "compression"), [("lines", "lz4"), ("csv", "none")])
def test_a_format_that_is_not_known_is_left_alone(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    """What a later version wrote is not cut where a line seems to end."""
    path = claimed(tmp_path, b"\x04\x22\nM\x18", record_format, compression)
    (result,) = recover(tmp_path)
    assert result.failed
    assert "not known here: " in result.reason
    assert path.read_bytes() == b"\x04\x22\nM\x18"
    assert len(claims(tmp_path)) == 1


def test_nothing_to_recover(tmp_path: Path) -> None:
    assert list(recover(tmp_path / "missing")) == []
    assert list(recover(tmp_path)) == []


def test_a_claim_without_its_file_goes(tmp_path: Path) -> None:
    claimed(tmp_path, b"x\n", "lines", "none").unlink()
    (result,) = recover(tmp_path)
    assert (result.published, result.failed) == (None, False)
    assert result.reason.startswith("gone: it was moved or removed")
    assert claims(tmp_path) == []


def test_a_file_that_was_there_before_ours_is_not_touched(tmp_path: Path) -> None:
    """Its writer died between the claim and the creation."""
    path = claimed(tmp_path, b"", "lines", "none")
    (claim,) = claims(tmp_path)
    first_line = claim.read_bytes().split(b"\n", 1)[0] + b"\n"
    claim.write_bytes(first_line)
    path.write_bytes(b"somebody's\n")
    (result,) = recover(tmp_path)
    assert result.reason.startswith("left alone")
    assert path.read_bytes() == b"somebody's\n"
    assert claims(tmp_path) == []


def test_the_answer_of_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(tmp_path, b"x\n", "lines", "none")
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"listdir"}, failures=9, code=errno.EIO))
    with pytest.raises(StorageError, match="list"):
        list(recover(tmp_path))


@pytest.mark.parametrize(
    ("record_format", "compression"),
    [("framed", "none"), ("framed", "gzip"), ("lines", "zstd"), ("jsonl", "none")],
)
def test_damage_in_the_middle_loses_nothing(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, COMMITS)
    broken = bytearray(data)
    middle = (ends[0] + ends[1]) // 2
    broken[middle : middle + 3] = b"\x01\x02\x03"
    claimed(tmp_path, broken, record_format, compression, compact=True)
    (result,) = recover(tmp_path)
    assert result.published is not None
    assert result.records == 2
    assert result.reason.startswith("kept as topic-000000.log.part.bad: ")
    assert read_bodies(Path(result.published)) == ([b"one", b"two"], None)
    assert (tmp_path / "topic-000000.log.part.bad").read_bytes() == broken
    assert result.cut_bytes == len(data) - ends[0]
    assert len(visible(tmp_path)) == 2
    assert list(recover(tmp_path)) == []


@pytest.mark.parametrize(
    ("record_format", "compression", "data"),
    [
        ("lines", "zstd", b"\x28\xb5\x2f\xfd somebody else's frame"),
        ("lines", "gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03 somebody else's member"),
        ("framed", "zstd", b"\x5a\x2a\x4d\x18\x05\x00\x00\x00wrong and more"),
        ("framed", "none", b"\x88NSQA\r\n\x1a damaged\n" * 9),
        ("jsonl", "none", b"no object\n"),
    ],
)
def test_what_cannot_be_understood_is_kept(
    record_format: str, compression: str, data: bytes, tmp_path: Path
) -> None:
    claimed(tmp_path, data, record_format, compression, "x")
    (tmp_path / "x.part.bad").write_bytes(b"an older one")
    (result,) = recover(tmp_path)
    assert result.published is None
    assert result.records == 0
    assert result.reason.startswith("kept as x.part.bad.1: ")
    assert (tmp_path / "x.part.bad.1").read_bytes() == data
    assert not (tmp_path / "x.part").exists()


def test_nothing_but_the_claims_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the work directory is /tmp, which may hold anything."""
    leave_behind(tmp_path, "framed", "none")
    listed = FailingOs(only={"listdir", "scandir"})
    monkeypatch.setattr(durable, "os", listed)
    monkeypatch.setattr(os, "walk", None)
    assert len(list(recover(tmp_path))) == 1
    # Its own names, for folders of claims, and what is in ours: for claims, and for key files.
    assert listed.calls == ["listdir"] * 4


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
        claimed(folder, broken, record_format, compression, compact=True)
        failing = FailingOs(fail_at)
        failing.install(monkeypatch)
        try:
            results = list(recover(folder))
        except StorageError:
            results = []
        if not results or results[0].failed:
            failing.heal()
            results = list(recover(folder))
        assert not any(result.failed for result in results)
        monkeypatch.undo()
        published = [path for path in visible(folder) if path.suffix != ".bad"]
        assert [read_bodies(path) for path in published] == [(expected, None)]
        kept = list(folder.glob("*.bad"))
        assert [path.read_bytes() for path in kept] == ([bytes(broken)] if damage else [])
        assert claims(folder) == []
        if not failing.failed:
            break
    assert fail_at > 15
