"""What is wrong with the broker's disk now; nsqd's health is the first of it (spec: nsqd-http, 2.1).

Each trouble is told once when it begins, now and then while it lasts, and once when it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nsqtools.clock import SystemClock
from nsqtools.observe.log import Repeated, get_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OK = "OK"
# What of a topic can go wrong, and how the log tells it.
PUBLISH = "messages are not written"
SYNC = "messages are not synced"
JOURNAL = "what channels did is not written"
UPKEEP = "the log keeps what no channel needs"


class _Trouble(NamedTuple):
    reason: str
    folder: Path | None


class Troubles:
    """Troubles by kind and topic; one of them is over when it is said so."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], _Trouble] = {}
        self._logs: dict[tuple[str, str], Repeated] = {}

    @property
    def health(self) -> str:
        """`OK`, or `NOK - ` and a reason, as /ping says it."""
        return next((f"NOK - {one.reason}" for one in self._found.values()), OK)

    def failed(self, kind: str, topic: str, reason: object, folder: Path | None = None) -> None:
        """`folder`: where a file can be made again once it is over."""
        self._found[kind, topic] = _Trouble(str(reason), folder)
        self._log(kind, topic).failed(reason, topic=topic)

    def recovered(self, kind: str, topic: str) -> None:
        if not self._found or self._found.pop((kind, topic), None) is None:
            return
        self._log(kind, topic).recovered("the disk takes it again", topic=topic, trouble=kind)
        del self._logs[kind, topic]

    def forget(self, topic: str) -> None:
        """The topic is deleted."""
        for kind, name in list(self._found):
            if name == topic:
                del self._found[kind, name], self._logs[kind, name]

    def to_probe(self) -> Iterator[tuple[str, str, Path]]:
        """Those that only a try can end: (kind, topic, folder)."""
        for (kind, topic), trouble in list(self._found.items()):
            if trouble.folder is not None:
                yield kind, topic, trouble.folder

    def _log(self, kind: str, topic: str) -> Repeated:
        if (kind, topic) not in self._logs:
            self._logs[kind, topic] = Repeated(get_log("broker"), kind, clock=SystemClock())
        return self._logs[kind, topic]
