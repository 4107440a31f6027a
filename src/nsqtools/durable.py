"""The one door to durable files.

Every function blocks: call it in a worker thread. What the rules are:

- New content goes to a name that nobody else uses, is fsynced there, and only then gets its real
  name.
- A file is published under a name that is free; nothing is ever overwritten, except by
  `replace_file`, which says so.
- After a name was made or removed its directory is fsynced: the data alone is not enough.
- An operation that fails leaves what was there before. One that is cut by a crash can be called
  again, and finishes.

An `OSError` leaves as `errors.StorageError`, which keeps the errno; where `FileExistsError` or
`errors.DataPathInUse` is the answer to a question, it says so.
"""

# Every call goes through the module `os`, which tests replace by one that fails at call N.
# ruff: noqa: PTH102, PTH105, PTH106, PTH108, PTH112, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from typing import TYPE_CHECKING, Self

from nsqtools.errors import DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

COPY_BYTES = 1 << 20
LEFTOVER_AGE_S = 60.0
TEMPORARY_PREFIX = ".nsqtools-"
TEMPORARY_SUFFIX = ".tmp"
# What filesystems answer that have no hard links, or allow none to this file.
_NO_HARD_LINKS = {
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EMLINK,
}
# A directory that cannot be fsynced (some network filesystems) is as durable as it will ever be.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}


@contextlib.contextmanager
def storage(operation: str, path: Path | str) -> Iterator[None]:
    """Turn an `OSError` from the block into a `StorageError` naming operation and path."""
    try:
        yield
    except OSError as error:
        raise StorageError(operation, path, error) from error


class Lock:
    """An exclusive lock on a file or a directory, held until `release` or the process ends."""

    def __init__(self, fd: int, *, owned: bool) -> None:
        self.fd = fd
        self._owned = owned

    def release(self) -> None:
        if self.fd < 0:
            return
        if self._owned:
            os.close(self.fd)
        else:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def lock(target: Path | int) -> Lock:
    """Take the lock of a file or directory, by path or by open descriptor, without waiting.

    Raises `DataPathInUse` when another holder has it, `StorageError` when it cannot be opened.
    """
    if isinstance(target, int):
        _flock(target, f"descriptor {target}")
        return Lock(target, owned=False)
    with storage("open", target):
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _flock(fd, target)
    except BaseException:
        os.close(fd)
        raise
    return Lock(fd, owned=True)


def _flock(fd: int, name: Path | str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataPathInUse(name) from error
    except OSError as error:
        raise StorageError("lock", name, error) from error


def create(path: Path, mode: int = 0o666) -> int:
    """Create a file that must not exist, for reading and writing; returns the descriptor.

    Raises `FileExistsError` when the name is taken, by a dangling link too.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError("create", path, error) from error


def open_existing(path: Path) -> int:
    """Open a regular file for reading and writing; never by way of a link as its last part."""
    with storage("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")


def write_at(fd: int, data: bytes | bytearray, offset: int, path: Path) -> None:
    """Write all of `data` at `offset`, however short the single writes are."""
    with storage("write", path):
        written = os.pwrite(fd, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(data):  # a short write: a full disk, or more than 2 GiB
            step = os.pwrite(fd, view[written:], offset + written)
            if step == 0:
                raise OSError(errno.EIO, "the disk took no bytes")
            written += step


def sync_data(fd: int, path: Path) -> None:
    """fdatasync: the bytes and the file's size are on the disk when this returns."""
    with storage("fsync", path):
        os.fdatasync(fd)


def truncate(fd: int, size_bytes: int, path: Path) -> None:
    with storage("truncate", path):
        os.ftruncate(fd, size_bytes)


def identity(fd: int, path: Path) -> tuple[int, int]:
    """Which file this is: device and inode."""
    with storage("stat", path):
        found = os.fstat(fd)
        return found.st_dev, found.st_ino


def is_at(path: Path, file: tuple[int, int]) -> bool:
    """Whether `path` names the file of this `identity`."""
    with storage("stat", path):
        try:
            named = os.lstat(path)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == file


def is_taken(path: Path) -> bool:
    """Whether anything has this name, a dangling link too."""
    with storage("stat", path):
        return os.path.lexists(path)


def close(fd: int) -> None:
    """Close a descriptor whose bytes are durable already: what close itself says is no news."""
    with contextlib.suppress(OSError):
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file and fsync its directory; a file that is not there is no error."""
    _unlink(path)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    with storage("fsync directory", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
        finally:
            os.close(fd)


def make_directories(path: Path, mode: int = 0o770) -> None:
    """Make a directory and the parents it lacks, each of them durable before the next.

    When it fails the directory whose name may not be durable is removed again, so that the next
    call does not take it for finished.
    """
    missing = []
    probe = path
    with storage("stat", probe):
        while not os.path.isdir(probe) and probe != probe.parent:
            missing.append(probe)
            probe = probe.parent
    for directory in reversed(missing):
        with storage("make directory", directory):
            try:
                os.mkdir(directory, mode)
            except FileExistsError:
                if not os.path.isdir(directory):
                    raise
        try:
            fsync_directory(directory.parent)
        except StorageError:
            with contextlib.suppress(OSError):
                os.rmdir(directory)
            raise


def check_writable(directory: Path) -> None:
    """Raise `StorageError` unless a file can be made, written and removed in `directory`."""
    probe = _temporary_name(directory)
    with storage("create a file in", directory):
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_at(fd, b"nsqtools\n", 0, probe)
    finally:
        os.close(fd)
        _unlink(probe)


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Give `path` the content `data`, whole or not at all, replacing what is there."""
    temporary = _temporary_name(path.parent)
    fd = create(temporary, mode)
    try:
        _fill(fd, data, temporary)
        with storage("rename", path):
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)


def _fill(fd: int, data: bytes, path: Path) -> None:
    try:
        write_at(fd, data, 0, path)
        with storage("fsync", path):
            os.fsync(fd)
            _check_length(fd, len(data))
    finally:
        os.close(fd)


def _check_length(fd: int, size_bytes: int) -> None:
    if os.fstat(fd).st_size != size_bytes:
        raise OSError(errno.EIO, "the file is not as long as what was written")


def publish(source: Path, destination: Path) -> None:
    """Move a finished file to its name, never over an existing one; durable when it returns.

    By hard link and unlink; where there are no hard links by reserving the name and renaming over
    the reservation; to another filesystem by way of a copy in the destination's directory.

    A crash may leave both names. Calling again then finishes the move: the two are the same file,
    or the destination is a copy equal in size, modification time and content. When the source is
    gone and the destination is there, an earlier call moved it, and only the fsyncs are repeated.

    Raises `FileExistsError` when another file has the name (the source is untouched), and
    `StorageError`.
    """
    if os.path.lexists(destination):
        if os.path.lexists(source) and not _is_same(source, destination):
            raise FileExistsError(errno.EEXIST, "file exists", str(destination))
    else:
        _move_or_copy(source, destination)
    fsync_directory(destination.parent)
    _unlink(source)
    if source.parent != destination.parent:
        fsync_directory(source.parent)


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
            _unlink(copy)


def _unlink(path: Path) -> None:
    with storage("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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
    temporary = _temporary_name(directory)
    with storage("open", source):
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = create(temporary, 0o600)
        try:
            # Held while it grows, so that recovery can tell it from a dead copy.
            _flock(writing, temporary)
            with storage("copy", source):
                status = os.fstat(reading)
                _copy_range(reading, writing, status.st_size, source, temporary)
                _check_length(writing, status.st_size)
                os.fchmod(writing, stat.S_IMODE(status.st_mode))
                os.utime(writing, ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(writing)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return temporary


def keep_as(source: Path, destination: Path) -> None:
    """Give a file a second name, by hard link or, where there are none, by a copy.

    Calling again after a crash is no error. Raises `FileExistsError` when another file has it.
    """
    if is_taken(destination):
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
        _reserve_and_rename(copy, destination)
    fsync_directory(destination.parent)


def find_link(directory: Path, fd: int, *, besides: str) -> Path | None:
    """A name of the open file in `directory` that does not begin with `besides`, or None."""
    with storage("list", directory):
        status = os.fstat(fd)
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            return None
        with entries:
            for entry in entries:
                if entry.inode() != status.st_ino or entry.name.startswith(besides):
                    continue
                if os.path.samestat(entry.stat(follow_symlinks=False), status):
                    return directory / entry.name
    return None


def replace_by_prefix(path: Path, reading: int, size_bytes: int, trailer: bytes) -> int:
    """Put a new file in the place of `path`: the first bytes of `reading`, then `trailer`.

    Returns its descriptor, locked. What had the name before is untouched under its other names.
    """
    temporary = _temporary_name(path.parent)
    writing = create(temporary)
    try:
        _flock(writing, temporary)
        _copy_range(reading, writing, size_bytes, path, temporary)
        write_at(writing, trailer, size_bytes, temporary)
        with storage("replace", path):
            _check_length(writing, size_bytes + len(trailer))
            os.fsync(writing)
            os.replace(temporary, path)
    except BaseException:
        os.close(writing)
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(path.parent)
    return writing


def remove_leftovers(directory: Path, *, now: float) -> int:
    """Remove temporary files that a crash left in `directory`; returns how many.

    One that is locked, or younger than a minute, may be somebody's work in progress.
    """
    removed = 0
    with storage("list", directory):
        try:
            names = sorted(filter(is_temporary, os.listdir(directory)))
        except FileNotFoundError:
            return 0
    for name in names:
        path = directory / name
        try:
            with lock(path) as held:
                if now - os.fstat(held.fd).st_ctime >= LEFTOVER_AGE_S:
                    _unlink(path)
                    removed += 1
        except (DataPathInUse, StorageError):
            continue  # it is in the way of nobody
    return removed


def _copy_range(reading: int, writing: int, size_bytes: int, source: Path, target: Path) -> None:
    """Copy the first bytes of a file; when it has fewer, the copy's length will tell."""
    offset = 0
    while offset < size_bytes:
        with storage("read", source):
            data = os.pread(reading, min(COPY_BYTES, size_bytes - offset), offset)
        if not data:
            break
        write_at(writing, data, offset, target)
        offset += len(data)


def _is_same(source: Path, destination: Path) -> bool:
    """Whether `destination` is what an earlier, cut `publish` of `source` made."""
    with storage("stat", destination):
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


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ours that had not got its real name yet."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def _temporary_name(directory: Path) -> Path:
    unique = f"{os.getpid()}-{secrets.token_hex(8)}"
    return directory / f"{TEMPORARY_PREFIX}{unique}{TEMPORARY_SUFFIX}"
