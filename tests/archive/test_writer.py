"""Commits, rotation and publication; and a filesystem that fails at every call."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import (
    NAMING,
    PAIRS,
    START_S,
    batch_of,
    claims,
    close,
    finish,
    read_bodies,
    spec,
    visible,
)

from nsqtools import durable
from nsqtools.archive import writer as writer_module
from nsqtools.archive.finishing import Published
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.reader import open_archive
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveSpec, ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import ArchiveError, DataPathInUse, StorageError
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable

HOURLY = FileNaming(
    host="host", filename_format="<TOPIC><REV>.<DATETIME>.log", datetime_format="%H", utc=True
)


def test_a_commit_says_what_became_durable(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S))
    commit = writer.commit([batch_of([b"one", b"two\nthree"]), batch_of([b"four"], 2)])
    assert commit.messages == 3
    assert commit.body_bytes == 16
    assert commit.disk_bytes == 19
    assert commit.ambiguous == 1
    assert commit.created == (tmp_path / "topic.log.part",)
    assert commit.created[0].read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert writer.commit([batch_of([b"five"], 3)]).created == ()
    assert close(writer) == [
        Published(
            name="topic.log",
            location=str(tmp_path / "topic.log"),
            messages=4,
            disk_bytes=24,
            first_ts_ns=None,
            last_ts_ns=None,
        )
    ]
    assert visible(tmp_path) == [tmp_path / "topic.log"]
    assert claims(tmp_path) == []


def test_no_file_comes_without_a_message(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path / "new"), clock=ManualClock(time_s=START_S))
    commit = writer.commit([Messages([], nsqd="nsqd")])
    assert (commit.messages, commit.created) == (0, ())
    writer.tick()
    writer.rotate()
    assert close(writer) == []
    assert writer.next_tick is None
    assert not (tmp_path / "new").exists()


def test_a_body_that_no_reader_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BODY_BYTES_MAX", 5)
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock())
    with pytest.raises(ArchiveError, match="a body of 6 bytes is larger than 5"):
        writer.commit([batch_of([b"a"]), batch_of([b"12345", b"123456"], 1)])
    assert list(tmp_path.iterdir()) == []
    writer.commit([batch_of([b"12345"])])
    (published,) = close(writer)
    assert read_bodies(Path(published.location)) == ([b"12345"], None)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_large_commit_is_several_groups(
    record_format: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsqtools.archive.groups.GROUP_BYTES_MAX", 1000)
    bodies = [b"%04d" % number * (number % 90) for number in range(100)]
    writer = ArchiveWriter(
        spec(tmp_path, record_format, compression), clock=ManualClock(time_s=START_S)
    )
    writer.commit([batch_of(bodies[:30]), Messages([], nsqd="none"), batch_of(bodies[30:], 30)])
    (published,) = close(writer)
    assert published.messages == 100
    assert read_bodies(Path(published.location)) == (bodies, None)
    with open_archive(Path(published.location)) as reader:
        assert (reader.info.frames or 20) > 10


def test_the_name_ends_a_file(tmp_path: Path) -> None:
    clock = ManualClock(time_s=START_S)
    rotation = RotationPolicy(rotate_records=100)
    writer = ArchiveWriter(spec(tmp_path, naming=HOURLY, rotation=rotation), clock=clock)
    writer.commit([batch_of([b"a"])])
    assert writer.next_tick is not None
    assert 0 < writer.next_tick <= 900
    writer.tick()
    assert finish(writer) == []
    clock.jump(3600)
    commit = writer.commit([batch_of([b"b"])])
    assert [found.name for found in finish(writer)] == ["topic-000000.22.log"]
    assert commit.created == (tmp_path / "topic-000000.23.log.part",)
    clock.jump(3600)
    writer.tick()
    assert [found.name for found in finish(writer)] == ["topic-000000.23.log"]
    assert writer.next_tick is None


@pytest.mark.parametrize(
    ("rotation", "names"),
    [
        (RotationPolicy(rotate_size_bytes=10), 3),
        (RotationPolicy(rotate_records=2), 3),
        (RotationPolicy(rotate_interval_s=2), 3),
        (RotationPolicy(rotate_idle_s=1), 6),
        (RotationPolicy(rotate_idle_s=1.5), 1),
    ],
)
def test_rotation(rotation: RotationPolicy, names: int, tmp_path: Path) -> None:
    clock = ManualClock(time_s=START_S)
    writer = ArchiveWriter(spec(tmp_path, rotation=rotation), clock=clock)
    published = []
    for number in range(6):
        writer.commit([batch_of([b"12345"], number)])
        published += finish(writer)
        clock.jump(1)
    published += close(writer)
    assert [found.name for found in published] == [
        f"topic-{number:06d}.log" for number in range(names)
    ]
    assert sum(found.messages for found in published) == 6


def test_idle_and_age_end_a_file_without_traffic(tmp_path: Path) -> None:
    clock = ManualClock(time_s=START_S)
    rotation = RotationPolicy(rotate_interval_s=100, rotate_idle_s=10)
    writer = ArchiveWriter(spec(tmp_path, rotation=rotation), clock=clock)
    writer.commit([batch_of([b"a"])])
    assert writer.next_tick == 10
    clock.jump(9.9)
    writer.tick()
    assert finish(writer) == []
    clock.jump(0.1)
    assert writer.next_tick == pytest.approx(0)
    writer.tick()
    assert len(finish(writer)) == 1


def test_a_clock_that_is_set_changes_no_age(tmp_path: Path) -> None:
    clock = ManualClock(time_s=START_S)
    rotation = RotationPolicy(rotate_interval_s=100, rotate_idle_s=50)
    writer = ArchiveWriter(spec(tmp_path, rotation=rotation), clock=clock)
    writer.commit([batch_of([b"a"])])
    clock.set_time(START_S + 86400)
    assert writer.next_tick == 50
    writer.tick()
    assert finish(writer) == []
    clock.set_time(START_S - 3600)
    clock.jump(50)
    writer.tick()
    assert len(finish(writer)) == 1


def test_a_taken_name_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "topic.log").write_bytes(b"somebody's")
    (tmp_path / "topic-000001.log.part").symlink_to(tmp_path / "nowhere")
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S))
    assert writer.commit([batch_of([b"a"])]).created == (tmp_path / "topic-000002.log.part",)
    (tmp_path / "topic-000002.log").write_bytes(b"somebody's too")
    assert [found.name for found in close(writer)] == ["topic-000003.log"]
    assert (tmp_path / "topic.log").read_bytes() == b"somebody's"
    assert (tmp_path / "topic-000002.log").read_bytes() == b"somebody's too"


def test_a_revision_that_was_moved_away_is_not_used_again(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path, compression="zstd"), clock=ManualClock(time_s=START_S))
    for number in range(3):
        writer.commit([batch_of([b"a"])])
        (published,) = close(writer)
        assert published.name == f"topic-{number:06d}.log.zst"
        Path(published.location).unlink()


def test_two_writers_share_a_folder(tmp_path: Path) -> None:
    writers = [ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S)) for _ in range(3)]
    for number, writer in enumerate(writers):
        writer.commit([batch_of([b"%d" % number])])
    for writer in reversed(writers):
        assert len(close(writer)) == 1
    found = {path.name: path.read_bytes() for path in visible(tmp_path)}
    assert sorted(found.values()) == [b"0\n", b"1\n", b"2\n"]


def test_the_claim_is_locked(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S))
    writer.commit([batch_of([b"a"])])
    (claim,) = claims(tmp_path)
    with pytest.raises(DataPathInUse):
        durable.lock(claim)
    writer.abandon()
    durable.lock(claim).release()


def test_a_work_dir_of_its_own(tmp_path: Path) -> None:
    naming = FileNaming(host="h", filename_format="a/<TOPIC>/<DATETIME><REV>.log", utc=True)
    output, work = tmp_path / "out", tmp_path / "work"
    writer = ArchiveWriter(
        spec(output, naming=naming, work_dir=work, topic=".."), clock=ManualClock(time_s=START_S)
    )
    (created,) = writer.commit([batch_of([b"a"])]).created
    assert created == work / "a/%2E%2E/2023-11-14_22-000000.log.part"
    (published,) = close(writer)
    assert Path(published.location) == output / "a/%2E%2E/2023-11-14_22-000000.log"
    assert Path(published.location).read_bytes() == b"a\n"
    assert not created.exists()


def test_the_same_folder_under_two_names_is_no_work_dir(tmp_path: Path) -> None:
    wanted = spec(tmp_path, work_dir=tmp_path / "x" / "..")
    (tmp_path / "x").mkdir()
    assert not wanted.has_work_dir


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"record_format": "csv"}, "unknown record format csv"),
        ({"compression": "lz4"}, "unknown compression lz4"),
        ({"compression": "gzip", "level": 10}, "gzip level 10 is not within 1-9"),
        ({"topic": "a/b"}, "invalid topic name 'a/b'"),
        (
            {"compression": "zstd", "naming": FileNaming(host="h", filename_format="<TOPIC>")},
            "missing <REV> in --filename-format when gzip, rotation, or work dir enabled",
        ),
        ({"naming": FileNaming(host="h", filename_format="/x")}, "the file name '/x' is absolute"),
    ],
)
def test_a_specification_that_cannot_be_written(
    changes: dict[str, object], problem: str, tmp_path: Path
) -> None:
    fields = {
        "topic": "topic",
        "channel": "channel",
        "host": "host",
        "output_dir": tmp_path,
        "work_dir": tmp_path,
        "naming": NAMING,
    }
    with pytest.raises(ArchiveError) as caught:
        ArchiveWriter(ArchiveSpec(**(fields | changes)))  # type: ignore[arg-type]
    assert str(caught.value) == problem


def test_a_file_that_was_taken_away_stops_nothing(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S))
    (created,) = writer.commit([batch_of([b"a"])]).created
    created.unlink()
    with pytest.raises(StorageError, match="moved or removed"):
        writer.commit([batch_of([b"b"])])
    assert writer.commit([batch_of([b"b"])]).created == (created,)
    (published,) = close(writer)
    assert read_bodies(Path(published.location)) == ([b"b"], None)


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_file_that_was_taken_back_is_not_said_to_be_taken_away(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor for its directory a name goes, and that is not known to be durable."""
    for fail_at in range(100):
        folder = tmp_path / str(fail_at)
        failing = FailingOs(fail_at, failures=failures, code=errno.EMFILE, only={"open"})
        told: list[StorageError] = []
        writer = ArchiveWriter(spec(folder), clock=ManualClock(time_s=START_S))
        with monkeypatch.context() as patch:
            failing.install(patch)
            for _ in range(failures + 1):
                try:
                    writer.commit([batch_of([b"a"])])
                    break
                except StorageError as error:
                    told.append(error)
        assert {error.errno for error in told} <= {errno.EMFILE}, told
        (published,) = close(writer)
        assert read_bodies(Path(published.location)) == ([b"a"], None)
        if not failing.failed:
            break
    assert fail_at > 2


def test_a_work_dir_that_was_taken_away_stops_nothing(tmp_path: Path) -> None:
    work, output = tmp_path / "work", tmp_path / "output"
    writer = ArchiveWriter(spec(output, work_dir=work), clock=ManualClock(time_s=START_S))
    writer.commit([batch_of([b"a"])])
    work.rename(tmp_path / "away")
    with pytest.raises(StorageError):
        writer.commit([batch_of([b"b"])])
    writer.commit([batch_of([b"b"])])
    (published,) = close(writer)
    assert read_bodies(Path(published.location)) == ([b"b"], None)
    (found,) = recover(tmp_path / "away")
    assert found.published is not None
    assert read_bodies(Path(found.published)) == ([b"a"], None)


COMMITS = [[batch_of([b"one", b"two"])], [batch_of([b"three"], 2)], [batch_of([b"four"], 3)]]
EXPECTED = [b"one", b"two", b"three", b"four"]
T = TypeVar("T")


def insist(call: Callable[[], T], failing: FailingOs, patience: int = 4) -> T:
    """Call until it works; the filesystem is repaired after some failures."""
    for _ in range(patience):
        try:
            return call()
        except StorageError:
            continue
    failing.heal()
    return call()


def insist_on_finishing(writer: ArchiveWriter, failing: FailingOs) -> list[Published]:
    published = []
    while (found := insist(writer.finish, failing)) is not None:
        published.append(found)
    return published


def check_failure(
    folder: Path, record_format: str, compression: str, failing: FailingOs, *, apart: bool
) -> None:
    work = folder / "work" if apart else folder
    rotation = RotationPolicy(rotate_records=3)
    wanted = spec(folder, record_format, compression, rotation=rotation, work_dir=work)
    writer = ArchiveWriter(wanted, clock=ManualClock(time_s=START_S))
    published: list[Published] = []
    for commit in COMMITS:
        done = insist(lambda commit=commit: writer.commit(commit), failing)  # type: ignore[misc]
        assert done.messages == len(commit[0])
        published += insist_on_finishing(writer, failing)
    insist(writer.close, failing)
    published += insist_on_finishing(writer, failing)
    failing.heal()
    bodies = []
    for found in published:
        read, damage = read_bodies(Path(found.location))
        assert damage is None
        assert len(read) == found.messages
        assert Path(found.location).stat().st_size == found.disk_bytes
        bodies += read
    assert bodies == EXPECTED
    # Of a file that could not even be begun the claim may be left; nothing is in it.
    assert all(found.records == 0 for found in recover(work))
    left = {path for path in folder.rglob("*") if path.is_file()}
    assert left == {Path(found.location) for found in published}


@pytest.mark.parametrize("failures", [1, 3, 1000])
@pytest.mark.parametrize(
    ("record_format", "compression"), [("lines", "none"), ("framed", "zstd"), ("jsonl", "gzip")]
)
def test_a_filesystem_that_fails_at_any_call(
    record_format: str,
    compression: str,
    failures: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: set[str] = set()
    for apart in (False, True):
        for fail_at in range(1000):
            folder = tmp_path / f"{fail_at}-{apart}"
            folder.mkdir()
            failing = FailingOs(fail_at, failures=failures)
            failing.install(monkeypatch)
            check_failure(folder, record_format, compression, failing, apart=apart)
            failed.update(failing.failed)
            if not failing.failed:
                break
    assert {"open", "pwrite", "fdatasync", "fsync", "link", "unlink"} <= failed


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = FailingOs(write_max=3)
    failing.install(monkeypatch)
    check_failure(tmp_path, "framed", "zstd", failing, apart=False)
    assert failing.calls.count("pwrite") > 50


def test_a_failed_commit_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ArchiveWriter(spec(tmp_path), clock=ManualClock(time_s=START_S))
    (created,) = writer.commit([batch_of([b"a"])]).created
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"fdatasync"}, code=errno.EIO))
    with pytest.raises(StorageError) as caught:
        writer.commit([batch_of([b"lost"])])
    assert caught.value.errno == errno.EIO
    assert created.read_bytes() == b"a\n"
    writer.commit([batch_of([b"b"])])
    assert created.read_bytes() == b"a\nb\n"
    writer.close()


def test_without_hard_links_files_are_published_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP):
        folder = tmp_path / str(code)
        failing = FailingOs(0, failures=1, code=code, only={"link"})
        failing.install(monkeypatch)
        writer = ArchiveWriter(spec(folder), clock=ManualClock(time_s=START_S))
        writer.commit([batch_of([b"a"])])
        (published,) = close(writer)
        assert failing.failed == ["link"]
        assert read_bodies(Path(published.location)) == ([b"a"], None)
        assert visible(folder) == [folder / "topic.log"]
        assert claims(folder) == []
