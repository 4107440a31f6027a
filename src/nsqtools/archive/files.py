"""From names on a command line to archive files: a file, a folder, a glob, or `-` for standard input;
and, where somebody knows such names, what is not on a disk of this machine (`Remotes`).

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
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from nsqtools.errors import OptionsError, StorageError, StoreError
from nsqtools.options.shown import printable

if TYPE_CHECKING:
    import io
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
_ARCHIVE_SUFFIXES = (".log", ".gz", ".zst", ".jsonl", ".nsq")


class Remote(Protocol):
    """A finished file elsewhere, that can be read in part. Its name may hold anything, and is no path."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def open(self) -> io.RawIOBase:
        """It, seekable. This or reading raises `StoreError`, and `FileNotFoundError` when it is gone."""

    def read_beside(self, suffix: str, most_bytes: int) -> bytes | None:
        """The start of what has its name and this suffix, if anything has. Raises `StoreError`."""

    def sha256(self) -> str:
        """What its writer said of it, in hexadecimal; "" where nobody did. Raises as `open` does."""


class Remotes(Protocol):
    """Where names lead that are no paths."""

    def has(self, name: str) -> bool:
        """Whether a name is one of these."""

    def at(self, name: str) -> Remote:
        """What has exactly this name; it need not be there."""

    def find(self, name: str) -> Sequence[Remote]:
        """What has exactly this name, or all that begins with it, in order; there may be nothing.

        Raises `StoreError`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file, on a disk (`path`) or elsewhere (`remote`), or standard input, which has neither. With an
    `error` only its name is known.

    `is_named`: it is what somebody named, and was not found in a folder, by a glob or by a prefix.
    """

    path: Path | None = None
    remote: Remote | None = None
    is_named: bool = False
    is_below: bool = False
    """It was found in a folder: a link that took its name since is not followed."""
    error: StorageError | StoreError | None = None

    @property
    def name(self) -> str:
        if self.remote is not None:
            return self.remote.name
        return STDIN_NAME if self.path is None else str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether its name is that of a finished file, and of no other (`--live-name`)."""
        return not is_unfinished(self.name) and SET_ASIDE not in self.name


@contextlib.contextmanager
def open_file(file: FoundFile, *, may_be_pipe: bool = False) -> Iterator[BinaryIO]:
    """What was found, without a buffer and closed behind the block.

    Raises `StorageError`, also for what is no regular file, unless it `may_be_pipe`, and `StoreError`.
    """
    if file.remote is not None:
        with _open_remote(file.remote) as remote:
            yield cast("BinaryIO", remote)
    elif file.path is not None:
        local = _open_path(file.path, may_be_pipe=may_be_pipe, follows=not file.is_below)
        try:
            yield cast("BinaryIO", local)
        finally:
            with contextlib.suppress(OSError):  # of what was only read it is no news
                local.close()
    else:
        # Not Python's buffered one, whose lock a thread that waits for a terminal would hold.
        with open(0, "rb", buffering=0, closefd=False) as given:
            yield cast("BinaryIO", given)


def _open_remote(remote: Remote) -> io.RawIOBase:
    try:
        return remote.open()
    except OSError as error:
        raise StorageError("open", remote.name, error) from error


def _open_path(path: Path, *, may_be_pipe: bool, follows: bool) -> io.FileIO:
    try:
        # A pipe that took the file's name a moment ago must not make us wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | (0 if may_be_pipe else os.O_NONBLOCK)
        flags |= 0 if follows else os.O_NOFOLLOW
        fd = os.open(path, flags)
        try:
            check_kind(os.fstat(fd).st_mode, may_be_pipe=may_be_pipe)
            return os.fdopen(fd, "rb", buffering=0)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise StorageError("open", path, error) from error


def check_kind(mode: int, *, may_be_pipe: bool = False) -> None:
    """Raise `OSError` for what is no regular file, nor a pipe where one may be."""
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "a folder")
    if not may_be_pipe and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file")


def find_files(
    names: Sequence[str], remotes: Remotes | None = None, links: list[Path] | None = None
) -> list[FoundFile]:
    """The files that the names stand for, each once, a folder's sorted by name. The links in folders,
    which are not followed, are added to `links`.

    Raises `OptionsError` naming every name that is nothing.
    """
    found: dict[str, FoundFile] = {}
    problems: list[str] = []
    for name in names:
        try:
            if remotes is not None and remotes.has(name):
                files = find_remote(name, remotes)
            else:
                files = list(_expand(name, links))
        except FileNotFoundError as nothing:
            problems.append(f"{printable(name)}: {nothing.strerror}")
            continue
        for file in files:
            found.setdefault(identity(file.name, file.path), file)
    if problems:
        raise OptionsError(problems)
    return list(found.values())


def identity(name: str, path: Path | None) -> str:
    """What is the same for a file however it is called: `./a`, its whole path, a link to it."""
    if path is None:
        return name
    real = os.path.realpath(path)
    return real if os.path.lexists(real) else name  # an open file that was removed has no path


def find_remote(name: str, remotes: Remotes, left_out: list[str] | None = None) -> list[FoundFile]:
    """What a name that `remotes` has stands for: one that is named as it is, or those that begin so and
    may be archives, by the rules of a folder; what those leave out is added to `left_out`.

    Raises `FileNotFoundError` where there are none.
    """
    one = remotes.at(name)
    try:
        found = remotes.find(name)
    except StoreError as error:
        return [FoundFile(remote=one, is_named=True, error=error)]
    if [remote.name for remote in found] == [one.name]:
        return [FoundFile(remote=found[0], is_named=True)]
    archives = []
    for remote in found:
        if remote.name.endswith((*BESIDE, "/")):
            continue
        if _may_be_archive(remote.name.rpartition("/")[2]):
            archives.append(FoundFile(remote=remote))
        elif left_out is not None:
            left_out.append(remote.name)
    if not archives:
        raise FileNotFoundError(2, "no object has this name, or is an archive that begins so")
    return archives


def _expand(name: str, links: list[Path] | None) -> Iterator[FoundFile]:
    if name == STDIN:
        yield FoundFile(is_named=True)
        return
    path = Path(name)
    try:
        is_folder = path.is_dir()
        is_there = is_folder or os.path.lexists(path)
    except OSError as error:
        yield _unseen(path, error, is_named=True)
        return
    if is_folder:
        left_out: list[Path] = []
        yield from below(path, left_out)
        if links is not None:
            links += filter(_is_link, left_out)
    elif is_there:
        yield FoundFile(path=path, is_named=True)
    else:
        matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - absolute patterns, too
        if not matches:
            raise FileNotFoundError(
                2, "no file matches" if glob.has_magic(name) else "no such file"
            )
        for match in matches:
            if not match.endswith(BESIDE):
                yield from _if_file(Path(match))


def _if_file(path: Path, *, is_below: bool = False) -> Iterator[FoundFile]:
    try:
        if path.is_file():
            yield FoundFile(path=path, is_below=is_below)
    except OSError as error:
        yield _unseen(path, error)


def _unseen(path: Path, error: OSError, *, is_named: bool = False) -> FoundFile:
    """What cannot be looked at."""
    return FoundFile(path=path, is_named=is_named, error=StorageError("look at", path, error))


def below(folder: Path, left_out: list[Path] | None = None) -> Iterator[FoundFile]:
    """The files in a folder and in those in it; what is left out, and is not beside an archive, is added
    to `left_out`. A folder that cannot be read is an `error`."""
    failed: list[FoundFile] = []

    def fail(error: OSError) -> None:
        path = Path(str(error.filename or folder))
        cause = StorageError("list", path, error)
        failed.append(FoundFile(path=path, error=cause))

    for above, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from failed
        failed.clear()
        if left_out is not None:
            left_out += (path for name in folders if _is_link(path := Path(above, name)))
        for name in sorted(name for name in files if not name.endswith(BESIDE)):
            path = Path(above, name)
            # A link may lead to what somebody else must not show by our hand.
            if not _may_be_archive(name) or _is_link(path) or is_open_by_name(path):
                if left_out is not None:
                    left_out.append(path)
            else:
                yield from _if_file(path, is_below=True)
    yield from failed


def _is_link(path: Path) -> bool:
    """False where it cannot be looked at: that is told by whoever looks next."""
    with contextlib.suppress(OSError):
        return path.is_symlink()
    return False


def status_of(opened: BinaryIO, name: Path | str) -> os.stat_result:
    """What the system says of an open file. Raises `StorageError`."""
    try:
        return os.fstat(opened.fileno())
    except OSError as error:
        raise StorageError("stat", name, error) from error


def is_unfinished(name: str) -> bool:
    """Whether one of its names is that of a file that its writer has not finished."""
    return name.endswith(PART_SUFFIX) or is_open_by_name(Path(name))


def is_open_by_name(path: Path) -> bool:
    """Whether it is the second name of a file that is still written (`--live-name`)."""
    try:
        return path.with_name(path.name + PART_SUFFIX).samefile(path)
    except (OSError, ValueError):  # ValueError: what an object can be called, and no file
        return False


def _may_be_archive(name: str) -> bool:
    from nsqtools.durable import is_temporary  # which a named file need not wait for

    if is_temporary(name):
        return False
    plain = name.removesuffix(PART_SUFFIX)
    return not name.startswith(".") or plain.endswith(_ARCHIVE_SUFFIXES)
