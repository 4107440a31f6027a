"""The data path at the start: what is refused before anything is opened, and which names count.

A folder that cannot be written would fail with the first publish, and that of a real nsqd would look
empty: its messages are in another format.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.errors import NsqToolsError, StorageError
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("nsqtools.broker")

NSQD_METADATA = "nsqd.dat"
_QUEUE_FILE = ".diskqueue."
# How many names are told of what was found.
_TOLD_MAX = 3


class ForeignData(NsqToolsError):  # noqa: N818 - reads as the fact it states
    """The folder holds what a real nsqd has not delivered yet."""

    exit_code = StorageError.exit_code


def require_data_path(path: Path) -> None:
    """Raises StorageError where there is no folder that can be written, and ForeignData."""
    try:
        names = sorted(os.listdir(path))  # noqa: PTH208 - one call, whatever the folder holds
    except OSError as cause:
        failure = StorageError("open data path", path, cause)
        failure.hint = (
            _access_hint(path)
            if isinstance(cause, PermissionError)
            else "--data-path names an existing folder."
        )
        raise failure from cause
    foreign = [name for name in names if name == NSQD_METADATA or _QUEUE_FILE in name]
    if foreign:
        more = f" and {len(foreign) - _TOLD_MAX} more" if len(foreign) > _TOLD_MAX else ""
        raise ForeignData(
            f"{path} is the data path of a real nsqd: it holds {', '.join(foreign[:_TOLD_MAX])}{more}",
            hint="Name another folder with --data-path, and let the real nsqd deliver what is in"
            " this one.",
        )
    _require_writable(path)


def named_in(folder: Path, suffix: str) -> Iterator[str]:
    """The topics, or a topic's channels, that a folder holds; a name that none can have is told.

    Raises StorageError.
    """
    for entry in durable.names_in(folder):
        name = entry.removesuffix(suffix)
        if name != entry and is_valid_name(name):
            yield name
        elif name != entry:
            log.warning("not a name that NSQ takes: it is left alone path=%s", folder / entry)


def _require_writable(path: Path) -> None:
    name = f"{durable.TEMPORARY_PREFIX}{secrets.token_hex(8)}{durable.TEMPORARY_SUFFIX}"
    probe = path / name
    try:
        durable.close(durable.create(probe, 0o600))
    except StorageError as failure:
        if failure.is_full:  # what there is can be consumed, which makes room
            return
        failure.hint = _access_hint(path)
        raise
    with contextlib.suppress(OSError):
        probe.unlink()


def _access_hint(path: Path) -> str:
    return f"Let the user {os.geteuid()} read and write {path}, or name another folder with --data-path."
