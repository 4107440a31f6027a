"""The one door to durable files.

Every function blocks: call it in a worker thread. What the rules are:

- New content goes to a name that nobody else uses, is fsynced there, and only then gets its real
  name.
- Nothing is ever overwritten, except by `replace_file` and `put_in_place`, which say so;
  `nsqtools.publish` gives files their final names.
- After a name was made or removed its directory is fsynced: the data alone is not enough.
- An operation that fails leaves what was there before. One that is cut by a crash can be called
  again, and finishes.

An `OSError` leaves as `errors.StorageError`, which keeps the errno; where `FileExistsError` or
`errors.DataPathInUse` is the answer to a question, it says so.
"""

# Every call goes through the module `os`, which tests replace by one that fails at call N.
# ruff: noqa: PTH101, PTH102, PTH105, PTH106, PTH108, PTH112, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import signal
import stat
import time
from typing import TYPE_CHECKING, Self

from nsqtools.errors import DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

TEMPORARY_PREFIX = ".nsqtools-"
TEMPORARY_SUFFIX = ".tmp"
READ_BYTES = 1 << 20
# A directory that cannot be fsynced (some network filesystems) is as durable as it will ever be.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
# Directories whose names this process made durable; forgotten together, which costs an fsync each.
_DURABLE_NAMES_MAX = 4096
_durable_names: set[tuple[str, int, int]] = set()


@contextlib.contextmanager
def storage(operation: str, path: Path | str) -> Iterator[None]:
    """Turn an `OSError` from the block into a `StorageError` naming operation and path."""
    try:
        yield
    except OSError as error:
        raise StorageError(operation, path, error) from error


class Lock:
    """An exclusive lock on a file or a directory, held until `release` or the process ends."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        if self.fd >= 0:
            close(self.fd)
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


def lock(path: Path) -> Lock:
    """Take the lock of a directory or a file, without waiting.

    Raises `DataPathInUse` when another holder has it, `StorageError` when it cannot be opened.
    """
    with storage("open", path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        lock_file(fd, path)
    except BaseException:
        close(fd)
        raise
    return Lock(fd)


def lock_file(fd: int, path: Path) -> None:
    """Lock an open file, without waiting, until its descriptor is closed.

    It should be open for writing: on NFS a lock is refused otherwise. Raises as `lock` does.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataPathInUse(path) from error
    except OSError as error:
        raise StorageError("lock", path, error) from error


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
    """Open a regular file of our own user for reading and writing, without waiting for anything.

    A link as its last part is not followed. Raises `StorageError`, also for what is no such file.
    """
    with storage("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            _check_own_file(os.fstat(fd))
        except BaseException:
            close(fd)
            raise
        return fd


def _check_own_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "a file of another user")


def read_at_most(fd: int, size_bytes: int, path: Path) -> bytes:
    """The first `size_bytes` of a file, or all of it when it has fewer."""
    parts: list[bytes] = []
    offset = 0
    with storage("read", path):
        while offset < size_bytes and (data := os.pread(fd, size_bytes - offset, offset)):
            parts.append(data)
            offset += len(data)
    return b"".join(parts)


def read_small(path: Path, size_bytes: int) -> bytes:
    """The first bytes of a regular file, or all; raises `FileNotFoundError` when nothing has the name."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError("open", path, error) from error
    try:
        with storage("open", path):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
        return read_at_most(fd, size_bytes, path)
    finally:
        close(fd)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with storage("open", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    offset = 0
    try:
        with storage("read", path):
            while data := os.pread(fd, READ_BYTES, offset):
                found.update(data)
                offset += len(data)
    finally:
        close(fd)
    return found.hexdigest()


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


def changed_s(fd: int, path: Path) -> float:
    """When a file was written to last, in seconds since the epoch."""
    with storage("stat", path):
        return os.fstat(fd).st_mtime


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
        return (found := os.fstat(fd)).st_dev, found.st_ino


def is_at(path: Path, file: tuple[int, int]) -> bool:
    """Whether `path` names the file of this `identity`."""
    with storage("stat", path):
        try:
            named = os.lstat(path)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == file


def is_being_written(path: Path) -> bool:
    """Whether anybody, ourselves included, has the file open for writing; False where the system does
    not tell (another's file, some filesystems)."""
    with storage("open", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # Whoever opens it in this moment is told by a signal that ends nobody.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        close(fd)
    return False


def stamp(path: Path) -> None:
    """Give a file a modification time that no other file has, to the second the one of now.

    A copy of it, which has the same, is then told from a file that only looks like it.
    """
    second_ns = time.time_ns() // 10**9 * 10**9
    with storage("set the time of", path):
        os.utime(path, ns=(second_ns, second_ns + secrets.randbelow(10**9)))


def is_taken(path: Path) -> bool:
    """Whether anything has this name, a dangling link too. What may not be looked at is not gone."""
    with storage("stat", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)
        return True
    return False


def size_of(path: Path) -> int:
    """The size of a file in bytes; raises `FileNotFoundError` when nothing has the name."""
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError("stat", path, error) from error


def names_in(directory: Path) -> list[str]:
    """The names in a directory, sorted; none when it is not there."""
    with storage("list", directory), contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(directory))
    return []


def duplicate(fd: int, path: Path) -> int:
    """Another descriptor of the same open file."""
    with storage("open", path):
        return os.dup(fd)


def close(fd: int) -> None:
    """Close a descriptor whose bytes are durable already: what close itself says is no news."""
    with contextlib.suppress(OSError):
        os.close(fd)


def remove(path: Path, file: tuple[int, int] | None = None) -> None:
    """Remove a file and fsync its directory; a file that is not there is no error.

    With `file`, only when the name is still that of the file with this `identity`.
    """
    if file is None or is_at(path, file):
        unlink(path)
    fsync_directory(path.parent)


def unlink(path: Path) -> None:
    """Remove a name; one that is not there is no error."""
    with storage("remove", path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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
    call does not take it for finished. What is there already may have been made by another writer
    in this moment: its name is made durable the first time that this process relies on it.
    """
    missing = []
    probe = path
    with storage("stat", probe):
        while not os.path.isdir(probe) and probe != probe.parent:
            missing.append(probe)
            probe = probe.parent
    _rely_on(probe)
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
        _remember_durable(directory)


def make_private_directory(path: Path) -> bool:
    """Make a directory that only we may enter; False when something else has the name.

    Something else is a link, a file, or a directory of another user.
    """
    with storage("make directory", path):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
        if not _is_own_directory(found):
            return False
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.chmod(path, 0o700)
    _rely_on(path)
    return True


def is_own_directory(path: Path) -> bool:
    """Whether this is a directory of our own user, and not a link to one."""
    with storage("stat", path):
        try:
            return _is_own_directory(os.lstat(path))
        except FileNotFoundError:
            return False


def _is_own_directory(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _rely_on(directory: Path) -> None:
    """Make the names of a directory and its parents durable, as far as our own user made them."""
    probe = directory
    pending = []
    while not _is_known_durable(probe) and probe != probe.parent:
        if not is_own_directory(probe):
            break
        pending.append(probe)
        probe = probe.parent
    for made in reversed(pending):
        try:
            fsync_directory(made.parent)
        except StorageError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise  # a parent that we may not list was made by somebody else, long ago
        _remember_durable(made)


def _is_known_durable(directory: Path) -> bool:
    with storage("stat", directory):
        found = os.lstat(directory)
    return (str(directory), found.st_dev, found.st_ino) in _durable_names


def _remember_durable(directory: Path) -> None:
    with storage("stat", directory):
        found = os.lstat(directory)
    if len(_durable_names) >= _DURABLE_NAMES_MAX:
        _durable_names.clear()
    _durable_names.add((str(directory), found.st_dev, found.st_ino))


def check_writable(directory: Path) -> None:
    """Raise `StorageError` unless a file can be made, written and removed in `directory`."""
    probe = temporary_name(directory)
    with storage("create a file in", directory):
        fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_at(fd, b"nsqtools\n", 0, probe)
    finally:
        close(fd)
        with contextlib.suppress(StorageError):
            unlink(probe)
        unlink(probe)  # again, should that have failed: nobody would ever look for it


def write_anew(path: Path, data: bytes) -> None:
    """A file under a name that nobody else uses, in the place of one that a crash has left; its bytes are
    on the disk when this returns, its name need not be."""
    unlink(path)
    try:
        fd = create(path)
    except FileExistsError as error:
        raise StorageError("create", path, error) from error
    _fill(fd, data, path)


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Give `path` the content `data`, whole or not at all, replacing what is there."""
    temporary = temporary_name(path.parent)
    fd = create(temporary, mode)
    try:
        _fill(fd, data, temporary)
        put_in_place(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def put_in_place(source: Path, path: Path) -> None:
    """Let the file `source`, which is durable, take the place of `path`, whole or not at all."""
    with storage("rename", path):
        os.replace(source, path)
    fsync_directory(path.parent)


def take_after(fd: int, old: os.stat_result, path: Path) -> None:
    """Give an open file of ours the mode and the times of another, as far as it is allowed."""
    with storage("set the mode of", path):
        os.fchmod(fd, stat.S_IMODE(old.st_mode))
        os.utime(fd, ns=(old.st_atime_ns, old.st_mtime_ns))
    with contextlib.suppress(OSError):  # only root may give files away
        os.fchown(fd, old.st_uid, old.st_gid)


def _fill(fd: int, data: bytes, path: Path) -> None:
    try:
        write_at(fd, data, 0, path)
        with storage("fsync", path):
            os.fsync(fd)
            check_length(fd, len(data))
    finally:
        close(fd)


def check_length(fd: int, size_bytes: int) -> None:
    """Raise `OSError` unless the open file is as long as what was written."""
    if os.fstat(fd).st_size != size_bytes:
        raise OSError(errno.EIO, "the file is not as long as what was written")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ours that had not got its real name yet."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def temporary_name(directory: Path) -> Path:
    """A name that nobody else uses, for a file that gets its real name later."""
    unique = f"{os.getpid()}-{secrets.token_hex(8)}"
    return directory / f"{TEMPORARY_PREFIX}{unique}{TEMPORARY_SUFFIX}"
