"""Counters and gauges by name, for reports and for whoever exposes them.

    registry = Registry()
    written = registry.counter("nsqtools_archive_messages_written_total", "...", "topic")
    of_orders = written.labels(topic="orders")     # once
    of_orders.add(len(batch))                      # one call for each batch

Names are `nsqtools_<area>_<what>_<unit>`, counters end in `_total`. A counter of drops must carry
a `reason` label: nothing is dropped without one. Labels can come from other machines (topics,
addresses), so each metric has a bounded number of children; beyond it, all share one, whose label
values are `other`.

`exposition` writes it all as Prometheus reads it. That is twenty lines: a client library would not do
the bounds, the names and the reasons for us, and would take a lock for each addition.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CHILDREN_MAX = 1000
LABEL_LENGTH_MAX = 200  # a topic has 64 characters, an address seldom more
OTHER = "other"
EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"nsqtools(_[a-z0-9]+){3,}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One value at one moment."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Counter:
    """Only grows."""

    __slots__ = ("value",)
    kind: Literal["counter", "gauge"] = "counter"

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Raises ValueError for a negative amount, which would look like a restart."""
        if amount < 0:
            raise ValueError(f"a counter only grows, not by {amount}")
        self.value += amount


class Gauge:
    """Goes up and down."""

    __slots__ = ("value",)
    kind: Literal["counter", "gauge"] = "gauge"

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        self.value = value

    def add(self, amount: float) -> None:
        self.value += amount


C = TypeVar("C", bound=Counter | Gauge)


class Family(Generic[C]):
    """A metric by its labels; without labels it has one child, `labels()`."""

    def __init__(self, name: str, text: str, label_names: tuple[str, ...], make: type[C]) -> None:
        self.name = name
        self.help = text
        self.label_names = label_names
        self._make = make
        self._children: dict[tuple[str, ...], C] = {}

    def labels(self, **values: str) -> C:
        """The child of these label values, made on first use; keep it for the hot path.

        Raises ValueError when the names are not those of the metric.
        """
        if tuple(sorted(values)) != tuple(sorted(self.label_names)):
            raise ValueError(f"{self.name} has the labels {self.label_names}, not {tuple(values)}")
        key = tuple(values[name][:LABEL_LENGTH_MAX] for name in self.label_names)
        if key not in self._children and len(self._children) >= CHILDREN_MAX:
            key = tuple(OTHER for _ in self.label_names)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._make()
        return child

    def forget(self, **values: str) -> None:
        """Drops a child, for a gauge of something that is gone; unknown ones are passed over."""
        self._children.pop(tuple(values.get(name, "") for name in self.label_names), None)

    def clear(self) -> None:
        """Drops every child, for metrics that are read anew from somewhere."""
        self._children.clear()

    def total(self) -> float:
        """The sum over all labels."""
        return sum(child.value for child in self._children.values())

    def samples(self) -> list[Sample]:
        return [
            Sample(
                name=self.name,
                kind=self._make.kind,
                help=self.help,
                labels=tuple(zip(self.label_names, key, strict=True)),
                value=child.value,
            )
            for key, child in self._children.items()
        ]


class Registry:
    """The metrics of one program run."""

    def __init__(self) -> None:
        self._families: dict[str, Family[Counter] | Family[Gauge]] = {}
        self._before: list[Callable[[], None]] = []

    def counter(self, name: str, text: str, *label_names: str) -> Family[Counter]:
        """A new counter; raises ValueError for a bad or a taken name."""
        if not name.endswith("_total"):
            raise ValueError(f"the name of a counter ends in _total: {name}")
        if "_dropped_" in name and "reason" not in label_names:
            raise ValueError(f"a drop has a reason: {name} needs the label reason")
        family = Family(name, text, label_names, Counter)
        self._keep(family)
        return family

    def gauge(self, name: str, text: str, *label_names: str) -> Family[Gauge]:
        """A new gauge; raises ValueError for a bad or a taken name."""
        family = Family(name, text, label_names, Gauge)
        self._keep(family)
        return family

    def before_snapshot(self, refresh: Callable[[], None]) -> None:
        """Calls `refresh` before each snapshot, for gauges that are read from somewhere."""
        self._before.append(refresh)

    def snapshot(self) -> list[Sample]:
        """All values now, in the order in which the metrics were made."""
        for refresh in self._before:
            refresh()
        return [sample for family in self._families.values() for sample in family.samples()]

    def _keep(self, family: Family[Counter] | Family[Gauge]) -> None:
        if not _NAME.fullmatch(family.name):
            raise ValueError(f"a metric is named nsqtools_<area>_<what>_<unit>: {family.name}")
        if family.name in self._families:
            raise ValueError(f"there is a metric {family.name} already")
        self._families[family.name] = family
        if not family.label_names:
            family.labels()  # shown from the start: a rate needs the 0 before the first addition


def exposition(samples: Iterable[Sample]) -> str:
    """Samples in the text format of Prometheus; those of one metric have to come together."""
    lines = []
    name = ""
    for sample in samples:
        if sample.name != name:
            name = sample.name
            lines.append(f"# HELP {name} {_escape(sample.help)}")
            lines.append(f"# TYPE {name} {sample.kind}")
        labels = ",".join(f'{key}="{_escape(value, quote=True)}"' for key, value in sample.labels)
        lines.append(
            f"{name}{{{labels}}} {sample.value!r}" if labels else f"{name} {sample.value!r}"
        )
    return "".join(f"{line}\n" for line in lines)


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text
