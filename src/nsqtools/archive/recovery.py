"""What happens at every start: files of writers that are gone are completed and published.

For each `.part` file that nobody locks: cut it to its last whole commit, seal it, publish it. The
scan reads the whole file once, in pieces, and changes nothing; every change after it can be cut
by another crash and made again.

Running out of bytes is what a crash looks like, and is cut off. Any other fault is damage: then
the file is kept whole as `.part.bad`, and what is sound before the fault is published.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.header import MAGIC
from nsqtools.archive.naming import PART_SUFFIX, REVISIONS_MAX, bump, path_of
from nsqtools.archive.survey import Survey, survey
from nsqtools.archive.writer import DIRECTORY_MODE
from nsqtools.errors import ArchiveError, DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.archive.naming import FileNaming

BAD_SUFFIX = ".bad"
# Our header begins within the first bytes of a file, behind those of its compression.
_START_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of one `.part` file; times in ns since the epoch where the file tells them.

    `published` is None when nothing in it was whole, or when it was left alone; `reason` says.
    """

    path: Path
    published: Path | None
    records: int
    cut_bytes: int
    reason: str
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None


def recover(
    work_dir: Path, output_dir: Path, *, naming: FileNaming | None = None
) -> list[Recovered]:
    """Recover every `.part` file below `work_dir` that no living writer holds.

    With `naming`, a file whose name it cannot have given, and which has no header of ours, is
    left alone and reported: the folder may be shared. Raises `StorageError` when the operating
    system refuses; then the rest is untouched, and calling again goes on.
    """
    results: list[Recovered] = []
    now = time.time()
    durable.remove_leftovers(output_dir, now=now)
    if work_dir != output_dir:
        durable.remove_leftovers(work_dir, now=now)
    depth_max = None if naming is None else naming.filename_format.count("/")
    for path in _part_files(work_dir, depth_max):
        name = path.relative_to(work_dir).as_posix().removesuffix(PART_SUFFIX)
        try:
            fd = durable.open_existing(path)
        except StorageError:
            if not durable.is_taken(path):
                continue  # its writer finished it in this moment
            raise
        try:
            result = _recover_locked(path, name, fd, output_dir, naming)
        finally:
            durable.close(fd)
        if result is not None:
            results.append(result)
    return results


def _part_files(work_dir: Path, depth_max: int | None) -> Iterator[Path]:
    """Regular files only, found without following links, in order of their names.

    `depth_max` is how many folders deep to look. The work folder may be shared (by default it is
    /tmp): what others keep to themselves there holds no file of ours.
    """

    def refuse(error: OSError) -> None:
        others = isinstance(error, PermissionError) and str(error.filename) != str(work_dir)
        if not others and not isinstance(error, FileNotFoundError):
            raise StorageError("list", work_dir, error) from error

    for folder, subfolders, names in os.walk(work_dir, onerror=refuse):
        depth = len(Path(folder).relative_to(work_dir).parts)
        if depth_max is not None and depth >= depth_max:
            subfolders.clear()
        subfolders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(PART_SUFFIX) and name != PART_SUFFIX and _is_regular(path):
                yield path


def _may_be_ours(fd: int, path: Path, name: str, naming: FileNaming) -> bool:
    """Whether its name is one that we give, or it begins as our files do; it is not read whole."""
    if naming.matcher().fullmatch(name):
        return True
    with durable.storage("read", path):
        return MAGIC in os.pread(fd, _START_BYTES, 0)


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError("stat", path, error) from error


def _recover_locked(
    path: Path, name: str, fd: int, output_dir: Path, naming: FileNaming | None
) -> Recovered | None:
    try:
        durable.lock(fd)
    except DataPathInUse:
        return None
    if not durable.is_at(path, durable.identity(fd, path)):
        return None
    if naming is not None and not _may_be_ours(fd, path, name, naming):
        found = Survey()
        return _result(path, None, found, cut_bytes=0, reason="left alone: not a name of ours")
    found = survey(fd, path)
    destination = path_of(output_dir, name)
    # Its own name and those of `_keep_as_bad` are no publications.
    if link := durable.find_link(destination.parent, fd, besides=path.name):
        durable.publish(path, link)
        return _result(path, link, found, cut_bytes=0, reason="finished a move that was cut")
    if found.damage is not None and not found.damage.torn:
        return _set_aside(path, name, fd, output_dir, found)
    if found.records == 0:
        durable.remove(path)
        reason = "removed: nothing whole in it"
        return _result(path, None, found, cut_bytes=found.size_bytes, reason=reason)
    _complete(fd, path, found)
    cut_bytes = max(found.size_bytes - found.end, 0)
    published = _publish(path, name, output_dir)
    reason = f"cut: {found.damage.reason}" if found.damage else "published as it was"
    return _result(path, published, found, cut_bytes=cut_bytes, reason=reason)


def _complete(fd: int, path: Path, found: Survey) -> None:
    if found.end < found.size_bytes:
        durable.truncate(fd, found.end, path)
    if found.trailer:
        durable.write_at(fd, found.trailer, found.end, path)
    # Even an unchanged file may hold a commit that was written and not yet synced.
    durable.sync_data(fd, path)


def _set_aside(path: Path, name: str, fd: int, output_dir: Path, found: Survey) -> Recovered:
    """Keep the damaged file as `.bad`, and publish what is sound in front of the damage."""
    assert found.damage is not None, "nothing to set aside"  # noqa: S101
    bad = _keep_as_bad(path)
    reason = f"kept as {bad.name}: {found.damage.reason} at byte {found.damage.offset}"
    cut_bytes = found.size_bytes - found.end
    if found.records == 0:
        durable.remove(path)
        return _result(path, None, found, cut_bytes=found.size_bytes, reason=reason)
    replacement = durable.replace_by_prefix(path, fd, found.end, found.trailer)
    try:
        published = _publish(path, name, output_dir)
    finally:
        durable.close(replacement)
    return _result(path, published, found, cut_bytes=cut_bytes, reason=reason)


def _keep_as_bad(path: Path) -> Path:
    for number in range(REVISIONS_MAX):
        suffix = BAD_SUFFIX if number == 0 else f"{BAD_SUFFIX}.{number}"
        bad = path.with_name(path.name + suffix)
        try:
            durable.keep_as(path, bad)
        except FileExistsError:
            continue
        return bad
    raise ArchiveError(f"more than {REVISIONS_MAX} files named {path.name}{BAD_SUFFIX}")


def _publish(path: Path, name: str, output_dir: Path) -> Path:
    # One by one: a copy that a cut move left may be under any of the names that are taken.
    for count in range(REVISIONS_MAX):
        destination = path_of(output_dir, bump(name, count))
        durable.make_directories(destination.parent, DIRECTORY_MODE)
        try:
            durable.publish(path, destination)
        except FileExistsError:
            continue
        return destination
    raise ArchiveError(f"more than {REVISIONS_MAX} files named {name}")


def _result(
    path: Path, published: Path | None, found: Survey, *, cut_bytes: int, reason: str
) -> Recovered:
    return Recovered(
        path=path,
        published=published,
        records=found.records,
        cut_bytes=cut_bytes,
        reason=reason,
        first_ts_ns=found.first_ts_ns,
        last_ts_ns=found.last_ts_ns,
    )
