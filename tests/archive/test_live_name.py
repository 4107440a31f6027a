"""A file that is shown under its finished name while it is written."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import PAIRS, batch_of, claims, close, read_bodies, spec, visible
from tests.archive.test_killed import ACKNOWLEDGED, CALLS_MAX, in_child

from nsqtools import publish
from nsqtools.archive.files import find_files
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.replay.inputs import find_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.writer import ArchiveSpec

MESSAGES = 4


def live(folder: Path, record_format: str = "lines", compression: str = "none") -> ArchiveSpec:
    rotation = RotationPolicy(rotate_records=2)
    base = spec(folder, record_format, compression, rotation=rotation, compact=True)
    return replace(base, live_name=True)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_it_grows_under_the_name_that_it_keeps(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    writer = ArchiveWriter(live(tmp_path, record_format, compression))
    (part,) = writer.commit([batch_of([b"one"])]).created
    shown = part.with_suffix("")
    assert read_bodies(shown)[0] == [b"one"]
    followed = shown.stat().st_ino
    writer.commit([batch_of([b"two"], 1)])
    (published,) = close(writer)
    assert published.location == str(shown)
    assert read_bodies(shown) == ([b"one", b"two"], None)
    assert shown.stat().st_ino == followed, "who follows it has read it already"
    assert visible(tmp_path) == [shown]
    assert claims(tmp_path) == []


def test_a_folder_has_it_once_and_open(tmp_path: Path) -> None:
    """For `archive ls` it is not finished, and a replay of the folder leaves it out."""
    writer = ArchiveWriter(live(tmp_path))
    writer.commit([batch_of([b"one", b"two"])])
    (part,) = writer.commit([batch_of([b"three"], 2)]).created
    writer.finish()
    found = {file.name: file.is_finished for file in find_files([str(tmp_path)])}
    done = str(tmp_path / "topic-000000.log")
    assert found == {done: True, str(part): False}
    assert [each.name for each in find_inputs([str(tmp_path)])] == [done]


def test_a_name_that_somebody_takes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "topic-000000.log"
    show = publish.show

    def first_somebody_else(source: Path, destination: Path) -> None:
        if destination == foreign:
            foreign.write_bytes(b"foreign")
        show(source, destination)

    monkeypatch.setattr(publish, "show", first_somebody_else)
    writer = ArchiveWriter(live(tmp_path))
    assert writer.commit([batch_of([b"a"])]).created == (tmp_path / "topic-000001.log.part",)
    close(writer)
    assert foreign.read_bytes() == b"foreign"
    assert visible(tmp_path) == [foreign, tmp_path / "topic-000001.log"]


def test_a_filesystem_without_hard_links_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise StorageError("link", destination, OSError(1, "Operation not permitted"))

    monkeypatch.setattr(publish, "show", refuse)
    writer = ArchiveWriter(live(tmp_path))
    with pytest.raises(StorageError, match=r"link .*topic-000000.log: Operation not permitted"):
        writer.commit([batch_of([b"a"])])
    assert (visible(tmp_path), claims(tmp_path)) == ([], [])


def test_it_needs_the_folder_where_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="only in the folder where it is written"):
        ArchiveWriter(replace(live(tmp_path), work_dir=tmp_path / "work"))


def test_one_that_is_damaged_loses_the_name(tmp_path: Path) -> None:
    """The whole part gets it; the rest is kept aside."""
    writer = ArchiveWriter(live(tmp_path, "framed", "zstd"))
    (part,) = writer.commit([batch_of([b"one"])]).created
    size = part.stat().st_size
    writer.commit([batch_of([b"two" * 100], 1)])
    writer.abandon()
    with part.open("r+b") as file:
        file.seek(size + 20)
        file.write(b"\xff" * 10)
    (found,) = recover(tmp_path)
    shown = part.with_suffix("")
    assert (found.published, found.records) == (str(shown), 1)
    assert read_bodies(shown) == ([b"one"], None)
    assert visible(tmp_path) == [shown, part.with_name(part.name + ".bad")]


def archive(wanted: ArchiveSpec, pipe: int) -> None:
    writer = ArchiveWriter(wanted)
    for number in range(MESSAGES):
        writer.commit([batch_of([b"%d" % number], number)])
        os.write(pipe, ACKNOWLEDGED.pack(number + 1))
        writer.finish()
    close(writer)


@pytest.mark.slow
@pytest.mark.parametrize(("record_format", "compression"), [("lines", "none"), ("jsonl", "zstd")])
def test_killed_at_every_call(record_format: str, compression: str, tmp_path: Path) -> None:
    """Recovery leaves one whole file for each, under its one name, and no second name of anything."""
    for kill_at in range(CALLS_MAX):
        folder = tmp_path / f"{kill_at}"
        folder.mkdir()
        wanted = live(folder, record_format, compression)
        done, acknowledged = in_child(kill_at, "links", partial(archive, wanted))
        assert not any(result.failed for result in recover(folder))
        bodies = []
        for path in visible(folder):
            assert path.stat().st_nlink == 1
            found, damage = read_bodies(path)
            assert damage is None
            bodies += found
        expected = [b"%d" % number for number in range(MESSAGES)]
        assert bodies in (expected[:acknowledged], expected[: acknowledged + 1])
        assert claims(folder) == []
        if done:
            break
    assert kill_at > 60
