"""A topic's folder: the names in it, its state, its removal (docs/formats.md, "The broker's log")."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING

from nsqtools import durable

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("nsqtools.broker.topic")

TOPIC_SUFFIX = ".topic"
CHANNEL_SUFFIX = ".channel"
DELETED_SUFFIX = ".deleted"
STATE_FILE = "topic.json"
STATE_BYTES_MAX = 64 << 10


def read_state(path: Path) -> dict[str, object]:
    """The topic's state; a damaged file costs a pause at most, not the topic."""
    reason: object = "it is no object"
    state = None
    try:
        state = json.loads(durable.read_small(path, STATE_BYTES_MAX))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as cause:
        reason = cause
    if isinstance(state, dict):
        return state
    log.error(
        "a topic's state cannot be read and is taken as not paused path=%s error=%s", path, reason
    )
    return {}


def sweep(data_path: Path) -> None:
    """Remove what is left of topics whose deletion was cut short. Raises StorageError."""
    for name in durable.names_in(data_path):
        if name.endswith(DELETED_SUFFIX) and f"{TOPIC_SUFFIX}." in name:
            remove_folder(data_path / name)


def remove_folder(folder: Path) -> None:
    """Remove a topic's folder, whose name there is to be gone durably. Raises StorageError."""
    durable.fsync_directory(folder.parent)
    with durable.storage("remove", folder):
        shutil.rmtree(folder)
