"""Giving a finished file its name: never over another, durable, and repeatable after a crash.

Every function blocks. An `OSError` leaves as `errors.StorageError`; `FileExistsError` is the answer
to whether the name is free.
"""

# Every call goes through the module `os`, which tests replace by one that fails at call N.
# ruff: noqa: PTH105, PTH108

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

COPY_BYTES = 1 << 20
# What filesystems answer that have no hard links, or allow none to this file.
_NO_HARD_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
}


def place(source: Path, destination: Path) -> None:
    """Give a finished file its name, never over an existing one; durable when it returns.

    By hard link; where there are none by reserving the name and renaming over the reservation,
    and then `source` is gone; to another filesystem by a copy in the destination's directory.

    Calling again after a crash is no error: the two are the same file, or the destination is a
    copy equal in size, modification time and content. When the source is gone and the destination
    is there, an earlier call may have moved it: whether it did is for the caller to tell.

    Raises `FileExistsError` when another file has the name (the source is untouched), and
    `StorageError`.
    """
    if os.path.lexists(destination):
        if os.path.lexists(source) and not _is_same(source, destination):
            raise FileExistsError(errno.EEXIST, "file exists", str(destination))
    else:
        _move_or_copy(source, destination)
    durable.fsync_directory(destination.parent)


def _move_or_copy(source: Path, destination: Path) -> None:
    try:
        _place(source, destination)
    except StorageError as error:
        if error.errno != errno.EXDEV:
            raise
        durable.remove_leftovers(destination.parent, now=time.time())
        copy = _copy(source, destination.parent)
        try:
            _place(copy, destination)
        finally:
            durable.unlink(copy)


def _place(source: Path, destination: Path) -> None:
    """Give `source` its name within one filesystem; `source` may or may not stay as well."""
    try:
        try:
            os.link(source, destination)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _reserve_and_rename(source, destination)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError("publish", destination, error) from error


def _reserve_and_rename(source: Path, destination: Path) -> None:
    """The exclusive rename that POSIX lacks: the empty reservation makes it exclusive."""
    os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        os.replace(source, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(destination)
        raise


def _copy(source: Path, directory: Path) -> Path:
    """A durable copy of `source` in `directory`; the modification time is copied too."""
    temporary = durable.temporary_name(directory)
    with durable.storage("open", source):
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = durable.create(temporary, 0o600)
        try:
            # Held while it grows, so that it can be told from a dead copy.
            durable.lock_file(writing, temporary)
            with durable.storage("copy", source):
                status = os.fstat(reading)
                _copy_range(reading, writing, status.st_size, source, temporary)
                durable.check_length(writing, status.st_size)
                os.fchmod(writing, stat.S_IMODE(status.st_mode))
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(writing)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            durable.close(writing)
    finally:
        durable.close(reading)
    return temporary


def keep_as(source: Path, destination: Path) -> None:
    """Give a file a second name, by hard link or, where there are none, by a copy.

    Calling again after a crash is no error. Raises `FileExistsError` when another file has it.
    """
    if durable.is_taken(destination):
        if not _is_same(source, destination):
            raise FileExistsError(errno.EEXIST, "file exists", str(destination))
        return
    try:
        os.link(source, destination)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise StorageError("link", destination, error) from error
        copy = _copy(source, destination.parent)
        try:
            _place(copy, destination)
        finally:
            durable.unlink(copy)
    durable.fsync_directory(destination.parent)


def copy_prefix(reading: int, writing: int, size_bytes: int, source: Path, target: Path) -> None:
    """Copy the first bytes of an open file to the start of another; raises when it has fewer."""
    _copy_range(reading, writing, size_bytes, source, target)
    with durable.storage("copy", source):
        durable.check_length(writing, size_bytes)


def _copy_range(reading: int, writing: int, size_bytes: int, source: Path, target: Path) -> None:
    """Copy the first bytes of a file; when it has fewer, the copy's length will tell."""
    offset = 0
    while offset < size_bytes:
        with durable.storage("read", source):
            data = os.pread(reading, min(COPY_BYTES, size_bytes - offset), offset)
        if not data:
            break
        durable.write_at(writing, data, offset, target)
        offset += len(data)


def _is_same(source: Path, destination: Path) -> bool:
    """Whether `destination` is what an earlier, cut `place` of `source` made."""
    with durable.storage("stat", destination):
        one, other = os.lstat(source), os.lstat(destination)
        if os.path.samestat(one, other):
            return True
        alike = (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
        if not alike or not stat.S_ISREG(other.st_mode):
            return False
        with source.open("rb") as left, destination.open("rb") as right:
            while data := left.read(COPY_BYTES):
                if data != right.read(COPY_BYTES):
                    return False
            return not right.read(1)
