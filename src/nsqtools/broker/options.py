"""The options of the embedded nsqd: NSQ's flags for what it does, with NSQ's defaults.

Spec: nsqd-http, part 4. The flags of features that this broker does not have are in `unused`: an
operator who asks for TLS must not get a plain port.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.broker.retention import RETENTION, Retention
from nsqtools.broker.unused import UnusedOptions
from nsqtools.observe.options import LogOptions, StatusOptions
from nsqtools.options import (
    ADDRESS,
    BOOL,
    FOLDER,
    HOST,
    LISTEN_ADDRESS,
    TEXT,
    Address,
    Choice,
    Duration,
    Int,
    Size,
    option,
    repeated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A frame's size is a signed 32-bit number; nothing that has to fit one may be larger.
SIZE_MAX = 2**31 - 1
# A segment must hold more than its header; below this, files would outnumber messages.
SEGMENT_BYTES_MIN = 4096

_PORT = Int(minimum=0, maximum=65535)
_SIZE = Size(minimum=1, maximum=SIZE_MAX)
# In nsqd's own configuration file a whole number is a number of milliseconds.
_DURATION = Duration(minimum="1ms", toml_int_ms=True)

_NETWORK = "Addresses"
_STORAGE = "Storage"
_LIMITS = "Messages and clients"
_BUFFERS = "Output buffers"


@dataclass(frozen=True, slots=True, kw_only=True)
class NsqdOptions(LogOptions, StatusOptions, UnusedOptions):
    """One run of the broker. Times are in seconds, sizes in bytes."""

    tcp_address: str = option(
        LISTEN_ADDRESS, default="0.0.0.0:4150", help="where TCP clients connect", group=_NETWORK
    )
    http_address: str = option(
        Address(listen=True, empty=True),
        default="0.0.0.0:4151",
        help="where the HTTP API is; an empty address for none",
        group=_NETWORK,
    )
    broadcast_address: str | None = option(
        HOST,
        help="the address that nsqlookupd gives to clients; default: the host name",
        group=_NETWORK,
    )
    broadcast_tcp_port: int = option(
        _PORT, default="0", help="the TCP port that it gives, 0: the real one", group=_NETWORK
    )
    broadcast_http_port: int = option(
        _PORT, default="0", help="the HTTP port that it gives, 0: the real one", group=_NETWORK
    )
    lookupd_tcp_address: tuple[str, ...] = repeated(
        ADDRESS,
        help="nsqlookupd to register with",
        group=_NETWORK,
        aliases=("nsqlookupd_tcp_addresses",),
    )
    http_client_connect_timeout_s: float = option(
        _DURATION,
        default="2s",
        help="time to connect when nsqlookupd is asked for channels",
        group=_NETWORK,
    )
    http_client_request_timeout_s: float = option(
        _DURATION, default="5s", help="time for its answer", group=_NETWORK
    )

    data_path: Path = option(
        FOLDER, default=".", help="existing folder for topics and channels", group=_STORAGE
    )
    mem_queue_size: int = option(
        Int(minimum=0),
        default="10000",
        help="newest messages of a topic that stay in memory; older ones are read from disk",
        group=_STORAGE,
    )
    mem_queue_bytes: int = option(
        Size(minimum=0),
        default="32MiB",
        help="newest messages of all topics that stay in memory, in bytes; #ephemeral topics may hold"
        " eight times as much",
        group=_STORAGE,
        flag="mem-queue-bytes",
    )
    max_bytes_per_file: int = option(
        Size(minimum=SEGMENT_BYTES_MIN),
        default="104857600",
        help="size beyond which a topic's log begins a new file",
        group=_STORAGE,
    )
    sync_every: int = option(
        Int(minimum=1),
        default="2500",
        help="messages of a topic between two fsyncs",
        group=_STORAGE,
    )
    sync_timeout_s: float = option(
        _DURATION, default="2s", help="longest time between two fsyncs", group=_STORAGE
    )
    retain: Retention = option(
        RETENTION,
        default="0",
        help="keep that much of each topic's log beyond what channels need, so that they can be moved"
        " back (nsqtools seek); 0: nothing",
        group=_STORAGE,
    )
    start_from: str = option(
        Choice(("newest", "oldest")),
        default="newest",
        help="where a new channel begins: with what comes next, or with the oldest message there is",
        group=_STORAGE,
    )
    durable: bool = option(
        BOOL,
        default="false",
        help="fsync before a publisher gets its OK: not even a power cut loses an acknowledged"
        " message",
        group=_STORAGE,
    )

    msg_timeout_s: float = option(
        _DURATION,
        default="1m",
        help="time to answer a message before it is requeued",
        group=_LIMITS,
    )
    max_msg_timeout_s: float = option(
        _DURATION, default="15m", help="the longest that a client may ask for", group=_LIMITS
    )
    max_msg_size_bytes: int = option(
        _SIZE, default="1048576", help="size of a message", group=_LIMITS
    )
    max_body_size_bytes: int = option(
        _SIZE, default="5242880", help="size of a command's body, such as MPUB's", group=_LIMITS
    )
    max_req_timeout_s: float = option(
        _DURATION, default="1h", help="longest delay of REQ and DPUB", group=_LIMITS
    )
    max_heartbeat_interval_s: float = option(
        _DURATION, default="1m", help="the longest that a client may ask for", group=_LIMITS
    )
    max_rdy_count: int = option(
        Int(minimum=1), default="2500", help="highest RDY count of a client", group=_LIMITS
    )
    max_channel_consumers: int = option(
        Int(minimum=0), default="0", help="consumers of a channel, 0: any number", group=_LIMITS
    )

    max_output_buffer_size_bytes: int = option(
        _SIZE, default="65536", help="the largest that a client may ask for", group=_BUFFERS
    )
    max_output_buffer_timeout_s: float = option(
        _DURATION, default="30s", help="the longest that a client may ask for", group=_BUFFERS
    )
    min_output_buffer_timeout_s: float = option(
        _DURATION, default="25ms", help="the shortest that a client may ask for", group=_BUFFERS
    )
    output_buffer_timeout_s: float = option(
        _DURATION, default="250ms", help="for clients that ask for none", group=_BUFFERS
    )

    log_prefix: str = option(TEXT, default="[nsqd] ", help="begin text log lines with this")

    @property
    def effective_broadcast_address(self) -> str:
        return self.broadcast_address or socket.gethostname()

    def check(self) -> Iterator[str]:
        """Bounds that cross each other, and what cannot be had."""
        yield from UnusedOptions.check(self)
        for low, high in (
            ("msg_timeout", "max_msg_timeout"),
            ("min_output_buffer_timeout", "max_output_buffer_timeout"),
            ("output_buffer_timeout", "max_output_buffer_timeout"),
            ("min_output_buffer_timeout", "output_buffer_timeout"),
        ):
            if getattr(self, f"{low}_s") > getattr(self, f"{high}_s"):
                yield f"--{low} should not be longer than --{high}".replace("_", "-")
