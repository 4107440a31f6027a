"""Kinds of option values: each reads text and TOML values, checks bounds and writes a value back.

A kind raises ValueError with a short reason when text cannot be read at all, and OutOfRange when
the value is well formed but not allowed here; the caller adds where the value came from. Go's
syntax of durations and booleans is kept, because NSQ's users have it in their scripts
(spec: client-behaviour, part 1; nsqd-http, part 4).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

# Longer numbers and durations are typing mistakes; the bound keeps conversions cheap.
NUMBER_LENGTH_MAX = 64
_INT = re.compile(r"[+-]?[0-9]+", re.ASCII)
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


class OutOfRange(ValueError):  # noqa: N818 - reads as the fact it states
    """Well formed, but not allowed; `comparison` is NSQ's short form, such as `0 < 1`."""

    def __init__(self, reason: str, comparison: str = "") -> None:
        super().__init__(reason)
        self.comparison = comparison or reason


class Kind(ABC, Generic[T]):
    """How one sort of value is read, bounded and written.

    `metavar` stands for the value in help; `explain` says once per help page how it is written.
    `native` are the TOML types taken beside strings. `separator` parts repeated values that come
    in one environment variable. A `hidden` value stays out of repr(), logs and error messages.
    """

    metavar: str = "TEXT"
    explain: str = ""
    native: tuple[type, ...] = ()
    separator: str = ","
    hidden: bool = False

    @abstractmethod
    def parse(self, text: str) -> T:
        """Raises ValueError (malformed) or OutOfRange (well formed, not allowed)."""

    def from_toml(self, value: object) -> T:
        """The value of a TOML string, or of one of the `native` types; raises as `parse` does."""
        if isinstance(value, str):
            return self.parse(value)
        # bool is an int to Python, but `sync_every = true` is a mistake.
        if isinstance(value, self.native) and isinstance(value, bool) == (bool in self.native):
            return self.parse(self.native_text(value))
        raise ValueError(f"should not be of type {type(value).__name__}")

    def native_text(self, value: object) -> str:
        return str(value)

    def render(self, value: T) -> str:
        return str(value)

    def secret_in(self, text: str) -> str:
        """The key of the secret that `text` sets, if it sets one."""
        return ""

    def told(self, text: str) -> str:
        """What was given, as an error shows it: without a part that may be secret."""
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Kind[str]):
    """Any text without NUL characters."""

    metavar: str = "TEXT"

    def parse(self, text: str) -> str:
        if "\0" in text:
            raise ValueError("holds a NUL character")
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret(Kind[str]):
    """Text that is never shown and never taken from the command line, which others can read."""

    hidden: bool = True

    def parse(self, text: str) -> str:
        return text

    def render(self, value: str) -> str:
        return "***" if value else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bool(Kind[bool]):
    """Go's booleans: 1 t T TRUE true True, 0 f F FALSE false False."""

    metavar: str = ""
    native: tuple[type, ...] = (bool,)

    def parse(self, text: str) -> bool:
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise ValueError("should be true or false")

    def render(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int(Kind[int]):
    """A whole number within bounds."""

    minimum: int | None = None
    maximum: int | None = None
    metavar: str = "N"
    native: tuple[type, ...] = (int,)

    def parse(self, text: str) -> int:
        if len(text) > NUMBER_LENGTH_MAX or not _INT.fullmatch(text):
            raise ValueError("should be a whole number")
        value = int(text)
        check_bounds(value, self.minimum, self.maximum, self)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Float(Kind[float]):
    """A finite number within bounds."""

    minimum: float | None = None
    maximum: float | None = None
    metavar: str = "NUMBER"
    native: tuple[type, ...] = (int, float)

    def parse(self, text: str) -> float:
        if len(text) > NUMBER_LENGTH_MAX or not _FLOAT.fullmatch(text):
            raise ValueError("should be a number")
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError("should be a finite number")
        check_bounds(value, self.minimum, self.maximum, self)
        return value

    def render(self, value: float) -> str:
        return f"{value:g}"


def check_bounds(value: float, minimum: float | None, maximum: float | None, kind: Kind[T]) -> None:
    """Raises OutOfRange; `kind` writes the numbers."""

    def shown(number: float) -> str:
        return kind.render(number)  # type: ignore[arg-type]  # T is the number's own kind

    if minimum is not None and value < minimum:
        raise OutOfRange(
            f"should be at least {shown(minimum)}", f"{shown(value)} < {shown(minimum)}"
        )
    if maximum is not None and value > maximum:
        raise OutOfRange(
            f"should be at most {shown(maximum)}", f"{shown(value)} > {shown(maximum)}"
        )


_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # micro sign
    "μs": 1_000,  # Greek mu, which Go takes too
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_AMOUNT = re.compile(r"([0-9]*)(?:\.([0-9]*))?", re.ASCII)
_UNIT = re.compile(r"[^0-9.]*")
_DURATION_MAX_NS = 2**63 - 1


def duration_ns(text: str) -> int:
    """Nanoseconds of a Go duration such as `1h2m3.5s`; raises ValueError with the reason."""
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    if not body or len(body) > NUMBER_LENGTH_MAX:
        raise ValueError("invalid duration, write for example 1m30s")
    total, at = 0, 0
    while at < len(body):
        amount = _AMOUNT.match(body, at)
        whole, fraction = (amount[1], amount[2] or "") if amount else ("", "")
        if amount is None or not whole + fraction:
            raise ValueError("invalid duration, write for example 1m30s")
        unit = _UNIT.match(body, amount.end())
        scale = _unit_scale(unit[0] if unit else "", body)
        total += int(whole or "0") * scale
        total += int(fraction or "0") * scale // 10 ** len(fraction)
        at = unit.end() if unit else len(body)
    if total > _DURATION_MAX_NS:
        raise ValueError("duration too long")
    return -total if text[0] == "-" else total


def _unit_scale(unit: str, body: str) -> int:
    if not unit:
        raise ValueError(f"missing unit in duration, write for example {body}s or {body}ms")
    if unit not in _UNITS_NS:
        raise ValueError(f"unknown unit {unit} in duration, known are ns us ms s m h")
    return _UNITS_NS[unit]


def render_duration(seconds: float) -> str:
    """A duration as a person would write it: `1m30s`, `250ms`, `0s`."""
    nanoseconds = round(abs(seconds) * 1_000_000_000)
    sign = "-" if seconds < 0 else ""
    if nanoseconds == 0:
        return "0s"
    for unit in ("ns", "us", "ms"):
        if nanoseconds < _UNITS_NS["s"] and nanoseconds < _UNITS_NS[unit] * 1000:
            return f"{sign}{nanoseconds / _UNITS_NS[unit]:g}{unit}"
    hours, rest = divmod(nanoseconds, _UNITS_NS["h"])
    minutes, rest = divmod(rest, _UNITS_NS["m"])
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    parts.append(f"{rest / _UNITS_NS['s']:.9f}".rstrip("0").rstrip(".") + "s" if rest else "")
    return sign + "".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration(Kind[float]):
    """Seconds, written as Go writes durations; a bare number is refused, its unit being unknown.

    With `toml_int_ms` a TOML integer means milliseconds, as in nsqd's own configuration file.
    """

    minimum: str = "0s"
    maximum: str = ""
    toml_int_ms: bool = False
    metavar: str = "DURATION"
    explain: str = "250ms, 30s, 1h30m (units ns us ms s m h)"

    def parse(self, text: str) -> float:
        value = duration_ns(text)
        low = duration_ns(self.minimum)
        high = duration_ns(self.maximum) if self.maximum else None
        if value < low:
            raise OutOfRange(f"should be at least {self.minimum}", f"{text} < {self.minimum}")
        if high is not None and value > high:
            raise OutOfRange(f"should be at most {self.maximum}", f"{text} > {self.maximum}")
        return value / 1_000_000_000

    def from_toml(self, value: object) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            return self.parse(f"{value}ms" if self.toml_int_ms else str(value))
        return Kind.from_toml(self, value)

    def render(self, value: float) -> str:
        return render_duration(value)


_SIZE = re.compile(r"(-?[0-9]+)([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {
    "": 1,
    "k": 10**3,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size(Kind[int]):
    """Bytes: plain integers as NSQ takes them, or with a suffix."""

    minimum: int = 0
    maximum: int = 2**63 - 1
    metavar: str = "SIZE"
    explain: str = "bytes, or with a suffix: 64k, 10M, 2G (thousands), 64KiB, 10MiB, 2GiB"
    native: tuple[type, ...] = (int,)

    def parse(self, text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None or len(text) > NUMBER_LENGTH_MAX:
            raise ValueError("should be a size in bytes, such as 1048576, 10M or 64MiB")
        if match[2] not in _SIZE_UNITS:
            raise ValueError(f"unknown unit {match[2]}, known are k M G T KiB MiB GiB TiB")
        value = int(match[1]) * _SIZE_UNITS[match[2]]
        check_bounds(value, self.minimum, self.maximum, self)
        return value

    def render(self, value: int) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if value >= _SIZE_UNITS[unit] and value % _SIZE_UNITS[unit] == 0:
                return f"{value // _SIZE_UNITS[unit]}{unit}"
        return str(value)


class Choice(Kind[T]):
    """One of a few words; `T` may be a Literal of them."""

    def __init__(
        self, words: tuple[T, ...], aliases: dict[str, T] | None = None, *, metavar: str = ""
    ) -> None:
        """`metavar`: what stands for words that are too many for a line."""
        self.words = words
        self.aliases = aliases or {}
        self.metavar = metavar or "|".join(map(str, words))

    def parse(self, text: str) -> T:
        for word in self.words:
            if text == word:
                return word
        if text in self.aliases:
            return self.aliases[text]
        raise OutOfRange(f"should be one of {', '.join(map(str, self.words))}")


class LogLevel(Choice[str]):
    """NSQ's log levels; upper case is taken too, and `warning` for `warn`."""

    def __init__(self) -> None:
        super().__init__(("debug", "info", "warn", "error", "fatal"), {"warning": "warn"})
        self.metavar = "LEVEL"

    def parse(self, text: str) -> str:
        return Choice.parse(self, text.lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePath(Kind[Path]):
    """A path; it is not opened here. `folder` says that it should be one of a folder."""

    folder: bool = False
    metavar: str = "PATH"

    def parse(self, text: str) -> Path:
        if not text:
            raise ValueError("is empty")
        if "\0" in text:
            raise ValueError("holds a NUL character")
        return Path(text)


# Settings of NSQ's client that are secrets; each is an option of the same name, too.
SECRET_SETTINGS = frozenset({"auth_secret"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A named setting as NSQ's `name,value` flags give it; the value may be a secret."""

    name: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameValue(Kind[Setting]):
    """`name,value`, split at the first comma; `name` alone means true; `-` in names equals `_`."""

    metavar: str = "NAME,VALUE"
    separator: str = ";"  # the comma is taken
    hidden: bool = True  # one of them can be auth_secret

    def parse(self, text: str) -> Setting:
        name, comma, value = text.partition(",")
        name = name.strip().replace("-", "_")
        if not name:
            raise ValueError("should be name,value")
        return Setting(name=name, value=value if comma else "true")

    def secret_in(self, text: str) -> str:
        """Also where it is written in a way that no setting is taken."""
        found = re.match(r"[^\w-]*([\w-]+)", text)
        name = found[1].lower().replace("-", "_") if found else ""
        return name if name in SECRET_SETTINGS else ""

    def render(self, value: Setting) -> str:
        return f"{value.name},{'***' if 'secret' in value.name else value.value}"


BOOL = Bool()
DURATION = Duration()
FLOAT = Float()
FOLDER = FilePath(folder=True)
INT = Int()
LOG_LEVEL = LogLevel()
NAME_VALUE = NameValue()
PATH = FilePath()
SECRET = Secret()
SIZE = Size()
TEXT = Text()
