"""What to replay: names from the command line to files, in a fixed order, before anything is opened."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from nsqtools.archive.files import (
    BESIDE,
    STDIN,
    STDIN_NAME,
    FoundFile,
    below,
    check_kind,
    find_remote,
    identity,
    open_file,
    status_of,
)
from nsqtools.archive.reader import LOOK_BYTES, open_archive
from nsqtools.errors import OptionsError, StorageError
from nsqtools.observe.log import get_log
from nsqtools.options import printable
from nsqtools.replay.interrupt import InterruptibleInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.files import Remote, Remotes
    from nsqtools.archive.reader import ArchiveReader
    from nsqtools.replay.interrupt import Interrupt

# What somebody has set aside, whoever it was.
_SET_ASIDE = ".bad"
log = get_log("replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file, on a disk (`path`) or elsewhere (`remote`), or standard input, which has neither.

    `is_found`: it was in a folder that somebody named; a link that took its name since is not followed.
    """

    path: Path | None = None
    remote: Remote | None = None
    size_bytes: int = 0
    is_found: bool = False

    @property
    def name(self) -> str:
        if self.remote is not None:
            return self.remote.name
        return STDIN_NAME if self.path is None else str(self.path)

    @property
    def is_stdin(self) -> bool:
        return self.path is None and self.remote is None

    @contextlib.contextmanager
    def opened(
        self, record_format: str | None = None, *, interrupt: Interrupt | None = None
    ) -> Iterator[ArchiveReader]:
        """Its reader, closed behind the block. Raises StorageError, StoreError, ArchiveError or
        DamagedArchive.

        A pipe or a terminal ends when `interrupt` is fired, what is `remote` when its store is closed.
        """
        with contextlib.ExitStack() as held:
            if self.remote is not None:
                found = held.enter_context(open_file(FoundFile(remote=self.remote)))
                yield open_archive(
                    found, record_format=record_format, name=self.name, look_bytes=LOOK_BYTES
                )
                return
            if self.path is None:
                file = cast("BinaryIO", sys.stdin.buffer)
            else:
                waits = interrupt is None
                file = _open(self.path, waits_for_writer=waits, is_found=self.is_found)
                held.callback(_close, file)
            if interrupt is not None and not _is_regular(file, self.name):
                file = cast("BinaryIO", InterruptibleInput(file.fileno(), interrupt))
            yield open_archive(file, record_format=record_format, name=self.name)


def _open(path: Path, *, waits_for_writer: bool, is_found: bool) -> BinaryIO:
    """A named pipe waits for its writer when it is opened, where nothing can end that, or else when it
    is polled."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    if is_found:
        flags |= os.O_NOFOLLOW
    if is_found or not waits_for_writer:
        flags |= os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
        try:
            if is_found:
                check_kind(os.fstat(fd).st_mode)
            os.set_blocking(fd, True)
            return cast("BinaryIO", os.fdopen(fd, "rb", buffering=0))
        except BaseException:
            os.close(fd)
            raise
    except OSError as cause:
        raise StorageError("open", path, cause) from cause


def _close(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # of what was only read it is no news
        file.close()


def _is_regular(file: BinaryIO, name: str) -> bool:
    return stat.S_ISREG(status_of(file, name).st_mode)


def find_inputs(names: Sequence[str], remotes: Remotes | None = None) -> list[Input]:
    """The files that the names stand for: a file, every finished file of a folder, a glob, `-`, and
    what `remotes` has.

    A file that is meant twice is read once, whatever it is called. Raises OptionsError naming every one
    that is nothing, or that may not be looked at, and StoreError.
    """
    found: dict[str, Input] = {}
    problems: list[str] = []
    for name in names:
        known = remotes if remotes is not None and remotes.has(name) else None
        try:
            sources = list(_stored(name, known) if known else _expand(name))
        except OSError as cause:
            where = printable(str(cause.filename or name))
            problems.append(f"{where}: {(cause.strerror or str(cause)).lower()}")
            continue
        for source in sources:
            found.setdefault(identity(source.name, source.path), source)
        if not sources:
            problems.append(f"{printable(name)}: {_why_nothing(name, is_remote=known is not None)}")
    if problems:
        raise OptionsError(problems)
    return list(found.values())


def _expand(name: str) -> Iterator[Input]:
    if name == STDIN:
        if sys.stdin is not None:  # it is None where the shell has closed it
            yield Input()
        return
    path = Path(name)
    if path.is_dir():
        yield from _below(path)
    elif path.exists():
        yield Input(path=path, size_bytes=path.stat().st_size)
    else:
        for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 - absolute patterns, too
            if not match.endswith(BESIDE) and Path(match).is_file():
                yield Input(path=Path(match), size_bytes=Path(match).stat().st_size)


def _stored(name: str, remotes: Remotes) -> Iterator[Input]:
    """As of a folder; a store that cannot be asked raises StoreError."""
    left_out: list[str] = []
    for found in find_remote(name, remotes, left_out):
        if found.error is not None:
            raise found.error
        if not found.is_named and not _is_finished(found):
            left_out.append(found.name)
        elif found.remote is not None:
            yield Input(remote=found.remote, size_bytes=found.remote.size_bytes)
    _tell_left_out(left_out)


def _below(folder: Path) -> Iterator[Input]:
    """Every finished file, sorted by path; a folder that cannot be read raises OSError. What is left
    out is told."""
    paths: list[Path] = []
    left_out: list[Path] = []
    for found in below(folder, left_out):
        if isinstance(found.error, StorageError):
            raise OSError(found.error.errno, os.strerror(found.error.errno or 0), found.name)
        if found.path is not None:
            (paths if _is_finished(found) else left_out).append(found.path)
    _tell_left_out(list(map(str, left_out)))
    for path in sorted(paths):
        yield Input(path=path, size_bytes=_size_of(path), is_found=True)


def _size_of(path: Path) -> int:
    """0 for what went away in this moment: opening it will tell."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _is_finished(found: FoundFile) -> bool:
    return found.is_finished and not found.name.endswith(_SET_ASIDE)


def _tell_left_out(names: Sequence[str]) -> None:
    if names:
        log.warning("left out: not finished, hidden, or links", files=len(names), first=min(names))


def _why_nothing(name: str, *, is_remote: bool) -> str:
    if name == STDIN:
        return "standard input is closed"
    if Path(name).is_dir():
        return "no finished file in this folder"
    if is_remote:
        return "no finished object has a name that begins so"
    if glob.has_magic(name):
        return "no file matches"
    return "no such file"
