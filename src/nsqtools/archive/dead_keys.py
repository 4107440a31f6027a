"""Key files of writers that are gone: what recovery notes in them, and what the next writer takes over.

Whoever does that locks the file for a moment, and only a living writer keeps its lock: who finds it
locked looks again, because a writer that is taken for a living one has its messages written twice.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from nsqtools import durable
from nsqtools.archive.claims import CLAIM_SUFFIX, claim_folders, open_if_there
from nsqtools.archive.keys import KEY_FILE_NAME, Found, Keys, digest, encode_whole, read_newest
from nsqtools.errors import DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

# nsqd has delivered by then what a writer that ended has not acknowledged.
DEAD_KEPT_S = 7 * 86400.0
# A file that is locked as often as this, with so much time between, is not only looked at.
_LOCK_TRIES = 5
_LOCK_AGAIN_S = 0.02


class KeyFiles:
    """Which key files a work directory has, those of living writers among them.

    They are listed when the first topic asks and remembered for the others: thousands begin together.
    What is made after that is not among them before `look_again`. Any thread may ask.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir
        self._listing = threading.Lock()
        self._by_digest: dict[str, list[Path]] | None = None

    def of(self, topic: str, channel: str) -> Sequence[Path]:
        """Those of a topic and channel. Raises `StorageError` when they cannot be listed."""
        with self._listing:
            if self._by_digest is None:
                self._by_digest = self._listed()
            return self._by_digest.get(digest(topic, channel), ())

    def look_again(self) -> None:
        """List them anew when somebody asks."""
        with self._listing:
            self._by_digest = None

    def _listed(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in _all_key_files(self._work_dir):
            found.setdefault(path.name.partition("-")[0], []).append(path)
        return found


def _all_key_files(work_dir: Path) -> Iterator[Path]:
    for folder in claim_folders(work_dir):
        yield from _key_files_in(folder)


def _key_files_in(folder: Path) -> Iterator[Path]:
    for name in filter(KEY_FILE_NAME.fullmatch, durable.names_in(folder)):
        yield folder / name


def note_whole(files: Iterable[Path], unique: str, end: int) -> int:
    """Tell the key file of a writer that is gone how far a file of its is whole; gives how far whole
    commits go: one that was cut was not acknowledged, and comes again.

    `unique` names the claim of the file, `files` are the key files of its topic. Raises `StorageError`.
    """
    for path in files:
        with _taken(path) as fd:
            if fd is not None:
                end = _note_whole(fd, path, unique, end)
    return end


def is_awaited(files: Iterable[Path], unique: str) -> bool:
    """Whether the key file of a writer that is gone waits for `note_whole` of this file. Raises
    `StorageError`."""
    for path in files:
        with _taken(path) as fd:
            if fd is not None:
                half = read_newest(fd, path)
                if half is not None and half.found.pending.get(unique):
                    return True
    return False


def _note_whole(fd: int, path: Path, unique: str, end: int) -> int:
    half = read_newest(fd, path)
    if half is None:
        return end
    if (told := half.found.whole.get(unique)) is not None:
        return min(end, told)  # whoever told it died before the file was cut there
    if not (commits := half.found.pending.get(unique)):
        return end
    for _, start, commit_end, _ in commits:
        if start < end < commit_end:
            end = start
    record = encode_whole(unique, end, half.generation)
    at = half.found.end
    if at + len(record) <= half.size_bytes:
        offset = half.generation % 2 * half.size_bytes + at
        durable.write_at(fd, record, offset, path)
    return end


class Left(NamedTuple):
    """What a writer that is gone left: the keys that it has in the archive, and whether it is not known
    yet how much of a file of its is whole."""

    known: list[Keys]
    is_awaiting: bool


@contextlib.contextmanager
def taken_over(path: Path) -> Iterator[Left | None]:
    """None when the writer lives, or the file is gone. Remove the file within: it is locked. Raises
    `StorageError`, also while another process reads what the writer left, and will tell in a moment."""
    with _taken(path) as fd:
        if fd is None:
            yield None
            return
        half = read_newest(fd, path)
        found = half.found if half is not None else Found()
        waiting = [unique for unique, commits in found.pending.items() if commits]
        claims = [path.with_name(f"{unique}{CLAIM_SUFFIX}") for unique in waiting]
        if any(map(_is_in_use, claims)):
            busy = OSError(
                errno.EBUSY, "its files are being finished, by another process; tried again"
            )
            raise StorageError("take over what a killed run noted in", path, busy)
        yield Left(found.known, any(map(durable.is_taken, claims)))


def remove_old(work_dir: Path, now_s: float) -> int:
    """Remove the key files of writers that ended long ago, whose topics nobody archives any more; gives
    how many. `now_s` is in seconds since the epoch. Raises `StorageError`."""
    removed = 0
    for path in _all_key_files(work_dir):
        with _taken(path, tries=1) as fd:
            if fd is not None and now_s - durable.changed_s(fd, path) > DEAD_KEPT_S:
                durable.unlink(path)
                removed += 1
    return removed


class _InHand:
    """Which files a thread of this process has locked: another thread waits for it, and does not take
    its lock for that of a living writer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._paths: set[Path] = set()

    @contextlib.contextmanager
    def only(self, path: Path) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: path not in self._paths)
            self._paths.add(path)
        try:
            yield
        finally:
            with self._changed:
                self._paths.discard(path)
                self._changed.notify_all()

    def others(self, path: Path) -> set[Path]:
        """All but this one."""
        with self._changed:
            return self._paths - {path}


class _Living:
    """Which files were locked time after time: their writers live. All of a folder are watched at once,
    because a process beside this one has as many as it has topics. Those that are gone are forgotten."""

    def __init__(self) -> None:
        self._watching = threading.Lock()
        self._paths: set[Path] = set()

    def has(self, path: Path) -> bool:
        """Of one that is locked; takes a moment where that is new. Raises `StorageError`."""
        with self._watching:
            if path not in self._paths:
                self._look_beside(path)
            return path in self._paths

    def discard(self, path: Path) -> None:
        """Its writer is gone."""
        self._paths.discard(path)

    def _look_beside(self, path: Path) -> None:
        there = set(_key_files_in(path.parent))
        known = {one for one in self._paths if one.parent != path.parent or one in there}
        locked = there - known
        for left in reversed(range(_LOCK_TRIES)):
            locked -= _in_hand.others(path)
            locked = set(filter(_is_in_use, locked))
            if left and locked:
                time.sleep(_LOCK_AGAIN_S)
        self._paths = known | locked


def _is_in_use(path: Path) -> bool:
    """Whether it is locked by whomever."""
    with contextlib.suppress(StorageError):  # also of one that is gone
        fd = durable.open_existing(path)
        try:
            durable.lock_file(fd, path)
        except DataPathInUse:
            return True
        finally:
            durable.close(fd)
    return False


_in_hand = _InHand()
_living = _Living()


@contextlib.contextmanager
def _taken(path: Path, *, tries: int = _LOCK_TRIES) -> Iterator[int | None]:
    """The locked file; None while its writer has it."""
    with _in_hand.only(path):
        fd = open_if_there(path)
        if fd is None:
            yield None
            return
        try:
            yield fd if _is_locked(fd, path, tries) else None
        finally:
            durable.close(fd)


def _is_locked(fd: int, path: Path, tries: int) -> bool:
    for left in reversed(range(tries)):
        try:
            durable.lock_file(fd, path)
        except DataPathInUse:
            if left and _living.has(path):
                break
        else:
            _living.discard(path)
            return True
    return False
