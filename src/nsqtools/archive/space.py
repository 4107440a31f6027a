"""Room that is to stay free on the disks of an archive: below it nothing more is written.

A disk that is full to the last byte harms more than the archive. Looked at once a second at most while
there is room, and again at each try while there is none. A folder that cannot be asked is left to those
who write there: they say what is wrong with it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nsqtools.clock import Clock
    from nsqtools.options.system import Space

LOOK_INTERVAL_S = 1.0


class FreeSpace:
    """See the module. Blocking, for one thread."""

    def __init__(self, folders: Iterable[Path], wanted: Space, clock: Clock | None = None) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._wanted = wanted
        self._clock = clock or SystemClock()
        self._looked_s = -LOOK_INTERVAL_S

    def wrote(self, size_bytes: int) -> None:
        """The disk itself is asked."""

    def check(self) -> None:
        """Raise `StorageError` (ENOSPC) where less is free than is wanted."""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s < LOOK_INTERVAL_S:
            return
        for folder in self._folders:
            try:
                found = os.statvfs(folder)
            except OSError:
                continue
            free_bytes = found.f_bavail * found.f_frsize
            whole_bytes = found.f_blocks * found.f_frsize
            if free_bytes < max(self._wanted.size_bytes, self._wanted.part * whole_bytes):
                reason = (
                    f"{free_bytes >> 20} MiB of the disk are free, and {self._wanted} must stay so"
                )
                raise StorageError("write to", folder, OSError(errno.ENOSPC, reason))
        self._looked_s = now_s
