"""Counters and gauges: names, labels, bounds."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nsqtools.observe.counters import (
    CHILDREN_MAX,
    LABEL_LENGTH_MAX,
    OTHER,
    Registry,
    Sample,
    exposition,
)

WRITTEN = "nsqtools_archive_messages_written_total"


def test_counting() -> None:
    registry = Registry()
    family = registry.counter(WRITTEN, "messages made durable", "topic")
    orders = family.labels(topic="orders")
    orders.add(200)
    orders.add()
    family.labels(topic="users").add(0)
    assert family.total() == 201
    assert registry.snapshot() == [
        Sample(
            name=WRITTEN,
            kind="counter",
            help="messages made durable",
            labels=(("topic", topic),),
            value=value,
        )
        for topic, value in (("orders", 201), ("users", 0))
    ]


def test_a_counter_only_grows() -> None:
    counter = Registry().counter(WRITTEN, "").labels()
    with pytest.raises(ValueError, match="only grows"):
        counter.add(-1)


def test_gauges_are_refreshed_and_forgotten() -> None:
    registry = Registry()
    family = registry.gauge("nsqtools_client_in_flight_messages", "", "nsqd")
    gauge = family.labels(nsqd="a:1")
    registry.before_snapshot(lambda: gauge.set(7))
    gauge.add(-2)
    assert [sample.value for sample in registry.snapshot()] == [7]
    family.forget(nsqd="a:1")
    family.forget(nsqd="b:1")
    assert registry.snapshot() == []


@pytest.mark.parametrize(
    ("name", "labels", "reason"),
    [
        ("nsqtools_archive_messages_written", (), "ends in _total"),
        ("archive_messages_written_total", (), "is named nsqtools_"),
        ("nsqtools_Archive_messages_total", (), "is named nsqtools_"),
        ("nsqtools_archive_messages_dropped_total", ("topic",), "needs the label reason"),
    ],
)
def test_names_have_rules(name: str, labels: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Registry().counter(name, "", *labels)


def test_a_name_is_taken_once() -> None:
    registry = Registry()
    registry.counter(WRITTEN, "")
    with pytest.raises(ValueError, match="already"):
        registry.counter(WRITTEN, "")


def test_labels_are_those_of_the_metric() -> None:
    family = Registry().counter("nsqtools_archive_messages_dropped_total", "", "reason")
    with pytest.raises(ValueError, match="has the labels"):
        family.labels(topic="t")


def test_children_are_bounded_and_nothing_is_lost() -> None:
    registry = Registry()
    family = registry.counter(WRITTEN, "", "topic")
    for number in range(CHILDREN_MAX + 50):
        family.labels(topic=f"t{number}").add()
    samples = registry.snapshot()
    assert len(samples) == CHILDREN_MAX + 1
    assert samples[-1].labels == (("topic", OTHER),)
    assert samples[-1].value == 50
    assert family.total() == CHILDREN_MAX + 50


def test_prometheus_reads_what_is_exposed() -> None:
    registry = Registry()
    family = registry.counter(WRITTEN, 'messages\nmade "durable" \\', "topic")
    family.labels(topic='a"b\\c\nd').add(3)
    registry.gauge("nsqtools_client_in_flight_messages", "").labels().set(0.5)
    families = {found.name: found for found in text_string_to_metric_families(exposed(registry))}
    written = families[WRITTEN.removesuffix("_total")]
    assert (written.type, written.documentation) == ("counter", 'messages\nmade "durable" \\')
    assert [(s.name, s.labels, s.value) for s in written.samples] == [
        (WRITTEN, {"topic": 'a"b\\c\nd'}, 3)
    ]
    assert [s.value for s in families["nsqtools_client_in_flight_messages"].samples] == [0.5]


def exposed(registry: Registry) -> str:
    return exposition(registry.snapshot())


def test_a_metric_without_labels_is_shown_from_the_start() -> None:
    registry = Registry()
    registry.counter(WRITTEN, "help", "topic")
    registry.counter("nsqtools_archive_files_total", "files")
    assert exposed(registry) == (
        "# HELP nsqtools_archive_files_total files\n"
        "# TYPE nsqtools_archive_files_total counter\n"
        "nsqtools_archive_files_total 0\n"
    )


def test_label_values_are_cut() -> None:
    registry = Registry()
    registry.counter(WRITTEN, "", "topic").labels(topic="t" * 1000).add()
    assert registry.snapshot()[0].labels == (("topic", "t" * LABEL_LENGTH_MAX),)
