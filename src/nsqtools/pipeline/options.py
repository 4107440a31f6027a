"""The options that every consuming tool shares: what to consume, from where, how much, how it ends.

A tool's own class has these and its output's. Everything is checked at the start and at once (spec:
tools, 1.1). NSQ's tools ignore mistakes in `--consumer-opt` and `--topic-pattern`; here they are
mistakes like any other.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools import __version__
from nsqtools.client.options import (
    CONNECTIONS_PER_NSQD_MAX,
    HANDLER_SETTINGS,
    MAX_IN_FLIGHT_MAX,
    TOPIC,
    ConsumerOptions,
    Name,
    consumer_options,
)
from nsqtools.errors import OptionsError
from nsqtools.observe.options import PROGRESS, LogOptions, Progress, StatusOptions
from nsqtools.options import (
    ADDRESS,
    BOOL,
    HTTP_ADDRESS,
    NAME_VALUE,
    REGEX,
    SECRET,
    TEXT,
    Duration,
    Int,
    option,
    repeated,
)
from nsqtools.transform.options import TransformOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.client.lookup import LookupOptions
    from nsqtools.options import Pattern, Setting

POSITIVE = Duration(minimum="1ns")
SHOULD_BE_POSITIVE = "{flag} should be positive"
LEFT_NO_TOPIC = "--topic-pattern and --topic-exclude leave no --topic"

# Each topic takes some 25 kB, a connection and, once a message has come, files.
MAX_TOPICS_MAX = 1_000_000
# A commit of NSQ's 200 is mostly waiting for its fsync.
MAX_IN_FLIGHT = 2500
# With fewer of each a batch costs more than what is in it.
MAX_IN_FLIGHT_PER_NSQD = 200
_WHAT = "What to consume"
_WHERE = "Where messages come from"
_ENDS = "When the run ends by itself"


def channel_option(default: str) -> str:
    """The field `channel` of a tool."""
    kind = Name(what="channel", empty=True, metavar="CHANNEL")
    return option(kind, default=default, help="channel to consume", group=_WHAT)


def log_prefix_option(default: str) -> str:
    """The field `log_prefix` of a tool."""
    return option(TEXT, default=default, help="begin log lines with this")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(LogOptions, StatusOptions):
    """What is consumed, and how. Times are in seconds, sizes in bytes."""

    program: ClassVar[str]
    """The tool's name: its user agent, and what its log lines begin with."""

    progress: Progress = option(
        PROGRESS, default="auto", help="a line that says how the run is; auto: on a terminal"
    )

    topic: tuple[str, ...] = repeated(TOPIC, help="topic to consume", group=_WHAT)
    topic_pattern: Pattern | None = option(
        REGEX,
        help="only topics in which this is found; without --topic, of all that nsqlookupd knows",
        group=_WHAT,
    )
    topic_exclude: Pattern | None = option(
        REGEX, help="leave out topics in which this is found", group=_WHAT
    )
    topic_refresh_s: float = option(
        POSITIVE,
        default="1m",
        help="how often nsqlookupd is asked for new topics",
        group=_WHAT,
        problem=SHOULD_BE_POSITIVE,
    )
    max_topics: int = option(
        Int(minimum=1, maximum=MAX_TOPICS_MAX),
        default="5000",
        help="topics to take of those that nsqlookupd names; of more it is told, and they wait",
        group=_WHAT,
    )
    channel: str = channel_option("")

    nsqd_tcp_address: tuple[str, ...] = repeated(ADDRESS, help="nsqd to consume from", group=_WHERE)
    lookupd_http_address: tuple[str, ...] = repeated(
        HTTP_ADDRESS, help="nsqlookupd that knows the nsqds; host:port or a URL", group=_WHERE
    )
    max_in_flight: int | None = option(
        Int(minimum=1, maximum=MAX_IN_FLIGHT_MAX),
        help="messages held at a time, over all nsqds of a topic; also the most that one sync"
        f" makes durable (default {MAX_IN_FLIGHT}, and {MAX_IN_FLIGHT_PER_NSQD} for each nsqd"
        " where that is more; as many for each of several connections to an nsqd)",
        group=_WHERE,
    )
    connections_per_nsqd: int = option(
        Int(minimum=1, maximum=CONNECTIONS_PER_NSQD_MAX),
        default="1",
        help="connections to each nsqd, which share max-in-flight; a second one is faster where nsqd"
        " has processors to spare",
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
    auth_plaintext: bool = option(
        BOOL,
        default="false",
        help="send the secret also without TLS, where others on the way can read it",
        group=_WHERE,
    )
    http_client_connect_timeout_s: float = option(
        POSITIVE,
        default="2s",
        help="time for a connection to nsqlookupd to be made",
        group=_WHERE,
        problem=SHOULD_BE_POSITIVE,
    )
    http_client_request_timeout_s: float = option(
        POSITIVE,
        default="5s",
        help="time for an answer of nsqlookupd",
        group=_WHERE,
        problem=SHOULD_BE_POSITIVE,
    )

    max_messages: int = option(
        Int(minimum=0),
        default="0",
        help="end in order when so many messages are done, 0: go on for ever",
        group=_ENDS,
    )
    exit_when_idle_s: float = option(
        Duration(),
        default="0s",
        help="end in order when no message came for this time, 0: go on for ever",
        group=_ENDS,
    )

    shutdown_timeout_s: float = option(
        POSITIVE,
        default="30s",
        help="longest time to make durable what is in flight, after SIGTERM",
        problem=SHOULD_BE_POSITIVE,
    )
    log_prefix: str = log_prefix_option("")

    @property
    def is_discovering(self) -> bool:
        """Whether topics come from nsqlookupd instead of `--topic`."""
        return not self.topic

    def wants_topic(self, topic: str) -> bool:
        """Whether the patterns let `topic` through; as in NSQ they filter `--topic`, too."""
        if self.topic_pattern is not None and not self.topic_pattern.search(topic):
            return False
        return self.topic_exclude is None or not self.topic_exclude.search(topic)

    def topic_lookup(self) -> LookupOptions:
        """How nsqlookupd is asked for topics."""
        from nsqtools.client.lookup import LookupOptions  # HTTP loads slowly

        return LookupOptions(
            connect_timeout_s=self.http_client_connect_timeout_s,
            lookupd_poll_timeout_s=self.http_client_request_timeout_s,
            auth_secret=self.auth_secret,
            auth_plaintext=self.auth_plaintext,
        )

    def consumer(self) -> ConsumerOptions:
        """The options of each consumer; raises OptionsError where `check` was not heeded."""
        options, problems = self._consumer()
        if problems:
            raise OptionsError(problems)
        return options

    @property
    def effective_max_in_flight(self) -> int:
        """With one nsqd, whether named or not."""
        return self.max_in_flight or MAX_IN_FLIGHT * self.connections_per_nsqd

    def _consumer(self) -> tuple[ConsumerOptions, list[str]]:
        return consumer_options(
            self.consumer_opt,
            auth_secret=self.auth_secret,
            auth_plaintext=self.auth_plaintext,
            user_agent=f"{self.program}/{__version__} nsqtools/{__version__}",
            refused=HANDLER_SETTINGS,
            max_in_flight=self.effective_max_in_flight,
            max_in_flight_per_nsqd=MAX_IN_FLIGHT_PER_NSQD if self.max_in_flight is None else 0,
            connections_per_nsqd=self.connections_per_nsqd,
            lookupd_connect_timeout_s=self.http_client_connect_timeout_s,
        )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options, in NSQ's order and words."""
        if not self.channel:
            yield "--channel is required"
        yield from self._check_sources()
        yield from self.check_output()
        yield from (f"--consumer-opt: {problem}" for problem in self._consumer()[1])

    def check_output(self) -> Iterator[str]:
        """The mistakes in the options of the output."""
        yield from ()

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
            yield LEFT_NO_TOPIC


@dataclass(frozen=True, kw_only=True)
class ConsumingOptions(TransformOptions, SourceOptions):
    """One run of a consuming tool: what it consumes, and what of that its output gets."""

    def check(self) -> Iterator[str]:
        """And the filters."""
        yield from super().check()
        yield from self.check_transforms()
