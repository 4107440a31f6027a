"""Giving files their final names: nothing overwritten, nothing half there, every step repeatable."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs, FoldersApart

from nsqtools import durable, publish
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_place_beside_the_source(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    publish.place(source, destination)
    assert names(tmp_path) == ["a", "b"]
    assert destination.read_bytes() == b"data"


@pytest.mark.parametrize("kind", ["file", "equal", "directory", "dangling link"])
def test_place_never_overwrites(kind: str, tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    if kind == "directory":
        destination.mkdir()
    elif kind == "dangling link":
        destination.symlink_to(tmp_path / "nowhere")
    else:
        destination.write_bytes(b"data" if kind == "equal" else b"other")
        os.utime(destination, ns=(1, 1))
    with pytest.raises(FileExistsError):
        publish.place(source, destination)
    assert source.read_bytes() == b"data"


def test_place_is_no_error_when_it_was_placed(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    os.link(source, destination)
    publish.place(source, destination)
    assert names(tmp_path) == ["a", "b"]
    source.unlink()
    publish.place(source, destination)  # where a rename took it
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS])
def test_place_without_hard_links(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(publish.COPY_BYTES + 1)
    for fail_at in range(40):
        folder = tmp_path / str(fail_at)
        (folder / "out").mkdir(parents=True)
        source, destination = folder / "a", folder / "out" / "b"
        source.write_bytes(data)
        os.utime(source, ns=(5, 1_234_567_891))
        failing = FailingOs(fail_at)
        monkeypatch.setattr(durable, "os", failing)
        monkeypatch.setattr(publish, "os", NoLinks(failing, code))
        try:
            publish.place(source, destination)
        except StorageError:
            failing.heal()
            publish.place(source, destination)
        assert names(folder) == ["out"] or code == errno.EXDEV  # a copy leaves its source
        assert names(folder / "out") == ["b"]
        assert destination.read_bytes() == data
        assert destination.stat().st_mtime_ns == 1_234_567_891
        if not failing.failed:
            break
    assert fail_at > 3


class NoLinks:
    """A filesystem without hard links; with EXDEV, another filesystem that has none either."""

    def __init__(self, below: FailingOs, code: int) -> None:
        self._below = below
        self._code = code
        self._crossed = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._below, name)

    def link(self, source: Path, destination: Path) -> None:
        code = errno.EPERM if self._crossed else self._code
        self._crossed = code == errno.EXDEV
        raise OSError(code, os.strerror(code))


def test_place_does_not_race_with_another(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    destination.write_bytes(b"first")
    with pytest.raises(FileExistsError):
        publish._place(source, destination)
    with pytest.raises(FileExistsError):
        publish._reserve_and_rename(source, destination)
    assert destination.read_bytes() == b"first"


def test_keep_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"data")
    publish.keep_as(source, tmp_path / "b")
    publish.keep_as(source, tmp_path / "b")
    (tmp_path / "c").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        publish.keep_as(source, tmp_path / "c")
    monkeypatch.setattr(publish, "os", FailingOs(0, only={"link"}, code=errno.EPERM, failures=2))
    publish.keep_as(source, tmp_path / "d")
    assert [(tmp_path / name).read_bytes() for name in "abd"] == [b"data"] * 3
    assert names(tmp_path) == ["a", "b", "c", "d"]


def test_a_reservation_that_a_crash_left_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no hard links; one that another writer holds is not."""
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    fd = publish._reserve(destination)
    monkeypatch.setattr(publish, "os", NoLinks(FailingOs(), errno.EPERM))
    with pytest.raises(FileExistsError):
        publish.place(source, destination)
    os.close(fd)
    publish.place(source, destination)
    assert destination.read_bytes() == b"data"
    assert names(tmp_path) == ["b"]
    # An empty file of somebody is no reservation.
    source.write_bytes(b"more")
    (tmp_path / "c").touch()
    with pytest.raises(FileExistsError):
        publish.place(source, tmp_path / "c")


def test_a_copy_that_somebody_holds_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead one is removed; whoever holds a living one may be another host with our names."""
    source, destination = tmp_path / "a", tmp_path / "out" / "b"
    source.write_bytes(b"data")
    destination.parent.mkdir()
    copy = publish._copy_path(source, destination.parent)
    copy.write_bytes(b"da")
    monkeypatch.setattr(publish, "os", FoldersApart(FailingOs()))
    with durable.lock(copy), pytest.raises(StorageError) as caught:
        publish.place(source, destination)
    assert caught.value.errno == errno.EBUSY
    assert copy.read_bytes() == b"da"
    publish.place(source, destination)
    assert names(destination.parent) == ["b"]
    copy.write_bytes(b"left by a crash after the link")
    publish.place(source, destination)
    assert names(destination.parent) == ["b"]


@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "another's"])
def test_a_copy_whose_name_somebody_planted_gets_another(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = tmp_path / "a", tmp_path / "out" / "b"
    source.write_bytes(b"data")
    destination.parent.mkdir()
    planted = publish._copy_path(source, destination.parent)
    plant(planted, kind)
    monkeypatch.setattr(publish, "os", FoldersApart(FailingOs()))
    publish.place(source, destination)
    publish.place(source, destination)
    assert destination.read_bytes() == b"data"
    assert names(destination.parent) == [planted.name, "b"]


def plant(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        if os.geteuid():
            pytest.skip("only root may give files away")
        path.write_bytes(b"theirs")
        os.chown(path, 12345, 12345)


@pytest.mark.parametrize("call", ["fchmod", "utime", "close"])
def test_a_copy_that_fails_is_a_storage_error(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that notices at `close` that it is full, too."""
    source, destination = tmp_path / "a", tmp_path / "out" / "b"
    source.write_bytes(b"data")
    destination.parent.mkdir()
    failing = FailingOs(0, only={call}, code=errno.ENOSPC)
    monkeypatch.setattr(durable, "os", failing)
    monkeypatch.setattr(publish, "os", NoLinks(failing, errno.EXDEV))
    if call == "close":  # what was fsynced before is there
        publish.place(source, destination)
        assert destination.read_bytes() == b"data"
    else:
        with pytest.raises(StorageError, match="No space left"):
            publish.place(source, destination)
        assert names(destination.parent) == []
    assert failing.failed == [call]


def test_a_name_that_cannot_be_looked_at_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(b"content")
    destination.write_bytes(b"another")
    FailingOs(0, only={"lstat"}).install(monkeypatch)
    with pytest.raises(StorageError):
        publish.place(source, destination)
