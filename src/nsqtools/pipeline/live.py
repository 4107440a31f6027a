"""What a run says of itself on a terminal: how much, how fast, and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.options import printable

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Collection, Sequence

    from nsqtools.pipeline.topic import TopicPipeline

LIVE_INTERVAL_S = 1.0
# A lag that somebody would notice.
LAG_TOLD_S = 2.0
_TROUBLE_MAX = 120


class LiveText:
    """The line. `done` is the word for what happened to messages; `more` says what is the program's
    own, from the sums of all counters."""

    def __init__(
        self, done: str, more: Callable[[Counter[str]], Sequence[str]] = lambda _: ()
    ) -> None:
        self._done = done
        self._more = more
        self._told = 0
        self._told_s: float | None = None

    def say(self, total: Counter[str], pipelines: Collection[TopicPipeline], now_s: float) -> str:
        """The line of this moment; rates are since the one before. `now_s` is of a steady clock.

        What is wrong stands near the beginning: a narrow terminal cuts the end.
        """
        passed_s = now_s - self._told_s if self._told_s is not None else 0.0
        rate = (total["messages"] - self._told) / passed_s if passed_s > 0 else 0.0
        self._told, self._told_s = total["messages"], now_s
        parts = [f"{total['messages']:,} {self._done}", f"{rate:,.0f}/s"]
        troubles = [one.trouble or one.output_trouble() for one in pipelines]
        parts += [printable(trouble)[:_TROUBLE_MAX] for trouble in troubles if trouble][:1]
        parts.append(f"{sum(one.consumer.in_flight for one in pipelines):,} in flight")
        if total["removed"]:
            parts.append(f"{total['removed']:,} filtered out")
        parts += self._more(total)
        if len(pipelines) > 1:
            parts.append(f"{len(pipelines):,} topics")
        lag_s = max((one.lag_s for one in pipelines), default=0.0)
        if rate and lag_s >= LAG_TOLD_S:
            parts.append(f"{lag_s:,.0f} s behind")
        return " · ".join(parts)
