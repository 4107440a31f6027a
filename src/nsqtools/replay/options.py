"""The options of file_to_nsq."""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools import __version__
from nsqtools.client.options import Name, ProducerOptions, producer_options
from nsqtools.errors import OptionsError
from nsqtools.observe.options import PROGRESS, LogOptions, Progress, StatusOptions
from nsqtools.options import (
    ADDRESS,
    BOOL,
    NAME_VALUE,
    SECRET,
    TEXT,
    TIMESTAMP,
    Choice,
    Duration,
    Float,
    Int,
    Kind,
    Size,
    option,
    repeated,
)
from nsqtools.replay.where import CONDITION, Condition
from nsqtools.stores.options import StoreAccess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.options import Setting

ReplayFormat = Literal["auto", "lines", "jsonl", "framed"]
Mode = Literal["round-robin"]
REPLAY_FORMAT: Kind[ReplayFormat] = Choice(("auto", "lines", "jsonl", "framed"))
MODE: Kind[Mode] = Choice(("round-robin",))
STDIN = "-"
# An MPUB's body is a count, then each message behind its size (spec: tcp-protocol, part 2).
MPUB_OVERHEAD_BYTES = 8
SIZE_MAX = 2**31 - 1

_WHAT = "What to replay"
_WHERE = "Where it goes"
_PACE = "How fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay(LogOptions, StatusOptions):
    """What goes where; these flags stand in front of the store's."""

    files: tuple[str, ...] = repeated(
        TEXT,
        help="archive or plain log, compressed or not; a folder (every file below it), a glob in"
        " quotes, s3://bucket/key, s3://bucket/prefix for every archive whose key begins so, or - for"
        " standard input",
        flag="file",
        positional=True,
    )
    record_format: ReplayFormat = option(
        REPLAY_FORMAT,
        default="auto",
        help="auto takes it from the bytes, not from the name",
        group=_WHAT,
        flag="format",
    )
    since_ns: int | None = option(
        TIMESTAMP, help="only messages published at this time or later", group=_WHAT
    )
    until_ns: int | None = option(
        TIMESTAMP, help="only messages published before this time", group=_WHAT
    )
    where: tuple[Condition, ...] = repeated(
        CONDITION,
        help="of dead letters only those with this status, or with these words in their error;"
        " several of one name: any of them",
        group=_WHAT,
    )

    topic: str = option(
        Name(what="topic", empty=True, metavar="TOPIC"),
        default="",
        help="topic to publish to; required",
        group=_WHERE,
    )
    nsqd_tcp_address: tuple[str, ...] = repeated(
        ADDRESS, help="nsqd to publish to; required", group=_WHERE
    )
    mode: Mode = option(
        MODE, default="round-robin", help="how batches are shared between nsqds", group=_WHERE
    )
    producer_opt: tuple[Setting, ...] = repeated(
        NAME_VALUE, help="setting of the producer, such as dial_timeout,5s or tls_v1", group=_WHERE
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
    max_msg_size_bytes: int = option(
        Size(minimum=1, maximum=SIZE_MAX),
        default="1048576",
        help="nsqd's own --max-msg-size: a larger message stops the replay before it is sent",
        group=_WHERE,
    )
    max_body_size_bytes: int = option(
        Size(minimum=1, maximum=SIZE_MAX),
        default="5242880",
        help="nsqd's own --max-body-size: no MPUB becomes larger",
        group=_WHERE,
    )

    rate_per_s: float = option(
        Float(minimum=0), default="0", help="messages a second, 0: as fast as it goes", group=_PACE
    )
    batch_size: int = option(
        Int(minimum=1, maximum=10_000), default="500", help="messages in an MPUB", group=_PACE
    )
    in_flight: int = option(
        Int(minimum=1, maximum=1000),
        default="8",
        help="MPUBs that wait for their OK, for each nsqd",
        group=_PACE,
    )

    progress: Progress = option(PROGRESS, default="auto", help="auto: on a terminal")
    shutdown_timeout_s: float = option(
        Duration(minimum="1ns"),
        default="30s",
        help="longest time to wait for the last answers, after SIGTERM",
        problem="{flag} should be positive",
    )
    log_prefix: str = option(TEXT, default="[file_to_nsq] ", help="begin text log lines with this")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToNsqOptions(StoreAccess, _Replay):
    """One run of file_to_nsq. Times are in seconds, points in time in ns, sizes in bytes."""

    def producer(self) -> ProducerOptions:
        """The options of the producers; raises OptionsError where `check` was not heeded."""
        options, problems = self._producer()
        if problems:
            raise OptionsError(problems)
        return options

    def _producer(self) -> tuple[ProducerOptions, list[str]]:
        return producer_options(
            self.producer_opt,
            auth_secret=self.auth_secret,
            auth_plaintext=self.auth_plaintext,
            user_agent=f"file_to_nsq/{__version__} nsqtools/{__version__}",
        )

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        if not self.files:
            yield "name at least one file, folder or glob, or - for standard input"
        yield from self.check_locations(self.files)
        if self.files.count(STDIN) > 1:
            yield "standard input (-) can be read only once"
        if not self.topic:
            yield "--topic required"
        if not self.nsqd_tcp_address:
            yield "--nsqd-tcp-address required"
        since, until = self.since_ns, self.until_ns
        if since is not None and until is not None and since >= until:
            yield "--since should be before --until"
        if self.max_body_size_bytes < self.max_msg_size_bytes + MPUB_OVERHEAD_BYTES:
            yield (
                f"--max-body-size should be at least {MPUB_OVERHEAD_BYTES} bytes more than"
                " --max-msg-size"
            )
        yield from (f"--producer-opt: {problem}" for problem in self._producer()[1])
