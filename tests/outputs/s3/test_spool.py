"""The spool: how large it is, and when it is full."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of, spec

from nsqtools.archive.writer import ArchiveWriter
from nsqtools.clock import ManualClock
from nsqtools.errors import StorageError
from nsqtools.outputs.s3 import spool as module
from nsqtools.outputs.s3.spool import LOOK_INTERVAL_S, Spool, SpoolState, look

if TYPE_CHECKING:
    from pathlib import Path

FULL_BYTES = 1 << 20


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def spool(tmp_path: Path, clock: ManualClock) -> Spool:
    return Spool(tmp_path, FULL_BYTES, clock=clock)


def write(folder: Path, name: str, size_bytes: int, *, at_s: float = 1_700_000_000.0) -> None:
    path = folder / name
    path.write_bytes(bytes(size_bytes))
    os.utime(path, (at_s, at_s))


def test_an_empty_spool_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert look(tmp_path) == look(tmp_path / "missing") == SpoolState()


def test_files_of_messages_are_counted_and_all_bytes(tmp_path: Path) -> None:
    write(tmp_path, "a.part", 100, at_s=1_700_000_300.0)
    write(tmp_path, "b.part", 50, at_s=1_700_000_100.0)
    write(tmp_path, "empty.part", 0, at_s=1.0)
    write(tmp_path, "c.part.bad.part", 25)  # of a topic of that name
    write(tmp_path, "c.part.bad", 7, at_s=2.0)
    write(tmp_path, "c.part.bad.1", 5, at_s=2.0)
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "link.part").symlink_to(tmp_path / "a.part")
    assert look(tmp_path) == SpoolState(
        files=3, size_bytes=175, oldest_s=1_700_000_000.0, set_aside=2, set_aside_bytes=12
    )


def test_what_a_writer_keeps_beside_its_file_counts_too(tmp_path: Path) -> None:
    """Claims and rewrites are in a folder of their own."""
    writer = ArchiveWriter(spec(tmp_path))
    writer.commit([batch_of([b"one", b"two"])])
    state = look(tmp_path)
    (part,) = tmp_path.glob("*.part")
    hidden = [path for path in tmp_path.glob(".nsqtools-*/*") if path.is_file()]
    assert hidden
    assert state.files == 1
    assert state.size_bytes == part.stat().st_size + sum(path.stat().st_size for path in hidden)
    writer.close()


def test_a_name_that_vanishes_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload ends, and its file goes, between the list and the look."""
    write(tmp_path, "a.part", 100)
    write(tmp_path, "b.part", 10)
    listed = module._entries

    def entries(folder: Path) -> list[os.DirEntry[str]]:
        found = list(listed(folder))
        (folder / "a.part").unlink()
        return found

    monkeypatch.setattr(module, "_entries", entries)
    assert look(tmp_path) == SpoolState(files=1, size_bytes=10, oldest_s=1_700_000_000.0)


def test_it_is_full_at_its_bound_and_says_so(
    tmp_path: Path, clock: ManualClock, spool: Spool
) -> None:
    write(tmp_path, "a.part", FULL_BYTES - 1)
    spool.check()
    write(tmp_path, "b.part", 1)
    clock.jump(LOOK_INTERVAL_S * 2)
    with pytest.raises(
        StorageError, match=r"full: 1\.0 MiB wait.*--max-spool-bytes is 1\.0 MiB"
    ) as raised:
        spool.check()
    assert raised.value.errno == errno.ENOSPC
    (tmp_path / "b.part").unlink()
    clock.jump(LOOK_INTERVAL_S * 2)
    spool.check()


def test_sizes_are_not_rounded_down(tmp_path: Path) -> None:
    write(tmp_path, "a.part", 1_950_000)
    spool = Spool(tmp_path, FULL_BYTES * 3 // 2)
    with pytest.raises(StorageError, match=r"1\.9 MiB wait.* is 1\.5 MiB"):
        spool.check()


def test_what_was_set_aside_does_not_fill_it(tmp_path: Path, spool: Spool) -> None:
    """Nobody uploads it: it would be full for ever."""
    write(tmp_path, "a.part.bad", FULL_BYTES * 2)
    spool.check()


def test_what_is_written_between_two_looks_counts(
    tmp_path: Path, clock: ManualClock, spool: Spool
) -> None:
    spool.check()
    spool.wrote(FULL_BYTES - 1)
    spool.check()
    spool.wrote(1)
    with pytest.raises(StorageError, match="the spool is full"):
        spool.check()
    # The next look sees for itself: it was uploaded since, say.
    write(tmp_path, "a.part", 10)
    clock.jump(LOOK_INTERVAL_S * 2)
    spool.check()
    assert spool.state().size_bytes == 10


def test_a_look_is_kept_for_a_while(tmp_path: Path, clock: ManualClock, spool: Spool) -> None:
    assert spool.state().files == 0
    write(tmp_path, "a.part", 10)
    clock.jump(LOOK_INTERVAL_S / 2)
    assert spool.state().files == 0
    clock.jump(LOOK_INTERVAL_S / 2)
    assert spool.state().files == 1


def test_a_look_that_takes_long_is_kept_for_longer(
    tmp_path: Path, clock: ManualClock, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand files are not listed all the time."""
    looks = []

    def slow(folder: Path) -> SpoolState:
        looks.append(folder)
        clock.jump(1.0)
        return SpoolState()

    monkeypatch.setattr(module, "look", slow)
    for _ in range(100):
        spool.state()
        clock.jump(1.0)
    assert looks == [tmp_path] * 2
