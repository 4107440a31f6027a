"""One file after the other: what cannot be read is told, and the others are still read."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from nsqtools.archive.files import PART_SUFFIX, FoundFile
from nsqtools.durable import storage
from nsqtools.errors import ArchiveError, NsqToolsError, StorageError, StoreError
from nsqtools.programs.archive.progress import ProgressLine
from nsqtools.programs.archive.shown import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")


class Each:
    """The files of one run, its progress, and the exit code that it comes to: that of the gravest
    thing that was told, 0 when there was nothing."""

    def __init__(self, program: str, files: Sequence[FoundFile], progress: str) -> None:
        self._program = program
        self._files = files
        self._names = {file.name for file in files}
        self._progress = ProgressLine(progress, len(files))
        self.exit_code = 0

    def results(
        self,
        work: Callable[[FoundFile, Callable[[int], None]], T],
        on_error: Callable[[FoundFile, NsqToolsError], T | None] = lambda file, error: None,
    ) -> Iterator[tuple[FoundFile, T]]:
        """What `work` makes of each file, in order. What it raises as `ArchiveError`, `StorageError`
        or `StoreError` is told, with what `on_error` makes of it as the result, if anything."""
        with self._progress as progress:
            for file in self._files:
                progress.begin(file.name)
                result: T | None
                try:
                    if file.error is not None:
                        raise file.error
                    try:
                        result = work(file, progress.advanced)
                    except StorageError as error:
                        file = self._finished_meanwhile(file, error)
                        if file.name in self._names:
                            continue  # it has its own turn
                        result = work(file, progress.advanced)
                except (ArchiveError, StorageError, StoreError) as error:
                    progress.clear()
                    self.tell(error)
                    result = on_error(file, error)
                else:
                    progress.clear()
                if result is not None:
                    yield file, result

    def _finished_meanwhile(self, file: FoundFile, error: StorageError) -> FoundFile:
        """The file by the name that its writer has given it since the folder was listed. Raises `error`
        when it was something else."""
        path = file.path
        if error.errno != errno.ENOENT or path is None or not path.name.endswith(PART_SUFFIX):
            raise error
        finished = path.with_name(path.name.removesuffix(PART_SUFFIX))
        with storage("look at", finished):
            if file.is_named or not finished.is_file():
                raise error
        return FoundFile(path=finished)

    def tell(self, error: NsqToolsError) -> None:
        """On standard error, and in the exit code."""
        warn(f"{self._program}: {error}")
        if error.hint:
            warn(f"hint: {error.hint}")
        self.fail(error.exit_code)

    def fail(self, exit_code: int) -> None:
        self.exit_code = max(self.exit_code, exit_code)
