"""Options that programs share: what they log and where they tell their status.

They are bases of a program's own options class. Such bases have no slots, so that a program can have
several of them.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nsqtools.options import LOG_LEVEL, Address, Choice, Kind, option

LogFormat = Literal["text", "json"]
LOG_FORMAT: Kind[LogFormat] = Choice(("text", "json"))
Progress = Literal["auto", "always", "never"]
PROGRESS: Kind[Progress] = Choice(("auto", "always", "never"))


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """How a program logs, but for its prefix."""

    log_level: str = option(
        LOG_LEVEL,
        default="info",
        help="debug, info, warn, error or fatal: the least that is logged",
        problem="{flag} is invalid",
    )
    log_format: LogFormat = option(
        LOG_FORMAT, default="text", help="lines as NSQ writes them, or a JSON object a line"
    )


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Where a program that runs for long tells how it is."""

    status_address: str = option(
        Address(listen=True, empty=True, unix=True),
        default="",
        help="serve /metrics, /health, /ready and /status here, such as 127.0.0.1:4155, or at the"
        " path of a socket; default: nowhere",
    )
