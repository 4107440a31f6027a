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

from nsqtools.archive.files import BESIDE, is_open_by_name
from nsqtools.archive.reader import open_archive
from nsqtools.errors import OptionsError, StorageError
from nsqtools.observe.log import get_log
from nsqtools.replay.interrupt import InterruptibleInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.reader import ArchiveReader
    from nsqtools.replay.interrupt import Interrupt

STDIN = "-"
STDIN_NAME = "standard input"
# A file that a living archiver still writes, or one that recovery has set aside.
_NOT_FINISHED = (".part", ".bad")
_ARCHIVES = (".log", ".gz", ".zst", ".jsonl")
log = get_log("replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file, or standard input (`path` None)."""

    path: Path | None
    size_bytes: int = 0

    @property
    def name(self) -> str:
        return STDIN_NAME if self.path is None else str(self.path)

    @contextlib.contextmanager
    def opened(
        self, record_format: str | None = None, *, interrupt: Interrupt | None = None
    ) -> Iterator[ArchiveReader]:
        """Its reader, closed behind the block. Raises StorageError, ArchiveError or DamagedArchive.

        A pipe or a terminal ends when `interrupt` is fired.
        """
        with contextlib.ExitStack() as held:
            file = self.path or sys.stdin.buffer
            if self.path is not None and not self.path.is_file():
                waits = interrupt is None
                file = held.enter_context(_open_stream(self.path, waits_for_writer=waits))
            if not isinstance(file, Path) and interrupt is not None and not _is_regular(file):
                file = cast("BinaryIO", InterruptibleInput(file.fileno(), interrupt))
            reader = open_archive(file, record_format=record_format, name=self.name)
            yield held.enter_context(reader)


def _open_stream(path: Path, *, waits_for_writer: bool) -> BinaryIO:
    """A named pipe waits for its writer when it is opened, where nothing can end that, or else when it
    is polled."""
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if waits_for_writer else os.O_NONBLOCK)
    try:
        fd = os.open(path, flags)
    except OSError as cause:
        raise StorageError("open", path, cause) from cause
    os.set_blocking(fd, True)
    return cast("BinaryIO", os.fdopen(fd, "rb", buffering=0))


def _is_regular(file: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def find_inputs(names: Sequence[str]) -> list[Input]:
    """The files that the names stand for: a file, every finished file of a folder, a glob, or `-`.

    A file that is meant twice is read once. Raises OptionsError naming every one that is nothing, or
    that may not be looked at.
    """
    found: dict[str, Input] = {}
    problems: list[str] = []
    for name in names:
        try:
            sources = list(_expand(name))
        except OSError as cause:
            problems.append(f"{cause.filename or name}: {(cause.strerror or str(cause)).lower()}")
            continue
        for source in sources:
            found.setdefault(source.name, source)
        if not sources:
            problems.append(f"{name}: {_why_nothing(name)}")
    if problems:
        raise OptionsError(problems)
    return list(found.values())


def _expand(name: str) -> Iterator[Input]:
    if name == STDIN:
        if sys.stdin is not None:  # it is None where the shell has closed it
            yield Input(path=None)
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


def _below(folder: Path) -> Iterator[Input]:
    """Every finished file, without manifests and watermarks; a folder that cannot be read raises OSError.

    Left out, and told: what is not finished, links, hidden folders, and hidden files that do not end
    as an archive does (a topic may begin with a dot). Where others may write, a link would have us
    publish what only we may read.
    """
    paths: list[Path] = []
    left_out: list[Path] = []
    for above, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(above, name) for name in files if not name.endswith(BESIDE)):
            is_finished = path.suffix not in _NOT_FINISHED and not is_open_by_name(path)
            hidden = path.name.startswith(".") and path.suffix not in _ARCHIVES
            is_out = hidden or not is_finished or path.is_symlink()
            (left_out if is_out else paths).append(path)
    if left_out:
        log.warning(
            "left out: not finished, hidden, or links", files=len(left_out), first=min(left_out)
        )
    for path in sorted(paths):
        if path.is_file():
            yield Input(path=path, size_bytes=path.stat().st_size)


def _raise(error: OSError) -> None:
    raise error


def _why_nothing(name: str) -> str:
    if name == STDIN:
        return "standard input is closed"
    if Path(name).is_dir():
        return "no finished file in this folder"
    if glob.has_magic(name):
        return "no file matches"
    return "no such file"
