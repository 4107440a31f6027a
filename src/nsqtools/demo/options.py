"""The options of the demonstration."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.options import LOG_LEVEL, PATH, Int, Size, option

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES_MAX = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """One run of the demonstration. Sizes are in bytes."""

    input: Path | None = option(
        PATH, help="log to publish, a message a line; default: one that is made up", group="Demo"
    )
    messages: int = option(
        Int(minimum=1, maximum=MESSAGES_MAX),
        default="20000",
        help="lines of the log that is made up",
        group="Demo",
    )
    rotate_size_bytes: int = option(
        Size(minimum=1),
        default="256KiB",
        help="begin a new archive beyond this size, so that several can be seen",
        group="Demo",
    )
    output_dir: Path | None = option(
        PATH, help="where to work; default: a fresh folder, which is kept and named", group="Demo"
    )
    log_level: str = option(
        LOG_LEVEL,
        default="warn",
        help="debug, info, warn, error or fatal",
        problem="{flag} is invalid",
    )
