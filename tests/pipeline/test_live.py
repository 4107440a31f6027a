"""What a run says of itself on a terminal."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from nsqtools.pipeline.live import LiveText

if TYPE_CHECKING:
    from nsqtools.pipeline.topic import TopicPipeline


def pipeline(in_flight: int = 0, lag_s: float = 0.0, trouble: str = "") -> TopicPipeline:
    return cast(
        "TopicPipeline",
        SimpleNamespace(
            consumer=SimpleNamespace(in_flight=in_flight),
            lag_s=lag_s,
            trouble=trouble,
            output_trouble=lambda: "",
        ),
    )


def test_sums_rates_and_what_is_the_programs_own() -> None:
    text = LiveText("archived", lambda total: [f"{total['files']} files"])
    total = Counter(messages=1000, files=2)
    assert text.say(total, [pipeline(7)], 10.0) == "1,000 archived · 0/s · 7 in flight · 2 files"
    total["messages"] += 3000
    found = text.say(total, [pipeline(7), pipeline(3)], 12.0)
    assert found == "4,000 archived · 1,500/s · 10 in flight · 2 files · 2 topics"


def test_a_lag_and_the_first_trouble_are_told_without_what_moves_the_cursor() -> None:
    text = LiveText("delivered")
    total = Counter(messages=1)
    text.say(total, [], 1.0)
    total["messages"] += 1
    found = text.say(total, [pipeline(lag_s=90, trouble="no \x1b[2J room")], 2.0)
    assert "90 s behind" in found
    assert found.index("room") < found.index("in flight"), "a narrow terminal cuts the end"
    assert "\x1b" not in found
    assert "room" in found


def test_what_was_filtered_out_is_told() -> None:
    found = LiveText("archived").say(Counter(messages=1, removed=2000), [], 1.0)
    assert "2,000 filtered out" in found
