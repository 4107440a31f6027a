"""Which dead letters are wanted: `--where status=502`, `--where error=refused`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nsqtools.archive.stream import Records
from nsqtools.errors import ArchiveError
from nsqtools.options import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsqtools.archive.failures import Failure

_STATUS = re.compile(r"[0-9]{1,3}|[1-5]xx", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What the failure of a dead letter must be."""

    name: Literal["status", "error"]
    value: str

    def holds(self, failure: Failure) -> bool:
        if self.name == "error":
            return self.value in failure.error
        if self.value.endswith("xx"):
            return failure.status // 100 == int(self.value[0])
        return failure.status == int(self.value)


class ConditionKind(Kind[Condition]):
    """`status=502`, `status=5xx`, `status=0` for no reply, `error=WORDS`."""

    metavar = "NAME=VALUE"
    explain = "status=502, status=5xx, status=0 (there was no reply), error=WORDS"

    def parse(self, text: str) -> Condition:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise ValueError("should be status=STATUS or error=WORDS")
        if name == "status" and _STATUS.fullmatch(value):
            return Condition(name="status", value=value)
        if name == "error":
            return Condition(name="error", value=value)
        raise ValueError("should be status=STATUS or error=WORDS")

    def render(self, value: Condition) -> str:
        return f"{value.name}={value.value}"


CONDITION = ConditionKind()


def select(batch: Records, conditions: Sequence[Condition], name: str) -> Records:
    """The records of which, for each name, any condition holds; `name` is that of the file.

    The bodies alone are selected: it is for publishing them. Raises ArchiveError where the file keeps no
    failures.
    """
    if batch.failures is None:
        raise ArchiveError(
            f"{name}: keeps no status and no error, so that --where cannot select",
            hint="Name archives that nsq_to_http wrote with --dead-letter-dir.",
        )
    pairs = zip(batch.bodies, batch.failures, strict=True)
    bodies = [body for body, failure in pairs if failure and _is_wanted(failure, conditions)]
    return Records(bodies=bodies, offset=batch.offset, first_record=batch.first_record)


def _is_wanted(failure: Failure, conditions: Iterable[Condition]) -> bool:
    found: dict[str, bool] = {}
    for one in conditions:
        found[one.name] = found.get(one.name, False) or one.holds(failure)
    return all(found.values())
