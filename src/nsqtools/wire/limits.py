"""The limits that a broker checks while it reads commands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLimits:
    """The limits that the decoder checks; times in milliseconds, sizes in bytes."""

    max_msg_size_bytes: int = 1 << 20
    max_body_size_bytes: int = 5 << 20
    max_rdy_count: int = 2500
    max_req_timeout_ms: int = 3_600_000
