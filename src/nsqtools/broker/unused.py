"""Options of nsqd that mean nothing here, taken so that its flags and its configuration file can stay.

What nsqd has for tuning itself, for statsd and for compression is passed over, and said once. What
keeps strangers out (TLS, authentication) is refused unless it is off: an operator who asks for it must
not get an open port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.options import BOOL, NO_EFFECT, Kind, option, options_of, repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

_NONE = "no effect"
_SAFETY = "refused unless it is off: there is no TLS and no authentication here"
_OFF = frozenset({"", "false", "False", "0", "f", "F", "FALSE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Anything(Kind[str]):
    """A value that nobody looks at."""

    metavar: str = "TEXT"
    native: tuple[type, ...] = (int, float)

    def parse(self, text: str) -> str:
        return text

    def from_toml(self, value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)


_ANY = _Anything()


def _unused(text: str = _NONE) -> str | None:
    return option(_ANY, help=text, group=NO_EFFECT)


def _switch() -> bool | None:
    return option(BOOL, help=_NONE, group=NO_EFFECT)


def _list(alias: str = "", text: str = _NONE) -> tuple[str, ...]:
    return repeated(_ANY, help=text, group=NO_EFFECT, aliases=(alias,) if alias else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class UnusedOptions:
    """What is not given is None, or empty."""

    verbose: bool | None = _switch()
    worker_id: str | None = _unused()
    node_id: str | None = option(
        _ANY, help="no effect: ids are numbers that only grow", group=NO_EFFECT, aliases=("id",)
    )
    https_address: str | None = _unused()
    topology_region: str | None = _unused()
    topology_zone: str | None = _unused()
    queue_scan_worker_pool_max: str | None = _unused()
    queue_scan_selection_count: str | None = _unused()
    statsd_address: str | None = _unused("no effect: see --status-address")
    statsd_interval: str | None = _unused()
    statsd_mem_stats: bool | None = _switch()
    statsd_prefix: str | None = _unused()
    statsd_udp_packet_size: str | None = _unused()
    statsd_exclude_ephemeral: bool | None = _switch()
    e2e_processing_latency_percentile: tuple[str, ...] = _list("e2e_processing_latency_percentiles")
    e2e_processing_latency_window_time: str | None = _unused()
    deflate: bool | None = _switch()
    snappy: bool | None = _switch()
    max_deflate_level: str | None = _unused()
    enable_experiment: tuple[str, ...] = _list()
    auth_http_request_method: str | None = _unused()
    tls_min_version: str | None = _unused()

    auth_http_address: tuple[str, ...] = _list("auth_http_addresses", _SAFETY)
    tls_cert: str | None = _unused(_SAFETY)
    tls_key: str | None = _unused(_SAFETY)
    tls_root_ca_file: str | None = _unused(_SAFETY)
    tls_client_auth_policy: str | None = _unused(_SAFETY)
    tls_required: str | None = _unused(_SAFETY)

    def without_effect(self) -> list[str]:
        """The flags that were given and mean nothing here."""
        return [
            f"--{made.flag}"
            for made in options_of(type(self))
            if made.group == NO_EFFECT and getattr(self, made.name) not in (None, ())
        ]

    def check(self) -> Iterator[str]:
        """What keeps strangers out, and cannot be had."""
        for made in options_of(type(self)):
            if made.help == _SAFETY:
                value = getattr(self, made.name)
                given = value if isinstance(value, tuple) else (value,)
                if any(one is not None and one not in _OFF for one in given):
                    what = "authentication" if made.flag.startswith("auth") else "TLS"
                    yield f"--{made.flag} cannot be had: this broker has no {what}, run the real nsqd"
