"""Every function of `durable` and `publish`, with every call to the operating system failing in turn:
`StorageError`, an answer that the function documents, or nothing, and no descriptor is left open."""

from __future__ import annotations

import errno
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.archive.failing_os import EVERY, FAULTS, FailingLocks, FailingOs, FoldersApart

from nsqtools import durable, publish
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

DATA = b"content"
# Calls that a function makes at most; more means that it tries for ever.
CALLS_MAX = 100
# Of names and errors alone, or a block of somebody else's; `check_length` is for such a block.
WITHOUT_A_DISK = {"storage", "is_temporary", "temporary_name", "check_length"}


class Ground:
    """A folder with an open file of ours, another file, and a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "a"
        self.path.write_bytes(DATA)
        self.copy = folder / "b"
        self.copy.write_bytes(DATA)
        self.free = folder / "free"
        self.elsewhere = folder / "sub" / "c"
        self.elsewhere.parent.mkdir()
        self.fd = os.open(self.path, os.O_RDWR)
        self.other_fd = os.open(self.copy, os.O_RDWR)

    def end(self) -> None:
        os.close(self.fd)
        os.close(self.other_fd)


def _open(found: int) -> None:
    os.close(found)


DURABLE: dict[str, Callable[[Ground], object]] = {
    "lock": lambda on: durable.lock(on.path).release(),
    "lock_file": lambda on: durable.lock_file(on.fd, on.path),
    "create": lambda on: _open(durable.create(on.free)),
    "open_existing": lambda on: _open(durable.open_existing(on.path)),
    "read_at_most": lambda on: durable.read_at_most(on.fd, 100, on.path),
    "read_small": lambda on: durable.read_small(on.path, 100),
    "sha256_of": lambda on: durable.sha256_of(on.path),
    "write_at": lambda on: durable.write_at(on.fd, DATA, 3, on.path),
    "changed_s": lambda on: durable.changed_s(on.fd, on.path),
    "sync_data": lambda on: durable.sync_data(on.fd, on.path),
    "truncate": lambda on: durable.truncate(on.fd, 1, on.path),
    "identity": lambda on: durable.identity(on.fd, on.path),
    "is_at": lambda on: durable.is_at(on.path, (1, 2)),
    "is_being_written": lambda on: durable.is_being_written(on.path),
    "stamp": lambda on: durable.stamp(on.path),
    "is_taken": lambda on: durable.is_taken(on.path),
    "size_of": lambda on: durable.size_of(on.path),
    "names_in": lambda on: durable.names_in(on.folder),
    "duplicate": lambda on: _open(durable.duplicate(on.fd, on.path)),
    "close": lambda on: durable.close(os.dup(on.fd)),
    "remove": lambda on: durable.remove(on.path),
    "unlink": lambda on: durable.unlink(on.path),
    "fsync_directory": lambda on: durable.fsync_directory(on.folder),
    "make_directories": lambda on: durable.make_directories(on.folder / "x" / "y"),
    "make_private_directory": lambda on: durable.make_private_directory(on.free),
    "is_own_directory": lambda on: durable.is_own_directory(on.folder),
    "check_writable": lambda on: durable.check_writable(on.folder),
    "write_anew": lambda on: durable.write_anew(on.path, DATA),
    "replace_file": lambda on: durable.replace_file(on.path, DATA),
    "put_in_place": lambda on: durable.put_in_place(on.copy, on.path),
    "take_after": lambda on: durable.take_after(on.fd, on.copy.stat(), on.path),
}
PUBLISH: dict[str, Callable[[Ground], object]] = {
    "place": lambda on: publish.place(on.path, on.elsewhere),
    "show": lambda on: publish.show(on.path, on.free),
    "keep_as": lambda on: publish.keep_as(on.path, on.free),
    "copy_prefix": lambda on: publish.copy_prefix(on.fd, on.other_fd, 7, on.path, on.copy),
}


def functions(module: ModuleType) -> set[str]:
    return {
        name
        for name, found in inspect.getmembers(module, inspect.isfunction)
        if found.__module__ == module.__name__ and not name.startswith("_")
    }


def test_every_function_is_tried() -> None:
    assert functions(durable) - WITHOUT_A_DISK == DURABLE.keys()
    assert functions(publish) == PUBLISH.keys()


def opened() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


@pytest.fixture(params=["links", "copies"])
def disks(request: pytest.FixtureRequest) -> Callable[[FailingOs], Any]:
    """One filesystem, or one for each folder."""
    return FoldersApart if request.param == "copies" else lambda below: below


def tries(folder: Path) -> Iterator[tuple[Ground, int, int]]:
    for number in range(CALLS_MAX):
        yield Ground(folder / str(number)), number, FAULTS[number % len(FAULTS)]
    raise AssertionError("no function makes so many calls")


def refusal_of(call: Callable[[Ground], object], ground: Ground) -> StorageError | None:
    try:
        call(ground)
    except StorageError as refusal:
        return refusal
    return None


@pytest.mark.parametrize("name", [*DURABLE, *PUBLISH])
def test_every_call_fails_in_turn(
    name: str,
    disks: Callable[[FailingOs], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = (DURABLE | PUBLISH)[name]
    for ground, fail_at, code in tries(tmp_path):
        durable._durable_names.clear()
        failing = FailingOs(fail_at, code=code, only=EVERY)
        before = opened()
        with monkeypatch.context() as patched:
            patched.setattr(durable, "os", failing)
            patched.setattr(publish, "os", disks(failing))
            patched.setattr(durable, "fcntl", FailingLocks(failing))
            refusal = refusal_of(call, ground)
        if refusal is not None:
            assert refusal.errno in (code, errno.EIO)
            assert Path(refusal.path).is_absolute(), "it names the path"
        assert opened() == before, failing.failed
        ground.end()
        if not failing.failed:
            break
    assert fail_at > 0, "it makes calls"


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another filesystem, whatever call fails: the file is there whole or not at all, its source stays
    until it is, and the next try leaves one file and nothing beside it."""
    for ground, fail_at, code in tries(tmp_path):
        failing = FailingOs(fail_at, code=code, only=EVERY)
        with monkeypatch.context() as patched:
            patched.setattr(durable, "os", failing)
            patched.setattr(publish, "os", FoldersApart(failing))
            try:
                publish.place(ground.path, ground.elsewhere)
            except StorageError:
                assert ground.path.read_bytes() == DATA
            if ground.elsewhere.exists():
                assert ground.elsewhere.read_bytes() == DATA
            failing.heal()
            publish.place(ground.path, ground.elsewhere)
        assert [path.name for path in ground.elsewhere.parent.iterdir()] == ["c"], failing.failed
        ground.end()
        if not failing.failed:
            break
    assert fail_at > 10
