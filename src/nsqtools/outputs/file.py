"""The output of nsq_to_file: one topic's archive, and the one thread that writes it.

Compressing, writing and fsync happen in that thread and release the GIL, while the loop receives the
next batch: one hand-over a commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.outputs.thread import OutputThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.archive.writer import ArchiveSpec, Commit, Published
    from nsqtools.wire.messages import Messages


class FileOutput:
    """Calls of one output run one after the other, in the order in which they are made.

    All raise StorageError when the disk refuses; they can then be made again. Cancelling one does not
    stop the thread: it finishes what it is at before it does anything else.
    """

    def __init__(self, spec: ArchiveSpec) -> None:
        """Raises ArchiveError for a name or format that cannot be written."""
        self._writer = ArchiveWriter(spec)
        self._thread = OutputThread(f"archive-{spec.topic}")

    @property
    def next_tick(self) -> float | None:
        """When `tick` has something to do, in seconds since the epoch; None while no file is open."""
        return self._writer.next_tick

    async def write(self, batches: Sequence[Messages]) -> Commit:
        """Make messages durable: they may be acknowledged when this returns."""
        return await self._thread.call(lambda: self._writer.commit(batches))

    async def tick(self) -> list[Published]:
        """Finish the open file when its time is over."""
        return await self._thread.call(self._writer.tick)

    async def rotate(self) -> list[Published]:
        """Finish the open file now."""
        return await self._thread.call(self._writer.rotate)

    async def close(self) -> list[Published]:
        """Finish the open file and end the thread; after an error it can be called again."""
        published = await self._thread.call(self._writer.close)
        self._thread.end()
        return published

    async def abandon(self) -> None:
        """Leave the open file to the recovery of the next start, and end the thread."""
        try:
            await self._thread.call(self._writer.abandon)
        finally:
            self._thread.end()
