"""What `--consumer-opt` and `--producer-opt` can set (spec: client-behaviour, part 1).

Names, units and bounds are those of NSQ's own client library, so that settings can be carried
over. Some defaults differ: `max_attempts` is
unlimited (NSQ's client drops a message after five deliveries), `tls_min_version` is 1.2,
`output_buffer_size` and `output_buffer_timeout` are made for speed. `auth_plaintext` is our own:
NSQ's client tells its secret to whatever asks for AUTH, ours over TLS only, unless that is set. A
setting that is misspelt, or cannot be honoured, is a mistake, not a silence.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from nsqtools.options import (
    BOOL,
    PATH,
    SECRET,
    TEXT,
    Choice,
    Duration,
    Float,
    Int,
    Kind,
    load_settings,
    option,
)
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from nsqtools.client.lookup import LookupOptions
    from nsqtools.options import Setting

BackoffStrategy = Literal["exponential", "full_jitter"]
BACKOFF_STRATEGY: Kind[BackoffStrategy] = Choice(
    ("exponential", "full_jitter"), {"": "exponential"}
)
TLS_VERSION: Kind[str] = Choice(("tls1.0", "tls1.1", "tls1.2", "tls1.3"))
# A bound on memory: each message in flight is held until it is durable.
MAX_IN_FLIGHT_MAX = 100_000
CONNECTIONS_PER_NSQD_MAX = 16
_OFF = "-1ns"


@dataclass(frozen=True, slots=True, kw_only=True)
class Name(Kind[str]):
    """A topic or a channel; with `empty` also none, for a check with its own words."""

    what: str
    empty: bool = False
    metavar: str = "NAME"

    def parse(self, text: str) -> str:
        if (self.empty and not text) or is_valid_name(text):
            return text
        raise ValueError(
            f"invalid {self.what} name, allowed are 1 to 64 of . a-z A-Z 0-9 _ -"
            " and the suffix #ephemeral"
        )


TOPIC = Name(what="topic", metavar="TOPIC")
CHANNEL = Name(what="channel", metavar="CHANNEL")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """One connection to an nsqd: times, IDENTIFY, TLS, compression."""

    dial_timeout_s: float = option(
        Duration(minimum="1ms"), default="1s", help="time for a TCP connection to be made"
    )
    read_timeout_s: float = option(
        Duration(minimum="100ms", maximum="5m"),
        default="60s",
        help="a connection that stays silent for longer is given up",
    )
    write_timeout_s: float = option(
        Duration(minimum="100ms", maximum="5m"),
        default="1s",
        help="a connection that takes no bytes for longer is given up",
    )
    client_id: str = option(TEXT, default="", help="default: the host name up to its first dot")
    hostname: str = option(TEXT, default="", help="default: the host name")
    user_agent: str = option(TEXT, default="", help="default: the program and its version")
    heartbeat_interval_s: float = option(
        Duration(minimum=_OFF), default="30s", help="-1ns disables heartbeats"
    )
    output_buffer_size: int = option(
        Int(minimum=-1),
        default="65536",  # what nsqd allows; NSQ's 16384 costs a consumer four times the reads
        help="bytes that nsqd gathers for us, -1 for none",
    )
    output_buffer_timeout_s: float = option(
        Duration(minimum=_OFF),
        default="50ms",  # NSQ: 250ms, for which the last messages of a backlog then wait
        help="how long nsqd gathers, -1ns for not at all",
    )
    tls_v1: bool = option(BOOL, default="false", help="speak TLS")
    tls_root_ca_file: Path | None = option(PATH, help="certificates to trust, PEM")
    tls_cert: Path | None = option(PATH, help="our certificate, PEM")
    tls_key: Path | None = option(PATH, help="the key of our certificate, PEM")
    tls_insecure_skip_verify: bool = option(
        BOOL, default="false", help="trust any certificate of the server"
    )
    tls_min_version: str = option(TLS_VERSION, default="tls1.2", help="oldest TLS version to speak")
    deflate: bool = option(BOOL, default="false", help="compress the connection with deflate")
    deflate_level: int = option(Int(minimum=1, maximum=9), default="6", help="1 to 9")
    snappy: bool = option(BOOL, default="false", help="compress the connection with snappy")
    auth_secret: str = option(SECRET, default="", help="the secret for AUTH")
    auth_plaintext: bool = option(
        BOOL, default="false", help="send the secret also where the connection is not TLS"
    )

    @property
    def heartbeat_interval_ms(self) -> int:
        """As IDENTIFY wants it: milliseconds, -1 for none."""
        return _identify_ms(self.heartbeat_interval_s)

    @property
    def output_buffer_timeout_ms(self) -> int:
        """As IDENTIFY wants it: milliseconds, -1 for none."""
        return _identify_ms(self.output_buffer_timeout_s)

    @property
    def effective_hostname(self) -> str:
        return self.hostname or socket.gethostname()

    @property
    def effective_client_id(self) -> str:
        return self.client_id or socket.gethostname().partition(".")[0]

    def check(self) -> Iterator[str]:
        """The mistakes that concern several settings."""
        if self.heartbeat_interval_s > self.read_timeout_s:
            yield (
                f"heartbeat_interval {self.heartbeat_interval_s:g}s must be less than"
                f" read_timeout {self.read_timeout_s:g}s"
            )
        if self.deflate and self.snappy:
            yield "cannot enable both deflate and snappy compression"
        if (self.tls_cert is None) != (self.tls_key is None):
            yield "tls_cert and tls_key are needed together"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions(ConnectionOptions):
    """A consumer: flow control, backoff, requeueing, discovery."""

    max_in_flight: int = option(
        Int(minimum=1, maximum=MAX_IN_FLIGHT_MAX), default="200", help="messages held at a time"
    )
    max_in_flight_per_nsqd: int = option(
        Int(minimum=0, maximum=MAX_IN_FLIGHT_MAX),
        default="0",
        help="with many nsqds as many more as it takes to have so many of each, on average",
    )
    msg_timeout_s: float = option(
        Duration(), default="0s", help="time to answer a message, 0 for the server's"
    )
    sample_rate: int = option(
        Int(minimum=0, maximum=99), default="0", help="percentage to receive, 0 for all"
    )
    max_attempts: int = option(
        Int(minimum=0, maximum=65535), default="0", help="deliveries of a message, 0 for any number"
    )
    default_requeue_delay_s: float = option(
        Duration(maximum="60m"), default="90s", help="delay of a requeued message, by attempt"
    )
    max_requeue_delay_s: float = option(
        Duration(maximum="60m"), default="15m", help="bound of that delay"
    )
    backoff_strategy: BackoffStrategy = option(
        BACKOFF_STRATEGY, default="exponential", help="exponential or full_jitter"
    )
    max_backoff_duration_s: float = option(
        Duration(maximum="60m"), default="2m", help="longest backoff, 0 for none"
    )
    backoff_multiplier_s: float = option(
        Duration(maximum="60m"), default="1s", help="unit of the backoff"
    )
    lookupd_poll_interval_s: float = option(
        Duration(minimum="10ms", maximum="5m"), default="60s", help="time between two discoveries"
    )
    lookupd_poll_jitter: float = option(
        Float(minimum=0, maximum=1), default="0.3", help="fraction of the interval added at random"
    )
    lookupd_poll_timeout_s: float = option(
        Duration(minimum="1ms"), default="1m", help="time for an answer of nsqlookupd"
    )
    low_rdy_idle_timeout_s: float = option(
        Duration(minimum="1s", maximum="5m"),
        default="10s",
        help="an idle connection hands its RDY on after this time, when RDY is scarce",
    )
    low_rdy_timeout_s: float = option(
        Duration(minimum="1s", maximum="5m"), default="30s", help="a busy one after this time"
    )
    rdy_redistribute_interval_s: float = option(
        Duration(minimum="1ms", maximum="5s"), default="5s", help="time between two such rounds"
    )

    lookupd_connect_timeout_s: float = option(
        Duration(minimum="1ms"), default="5s", help="time for a connection to nsqlookupd to be made"
    )
    connections_per_nsqd: int = option(
        Int(minimum=1, maximum=CONNECTIONS_PER_NSQD_MAX),
        default="1",
        help="connections to each nsqd, which share max-in-flight",
    )

    def lookup(self) -> LookupOptions:
        """How to ask nsqlookupd."""
        from nsqtools.client.lookup import LookupOptions  # HTTP loads slowly

        return LookupOptions(
            lookupd_poll_interval_s=self.lookupd_poll_interval_s,
            lookupd_poll_jitter=self.lookupd_poll_jitter,
            lookupd_poll_timeout_s=self.lookupd_poll_timeout_s,
            connect_timeout_s=self.lookupd_connect_timeout_s,
            auth_secret=self.auth_secret,
            auth_plaintext=self.auth_plaintext,
        )

    @property
    def msg_timeout_ms(self) -> int:
        """As IDENTIFY wants it: milliseconds, 0 for the server's own."""
        return _identify_ms(self.msg_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerOptions(ConnectionOptions):
    """A producer: nothing beyond its connections."""


# Settings of NSQ's library that cannot be honoured, or have a flag: saying nothing would be worse.
_REFUSED = {
    "max_in_flight": "use --max-in-flight",
    "max_in_flight_per_nsqd": "use --max-in-flight",
    "connections_per_nsqd": "use --connections-per-nsqd",
    "lookupd_connect_timeout": "use --http-client-connect-timeout",
    "local_addr": "not supported",
    "skip_lookupd_authorization": "not supported",
}
_NEVER_GIVEN_UP = (
    "it has no effect: no message is given up, and a failing output makes its topic wait"
)
# Those of handlers, which no program has that takes batches.
HANDLER_SETTINGS = {
    "max_attempts": _NEVER_GIVEN_UP,
    "default_requeue_delay": _NEVER_GIVEN_UP,
    "max_requeue_delay": _NEVER_GIVEN_UP,
    "backoff_strategy": _NEVER_GIVEN_UP,
    "max_backoff_duration": _NEVER_GIVEN_UP,
    "backoff_multiplier": _NEVER_GIVEN_UP,
}
# What some scripts set because NSQ's client needs it, and what is so here anyway.
_ALWAYS_SO = {("max_attempts", "0")}


def consumer_options(
    settings: Sequence[Setting],
    *,
    auth_secret: str,
    user_agent: str,
    auth_plaintext: bool = False,
    refused: Mapping[str, str] = MappingProxyType({}),
    **flags: float,
) -> tuple[ConsumerOptions, list[str]]:
    """A consumer's options from `--consumer-opt`, and every mistake found in them.

    `refused` names further settings that cannot be set, and why; `flags` are fields that have flags
    of their own.
    """
    unusable = {**_REFUSED, **refused}
    asked = [s for s in settings if (s.name, s.value) not in _ALWAYS_SO or s.name not in unusable]
    problems = [
        f"option {setting.name} cannot be set here: {unusable[setting.name]}"
        for setting in asked
        if setting.name in unusable
    ]
    rest = [setting for setting in asked if setting.name not in unusable]
    options, more = load_settings(ConsumerOptions, rest)
    options = replace(
        options,
        auth_secret=auth_secret or options.auth_secret,
        auth_plaintext=auth_plaintext or options.auth_plaintext,
        user_agent=options.user_agent or user_agent,
        **flags,  # type: ignore[arg-type]  # each has the type of its field
    )
    return options, problems + more


def producer_options(
    settings: Sequence[Setting], *, auth_secret: str, user_agent: str, auth_plaintext: bool = False
) -> tuple[ProducerOptions, list[str]]:
    """A producer's options from `--producer-opt`, and every mistake found in them."""
    options, problems = load_settings(ProducerOptions, settings)
    options = replace(
        options,
        auth_secret=auth_secret or options.auth_secret,
        auth_plaintext=auth_plaintext or options.auth_plaintext,
        user_agent=options.user_agent or user_agent,
    )
    return options, problems


def _identify_ms(seconds: float) -> int:
    """IDENTIFY's milliseconds, in which 0 is the default and thus no short duration."""
    if seconds < 0:
        return -1
    return max(1, round(seconds * 1000)) if seconds else 0
