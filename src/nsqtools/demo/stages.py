"""What each stage of the demonstration did, and how it is shown."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DIGEST_BITS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One line of the table; `disk_bytes` where the stage wrote files."""

    name: str
    messages: int
    body_bytes: int
    seconds: float
    disk_bytes: int | None = None

    @property
    def rate(self) -> float:
        return self.messages / self.seconds if self.seconds > 0 else 0.0

    @property
    def ratio(self) -> str:
        if not self.disk_bytes:
            return "-"
        return f"{self.body_bytes / self.disk_bytes:.2f}x"


class BodyDigest:
    """A digest of bodies that does not depend on their order: NSQ promises none.

    The sum of the SHA-256 of each body, so that a body that is there twice counts twice.
    """

    def __init__(self) -> None:
        self.messages = 0
        self.body_bytes = 0
        self._sum = 0

    def add(self, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            self.messages += 1
            self.body_bytes += len(body)
            self._sum += int.from_bytes(hashlib.sha256(body).digest(), "big")

    def hexdigest(self) -> str:
        total = self._sum % (1 << _DIGEST_BITS)
        return f"{total:0{_DIGEST_BITS // 4}x}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BodyDigest):
            return NotImplemented
        mine = (self.messages, self.body_bytes, self.hexdigest())
        return mine == (other.messages, other.body_bytes, other.hexdigest())

    __hash__ = None  # type: ignore[assignment]  # it changes


def print_stages(stages: Sequence[Stage]) -> None:
    """A table: drawn on a terminal, plain columns in a pipe."""
    heads = ("stage", "messages", "bytes", "on disk", "ratio", "seconds", "messages/s")
    rows = [
        (
            stage.name,
            f"{stage.messages:,}",
            f"{stage.body_bytes:,}",
            "-" if stage.disk_bytes is None else f"{stage.disk_bytes:,}",
            stage.ratio,
            f"{stage.seconds:.3f}",
            f"{stage.rate:,.0f}",
        )
        for stage in stages
    ]
    if sys.stdout.isatty():
        _print_drawn(heads, rows)
        return
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    for row in (heads, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def _print_drawn(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
