"""One archive file while it is written: `<name>.part`, locked, durable up to `size_bytes`.

    append*  ->  seal  ->  publish            (discard, when nothing was ever appended)

Every step can be called again after it raised `StorageError`: `append` cuts the file back to what
is durable before anything else, `seal` and `publish` go on where they were.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.errors import DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.archive.groups import Container, Group


class PartFile:
    """The file and what is known of it. `stem` and `revision` are what its name was made from."""

    def __init__(
        self, *, fd: int, path: Path, container: Container, stem: str, revision: int, now: float
    ) -> None:
        self.path = path
        self.container = container
        self.stem = stem
        self.revision = revision
        self.opened_at = now
        self.last_commit_at = now
        self.size_bytes = 0
        self.records = 0
        self.is_sealed = False
        self.destination: Path | None = None
        self._fd = fd
        self._identity: tuple[int, int] | None = None
        self._has_garbage = False

    @classmethod
    def create(
        cls, *, path: Path, container: Container, stem: str, revision: int, now: float
    ) -> PartFile | None:
        """Create and lock the file; None when the name is taken, or locked by another at once.

        The name is durable only after the first `append`, which also sees when recovery in
        another process took the new, empty file away between creating and locking it.
        """
        try:
            fd = durable.create(path)
        except FileExistsError:
            return None
        try:
            durable.lock(fd)
        except DataPathInUse:
            durable.close(fd)
            return None
        except BaseException:
            durable.close(fd)
            with contextlib.suppress(StorageError):
                durable.remove(path)
            raise
        return cls(fd=fd, path=path, container=container, stem=stem, revision=revision, now=now)

    def append(self, groups: Sequence[Group], now: float) -> int:
        """Write one commit; returns the bytes it took, when they and the name are durable."""
        data = self.container.encode(groups)
        if self.size_bytes == 0:
            data = self.container.file_header + data
        self._write(data)
        self.container.keep()
        self.records += sum(group.records for group in groups)
        self.last_commit_at = now
        return len(data)

    def seal(self) -> None:
        """Complete the file; nothing can be appended after this."""
        if self.is_sealed:
            return
        trailer = self.container.trailer()
        if trailer or self._has_garbage:
            self._write(trailer)
        self.is_sealed = True

    def _write(self, data: bytes | bytearray) -> None:
        if self._has_garbage:
            durable.truncate(self._fd, self.size_bytes, self.path)
            self._has_garbage = False
        try:
            durable.write_at(self._fd, data, self.size_bytes, self.path)
            durable.sync_data(self._fd, self.path)
            if self.size_bytes == 0:
                durable.fsync_directory(self.path.parent)
            self._check_place()
        except BaseException:
            self._cut_back()
            raise
        self.size_bytes += len(data)

    def _check_place(self) -> None:
        if not self._is_at_its_name():
            gone = OSError(errno.ENOENT, "the file was moved or removed while it was written")
            raise StorageError("write", self.path, gone)

    def _is_at_its_name(self) -> bool:
        if self._identity is None:
            self._identity = durable.identity(self._fd, self.path)
        return durable.is_at(self.path, self._identity)

    def _cut_back(self) -> None:
        self._has_garbage = True
        with contextlib.suppress(StorageError):
            durable.truncate(self._fd, self.size_bytes, self.path)
            self._has_garbage = False

    def is_lost(self) -> bool:
        """Whether somebody took the file away from its name, before it was published."""
        if self._is_at_its_name():
            return False
        return self.destination is None or not durable.is_taken(self.destination)

    def publish(self) -> None:
        """Move the sealed file to `destination`; raises `FileExistsError` when that is taken."""
        assert self.is_sealed, "published before it was sealed"  # noqa: S101
        assert self.destination is not None, "published before it had a name"  # noqa: S101
        durable.publish(self.path, self.destination)
        self.close()

    def discard(self) -> None:
        """Remove the file, in which nothing was committed."""
        assert self.size_bytes == 0, "discarded with commits in it"  # noqa: S101
        durable.remove(self.path)
        self.close()

    def close(self) -> None:
        """Close and unlock, leaving the file as it is."""
        if self._fd >= 0:
            durable.close(self._fd)
            self._fd = -1
