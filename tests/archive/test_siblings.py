"""Several messages that were made of one have one key: none of them is taken for a copy of another, and
all are when the message comes again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.archive.helpers import NSQD, close, read_bodies, spec, visible
from tests.archive.test_once import commit, message, opened

from nsqtools.archive import once as once_module
from nsqtools.archive.keys import Keys
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.wire.messages import Messages, PartedMessages, encode_payload

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def parted(*counts: int, attempts: int = 1) -> PartedMessages:
    """As many parts of each message; a body is the number of its message."""
    payloads: list[bytes] = []
    parts: list[int] = []
    for number, count in enumerate(counts, 1):
        payloads += message(number, attempts=attempts).payloads * count
        parts += range(count)
    return PartedMessages(payloads, parts, nsqd=NSQD)


def test_all_parts_are_written_and_looked_up_as_one(tmp_path: Path) -> None:
    once = opened(tmp_path)
    assert commit(once, parted(3, 1, 2, attempts=2)) == [1, 1, 1, 2, 3, 3]
    assert commit(once, parted(3, 1, 2, 2, attempts=2)) == [4, 4]
    once.may_come_again(NSQD, None)
    assert commit(once, parted(3, 1, 2, 2, 2)) == [5, 5]
    once.close()


def test_a_message_that_comes_twice_at_once_is_written_once(tmp_path: Path) -> None:
    once = opened(tmp_path)
    assert commit(once, parted(2, attempts=2), parted(2, attempts=2)) == [1, 1]
    both = parted(2, attempts=2)
    twice = PartedMessages(both.payloads * 2, [*both.parts, *both.parts], nsqd=NSQD)
    once = opened(tmp_path / "other")
    assert commit(once, twice) == [1, 1]
    once.close()


def test_a_message_that_is_known_and_comes_twice_at_once_is_not_written(tmp_path: Path) -> None:
    once = opened(tmp_path)
    assert commit(once, parted(1)) == [1]
    once.may_come_again(NSQD, None)
    one = parted(2, attempts=2)
    twice = PartedMessages(one.payloads * 2, [0, 1] * 2, nsqd=NSQD)
    assert commit(once, twice, Messages(message(1).payloads * 2, nsqd=NSQD)) == []
    assert commit(once, twice) == []
    once.close()


def test_a_message_has_one_key_however_many_are_made_of_it() -> None:
    """Of a window of messages all keys are remembered, not those of the last ones parted."""
    assert len(Keys.of(parted(100, 50, 1))) == 3


def test_parts_stay_what_they_are_in_groups_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit of several groups cuts between the parts of a message."""
    monkeypatch.setattr("nsqtools.archive.groups.GROUP_BYTES_MAX", 100)
    monkeypatch.setattr(once_module, "WATCHED", 10)
    payloads = [encode_payload(1, 2, b"%016x" % 1, b"x" * 30 + b"%d" % part) for part in range(9)]
    archive = replace(spec(tmp_path, "framed"), keys_max=10)
    with_all = ArchiveWriter(archive)
    first = with_all.commit([PartedMessages(payloads, range(9), nsqd=NSQD)])
    again = with_all.commit([PartedMessages(payloads, range(9), nsqd=NSQD)])
    assert (first.messages, first.duplicates) == (9, 0)
    assert (again.messages, again.duplicates) == (0, 9)
    close(with_all)
    (path,) = visible(tmp_path)
    assert read_bodies(path) == (Messages(payloads).bodies, None)
