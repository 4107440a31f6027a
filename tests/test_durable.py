"""The door to durable files: nothing overwritten, nothing half there, every step repeatable."""

from __future__ import annotations

import errno
import fcntl
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


def test_a_lock_on_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = durable.create(path)
    durable.lock_file(fd, path)
    with pytest.raises(DataPathInUse) as caught:
        durable.lock(path)
    assert str(path) in str(caught.value)
    os.close(fd)
    durable.lock(path).release()


def test_a_lock_that_the_filesystem_refuses_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match=str(tmp_path)) as caught:
        durable.lock(tmp_path)
    assert caught.value.errno == errno.ENOLCK


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    durable.lock(tmp_path / "pipe").release()


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
    assert counting.calls[-4:] == ["mkdir", "fsync", "mkdir", "fsync"]
    counting.calls.clear()
    durable.make_directories(tmp_path / "a" / "b" / "c")
    assert counting.calls == ["mkdir", "fsync"]


def test_a_directory_that_another_just_made_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.make_directories(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    counting = FailingOs(only={"mkdir", "fsync"})
    monkeypatch.setattr(durable, "os", counting)
    durable.make_directories(tmp_path / "a" / "b")
    assert counting.calls == ["fsync", "fsync"]
    durable.make_directories(tmp_path / "a" / "b")
    assert counting.calls == ["fsync", "fsync"]
    # One that was removed and made again by somebody is another directory.
    (tmp_path / "a" / "b").rename(tmp_path / "old")
    (tmp_path / "a" / "b").mkdir()
    durable.make_directories(tmp_path / "a" / "b")
    assert counting.calls == ["fsync"] * 3


def test_what_is_remembered_of_directories_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_DURABLE_NAMES_MAX", 10)
    for number in range(30):
        durable.make_directories(tmp_path / str(number))
        assert len(durable._durable_names) <= 10 or number < 1
    durable._durable_names.clear()


def test_a_private_directory(tmp_path: Path) -> None:
    assert durable.make_private_directory(tmp_path / "a")
    (tmp_path / "a").chmod(0o755)
    assert durable.make_private_directory(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        assert not durable.make_private_directory(tmp_path / name)
        assert not durable.is_own_directory(tmp_path / name)


def test_only_the_same_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    fd = durable.create(path)
    file = durable.identity(fd, path)
    path.rename(tmp_path / "kept")
    path.write_bytes(b"another")
    durable.remove(path, file)
    assert path.read_bytes() == b"another"
    durable.remove(tmp_path / "kept", file)
    assert names(tmp_path) == ["a"]
    durable.remove(path)
    durable.remove(path)
    os.close(fd)
    assert names(tmp_path) == []


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


def test_where_descriptors_are_too_few_the_error_says_what_to_raise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_args: object, **_options: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", none_left)
    with pytest.raises(StorageError, match="Too many open files") as caught:
        durable.create(tmp_path / "x", 0o600)
    assert "ulimit -n" in caught.value.hint
