"""What the log says of troubles with the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.broker.troubles import JOURNAL, OK, PUBLISH, Troubles

if TYPE_CHECKING:
    import pytest


def test_each_topic_is_named_when_it_begins_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    troubles = Troubles()
    for name in ("one", "two"):
        for _ in range(3):
            troubles.failed(PUBLISH, name, "No space left on device")
    troubles.failed(JOURNAL, "one", "No space left on device")
    for kind, name in ((PUBLISH, "two"), (PUBLISH, "one"), (JOURNAL, "one"), (JOURNAL, "one")):
        troubles.recovered(kind, name)
    assert troubles.health == OK
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" error=")[0] for line in told[:3]] == [
        f"{PUBLISH} topic=one",
        f"{PUBLISH} topic=two",
        f"{JOURNAL} topic=one",
    ]
    assert [line.partition(" failures=")[0] for line in told[3:]] == [
        f'the disk takes it again topic=two trouble="{PUBLISH}"',
        f'the disk takes it again topic=one trouble="{PUBLISH}"',
        f'the disk takes it again topic=one trouble="{JOURNAL}"',
    ]


def test_of_a_deleted_topic_nobody_says_that_it_works_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    troubles = Troubles()
    troubles.failed(PUBLISH, "gone", "No space left on device")
    troubles.failed(PUBLISH, "other", "No space left on device")
    troubles.forget("gone")
    assert troubles.health != OK
    troubles.forget("other")
    assert troubles.health == OK
    assert "again" not in caplog.text
