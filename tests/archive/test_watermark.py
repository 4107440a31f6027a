"""Up to which time an archive is complete: never too far, never back."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.archive.helpers import START_S, batch_of, finish, spec, visible
from tests.archive.test_killed import CALLS_MAX, at_calls, in_child

from nsqtools.archive.claims import Claim, claim_paths
from nsqtools.archive.destination import FolderDestination
from nsqtools.archive.files import find_files
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.recovery import recover
from nsqtools.archive.watermark import MARGIN_S, Watermark
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import ArchiveError, OptionsError
from nsqtools.replay.inputs import find_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.writer import ArchiveSpec

HOURLY = FileNaming(
    host="host", filename_format="<TOPIC>.<DATETIME><REV>.log", datetime_format="%H", utc=True
)


class Archive:
    """A writer by the hour, and its watermark."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.spec: ArchiveSpec = spec(folder, naming=HOURLY)
        self.clock = clock
        self.writer = ArchiveWriter(self.spec, clock=clock)
        self.watermark = self.writer.watermark()
        self.path = folder / self.watermark.name

    def said(self) -> dict[str, Any]:
        self.watermark.advance(self.watermark.until(self.writer.oldest_unfinished_s))
        found: dict[str, Any] = json.loads(self.path.read_bytes())
        return found


def test_is_held_by_what_is_not_published(tmp_path: Path) -> None:
    """By an open file, and by one that waits; the time goes on when nothing is open."""
    archive = Archive(tmp_path, clock := ManualClock(time_s=START_S))
    said = archive.said()
    assert said == {
        "watermark": 1,
        "topic": "topic",
        "channel": "channel",
        "host": "host",
        "until": START_S - MARGIN_S,
        "period": "22",
    }
    clock.jump(100.0)
    archive.writer.commit([batch_of([b"one"])])
    opened = START_S + 100
    clock.jump(3600.0)
    assert archive.said()["until"] == opened - MARGIN_S
    archive.writer.tick()  # another hour: it is sealed
    assert archive.said()["until"] == opened - MARGIN_S
    archive.writer.commit([batch_of([b"two"])])
    assert archive.said()["until"] == opened - MARGIN_S
    finish(archive.writer)
    said = archive.said()
    assert (said["until"], said["period"]) == (opened + 3600 - MARGIN_S, "23")
    archive.writer.close()
    finish(archive.writer)
    clock.jump(3600.0)
    assert archive.said()["period"] == "00"


def test_never_goes_back(tmp_path: Path) -> None:
    """Not when the clock does, and not in another run."""
    until = Archive(tmp_path, ManualClock(time_s=START_S)).said()["until"]
    again = Archive(tmp_path, clock := ManualClock(time_s=START_S - 5000))
    assert again.said()["until"] == until
    clock.jump(6000.0)
    assert again.said()["until"] == until + 1000


@pytest.mark.parametrize("found", [b"", b"[]", b"{}", b'{"until": "x"}', b"[" * 5000])
def test_what_stands_there_and_is_none_is_replaced(found: bytes, tmp_path: Path) -> None:
    archive = Archive(tmp_path, ManualClock(time_s=START_S))
    archive.path.write_bytes(found)
    assert archive.said()["until"] == START_S - MARGIN_S


def test_a_host_that_leads_out(tmp_path: Path) -> None:
    wanted = spec(tmp_path, naming=HOURLY)
    object.__setattr__(wanted, "host", "../../x")
    with pytest.raises(ArchiveError, match="no name for a watermark"):
        Watermark(wanted, str, ManualClock(), FolderDestination(tmp_path))


def test_is_no_archive(tmp_path: Path) -> None:
    Archive(tmp_path, ManualClock(time_s=START_S)).said()
    assert find_files([str(tmp_path)]) == []
    with pytest.raises(OptionsError):
        find_inputs([str(tmp_path)])


def archive_three_hours(folder: Path, _pipe: int) -> None:
    archive = Archive(folder, clock := ManualClock(time_s=START_S))
    for number in range(3):
        archive.said()
        archive.writer.commit([batch_of([b"%d" % number], number)])
        clock.jump(3600.0)
        archive.writer.tick()
        archive.said()
        finish(archive.writer)


@pytest.mark.slow
@at_calls
def test_killed_at_calls(step: int, tmp_path: Path) -> None:
    """It says no more than is so, is whole, and the next run leaves nothing beside it."""
    for kill_at in range(0, CALLS_MAX, step):
        folder = tmp_path / f"{kill_at}"
        folder.mkdir()
        done, _ = in_child(kill_at, "links", partial(archive_three_hours, folder))
        later = Archive(folder, ManualClock(time_s=START_S + 100_000))
        until = json.loads(found[0].read_bytes())["until"] if (found := marks(folder)) else 0
        for path in claim_paths(folder):
            if (claim := Claim.adopt(path)) is not None:  # torn: there is no file yet
                assert until < claim.facts.created_at
                claim.close()
        assert not any(result.failed for result in recover(folder))
        later.said()
        assert [path for path in visible(folder) if path.suffix != ".log"] == marks(folder)
        if done:
            break
    assert kill_at > 80


def marks(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.name.endswith(".watermark.json")]
