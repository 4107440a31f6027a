"""The output of nsq_to_file: one topic's archive, the thread that writes it, and one that finishes.

Compressing, writing and fsync happen in the first and release the GIL, while the loop receives the
next batch: one hand-over a commit. Finished files are compacted and published in the second, while
commits go on.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.outputs.thread import OutputThread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsqtools.archive.finishing import Published
    from nsqtools.archive.writer import ArchiveSpec, Commit
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
        self._finisher = OutputThread(f"finish-{spec.topic}")
        self._published: deque[Published] = deque()

    @property
    def next_tick(self) -> float | None:
        """In how many seconds `tick` has something to do; None while no file is open."""
        return self._writer.next_tick

    @property
    def has_sealed(self) -> bool:
        """Whether a file waits for `finish`."""
        return len(self._writer.sealed) > 0

    async def write(self, batches: Sequence[Messages]) -> Commit:
        """Make messages durable: they may be acknowledged when this returns."""
        return await self._thread.call(lambda: self._writer.commit(batches))

    async def tick(self) -> None:
        """Seal the open file when its time is over."""
        await self._thread.call(self._writer.tick)

    async def rotate(self) -> None:
        """Seal the open file now."""
        await self._thread.call(self._writer.rotate)

    async def finish(self) -> list[Published]:
        """Publish what is sealed; those published since the last report, by a call that raised too."""
        while await self._finisher.call(self._finish_one):
            pass
        return self._report()

    def _finish_one(self) -> bool:
        # Kept here, in the thread: who waits for it may be cancelled meanwhile.
        published = self._writer.finish()
        if published is not None:
            self._published.append(published)
        return published is not None

    def _report(self) -> list[Published]:
        return [self._published.popleft() for _ in range(len(self._published))]

    async def close(self) -> list[Published]:
        """Publish every file and end the threads; after an error it can be called again."""
        published = await self.finish()  # first, as there may be no room for another
        try:
            await self._thread.call(self._writer.close)
            published += await self.finish()
        except BaseException:
            self._published.extendleft(reversed(published))
            raise
        self._thread.end()
        self._finisher.end()
        return published

    async def abandon(self) -> None:
        """Leave all files to the recovery of the next start, and end the threads."""
        try:
            await self._thread.call(self._writer.abandon)
        finally:
            self._thread.end()
            self._finisher.end()
