"""A module `os` that fails at call N, for `nsqtools.durable` and `nsqtools.publish`."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nsqtools import durable, publish
from nsqtools.archive.stream import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

COUNTED = {
    "open",
    "pwrite",
    "pread",
    "fdatasync",
    "fsync",
    "ftruncate",
    "fstat",
    "lstat",
    "link",
    "unlink",
    "replace",
    "mkdir",
}
# All that `durable` and `publish` call on a disk.
EVERY = COUNTED | {"listdir", "utime", "fchmod", "dup", "close", "rmdir", "chmod", "fchown", "stat"}
# What disks, network filesystems and the limits of a process answer.
FAULTS = (
    errno.EIO,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.EINTR,
    errno.ESTALE,
    errno.EROFS,
)


class FailingOs:
    """Counts calls; from call `fail_at` on, `failures` of them raise `code`.

    A write that fails has written half of its bytes, as on a full disk. `write_max` makes every
    write a short one. With `below` only calls on what is in this folder count, and fail.
    """

    def __init__(
        self,
        fail_at: int = -1,
        *,
        failures: int = 1,
        code: int = errno.ENOSPC,
        write_max: int | None = None,
        only: set[str] | None = None,
        below: Path | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.failed: list[str] = []
        self._fail_at = fail_at
        self._failures = failures
        self._code = code
        self._write_max = write_max
        self._only = only or COUNTED
        self._below = below

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of `os` in all modules that write durable files."""
        monkeypatch.setattr(durable, "os", self)
        monkeypatch.setattr(publish, "os", self)

    def install_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of `os` for whoever asks it of what is `below`, and of reading archives."""
        assert self._below is not None, "all that Python does would fail"
        for name in self._only & EVERY:
            monkeypatch.setattr(os, name, self.counting(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self.counting("open", io.open))
        self.install_reads(monkeypatch)

    def install_reads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what readers of archives read, too."""
        begin = Source.__init__

        def begin_failing(source: Source, file: Any, *args: Any, **options: Any) -> None:
            begin(source, cast("Any", FailingFile(file, self)), *args, **options)

        monkeypatch.setattr(Source, "__init__", begin_failing)

    def heal(self) -> None:
        self._failures = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.counting(name, real) if name in self._only else real

    def counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, or what it fails with."""

        def call(*args: Any, **options: Any) -> Any:
            if self._below is not None and not any(_is_in(self._below, arg) for arg in args[:2]):
                return real(*args, **options)
            self.calls.append(name)
            if len(self.calls) > self._fail_at >= 0 and self._failures > 0:
                self._failures -= 1
                self.failed.append(name)
                if name == "pwrite":
                    fd, data, offset = args
                    real(fd, bytes(data)[: len(data) // 2], offset)
                elif name == "close":  # the descriptor is gone, whatever it says
                    real(*args)
                raise OSError(self._code, os.strerror(self._code))
            if name == "pwrite" and self._write_max is not None:
                fd, data, offset = args
                return real(fd, bytes(data)[: self._write_max], offset)
            return real(*args, **options)

        return call


class FailingFile:
    """A file whose reads are among the calls of a `FailingOs`."""

    def __init__(self, file: Any, failing: FailingOs) -> None:
        self._file = file
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._file, name)
        if name not in ("read", "seek", "tell"):
            return real
        counted = self._failing.counting(name, lambda _fd, *args: real(*args))
        return lambda *args: counted(self._file.fileno(), *args)


def _is_in(folder: Path, arg: object) -> bool:
    """Whether an argument is a path in a folder, or a descriptor of one."""
    try:
        path = Path(f"/proc/self/fd/{arg}").readlink() if isinstance(arg, int) else arg
    except OSError:
        return False
    return isinstance(path, str | Path) and Path(path).is_relative_to(folder)


class FailingLocks:
    """A module `fcntl` whose locks are among the calls of a `FailingOs`."""

    def __init__(self, failing: FailingOs) -> None:
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        real = getattr(fcntl, name)
        return self._failing.counting(name, real) if name == "flock" else real


class FoldersApart:
    """Every folder is a filesystem of its own."""

    def __init__(self, below: Any) -> None:
        self._below = below

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def link(self, source: Path, destination: Path) -> None:
        if source.parent != destination.parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        self._below.link(source, destination)
