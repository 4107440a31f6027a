"""The options of nsq_to_file: NSQ's flags, defaults and words, and ours beside them.

Everything is checked at the start and at once (spec: tools, 1.1). NSQ's tool ignores mistakes in
`--consumer-opt` and `--topic-pattern`, and finds out about `<REV>` when a topic is opened; here
they are mistakes like any other.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import os.path
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools import __version__
from nsqtools.client.options import (
    MAX_IN_FLIGHT_MAX,
    TOPIC,
    ConsumerOptions,
    Name,
    consumer_options,
)
from nsqtools.errors import OptionsError
from nsqtools.options import (
    ADDRESS,
    BOOL,
    FOLDER,
    HTTP_ADDRESS,
    LOG_LEVEL,
    NAME_VALUE,
    REGEX,
    SECRET,
    SIZE,
    STRFTIME,
    TEXT,
    Choice,
    Duration,
    Int,
    Kind,
    option,
    repeated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.options import Pattern, Setting

RecordFormat = Literal["lines", "jsonl", "framed"]
Compression = Literal["none", "gzip", "zstd"]
RECORD_FORMAT: Kind[RecordFormat] = Choice(("lines", "jsonl", "framed"))
COMPRESSION: Kind[Compression] = Choice(("none", "gzip", "zstd"))
_POSITIVE = Duration(minimum="1ns")
_SHOULD_BE_POSITIVE = "{flag} should be positive"

_WHAT = "What to archive"
_WHERE = "Where messages come from"
_FILES = "Where files go"
_FORMAT = "What is in a file"
_ROTATION = "When a file ends, and when it is synced"


@dataclass(frozen=True, slots=True, kw_only=True)
class NsqToFileOptions:
    """One run of nsq_to_file. Times are in seconds, sizes in bytes."""

    topic: tuple[str, ...] = repeated(TOPIC, help="topic to archive", group=_WHAT)
    topic_pattern: Pattern | None = option(
        REGEX,
        help="archive only topics in which this is found; without --topic, of all that nsqlookupd"
        " knows",
        group=_WHAT,
    )
    topic_exclude: Pattern | None = option(
        REGEX, help="leave out topics in which this is found", group=_WHAT
    )
    topic_refresh_s: float = option(
        _POSITIVE,
        default="1m",
        help="how often nsqlookupd is asked for new topics",
        group=_WHAT,
        problem=_SHOULD_BE_POSITIVE,
    )
    channel: str = option(
        Name(what="channel", empty=True, metavar="CHANNEL"),
        default="nsq_to_file",
        help="channel to consume",
        group=_WHAT,
    )

    nsqd_tcp_address: tuple[str, ...] = repeated(ADDRESS, help="nsqd to consume from", group=_WHERE)
    lookupd_http_address: tuple[str, ...] = repeated(
        HTTP_ADDRESS, help="nsqlookupd that knows the nsqds; host:port or a URL", group=_WHERE
    )
    max_in_flight: int = option(
        Int(minimum=1, maximum=MAX_IN_FLIGHT_MAX),
        default="2500",  # a commit of NSQ's 200 is mostly waiting for its fsync
        help="messages held at a time, over all nsqds of a topic; also the most that one sync"
        " makes durable",
        group=_WHERE,
    )
    consumer_opt: tuple[Setting, ...] = repeated(
        NAME_VALUE,
        help="setting of the consumer, such as msg_timeout,2m or tls_v1",
        group=_WHERE,
    )
    auth_secret: str = option(
        SECRET, default="", help="secret for an nsqd that wants AUTH", group=_WHERE
    )
    http_client_connect_timeout_s: float = option(
        _POSITIVE,
        default="2s",
        help="time for a connection to nsqlookupd to be made",
        group=_WHERE,
        problem=_SHOULD_BE_POSITIVE,
    )
    http_client_request_timeout_s: float = option(
        _POSITIVE,
        default="5s",
        help="time for an answer of nsqlookupd",
        group=_WHERE,
        problem=_SHOULD_BE_POSITIVE,
    )

    output_dir: Path = option(FOLDER, default="/tmp", help="where finished files go", group=_FILES)  # noqa: S108
    work_dir: Path | None = option(
        FOLDER, help="where unfinished files are; default: the output folder", group=_FILES
    )
    filename_format: str = option(
        TEXT,
        default="<TOPIC>.<HOST><REV>.<DATETIME>.log",
        help="file name; also knows <PID>; a slash makes folders",
        group=_FILES,
    )
    datetime_format: str = option(
        STRFTIME, default="%Y-%m-%d_%H", help="strftime format of <DATETIME>", group=_FILES
    )
    utc: bool = option(
        BOOL, default="false", help="<DATETIME> in UTC instead of local time", group=_FILES
    )
    host_identifier: str = option(
        TEXT,
        default="",
        help="value of <HOST>; may hold <SHORT_HOST> and <HOSTNAME>; default: the short host name",
        group=_FILES,
    )
    skip_empty_files: bool = option(
        BOOL,
        default="false",
        help="no effect: a file is created with its first message, so none is ever empty",
        group=_FILES,
    )

    record_format: RecordFormat = option(
        RECORD_FORMAT,
        default="lines",
        help="lines: body and newline; jsonl: an object a line; framed: exact, for any bytes",
        group=_FORMAT,
        flag="format",
    )
    compress: Compression | None = option(
        COMPRESSION, help="compression (default none)", group=_FORMAT
    )
    gzip: bool = option(BOOL, default="false", help="the same as --compress gzip", group=_FORMAT)
    gzip_level: int = option(
        Int(minimum=1, maximum=9),
        default="6",
        help="1 (fast) to 9 (small)",
        group=_FORMAT,
        problem="invalid {flag} value ({value}), should be 1-9",
    )
    zstd_level: int = option(
        Int(minimum=1, maximum=19),
        default="3",
        help="1 (fast) to 19 (small)",
        group=_FORMAT,
        problem="invalid {flag} value ({value}), should be 1-19",
    )

    rotate_size_bytes: int = option(
        SIZE,
        default="0",
        help="begin a new file beyond this size on disk, 0: never",
        group=_ROTATION,
    )
    rotate_interval_s: float = option(
        Duration(), default="0s", help="begin a new file after this time, 0: never", group=_ROTATION
    )
    rotate_records: int = option(
        Int(minimum=0),
        default="0",
        help="begin a new file after so many messages, 0: never",
        group=_ROTATION,
    )
    rotate_idle_s: float = option(
        Duration(),
        default="0s",
        help="finish a file that got no message for this time, 0: never",
        group=_ROTATION,
    )
    sync_interval_s: float = option(
        _POSITIVE,
        default="30s",
        help="longest time that a message waits to be made durable and acknowledged",
        group=_ROTATION,
        problem=_SHOULD_BE_POSITIVE,
    )

    shutdown_timeout_s: float = option(
        _POSITIVE,
        default="30s",
        help="longest time to make durable what is in flight, after SIGTERM",
        problem=_SHOULD_BE_POSITIVE,
    )
    log_level: str = option(
        LOG_LEVEL,
        default="info",
        help="debug, info, warn, error or fatal",
        problem="{flag} is invalid",
    )
    log_prefix: str = option(TEXT, default="[nsq_to_file] ", help="begin log lines with this")

    @property
    def compression(self) -> Compression:
        """What `--compress` and `--gzip` mean together."""
        if self.compress is not None:
            return self.compress
        return "gzip" if self.gzip else "none"

    @property
    def compression_level(self) -> int:
        return self.zstd_level if self.compression == "zstd" else self.gzip_level

    @property
    def effective_work_dir(self) -> Path:
        """The folder of unfinished files: the output folder where no other is named."""
        return self.work_dir if self.has_work_dir and self.work_dir else self.output_dir

    @property
    def has_work_dir(self) -> bool:
        """Whether the work folder is another one. Paths are compared, not their spelling: `/d` and
        `/d/` are one folder (spec: tools, 7.3 D4)."""
        if self.work_dir is None:
            return False
        return os.path.abspath(self.work_dir) != os.path.abspath(self.output_dir)  # noqa: PTH100 - no links followed

    @property
    def is_discovering(self) -> bool:
        """Whether topics come from nsqlookupd instead of `--topic`."""
        return not self.topic

    def wants_topic(self, topic: str) -> bool:
        """Whether the patterns let `topic` through; as in NSQ they filter `--topic`, too."""
        if self.topic_pattern is not None and not self.topic_pattern.search(topic):
            return False
        return self.topic_exclude is None or not self.topic_exclude.search(topic)

    def consumer(self) -> ConsumerOptions:
        """The options of each consumer; raises OptionsError where `check` was not heeded."""
        options, problems = self._consumer()
        if problems:
            raise OptionsError(problems)
        return options

    def _consumer(self) -> tuple[ConsumerOptions, list[str]]:
        return consumer_options(
            self.consumer_opt,
            max_in_flight=self.max_in_flight,
            auth_secret=self.auth_secret,
            user_agent=f"nsq_to_file/{__version__} nsqtools/{__version__}",
        )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options, in NSQ's order and words."""
        if not self.channel:
            yield "--channel is required"
        yield from self._check_sources()
        yield from self._check_files()
        yield from (f"--consumer-opt: {problem}" for problem in self._consumer()[1])

    def _check_sources(self) -> Iterator[str]:
        if not self.nsqd_tcp_address and not self.lookupd_http_address:
            yield "--nsqd-tcp-address or --lookupd-http-address required."
        if self.nsqd_tcp_address and self.lookupd_http_address:
            yield "use --nsqd-tcp-address or --lookupd-http-address not both"
        if not self.topic and self.topic_pattern is None:
            yield "--topic or --topic-pattern required"
        if not self.topic and not self.lookupd_http_address:
            yield "--lookupd-http-address must be specified when no --topic specified"
        filtered = [topic for topic in self.topic if not self.wants_topic(topic)]
        if self.topic and len(filtered) == len(self.topic):
            yield "--topic-pattern and --topic-exclude leave no --topic to archive"

    def _check_files(self) -> Iterator[str]:
        if self.gzip and self.compress not in (None, "gzip"):
            yield f"--gzip contradicts --compress {self.compress}"
        rotates = (
            self.rotate_size_bytes
            or self.rotate_interval_s
            or self.rotate_records
            or self.rotate_idle_s
        )
        needs_rev = self.compression != "none" or rotates or self.has_work_dir
        if needs_rev and "<REV>" not in self.filename_format:
            yield "missing <REV> in --filename-format when gzip, rotation, or work dir enabled"
