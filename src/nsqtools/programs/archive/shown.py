"""How the commands show what they found: tables, sizes and times, and the way to standard output."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from nsqtools.errors import StorageError
from nsqtools.options.shown import printable
from nsqtools.options.times import render_time_ns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

NOTHING = "-"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def write(data: bytes | bytearray) -> None:
    """Bytes to standard output, at once. Raises `BrokenPipeError` when its reader has gone, and
    `StorageError` when it takes no more."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError("write", "standard output", error) from error


def say(text: str) -> None:
    """A line of text to standard output; raises as `write` does."""
    write(f"{text}\n".encode("utf-8", "backslashreplace"))


def warn(text: str) -> None:
    """A line to standard error, escaped."""
    print(printable(text), file=sys.stderr, flush=True)


def warn_of_links(program: str, links: Sequence[Path]) -> None:
    """What was not looked at, and may well be an archive."""
    if links:
        warn(
            f"{program}: left out: {count(len(links), 'link')} in a folder, which is not followed"
            f" unless it is named, such as {min(links)}"
        )


def say_json(value: dict[str, Any]) -> None:
    """An object on a line of its own, in ASCII: what is no UTF-8 in a name is `\\udcXX`."""
    say(json.dumps(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """Columns that line up, of which the first `left` begin at the left."""
    cells = [list(heads), *[list(row) for row in rows]]
    widths = [max(map(width_of, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(_padded(row, widths, left)).rstrip() for row in cells]


def _padded(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    padding = [" " * (width - width_of(cell)) for cell, width in zip(row, widths, strict=True)]
    return [
        cell + space if at < left else space + cell
        for at, (cell, space) in enumerate(zip(row, padding, strict=True))
    ]


def width_of(text: str) -> int:
    """Columns on a terminal."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - marks


def elided(text: str, width: int) -> str:
    """A text that takes no more columns than this, without its middle where that is too much."""
    if width_of(text) <= width:
        return text
    kept = width - 1
    while True:
        # The end of a name says more than its start: there are the times, and what numbers it.
        head = kept // 3
        cut = f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - head) :]}"
        if width_of(cut) <= width:
            return cut
        kept -= 1


def plain(row: Iterable[str]) -> str:
    """A row for a program: parted by tabs."""
    return "\t".join(row)


def size(size_bytes: int | None) -> str:
    """Bytes for a person, in powers of 1000."""
    if size_bytes is None:
        return NOTHING
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 999.95 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"


def count(value: int, what: str) -> str:
    """`1 record`, `2 records`."""
    return f"{value} {what}" if value == 1 else f"{value} {what}s"


def number(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def time_ns(value: int | None) -> str:
    """A time for a program: RFC 3339 in UTC, to the nanosecond."""
    return NOTHING if value is None else render_time_ns(value)


def time_s(value: int | None) -> str:
    """A time for a person: to the second."""
    return NOTHING if value is None else render_time_ns(value // 10**9 * 10**9)


def span(seconds: float | None) -> str:
    """A stretch of time for a person: two units at most."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])
