"""The options of `nsqtools seek`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.client.options import CHANNEL, TOPIC
from nsqtools.options import HTTP_ADDRESS, Duration, Kind, option, parse_time_ns, render_time_ns

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = ("oldest", "newest")


class Place(Kind[str]):
    """A place in a log; a time is kept as one of UTC, which the broker's own zone cannot change."""

    metavar = "oldest|newest|TIME"

    def parse(self, text: str) -> str:
        return text if text in PLACES else render_time_ns(parse_time_ns(text))


@dataclass(frozen=True, kw_only=True)
class SeekOptions:
    """One move."""

    nsqd_http_address: str = option(
        HTTP_ADDRESS, default="127.0.0.1:4151", help="the HTTP API of an nsqd of nsqtools"
    )
    topic: str | None = option(TOPIC, help="topic of the channel")
    channel: str | None = option(CHANNEL, help="channel to move")
    to: str | None = option(
        Place(),
        help="where it goes on: the oldest message there is, the next one that is published, or the"
        " first that was published at that time or later",
    )
    timeout_s: float = option(Duration(minimum="1ms"), default="30s", help="time for the answer")

    def check(self) -> Iterator[str]:
        """The mistakes that concern several options."""
        for name in ("topic", "channel", "to"):
            if not getattr(self, name):
                yield f"name --{name}"
