"""How a line of a log is written, and what is done to text that comes from elsewhere.

Topics, addresses and error texts come from other machines. Whatever wrote a line, here is the one place
where what could forge a line or confuse a terminal is escaped, where it is cut, where secrets and the
passwords of URLs are masked, and where a message that comes too often is left out and counted. Bytes are
told by their length only.

Times are local with their offset from UTC, in text as NSQ writes them and in JSON as RFC 3339 does.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
from typing import TYPE_CHECKING

from nsqtools.options import mask_passwords

if TYPE_CHECKING:
    from collections.abc import Mapping

# A record made by `Log` carries its constant message and its values under this name.
VALUES = "nsqtools_values"
VALUE_LENGTH_MAX = 500
LINE_LENGTH_MAX = 8192
TRACEBACK_LINES_MAX = 400
# A log that fills the disk stops the archive: so many lines of one message an interval.
RATE_LINES_MAX = 1000
RATE_INTERVAL_S = 60.0
# Different messages that are counted apart; there are as many as the code has, not as the world has.
RATE_MESSAGES_MAX = 1000
_SECRET_WORDS = ("secret", "password", "token", "credential")
_NAMES = {logging.CRITICAL: "FATAL"}
_OWN_KEYS = ("ts", "level", "message", "traceback")


class TextFormatter(logging.Formatter):
    """`<prefix>YYYY/MM/DD hh:mm:ss.uuuuuu+hh:mm LEVEL: message key=value`."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        moment = _moment(record)
        text = moment.isoformat(sep=" ", timespec="microseconds").replace("-", "/", 2)
        line = f"{self.prefix}{text} {_level(record)}: {one_line(record.getMessage())}"
        if record.exc_info:
            line += "\n" + indented(self.formatException(record.exc_info))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, message, then the values by their keys."""

    def format(self, record: logging.LogRecord) -> str:
        message, values = getattr(record, VALUES, (None, {}))
        line: dict[str, object] = {
            "ts": _moment(record).isoformat(timespec="microseconds"),
            "level": _level(record),
            "message": one_line(record.getMessage() if message is None else message),
        }
        for key, value in values.items():
            line[f"{key}_" if key in _OWN_KEYS else key] = json_value(key, value)
        if record.exc_info:
            line["traceback"] = mask_passwords(self.formatException(record.exc_info))
        return json.dumps(line)  # ASCII only: nothing of it can confuse a terminal


class RateLimit(logging.Filter):
    """Lets RATE_LINES_MAX lines of one message through an interval; the last of them says so, and the
    next one how many were left out. DEBUG is what somebody asked for, and passes."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[tuple[str, object], tuple[float, int]] = {}  # began, lines since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        message, _ = getattr(record, VALUES, (record.msg, {}))
        key: tuple[str, object] = (record.name, str(message))
        if key not in self._windows and len(self._windows) >= RATE_MESSAGES_MAX:
            key = ("", "")
        began, lines = self._windows.get(key, (record.created, 0))
        # A clock that was set back begins a new interval, too.
        if not 0 <= record.created - began < RATE_INTERVAL_S:
            if (left_out := lines - RATE_LINES_MAX) > 0:
                _add(record, "left_out", left_out)
            began, lines = record.created, 0
        self._windows[key] = (began, lines + 1)
        if lines == RATE_LINES_MAX - 1:  # there may be no next one
            limit = f"more than {RATE_LINES_MAX} in {RATE_INTERVAL_S:.0f} s are left out"
            _add(record, "limit", limit)
        return lines < RATE_LINES_MAX


def _add(record: logging.LogRecord, key: str, value: object) -> None:
    """One more value at the end of a line."""
    message, values = getattr(record, VALUES, (record.getMessage(), {}))
    values = {**values, key: value}
    setattr(record, VALUES, (message, values))
    record.msg, record.args = with_values(message, values), ()


def _moment(record: logging.LogRecord) -> dt.datetime:
    return dt.datetime.fromtimestamp(record.created).astimezone()


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname)


def one_line(text: str) -> str:
    """A whole message of whatever origin on one line."""
    return _cut(_printable(mask_passwords(text[: 2 * LINE_LENGTH_MAX])), LINE_LENGTH_MAX)


def indented(text: str) -> str:
    """A traceback, each line of it safe and none at the margin, where it could pass for a line of the
    log: what failed may have been told by a stranger."""
    lines = text.splitlines()
    if left_out := max(0, len(lines) - TRACEBACK_LINES_MAX):
        half = TRACEBACK_LINES_MAX // 2
        lines[half:-half] = [f"... {left_out} lines left out"]
    return "\n".join(f"  {one_line(line)}" for line in lines)


def with_values(message: str, values: Mapping[str, object]) -> str:
    """The message followed by its values: `opened file topic=orders path="/a b"`."""
    parts = [_printable(message)]
    parts += [f"{key}={render(key, value)}" for key, value in values.items()]
    return " ".join(parts)


def render(key: str, value: object) -> str:
    """One value: secrets masked, bytes elided, quoted where a reader could not tell its end."""
    if any(word in key.lower() for word in _SECRET_WORDS):
        return "***"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _text(value)
    needs_quotes = not text or any(c in ' "=\\' or not c.isprintable() for c in text)
    if not needs_quotes:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(escaped)}"'


def json_value(key: str, value: object) -> object:
    """One value as JSON has it: numbers as numbers, and everything else as `render` tells it, but
    without its quotes."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if _is_elided(key, value):
        return render(key, value)
    return _text(value)


def _is_elided(key: str, value: object) -> bool:
    is_secret = any(word in key.lower() for word in _SECRET_WORDS)
    return is_secret or isinstance(value, bytes | bytearray | memoryview)


def _text(value: object) -> str:
    text = str(value)
    if isinstance(value, BaseException):
        text = text or type(value).__name__
    return _cut(mask_passwords(text), VALUE_LENGTH_MAX)


def _cut(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else text[:length_max] + "..."


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
