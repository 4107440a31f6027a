"""Logs for operators, on stderr, in the shape of NSQ's own lines (spec: tools, 1.1).

    [nsq_to_file] 2026/01/31 23:59:00.123456+01:00 INFO: opened file topic=orders path=/var/log/nsq/...

The message is constant, so that it can be searched for; what varies follows as key=value. `lines` says
how a line is written, as text or as JSON, and what is done to text that comes from elsewhere.

Lines go through the standard `logging` module (loggers below `nsqtools`), so that a program that
embeds us keeps its own handlers; only `configure`, which our commands call, installs ours.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from nsqtools.errors import StorageError
from nsqtools.observe.lines import VALUES, JsonFormatter, RateLimit, TextFormatter, with_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsqtools.clock import Clock

ROOT = "nsqtools"
REPEAT_INTERVAL_S = 60.0
# Different texts of one failing thing that are told apart; more share one place.
REPEAT_TEXTS_MAX = 16
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_MARKER = "_nsqtools_handler"


class Log:
    """A logger whose methods take the constant message, then what varies by keyword."""

    def __init__(self, logger: logging.Logger, bound: Mapping[str, object] | None = None) -> None:
        self._logger = logger
        self._bound = dict(bound or {})

    def bind(self, **values: object) -> Log:
        """The same log, whose lines all begin with these values: `log.bind(topic=..., channel=...)`."""
        return Log(self._logger, {**self._bound, **values})

    def debug(self, message: str, **values: object) -> None:
        self._emit(logging.DEBUG, message, values)

    def info(self, message: str, **values: object) -> None:
        self._emit(logging.INFO, message, values)

    def warning(self, message: str, **values: object) -> None:
        self._emit(logging.WARNING, message, values)

    def error(self, message: str, **values: object) -> None:
        self._emit(logging.ERROR, message, values)

    def _emit(self, level: int, message: str, values: Mapping[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            values = {**self._bound, **values}
            self._logger.log(level, with_values(message, values), extra={VALUES: (message, values)})


def get_log(name: str = "") -> Log:
    """The log of a part of nsqtools, such as `client` or `archive`."""
    return Log(logging.getLogger(f"{ROOT}.{name}" if name else ROOT))


def configure(
    level: str, prefix: str, *, log_format: str = "text", stream: TextIO | None = None
) -> None:
    """Writes lines of `level` (debug, info, warn, error, fatal) and above to `stream` (stderr).

    `log_format` is `text`, with `prefix` before each line, or `json`. Other libraries' warnings go the
    same way. Calling it again replaces what it installed.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if hasattr(handler, _MARKER):
            root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    setattr(handler, _MARKER, True)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(prefix))
    handler.addFilter(RateLimit())
    root.addHandler(handler)
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    set_level(level)


def is_json() -> bool:
    """Whether `configure` was asked for lines of JSON."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def set_level(level: str) -> None:
    """Write our own lines from `level` (debug, info, warn, error, fatal) on."""
    logging.getLogger(ROOT).setLevel(_LEVELS[level])


def _kind_of(error: object) -> str:
    """What is the same error: that of a disk is so whatever the path, which may be new each time."""
    if isinstance(error, StorageError) and error.errno is not None:
        return f"{error.operation} {error.errno}"
    return str(error)


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
        key = _kind_of(error)
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
