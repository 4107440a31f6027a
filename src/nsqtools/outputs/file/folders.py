"""The folders that a run writes archives into, as its start finds them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.destination import DIRECTORY_MODE
from nsqtools.errors import StorageError
from nsqtools.observe.log import get_log

if TYPE_CHECKING:
    from pathlib import Path

log = get_log("archive")


def prepare_folder(folder: Path) -> None:
    """Make a folder that is missing, and see that it can be written, now or when there is room again. Who
    else may write there is told.

    Blocks; raises `StorageError`.
    """
    durable.make_directories(folder, DIRECTORY_MODE)
    if _is_open_to_others(folder):
        log.warning(
            "other users can write to this folder: they can take names there before us, and, where it"
            " has no sticky bit, finished files away; name one that is yours alone",
            path=folder,
        )
    try:
        durable.check_writable(folder)
    except StorageError as full:
        if not full.is_full:
            raise
        log.warning("the disk is full: topics wait until there is room", error=full)


def _is_open_to_others(folder: Path) -> bool:
    """Whether users besides our own, root and a group may make and take away names there."""
    with durable.storage("stat", folder):
        found = folder.stat()
    return bool(found.st_mode & stat.S_IWOTH) or found.st_uid not in (0, os.geteuid())
