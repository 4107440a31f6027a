"""The options of the demonstration."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.options import FOLDER, LOG_LEVEL, PATH, Int, Size, option

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES_MAX = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """One run of the demonstration. Sizes are in bytes."""

    input: Path | None = option(
        PATH,
        help="log to publish, a message a line; default: one that this machine has",
        group="Demo",
    )
    messages: int = option(
        Int(minimum=1, maximum=MESSAGES_MAX),
        default="200000",
        help="lines of the log that is made up where the machine has none",
        group="Demo",
    )
    rotate_size_bytes: int = option(
        Size(minimum=0),
        default="0",
        help="begin a new file beyond this size; 0: so that a few can be seen",
        group="Demo",
    )
    output_dir: Path | None = option(
        FOLDER, help="where to work; default: a fresh folder, which is kept and named", group="Demo"
    )
    log_level: str = option(
        LOG_LEVEL,
        default="warn",
        help="debug, info, warn, error or fatal",
        problem="{flag} is invalid",
    )
