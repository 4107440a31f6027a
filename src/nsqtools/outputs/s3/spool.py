"""The spool: a folder of archive files that are durable, acknowledged, and not yet in the store.

It is bounded: beyond `--max-spool-bytes` nothing more is written and nothing acknowledged, so that nsqd
keeps the messages. Its size is that of all files in it, whoever wrote them, without those that recovery
has set aside: no upload ever makes room of these. It is looked at now and then, and what is written
meanwhile is added.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.archive.claims import claim_folders
from nsqtools.archive.files import PART_SUFFIX, SET_ASIDE
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.clock import Clock

LOOK_INTERVAL_S = 2.0
# A look at a large spool takes long; this is how many times as long it is left alone.
_LOOK_SHARE = 50
_SET_ASIDE = re.compile(re.escape(SET_ASIDE) + r"(\.\d+)?$", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What is in a spool: files of messages, all bytes, and when the oldest file was written last, in
    seconds since the epoch (None without one). Damaged files that were set aside are counted apart."""

    files: int = 0
    size_bytes: int = 0
    oldest_s: float | None = None
    set_aside: int = 0
    set_aside_bytes: int = 0


class Spool:
    """See the module. Thread-safe; `check`, `look` and `state` block for as long as the folder takes."""

    def __init__(self, folder: Path, max_bytes: int, *, clock: Clock | None = None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        # All under the lock.
        self._state = SpoolState()
        self._written_bytes = 0
        self._look_at = float("-inf")

    def check(self) -> None:
        """Raise `StorageError` (ENOSPC) when the spool is full."""
        state = self.state()
        used_bytes = state.size_bytes + self._written_bytes
        if used_bytes >= self._max_bytes:
            reason = (
                f"the spool is full: {mebibytes(used_bytes)} wait for upload, and --max-spool-bytes is"
                f" {mebibytes(self._max_bytes)}"
            )
            raise StorageError("write to", self._folder, OSError(errno.ENOSPC, reason))

    def wrote(self, size_bytes: int) -> None:
        """So much was written since the last look."""
        with self._lock:
            self._written_bytes += size_bytes

    def state(self) -> SpoolState:
        """What is in it, as it was a moment ago."""
        with self._lock:
            began = self._clock.monotonic()
            if began >= self._look_at:
                self._written_bytes = 0
                self._state = look(self._folder)
                ended = self._clock.monotonic()
                self._look_at = ended + max(LOOK_INTERVAL_S, _LOOK_SHARE * (ended - began))
            return self._state


def look(folder: Path) -> SpoolState:
    """What is in a spool now. What cannot be looked at is left out."""
    files = size_bytes = set_aside = set_aside_bytes = 0
    oldest_s: float | None = None
    for entry in _entries(folder):
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            if is_set_aside(entry.name):
                set_aside += 1
                set_aside_bytes += found.st_size
                continue
            size_bytes += found.st_size
            if entry.name.endswith(PART_SUFFIX) and found.st_size:
                files += 1
                oldest_s = min(found.st_mtime, oldest_s or found.st_mtime)
    return SpoolState(
        files=files,
        size_bytes=size_bytes,
        oldest_s=oldest_s,
        set_aside=set_aside,
        set_aside_bytes=set_aside_bytes,
    )


def set_aside_in(folder: Path) -> list[Path]:
    """The damaged files that recovery has set aside, by name."""
    return sorted(folder / entry.name for entry in _entries(folder) if is_set_aside(entry.name))


def is_set_aside(name: str) -> bool:
    """Whether recovery has set aside what has this name."""
    return _SET_ASIDE.search(name) is not None


def mebibytes(size_bytes: int) -> str:
    """A size for a person."""
    return f"{size_bytes / (1 << 20):,.1f} MiB"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    for each in (folder, *claim_folders(folder)):
        with contextlib.suppress(OSError), os.scandir(each) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
