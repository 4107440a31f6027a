"""The folders of archives, made ready at a start: they can be written, and hold no unfinished files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.recovery import recover
from nsqtools.archive.writer import DIRECTORY_MODE
from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.naming import FileNaming

log = get_log("archive")


def prepare(output_dir: Path, work_dir: Path, naming: FileNaming) -> None:
    """Folders that can be written, and files of dead writers finished. Blocking.

    Raises StorageError when a folder cannot be written.
    """
    for folder in (output_dir, work_dir):
        durable.make_directories(folder, DIRECTORY_MODE)
        durable.check_writable(folder)
    for found in recover(work_dir, output_dir, naming=naming):
        what = "recovered a file of a run that did not end"
        if found.published is None:
            what = "a file of no living run is not published"
        log.warning(
            what,
            path=found.path,
            published=found.published or "-",
            records=found.records,
            cut_bytes=found.cut_bytes,
            reason=found.reason,
        )
