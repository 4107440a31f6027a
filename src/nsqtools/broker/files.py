"""Files of the broker that grow at their end, and how many of them are open.

Theory of operation. A descriptor has one owner. The loop opens a file when it has something to append,
and from then on only the syncing thread closes it, in the order in which things were handed to that
thread: what it is about to sync is never closed under its hands, and no number outlives its file.

The system tells only once that it could not write back: the next fsync of the same file succeeds
although pages are lost. So a file whose sync failed is doubtful for good; nothing is appended to it or
synced in it any more, and whoever owns it writes it anew (`broker/log.py`, `broker/journal.py`).
"""

# Every call goes through the module `os`, which tests replace by one that fails at call N.
# ruff: noqa: PTH108

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

from nsqtools.durable import close, storage
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
# A buffer of writev's is no longer than this list.
_PARTS_MAX = 1024


class OpenFiles:
    """At most so many files are open; the one that was used longest ago makes room.

    `defer` runs a function in the syncing thread, in order.
    """

    def __init__(self, open_max: int, defer: Callable[[Callable[[], None]], object]) -> None:
        self._open_max = max(1, open_max)
        self._defer = defer
        self._open: OrderedDict[AppendFile, None] = OrderedDict()
        # How many were handed to the syncing thread, and how many it has closed.
        self._left = self._closed = 0

    @property
    def open_max(self) -> int:
        """How many are to be open at most."""
        return self._open_max

    @property
    def leaving_count(self) -> int:
        """How many wait for the syncing thread to close them."""
        return self._left - self._closed

    @property
    def are_too_many(self) -> bool:
        """Whether to wait for the syncing thread before another is opened."""
        return self.leaving_count >= self._open_max

    def __len__(self) -> int:
        return len(self._open)

    def used(self, file: AppendFile) -> None:
        """It is open and was used now."""
        self._open[file] = None
        self._open.move_to_end(file)
        while len(self._open) > self._open_max:
            next(iter(self._open)).let_go()

    def closing(self, file: AppendFile, close: Callable[[], None]) -> None:
        """It is used no more; `close` is for the syncing thread."""
        self._open.pop(file, None)
        self._left += 1
        self._defer(lambda: self._close(close))

    def _close(self, close: Callable[[], None]) -> None:
        try:
            close()
        finally:
            self._closed += 1


class AppendFile:
    """One file. `append` and `let_go` are the loop's, `sync` is the syncing thread's.

    `size_bytes` is what was appended, `synced_bytes` what of it is known to be on the disk.
    """

    __slots__ = (
        "_fd",
        "_files",
        "_is_cut",
        "_leaving",
        "doubtful",
        "path",
        "size_bytes",
        "synced_bytes",
    )

    def __init__(self, path: Path, files: OpenFiles, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.synced_bytes = 0
        self.doubtful = False
        self._files = files
        self._fd = -1
        self._leaving: list[int] = []
        # Whether nothing stands behind `size_bytes`.
        self._is_cut = True

    @classmethod
    def create(cls, path: Path, files: OpenFiles, data: bytes) -> AppendFile:
        """A new file with this content, neither it nor its name durable yet.

        Raises StorageError, and then there is none; also where something has the name.
        """
        file = cls(path, files, 0)
        with storage("create", path):
            file._fd = os.open(path, _APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        files.used(file)
        try:
            file.append([data])
        except StorageError:
            file.let_go()
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return file

    @property
    def is_synced(self) -> bool:
        return self.synced_bytes == self.size_bytes and not self.doubtful

    def append(self, parts: Sequence[bytes]) -> None:
        """Write all of it, or raise StorageError and be as before."""
        try:
            self._append(parts)
        except OSError as cause:
            raise StorageError("write", self.path, cause) from cause

    def _append(self, parts: Sequence[bytes]) -> None:
        if self.doubtful:
            raise OSError(errno.EIO, "an earlier fsync of this file has failed")
        if self._fd < 0:
            self._fd = os.open(self.path, _APPEND)
        self._files.used(self)
        if not self._is_cut:
            os.ftruncate(self._fd, self.size_bytes)
            self._is_cut = True
        try:
            self.size_bytes += _write_all(self._fd, parts)
        except OSError:
            self._cut()
            raise

    def sync(self) -> None:
        """Bring to the disk what was appended before the call. Raises StorageError; where it was the
        sync itself that failed, the file is doubtful from then on."""
        wanted = self.size_bytes
        if self.doubtful:
            raise StorageError(
                "fsync", self.path, OSError(errno.EIO, "an earlier fsync of this file has failed")
            )
        if self.synced_bytes < wanted:
            fd = self._fd
            open_ones = [one for one in (*self._leaving, fd) if one >= 0]
            for one in open_ones:
                self._sync(one)
            if not open_ones:
                self._sync_closed()
            self.synced_bytes = max(self.synced_bytes, wanted)

    def let_go(self) -> None:
        """Have it synced and closed by the syncing thread; `append` opens it again."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._leaving.append(fd)
        self._files.closing(self, lambda: self._close(fd))

    def discard(self) -> None:
        """Nothing of it matters any more: have it closed, without a sync."""
        self.synced_bytes = self.size_bytes
        self.let_go()

    def _close(self, fd: int) -> None:
        wanted = self.size_bytes
        try:
            if self.synced_bytes < wanted and not self.doubtful:
                self._sync(fd)
                if self._fd < 0:
                    self.synced_bytes = max(self.synced_bytes, wanted)
        finally:
            self._leaving.remove(fd)
            close(fd)

    def _sync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as cause:
            self.doubtful = True
            raise StorageError("fsync", self.path, cause) from cause

    def _sync_closed(self) -> None:
        with storage("open", self.path):
            fd = os.open(self.path, _APPEND)
        try:
            self._sync(fd)
        finally:
            close(fd)

    def _cut(self) -> None:
        """Take back half a write; where even that fails, it is done before the next one."""
        try:
            os.ftruncate(self._fd, self.size_bytes)
        except OSError:
            self._is_cut = False


def _write_all(fd: int, parts: Sequence[bytes]) -> int:
    """Write everything; a short write is gone on with, so that its reason comes out."""
    total = sum(map(len, parts))
    written = os.writev(fd, parts) if len(parts) <= _PARTS_MAX else 0
    if written < total:
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            count = os.write(fd, rest)
            if count == 0:
                raise OSError(errno.EIO, "the disk took no bytes")
            rest = rest[count:]
    return total
