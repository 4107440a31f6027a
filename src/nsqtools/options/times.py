"""Kinds about time: points in it (RFC 3339, shorter dates, whole numbers since the epoch), and strftime
formats."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from nsqtools.options.kinds import Kind
from nsqtools.options.shown import printable

_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?"
    r"([Zz]|[+-]\d\d:\d\d)?",
    re.ASCII,
)
_EPOCH = re.compile(r"[0-9]{1,19}", re.ASCII)
# A whole number is taken for the unit that puts it between 1973 and 5138.
_EPOCH_UNITS = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1))
_TIME_MAX_NS = 2**63 - 1
_UNIX_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def parse_time_ns(text: str) -> int:
    """Nanoseconds since the epoch; a time without a zone is local time, as in logs and file names.

    Raises ValueError.
    """
    if _EPOCH.fullmatch(text):
        number = int(text)
        scale = next(scale for limit, scale in _EPOCH_UNITS if number < limit)
        return _checked(number * scale)
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("should be a time such as 2026-01-31T23:59:00Z, 2026-01-31 or 1769903940")
    year, month, day, hour, minute, second = (int(match[part] or "0") for part in range(1, 7))
    zone = _zone(match[8])
    try:
        moment = dt.datetime(year, month, day, hour, minute, second, tzinfo=zone)
        since = moment.astimezone(dt.UTC) - _UNIX_EPOCH
    except (ValueError, OverflowError) as error:
        raise ValueError(f"not a time: {error}") from error
    nanoseconds = int((match[7] or "").ljust(9, "0"))
    return _checked((since.days * 86400 + since.seconds) * 1_000_000_000 + nanoseconds)


def _zone(text: str | None) -> dt.tzinfo | None:
    if not text:
        return None
    if text in "Zz":
        return dt.UTC
    sign = -1 if text[0] == "-" else 1
    offset = dt.timedelta(hours=int(text[1:3]), minutes=int(text[4:6]))
    if offset >= dt.timedelta(days=1):
        raise ValueError("not a time: the zone is off by a day or more")
    return dt.timezone(sign * offset)


def _checked(time_ns: int) -> int:
    if not 0 <= time_ns <= _TIME_MAX_NS:
        raise ValueError("should be between 1970 and 2262")
    return time_ns


def render_time_ns(time_ns: int) -> str:
    """RFC 3339 in UTC, with nanoseconds only where there are any."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    text = (_UNIX_EPOCH + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}".rstrip("0") + "Z" if rest else f"{text}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamp(Kind[int]):
    """Nanoseconds since the epoch."""

    metavar: str = "TIME"
    explain: str = (
        "2026-01-31T23:59:00Z, 2026-01-31T23:59, 2026-01-31 (local where no zone is named), or a "
        "whole number of seconds, milliseconds, microseconds or nanoseconds since the epoch"
    )
    native: tuple[type, ...] = (int, dt.date)  # TOML's date-times are dates, too

    def parse(self, text: str) -> int:
        return parse_time_ns(text)

    def native_text(self, value: object) -> str:
        return value.isoformat() if isinstance(value, dt.date) else str(value)

    def render(self, value: int) -> str:
        return render_time_ns(value)


# What Python documents for strftime, without %f: a name must not change within a second.
DIRECTIVES = "aAbBcdGHIjmMpSuUVwWxXyYzZ%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strftime(Kind[str]):
    """A format of strftime in which every directive is known: the C library's would be passed through
    or vanish, one machine like this and another like that."""

    metavar: str = "FORMAT"
    explain: str = "strftime's directives, such as %Y-%m-%d_%H"

    def parse(self, text: str) -> str:
        if "\0" in text:
            raise ValueError("holds a NUL character")
        for found in re.finditer(r"%(.?)", text, re.DOTALL):
            if not found[1]:
                raise ValueError("ends with a lone %, write %% for one")
            if found[1] not in DIRECTIVES:
                raise ValueError(f"unknown directive {printable(found[0])}, known are {DIRECTIVES}")
        return text


STRFTIME = Strftime()
TIMESTAMP = Timestamp()
