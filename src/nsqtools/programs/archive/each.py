"""One file after the other: what cannot be read is told, and the others are still read."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nsqtools.errors import ArchiveError, NsqToolsError, StorageError
from nsqtools.programs.archive.progress import ProgressLine
from nsqtools.programs.archive.shown import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nsqtools.archive.files import FoundFile

T = TypeVar("T")


class Each:
    """The files of one run, its progress, and the exit code that it comes to: that of the gravest
    thing that was told, 0 when there was nothing."""

    def __init__(self, program: str, files: Sequence[FoundFile], progress: str) -> None:
        self._program = program
        self._files = files
        self._progress = ProgressLine(progress, len(files))
        self.exit_code = 0

    def results(
        self,
        work: Callable[[FoundFile, Callable[[int], None]], T],
        on_error: Callable[[FoundFile, NsqToolsError], T | None] = lambda file, error: None,
    ) -> Iterator[tuple[FoundFile, T]]:
        """What `work` makes of each file, in order. What it raises as `ArchiveError` or `StorageError`
        is told, with what `on_error` makes of it as the result, if anything."""
        with self._progress as progress:
            for file in self._files:
                progress.begin(file.name)
                result: T | None
                try:
                    if file.error is not None:
                        raise file.error
                    result = work(file, progress.advanced)
                except (ArchiveError, StorageError) as error:
                    progress.clear()
                    self.tell(error)
                    result = on_error(file, error)
                else:
                    progress.clear()
                if result is not None:
                    yield file, result

    def tell(self, error: NsqToolsError) -> None:
        """On standard error, and in the exit code."""
        warn(f"{self._program}: {error}")
        if error.hint:
            warn(f"hint: {error.hint}")
        self.fail(error.exit_code)

    def fail(self, exit_code: int) -> None:
        self.exit_code = max(self.exit_code, exit_code)
