"""Sealed files on their way to the destination, beside the commits."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from tests.archive.failing_os import FailingOs, FoldersApart
from tests.archive.helpers import (
    PAIRS,
    batch_of,
    claims,
    close,
    finish,
    read_bodies,
    spec,
    visible,
)
from tests.test_publish import NoLinks

from nsqtools import durable, publish
from nsqtools.archive.destination import About, FileFacts, FolderDestination
from nsqtools.archive.finishing import SEALED_FILES_MAX, Published
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.digest import Digest
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
ONE_EACH = RotationPolicy(rotate_records=1)


def writer_of(folder: Path, compression: str = "none", *, compact: bool = True) -> ArchiveWriter:
    """A writer that begins another file with every commit."""
    return ArchiveWriter(spec(folder, "lines", compression, rotation=ONE_EACH, compact=compact))


def commit(writer: ArchiveWriter, number: int) -> None:
    writer.commit([batch_of([b"%d" % number], number)])


def bodies_of(published: list[Published]) -> list[bytes]:
    found = []
    for file in published:
        bodies, damage = read_bodies(Path(file.location))
        assert damage is None
        found += bodies
    return found


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    for number in range(SEALED_FILES_MAX + 1):
        commit(writer, number)
    assert len(writer.sealed) == SEALED_FILES_MAX
    waiting = "4 finished files wait to be published"
    with pytest.raises(StorageError, match=waiting):
        commit(writer, 99)
    with pytest.raises(StorageError, match=waiting):
        writer.close()
    first = writer.finish()
    assert first is not None
    commit(writer, SEALED_FILES_MAX + 1)
    published = [first, *close_by_turns(writer)]
    assert bodies_of(published) == [b"%d" % number for number in range(SEALED_FILES_MAX + 2)]


def close_by_turns(writer: ArchiveWriter) -> list[Published]:
    return [*finish(writer), *close(writer)]


def test_files_are_finished_while_commits_go_on(tmp_path: Path) -> None:
    """Another thread takes them, in their order."""
    writer = writer_of(tmp_path, "zstd")
    published: list[Published] = []
    total = 200
    done = threading.Event()

    def finisher() -> None:
        while not done.is_set() or len(writer.sealed):
            published.extend(finish(writer))

    thread = threading.Thread(target=finisher)
    thread.start()
    try:
        for number in range(total):
            while len(writer.sealed) >= SEALED_FILES_MAX:
                done.wait(0.001)
            commit(writer, number)
        while len(writer.sealed) >= SEALED_FILES_MAX:
            done.wait(0.001)
        writer.close()
    finally:
        done.set()
        thread.join()
    assert bodies_of(published) == [b"%d" % number for number in range(total)]
    assert [file.name for file in published] == [
        f"topic-{number:06d}.log.zst" for number in range(total)
    ]
    assert claims(tmp_path) == []


def test_a_name_that_is_taken_meanwhile(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    commit(writer, 0)
    writer.rotate()
    (tmp_path / "topic-000000.log").write_bytes(b"somebody's")
    published = finish(writer)
    assert [file.name for file in published] == ["topic-000001.log"]
    # Not even when it was moved away is that name given to the next file.
    Path(published[0].location).unlink()
    commit(writer, 1)
    assert [file.name for file in close(writer)] == ["topic-000002.log"]
    assert (tmp_path / "topic-000000.log").read_bytes() == b"somebody's"


def test_a_sealed_file_that_was_taken_away_stops_nothing(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    commit(writer, 0)
    commit(writer, 1)
    (tmp_path / "topic-000000.log.part").unlink()
    with pytest.raises(StorageError):
        writer.finish()
    assert bodies_of(close_by_turns(writer)) == [b"1"]
    assert claims(tmp_path) == []


class Impatient(FolderDestination):
    """A folder from which somebody takes each file as soon as it is there."""

    taken = 0

    def place(self, source: Path, name: str, facts: FileFacts, about: About | None = None) -> None:
        super().place(source, name, facts, about)
        Path(self.location(name)).unlink()
        self.taken += 1


def test_a_file_that_is_taken_at_once_is_not_published_twice(tmp_path: Path) -> None:
    destination = Impatient(tmp_path)
    writer = ArchiveWriter(spec(tmp_path), destination=destination)
    writer.commit([batch_of([b"a"])])
    assert [file.messages for file in close(writer)] == [1]
    assert destination.taken == 1
    assert visible(tmp_path) == claims(tmp_path) == []


@pytest.mark.parametrize("links", ["links", "no links", "another filesystem"])
@pytest.mark.parametrize("failures", [1, 4])
@pytest.mark.parametrize(
    ("record_format", "compression"), [("lines", "none"), ("framed", "zstd"), ("jsonl", "gzip")]
)
def test_a_filesystem_that_fails_at_any_call(
    record_format: str,
    compression: str,
    failures: int,
    links: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [b"one", b"two", b"three"]
    steps = 0
    for fail_at in range(500):
        output, work = tmp_path / f"{fail_at}", tmp_path / f"{fail_at}-work"
        writer = ArchiveWriter(
            spec(output, record_format, compression, work_dir=work, compact=True)
        )
        for number, body in enumerate(expected):
            writer.commit([batch_of([body], number)])
        failing = FailingOs(fail_at, failures=failures, code=errno.EIO)
        install(monkeypatch, failing, links)
        insist(writer.close, failing)
        published = insist(writer.finish, failing)
        monkeypatch.undo()
        assert published is not None
        assert bodies_of([published]) == expected
        assert writer.finish() is None
        assert visible(work) == []
        assert len(visible(output)) == 1
        assert claims(work) == claims(output) == []
        steps = fail_at
        if not failing.failed:
            break
    assert steps > 15


def install(monkeypatch: pytest.MonkeyPatch, failing: FailingOs, links: str) -> None:
    failing.install(monkeypatch)
    if links == "no links":
        monkeypatch.setattr(publish, "os", NoLinks(failing, errno.EPERM))
    elif links == "another filesystem":
        monkeypatch.setattr(publish, "os", FoldersApart(failing))


def insist(call: Callable[[], T], failing: FailingOs) -> T:
    for _ in range(10):
        try:
            return call()
        except StorageError:
            continue
    pytest.fail(f"still failing after {failing.failed}")


def test_an_abandoned_writer_leaves_all_to_recovery(tmp_path: Path) -> None:
    writer = writer_of(tmp_path, "gzip")
    for number in range(3):
        commit(writer, number)
    writer.abandon()
    assert writer.finish() is None
    found = [result.published for result in recover(tmp_path)]
    assert len(found) == 3
    assert claims(tmp_path) == []
    bodies = [read_bodies(path)[0][0] for path in visible(tmp_path)]
    assert bodies == [b"0", b"1", b"2"]


def test_what_is_left_is_somebody_elses_before_it_is_none_of_ours(tmp_path: Path) -> None:
    """A watermark is held by what the writer has, and by what it has left: by one of them always."""
    seen: list[tuple[int, bool]] = []

    def leave(claim: Path) -> None:
        seen.append((len(writer.sealed), writer.oldest_unfinished_s is not None))

    writer = ArchiveWriter(spec(tmp_path), leave=leave)
    for body in (b"one", b"two"):
        writer.commit([batch_of([body])])
        writer.rotate()
    writer.leave_sealed()
    assert seen == [(2, True), (1, True)]
    assert len(writer.sealed) == 0


def test_equal_files_of_two_archivers_are_two(tmp_path: Path) -> None:
    """Equal in size, content and, by a coarse clock, in time: each has messages of its own."""
    output = tmp_path / "out"
    output.mkdir()
    for number in range(20):
        writers = [
            ArchiveWriter(
                spec(output, work_dir=tmp_path / f"work-{name}", topic=f"t{number}"),
            )
            for name in "ab"
        ]
        for writer in writers:
            writer.commit([batch_of([b"tick"])])
        for writer in writers:
            writer.close()
        for writer in writers:
            assert writer.finish() is not None
    assert len([path for path in output.iterdir() if path.suffix == ".log"]) == 40


class PartedDestination(FolderDestination):
    """A folder that wants to be told the checksums of what it gets."""

    wants_digest = True
    part_bytes = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.placed: list[FileFacts] = []

    def place(self, source: Path, name: str, facts: FileFacts, about: About | None = None) -> None:
        self.placed.append(facts)
        super().place(source, name, facts, about)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_checksums_are_those_of_what_is_placed(
    record_format: str,
    compression: str,
    compact: bool,
    fails: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken while it is written, also where a commit has to be made again; nobody reads it for them."""
    monkeypatch.setattr(durable, "sha256_of", None)
    destination = PartedDestination(tmp_path)
    wanted = spec(tmp_path, record_format, compression, compact=compact)
    writer = ArchiveWriter(wanted, destination=destination)
    writer.commit([batch_of([b"one"] * 20)])
    if fails:
        with monkeypatch.context() as patch:
            FailingOs(0, only={"pwrite"}).install(patch)
            with pytest.raises(StorageError):
                writer.commit([batch_of([b"other"] * 20, 20)])
    writer.commit([batch_of([b"two"] * 20, 20)])
    (published,) = close(writer)
    data = Path(published.location).read_bytes()
    digest = Digest(destination.part_bytes)
    digest.update(data)
    (facts,) = destination.placed
    assert len(data) > destination.part_bytes
    assert (facts.sha256, facts.parts) == (digest.sha256, digest.parts)
    assert (published.compacted_from_bytes is not None) == (compact and compression != "none")
