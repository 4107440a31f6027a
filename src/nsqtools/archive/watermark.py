"""Up to which time a writer's archive is complete: a small file that a job can wait for.

    <output dir>/<topic>.<channel>.<host>.watermark.json

Whatever this writer acknowledged before `until` is in published files, and no file of an earlier name
will come from it. It says nothing of other writers, nor of messages that still wait in nsqd. It never
goes back.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.files import WATERMARK_SUFFIX
from nsqtools.archive.naming import path_of
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.archive.writer import ArchiveSpec
    from nsqtools.clock import Clock

VERSION = 1
# A file is named a moment before it is created.
MARGIN_S = 2
_BYTES_MAX = 4096


class Watermark:
    """See the module. Blocking, for the thread that commits: no file is opened meanwhile.

    `period_of` gives `<DATETIME>` for a time. Raises `ArchiveError` for names that cannot be one.
    """

    def __init__(self, spec: ArchiveSpec, period_of: Callable[[float], str], clock: Clock) -> None:
        name = f"{spec.topic}.{spec.channel}.{spec.host}{WATERMARK_SUFFIX}"
        if "/" in name:
            raise ArchiveError(f"{name!r} is no name for a watermark")
        self.path = path_of(spec.output_dir, name)
        self._says = {"topic": spec.topic, "channel": spec.channel, "host": spec.host}
        self._period_of = period_of
        self._clock = clock
        self._until: int | None = None

    def advance(self, oldest_unfinished_s: float | None) -> None:
        """Say how far the archive is complete; durable on return. `oldest_unfinished_s` is when the
        oldest file was created that is not published. Raises `StorageError`."""
        now_s = self._clock.time()
        oldest_s = now_s if oldest_unfinished_s is None else min(now_s, oldest_unfinished_s)
        until = math.floor(oldest_s) - MARGIN_S
        if self._until is None:
            self._until = self._before()
        if until <= self._until:
            return
        said = {
            "watermark": VERSION,
            **self._says,
            "until": until,
            "period": self._period_of(until),
        }
        data = json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"
        self._write(data)
        self._until = until

    def _write(self, data: bytes) -> None:
        """By way of always the same other name, so that kills leave no more than one file behind."""
        name = f"{durable.TEMPORARY_PREFIX}{self.path.name}{durable.TEMPORARY_SUFFIX}"
        temporary = self.path.with_name(name)
        durable.write_anew(temporary, data)
        durable.put_in_place(temporary, self.path)

    def _before(self) -> int:
        """What an earlier run has said."""
        try:
            said = json.loads(durable.read_small(self.path, _BYTES_MAX))
        except (FileNotFoundError, ValueError, RecursionError):
            return 0
        until = said.get("until") if isinstance(said, dict) else None
        return until if isinstance(until, int) else 0
