"""Logs for operators, on stderr, in the shape of NSQ's own lines (spec: tools, 1.1).

    [nsq_to_file] 2026/01/31 23:59:00.123456 INFO: opened file topic=orders path=/var/log/nsq/...

The message is constant, so that it can be searched for; what varies follows as key=value. A value
is quoted only when it must be, and what could forge a line or confuse a terminal is escaped,
because topics, addresses and error texts come from other machines. Bytes are told by their length
only, secrets not at all.

Lines go through the standard `logging` module (loggers below `nsqtools`), so that a program that
embeds us keeps its own handlers; only `configure`, which our commands call, installs ours.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsqtools.clock import Clock

ROOT = "nsqtools"
VALUE_LENGTH_MAX = 500
REPEAT_INTERVAL_S = 60.0
# Different texts of one failing thing that are told apart; more share one place.
REPEAT_TEXTS_MAX = 16
_SECRET_WORDS = ("secret", "password", "token", "credential")
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_NAMES = {logging.CRITICAL: "FATAL"}
_MARKER = "_nsqtools_handler"


class Log:
    """A logger whose methods take the constant message, then what varies by keyword."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, **values: object) -> None:
        self._emit(logging.DEBUG, message, values)

    def info(self, message: str, **values: object) -> None:
        self._emit(logging.INFO, message, values)

    def warning(self, message: str, **values: object) -> None:
        self._emit(logging.WARNING, message, values)

    def error(self, message: str, **values: object) -> None:
        self._emit(logging.ERROR, message, values)

    def is_debug(self) -> bool:
        """Whether DEBUG lines are written: ask before building costly values."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def _emit(self, level: int, message: str, values: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, with_values(message, values))


def get_log(name: str = "") -> Log:
    """The log of a part of nsqtools, such as `client` or `archive`."""
    return Log(logging.getLogger(f"{ROOT}.{name}" if name else ROOT))


def configure(level: str, prefix: str, *, stream: TextIO | None = None) -> None:
    """Writes lines of `level` (debug, info, warn, error, fatal) and above to `stream` (stderr).

    Other libraries' warnings go the same way. Calling it again replaces what it installed.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if hasattr(handler, _MARKER):
            root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    setattr(handler, _MARKER, True)
    handler.setFormatter(LineFormatter(prefix))
    root.addHandler(handler)
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    set_level(level)


def set_level(level: str) -> None:
    """Write our own lines from `level` (debug, info, warn, error, fatal) on."""
    logging.getLogger(ROOT).setLevel(_LEVELS[level])


class LineFormatter(logging.Formatter):
    """`<prefix>YYYY/MM/DD hh:mm:ss.uuuuuu LEVEL: message key=value`, in local time."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        # The operator's own clock is what a log shows, as NSQ's does.
        moment = dt.datetime.fromtimestamp(record.created)  # noqa: DTZ006
        name = _NAMES.get(record.levelno, record.levelname)
        line = f"{self.prefix}{moment:%Y/%m/%d %H:%M:%S.%f} {name}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


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
    text = str(value)
    if isinstance(value, BaseException):
        text = text or type(value).__name__
    if len(text) > VALUE_LENGTH_MAX:
        text = text[:VALUE_LENGTH_MAX] + "..."
    needs_quotes = not text or any(c in ' "=\\' or not c.isprintable() for c in text)
    if not needs_quotes:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(escaped)}"'


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Repeated:
    """Something that can fail again and again, told once an interval with a count.

    `failed` writes the first line of an error at once and the same error at most once an
    interval, with `repeated=N`; `recovered` writes one INFO line after a failure and nothing
    otherwise. The state is bounded: beyond REPEAT_TEXTS_MAX different errors share one place.
    """

    def __init__(
        self, log: Log, message: str, *, clock: Clock, interval_s: float = REPEAT_INTERVAL_S
    ) -> None:
        self._log = log
        self._message = message
        self._clock = clock
        self._interval_s = interval_s
        self._told: dict[str, tuple[float, int]] = {}  # error -> when told, how often since
        self._failures = 0
        self._since = 0.0

    @property
    def is_failing(self) -> bool:
        return self._failures > 0

    def failed(self, error: object, **values: object) -> None:
        """Counts a failure, and tells it when it is new or its interval is over."""
        now = self._clock.monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        key = str(error)
        if key not in self._told and len(self._told) >= REPEAT_TEXTS_MAX:
            key = ""
        told_at, unsaid = self._told.get(key, (None, 0))
        if told_at is not None and now - told_at < self._interval_s:
            self._told[key] = (told_at, unsaid + 1)
            return
        self._told[key] = (now, 0)
        more = {"repeated": unsaid} if unsaid else {}
        self._log.error(self._message, **values, error=error, **more)

    def recovered(self, message: str, **values: object) -> None:
        """Tells that it works again, when it did not."""
        if not self._failures:
            return
        lasted_s = self._clock.monotonic() - self._since
        self._log.info(message, **values, failures=self._failures, lasted_s=lasted_s)
        self._failures = 0
        self._told.clear()
