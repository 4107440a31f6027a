"""From names on a command line to archive files: a file, a folder, a glob, or `-` for standard input.

What cannot be read is told in its turn and ends nothing. In folders are left out: hidden folders, where
claims are; manifests and watermarks; files that a writer makes on the way; links; hidden files that do
not end as an archive does (a topic may begin with a dot); and whatever is no file.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from nsqtools.errors import OptionsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PART_SUFFIX = ".part"
MANIFEST_SUFFIX = ".manifest.json"
WATERMARK_SUFFIX = ".watermark.json"
# What stands beside archives and is none.
BESIDE = (MANIFEST_SUFFIX, WATERMARK_SUFFIX)
STDIN = "-"
STDIN_NAME = "standard input"
# What recovery has set aside: `.part.bad`, `.part.bad.1` and so on.
SET_ASIDE = f"{PART_SUFFIX}.bad"
_ARCHIVE_SUFFIXES = (".log", ".gz", ".zst", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file, or standard input (`path` None); of an `error` only its name is known.

    `is_named`: it is what somebody named, and was not found in a folder or by a glob.
    """

    path: Path | None
    is_named: bool = False
    error: StorageError | None = None

    @property
    def name(self) -> str:
        return STDIN_NAME if self.path is None else str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether its name is that of a finished file, and of no other (`--live-name`)."""
        return not is_unfinished(self.name) and SET_ASIDE not in self.name


@contextlib.contextmanager
def open_file(path: Path | None, *, may_be_pipe: bool = False) -> Iterator[BinaryIO]:
    """A file, or standard input for None, without a buffer and closed behind the block.

    Raises `StorageError`, also for what is no regular file, unless it `may_be_pipe`.
    """
    if path is None:
        # Not Python's buffered one, whose lock a thread that waits for a terminal would hold.
        with open(0, "rb", buffering=0, closefd=False) as given:
            yield cast("BinaryIO", given)
        return
    try:
        # A pipe that took the file's name a moment ago must not make us wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | (0 if may_be_pipe else os.O_NONBLOCK)
        fd = os.open(path, flags)
        try:
            _check_kind(os.fstat(fd).st_mode, may_be_pipe=may_be_pipe)
            file = os.fdopen(fd, "rb", buffering=0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise StorageError("open", path, error) from error
    with file:
        yield cast("BinaryIO", file)


def _check_kind(mode: int, *, may_be_pipe: bool) -> None:
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "a folder")
    if not may_be_pipe and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")


def find_files(names: Sequence[str]) -> list[FoundFile]:
    """The files that the names stand for, each once, a folder's sorted by name.

    Raises `OptionsError` naming every name that is nothing.
    """
    found: dict[str, FoundFile] = {}
    problems: list[str] = []
    for name in names:
        try:
            files = list(_expand(name))
        except FileNotFoundError as nothing:
            problems.append(f"{name}: {nothing.strerror}")
            continue
        for file in files:
            found.setdefault(file.name, file)
    if problems:
        raise OptionsError(problems)
    return list(found.values())


def _expand(name: str) -> Iterator[FoundFile]:
    if name == STDIN:
        yield FoundFile(path=None, is_named=True)
        return
    path = Path(name)
    if path.is_dir():
        yield from _below(path)
    elif os.path.lexists(path):
        yield FoundFile(path=path, is_named=True)
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - absolute patterns, too
        if not matches:
            raise FileNotFoundError(
                2, "no file matches" if glob.has_magic(name) else "no such file"
            )
        for match in matches:
            if not match.endswith(BESIDE) and Path(match).is_file():
                yield FoundFile(path=Path(match))


def _below(folder: Path) -> Iterator[FoundFile]:
    failed: list[FoundFile] = []

    def fail(error: OSError) -> None:
        path = Path(str(error.filename or folder))
        cause = StorageError("list", path, error)
        failed.append(FoundFile(path=path, error=cause))

    for above, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from failed
        failed.clear()
        for name in sorted(filter(_may_be_archive, files)):
            path = Path(above, name)
            # A link may lead to what somebody else must not show by our hand.
            if path.is_file() and not path.is_symlink() and not is_open_by_name(path):
                yield FoundFile(path=path)
    yield from failed


def is_unfinished(name: str) -> bool:
    """Whether one of its names is that of a file that its writer has not finished."""
    return name.endswith(PART_SUFFIX) or is_open_by_name(Path(name))


def is_open_by_name(path: Path) -> bool:
    """Whether it is the second name of a file that is still written (`--live-name`)."""
    try:
        return path.with_name(path.name + PART_SUFFIX).samefile(path)
    except OSError:
        return False


def _may_be_archive(name: str) -> bool:
    from nsqtools.durable import is_temporary  # which a named file need not wait for

    if is_temporary(name) or name.endswith(BESIDE):
        return False
    plain = name.removesuffix(PART_SUFFIX)
    return not name.startswith(".") or plain.endswith(_ARCHIVE_SUFFIXES)
