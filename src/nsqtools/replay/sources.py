"""What to replay: names from the command line to files, in a fixed order, before anything is opened."""

from __future__ import annotations

import glob
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools.archive.reader import open_archive
from nsqtools.errors import OptionsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nsqtools.archive.reader import ArchiveReader

STDIN = "-"
STDIN_NAME = "standard input"
# A file that a living archiver still writes, or one that recovery has set aside.
_NOT_FINISHED = (".part", ".bad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, or standard input (`path` None)."""

    path: Path | None
    size_bytes: int = 0

    @property
    def name(self) -> str:
        return STDIN_NAME if self.path is None else str(self.path)

    def open(self, record_format: str | None) -> ArchiveReader:
        """Raises StorageError, ArchiveError or DamagedArchive."""
        if self.path is None:
            return open_archive(sys.stdin.buffer, record_format=record_format, name=STDIN_NAME)
        return open_archive(self.path, record_format=record_format)


def find_sources(names: Sequence[str]) -> list[Source]:
    """The files that the names stand for: a file, every finished file of a folder, a glob, or `-`.

    A file that is meant twice is read once. Raises OptionsError naming every one that is nothing.
    """
    found: dict[str, Source] = {}
    problems: list[str] = []
    for name in names:
        before = len(found)
        for source in _expand(name):
            found.setdefault(source.name, source)
        if len(found) == before and not any(True for _ in _expand(name)):
            problems.append(f"{name}: {_why_nothing(name)}")
    if problems:
        raise OptionsError(problems)
    return list(found.values())


def _expand(name: str) -> Iterator[Source]:
    if name == STDIN:
        yield Source(path=None)
        return
    path = Path(name)
    if path.is_dir():
        yield from _below(path)
    elif path.exists():
        yield Source(path=path, size_bytes=path.stat().st_size)
    else:
        for match in sorted(glob.glob(name, recursive=True)):  # noqa: PTH207 - absolute patterns, too
            if Path(match).is_file():
                yield Source(path=Path(match), size_bytes=Path(match).stat().st_size)


def _below(folder: Path) -> Iterator[Source]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix not in _NOT_FINISHED:
            yield Source(path=path, size_bytes=path.stat().st_size)


def _why_nothing(name: str) -> str:
    if Path(name).is_dir():
        return "no finished file in this folder"
    if glob.has_magic(name):
        return "no file matches"
    return "no such file"
