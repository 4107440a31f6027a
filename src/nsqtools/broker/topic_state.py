"""What a topic keeps beside its log and its channels' journals (docs/formats.md)."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from nsqtools import durable

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("nsqtools.broker.topic")

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
