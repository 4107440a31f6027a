"""Up to which time a writer's archive is complete: a small file that a job can wait for.

    <output dir>/<topic>.<channel>.<host>.watermark.json

Whatever this writer acknowledged before `until` is in published files, and no file of an earlier name
will come from it. It says nothing of other writers, nor of messages that still wait in nsqd. It never
goes back.
"""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING

from nsqtools.archive.files import WATERMARK_SUFFIX
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.archive.destination import Destination
    from nsqtools.archive.writer import ArchiveSpec
    from nsqtools.clock import Clock

VERSION = 1
# A file is named a moment before it is created.
MARGIN_S = 2


class Watermark:
    """See the module. Blocking: `until` is for the thread that commits, as no file is opened meanwhile,
    `advance` for one other.

    `period_of` gives `<DATETIME>` for a time; `folder`, which is empty or ends with a slash, is where it
    is at the destination. Raises `ArchiveError` for names that cannot be one.
    """

    def __init__(
        self,
        spec: ArchiveSpec,
        period_of: Callable[[float], str],
        clock: Clock,
        destination: Destination,
        folder: str = "",
    ) -> None:
        name = f"{spec.topic}.{spec.channel}.{spec.host}{WATERMARK_SUFFIX}"
        if "/" in name:
            raise ArchiveError(f"{name!r} is no name for a watermark")
        self.name = folder + name
        self._destination = destination
        self._says = {"topic": spec.topic, "channel": spec.channel, "host": spec.host}
        self._period_of = period_of
        self._clock = clock
        self._until: int | None = None

    def until(self, oldest_unfinished_s: float | None) -> int:
        """How far the archive is complete, in seconds since the epoch; `oldest_unfinished_s` is when the
        oldest file was created that is not published."""
        now_s = self._clock.time()
        oldest_s = now_s if oldest_unfinished_s is None else min(now_s, oldest_unfinished_s)
        return math.floor(oldest_s) - MARGIN_S

    def advance(self, until: int) -> None:
        """Say so; durable on return. Raises as `Destination.put_mark` does."""
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
        self._destination.put_mark(self.name, data)
        self._until = until

    def _before(self) -> int:
        """What an earlier run has said."""
        said: object = None
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(self._destination.read_mark(self.name))
        until = said.get("until") if isinstance(said, dict) else None
        return until if isinstance(until, int) else 0
