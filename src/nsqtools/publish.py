"""Giving a finished file its name: never over another, durable, and repeatable after a crash.

Every function blocks. An `OSError` leaves as `errors.StorageError`; `FileExistsError` is the answer
to whether the name is free.
"""

# Every call goes through the module `os`, which tests replace by one that fails at call N.
# ruff: noqa: PTH105, PTH108

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.errors import DataPathInUse, StorageError

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
# What opening a file says that is no regular one, or another user's.
_NOT_OURS = {errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EPERM, errno.EACCES}
_RESERVATION_MODE = 0o200


def place(source: Path, destination: Path) -> None:
    """Give a finished file its name, never over an existing one; durable when it returns.

    By hard link; where there are none by reserving the name and renaming over the reservation,
    and then `source` is gone; to another filesystem by a copy in the destination's directory.

    Calling again after a crash is no error: the two are the same file, or the destination is a
    copy equal in size, modification time (which `durable.stamp` makes unique) and content. When the
    source is gone and the destination is there, an earlier call may have moved it: whether it did is
    for the caller to tell.

    Raises `FileExistsError` when another file has the name (the source is untouched), and
    `StorageError`.
    """
    if durable.is_taken(destination) and not _is_reservation(destination):
        if durable.is_taken(source) and not _is_same(source, destination):
            raise FileExistsError(errno.EEXIST, "file exists", str(destination))
        _remove_dead_copy(source, destination.parent)
    else:
        _move_or_copy(source, destination)
    durable.fsync_directory(destination.parent)


def _move_or_copy(source: Path, destination: Path) -> None:
    try:
        _place(source, destination)
    except StorageError as error:
        if error.errno != errno.EXDEV:
            raise
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
            if error.errno not in _NO_HARD_LINKS and not _is_reservation(destination):
                raise
            _reserve_and_rename(source, destination)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError("publish", destination, error) from error


def _reserve_and_rename(source: Path, destination: Path) -> None:
    """The exclusive rename that POSIX lacks: the empty reservation makes it exclusive."""
    fd = _reserve(destination)
    try:
        os.replace(source, destination)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(destination)
        raise
    finally:
        durable.close(fd)


def _reserve(destination: Path) -> int:
    """The open, locked reservation; one that a crash left is taken over.

    Raises `FileExistsError` when the name is somebody else's, be it for a moment.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(destination, flags | os.O_CREAT | os.O_EXCL, _RESERVATION_MODE)
    except FileExistsError:
        if not _is_reservation(destination):
            raise
        fd = os.open(destination, flags)
    try:
        durable.lock_file(fd, destination)
        # Its holder may have renamed over it in this moment.
        if durable.is_at(destination, durable.identity(fd, destination)):
            return fd
    except DataPathInUse:
        pass
    except BaseException:
        durable.close(fd)
        raise
    durable.close(fd)
    raise FileExistsError(errno.EEXIST, "file exists", str(destination))


def _is_reservation(path: Path) -> bool:
    """Whether a file is empty, ours, and of a mode that nobody gives a file."""
    with durable.storage("stat", path):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
    wanted = stat.S_IFREG | _RESERVATION_MODE
    return (found.st_mode, found.st_size, found.st_uid) == (wanted, 0, os.geteuid())


def _copy(source: Path, directory: Path) -> Path:
    """A durable copy of `source` in `directory`; the modification time is copied too."""
    _remove_dead_copy(source, directory)
    with durable.storage("open", source):
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing, temporary = _create_copy(_copy_path(source, directory))
        try:
            _lock_copy(writing, temporary)
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


def _lock_copy(fd: int, path: Path) -> None:
    """Held while the copy grows, so that it can be told from a dead one."""
    try:
        durable.lock_file(fd, path)
    except DataPathInUse as error:  # somebody looks whether it is dead
        raise StorageError("copy to", path, OSError(errno.EBUSY, str(error))) from error


def _create_copy(path: Path) -> tuple[int, Path]:
    """Where somebody else has the name, under another: a kill leaves that one behind."""
    try:
        return durable.create(path, 0o600), path
    except FileExistsError:
        path = durable.temporary_name(path.parent)
    try:
        return durable.create(path, 0o600), path
    except FileExistsError as error:
        raise StorageError("create", path, error) from error


def _copy_path(source: Path, directory: Path) -> Path:
    """Where a copy of this file grows: the same name in every try, so that none is left behind."""
    with durable.storage("stat", source):
        found = os.lstat(source)
    what = f"{os.uname().nodename} {source.absolute()} {found.st_ino} {found.st_mtime_ns}"
    unique = hashlib.sha256(os.fsencode(what)).hexdigest()[:32]
    prefix, suffix = durable.TEMPORARY_PREFIX, durable.TEMPORARY_SUFFIX
    return directory / f"{prefix}{unique}{suffix}"


def _remove_dead_copy(source: Path, directory: Path) -> None:
    """Remove the copy that an earlier try left, if any, unless somebody is writing it. What is none of
    ours stays."""
    if not durable.is_taken(source):
        return
    path = _copy_path(source, directory)
    if not durable.is_taken(path):
        return
    try:
        fd = durable.open_existing(path)
    except StorageError as error:
        if error.errno not in _NOT_OURS:
            raise
        return
    try:
        _lock_copy(fd, path)
        durable.unlink(path)
    finally:
        durable.close(fd)


def show(source: Path, destination: Path) -> None:
    """Give a file that is still written a second name, for readers who follow it.

    Raises `FileExistsError` when the name is taken, and `StorageError`: there may be no hard links.
    """
    try:
        os.link(source, destination)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError("link", destination, error) from error


def keep_as(source: Path, destination: Path) -> None:
    """Give a file a second name, by hard link or, where there are none, by a copy.

    Calling again after a crash is no error. Raises `FileExistsError` when another file has it.
    """
    if durable.is_taken(destination):
        if not _is_same(source, destination):
            raise FileExistsError(errno.EEXIST, "file exists", str(destination))
        _remove_dead_copy(source, destination.parent)
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
