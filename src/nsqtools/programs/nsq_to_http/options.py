"""The options of nsq_to_http: what every consuming tool has, and those of delivery by HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools.client.options import MAX_IN_FLIGHT_MAX
from nsqtools.options import Int, option
from nsqtools.outputs.http.options import HttpOptions
from nsqtools.pipeline.options import ConsumingOptions, channel_option, log_prefix_option

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class NsqToHttpOptions(HttpOptions, ConsumingOptions):
    """One run of nsq_to_http."""

    program: ClassVar[str] = "nsq_to_http"
    channel: str = channel_option("nsq_to_http")
    log_prefix: str = log_prefix_option("[nsq_to_http] ")
    max_in_flight: int = option(
        Int(minimum=1, maximum=MAX_IN_FLIGHT_MAX),
        default="2500",
        help="messages held at a time, over all nsqds of a topic: on their way, or waiting for"
        " another try",
        group="Where messages come from",
    )

    def _check_sources(self) -> Iterator[str]:
        """In the words of NSQ's tool, where they differ from those of nsq_to_file."""
        for problem in super()._check_sources():
            yield {
                "--topic or --topic-pattern required": "--topic and --channel are required",
                "--nsqd-tcp-address or --lookupd-http-address required.": (
                    "--nsqd-tcp-address or --lookupd-http-address required"
                ),
            }.get(problem, problem)
