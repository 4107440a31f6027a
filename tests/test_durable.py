"""The door to durable files: nothing overwritten, nothing half there, every step repeatable."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs

from nsqtools import durable
from nsqtools.errors import DataPathInUse, StorageError

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replace_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    durable.replace_file(path, b"one")
    durable.replace_file(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["state"]


def test_replace_file_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    for fail_at in range(20):
        failing = FailingOs(fail_at)
        monkeypatch.setattr(durable, "os", failing)
        try:
            durable.replace_file(path, b"new")
        except StorageError as error:
            done = error.operation == "fsync directory"
            assert path.read_bytes() == (b"new" if done else b"old")
            path.write_bytes(b"old")
        assert names(tmp_path) == ["state"]
        if not failing.failed:
            break
    assert fail_at > 4
    assert path.read_bytes() == b"new"


def test_a_write_that_goes_nowhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "os", FailingOs(write_max=0))
    with pytest.raises(StorageError) as caught:
        durable.replace_file(tmp_path / "x", b"data")
    assert caught.value.errno == errno.EIO


def test_publish_moves(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    durable.publish(source, destination)
    assert names(tmp_path) == ["b"]
    assert destination.read_bytes() == b"data"


@pytest.mark.parametrize("kind", ["file", "equal", "directory", "dangling link"])
def test_publish_never_overwrites(kind: str, tmp_path: Path) -> None:
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
        durable.publish(source, destination)
    assert source.read_bytes() == b"data"


def test_publish_finishes_what_a_crash_cut(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    os.link(source, destination)
    durable.publish(source, destination)
    assert names(tmp_path) == ["b"]
    durable.publish(source, destination)  # after the unlink
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS])
def test_publish_without_hard_links(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(durable.COPY_BYTES + 1)
    for fail_at in range(40):
        folder = tmp_path / str(fail_at)
        (folder / "out").mkdir(parents=True)
        source, destination = folder / "a", folder / "out" / "b"
        source.write_bytes(data)
        os.utime(source, ns=(5, 1_234_567_891))
        failing = FailingOs(fail_at)
        monkeypatch.setattr(durable, "os", NoLinks(failing, code))
        try:
            durable.publish(source, destination)
        except StorageError:
            failing.heal()
            durable.publish(source, destination)
        assert names(folder) == ["out"]
        assert names(folder / "out") == ["b"]
        assert destination.read_bytes() == data
        assert destination.stat().st_mtime_ns == 1_234_567_891
        if not failing.failed:
            break
    assert fail_at > 4


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


def test_publish_does_not_race_with_another(tmp_path: Path) -> None:
    source, destination = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"data")
    destination.write_bytes(b"first")
    with pytest.raises(FileExistsError):
        durable._place(source, destination)
    with pytest.raises(FileExistsError):
        durable._reserve_and_rename(source, destination)
    assert destination.read_bytes() == b"first"


def test_a_lock_is_exclusive(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    for target in (tmp_path, file):
        with durable.lock(target) as held:
            assert held.fd >= 0
            with pytest.raises(DataPathInUse) as caught:
                durable.lock(target)
            assert str(target) in str(caught.value)
        durable.lock(target).release()


def test_a_lock_on_a_descriptor(tmp_path: Path) -> None:
    fd = durable.create(tmp_path / "file")
    held = durable.lock(fd)
    with pytest.raises(DataPathInUse):
        durable.lock(tmp_path / "file")
    held.release()
    held.release()
    durable.lock(tmp_path / "file").release()
    os.close(fd)


def test_a_lock_on_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        durable.lock(tmp_path / "missing")
    assert caught.value.errno == errno.ENOENT


def test_make_directories(tmp_path: Path) -> None:
    durable.make_directories(tmp_path / "a" / "b" / "c", 0o700)
    assert (tmp_path / "a" / "b" / "c").is_dir()
    durable.make_directories(tmp_path / "a" / "b" / "c")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        durable.make_directories(tmp_path / "file" / "x")
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_make_directories_syncs_every_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = FailingOs(only={"mkdir", "fsync"})
    monkeypatch.setattr(durable, "os", counting)
    durable.make_directories(tmp_path / "a" / "b")
    assert counting.calls == ["mkdir", "fsync", "mkdir", "fsync"]


def test_a_directory_whose_name_is_not_durable_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"fsync"}, code=errno.EIO))
    with pytest.raises(StorageError):
        durable.make_directories(tmp_path / "a")
    assert names(tmp_path) == []


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    durable.check_writable(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(StorageError, match="create a file in"):
        durable.check_writable(tmp_path / "missing")
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"pwrite"}))
    with pytest.raises(StorageError) as caught:
        durable.check_writable(tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_a_filesystem_that_cannot_sync_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"fsync"}, code=errno.EINVAL))
    durable.fsync_directory(tmp_path)
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"fsync"}, code=errno.EIO))
    with pytest.raises(StorageError, match="fsync directory"):
        durable.fsync_directory(tmp_path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("pipe", "link", "missing"):
        with pytest.raises(StorageError):
            durable.open_existing(tmp_path / name)


def test_keep_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"data")
    durable.keep_as(source, tmp_path / "b")
    durable.keep_as(source, tmp_path / "b")
    (tmp_path / "c").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        durable.keep_as(source, tmp_path / "c")
    monkeypatch.setattr(durable, "os", FailingOs(0, only={"link"}, code=errno.EPERM))
    durable.keep_as(source, tmp_path / "d")
    assert [(tmp_path / name).read_bytes() for name in "abd"] == [b"data"] * 3
    assert names(tmp_path) == ["a", "b", "c", "d"]
