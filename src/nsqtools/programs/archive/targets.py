"""Where the commands that write put their files. Pure, but for what it asks of the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.files import PART_SUFFIX, SET_ASIDE
from nsqtools.archive.formats import COMPRESSIONS
from nsqtools.archive.rewriting import check_unchanged, place, replace
from nsqtools.errors import OptionsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.archive.files import FoundFile
    from nsqtools.programs.archive.options import ReplaceOptions, RewriteOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a new file is called beside the old one, and in its place."""

    beside: str
    in_place: str


def check_one_output(options: RewriteOptions, files: Sequence[FoundFile]) -> None:
    """Raises `OptionsError` where --output would be the name of several files."""
    if options.output is not None and len(files) != 1:
        raise OptionsError([f"--output is of one file, and {len(files)} are meant"])


def target_of(options: RewriteOptions, path: Path, name: str) -> Path:
    """The name of the new file, which is `name` where none was asked for. Raises `StorageError`."""
    if options.output is not None:
        return options.output
    if options.output_dir is None:
        return path.with_name(name)
    durable.make_directories(options.output_dir)
    return options.output_dir / name


def named(path: Path, word: str, compression: str) -> str:
    """The name of a file made of another: `a.log.zst` is `a.WORD.log.zst`."""
    name = path.name.partition(SET_ASIDE)[0].removesuffix(PART_SUFFIX)
    for each in COMPRESSIONS.values():
        if each.suffix:
            name = name.removesuffix(each.suffix)
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - of a name, not of a path
    middle = f".{word}" if word else ""
    return f"{stem}{middle}{suffix}{COMPRESSIONS[compression].suffix}"


def put(
    options: ReplaceOptions, new: Path, fd: int, old: Path, was: os.stat_result, names: Names
) -> Path:
    """Give the new file, open as `fd`, its name, and return that. Raises `StorageError`.

    Where it replaces the old one, which is what `was` looked at, and has another name, the old one goes
    last, when the new one is durable under its name.
    """
    durable.take_after(fd, was, new)
    if not options.replace:
        target = target_of(options, old, names.beside)
        place(new, target)
        return target
    if names.in_place == old.name:
        replace(new, old, was)
        return old
    target = old.with_name(names.in_place)
    check_unchanged(old, was)
    place(new, target)
    check_unchanged(old, was)
    durable.remove(old, (was.st_dev, was.st_ino))
    return target


def real_path(file: FoundFile) -> Path:
    """The file itself, where the name is a link. Raises `StorageError`."""
    assert file.path is not None, "standard input was refused"  # noqa: S101
    try:
        return file.path.resolve(strict=True)
    except OSError as error:
        raise StorageError("open", file.path, error) from error
