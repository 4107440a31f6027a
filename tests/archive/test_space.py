"""Room that must stay free."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from nsqtools.archive import space as module
from nsqtools.archive.space import FreeSpace
from nsqtools.clock import ManualClock
from nsqtools.errors import StorageError
from nsqtools.options.kinds import OutOfRange
from nsqtools.options.system import SIZE_OR_PERCENT

if TYPE_CHECKING:
    from pathlib import Path


class Disk:
    """A disk of 1000 blocks of 1 MiB, in place of the machine's."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = 0

    def statvfs(self, folder: Path) -> SimpleNamespace:
        self.asked += 1
        if folder.name == "gone":
            raise FileNotFoundError(folder)
        return SimpleNamespace(f_bavail=self.free, f_frsize=1 << 20, f_blocks=1000)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(100)
    monkeypatch.setattr(module, "os", made)
    return made


@pytest.mark.parametrize("text", ["100MiB", "10%", "0", "9.99%"])
def test_room_enough(text: str, disk: Disk, tmp_path: Path) -> None:
    FreeSpace([tmp_path, tmp_path], SIZE_OR_PERCENT.parse(text)).check()
    assert disk.asked == 1


@pytest.mark.parametrize("text", ["101MiB", "10.1%"])
def test_too_little(text: str, disk: Disk, tmp_path: Path) -> None:
    space = FreeSpace([tmp_path], SIZE_OR_PERCENT.parse(text))
    for _ in range(2):
        with pytest.raises(StorageError, match=f"100 MiB of the disk are free, and {text}") as told:
            space.check()
        assert told.value.errno == errno.ENOSPC
    disk.free = 200
    space.check()


def test_is_looked_at_once_a_second(disk: Disk, tmp_path: Path) -> None:
    clock = ManualClock()
    space = FreeSpace([tmp_path], SIZE_OR_PERCENT.parse("5%"), clock)
    for _ in range(50):
        space.check()
    assert disk.asked == 1
    clock.jump(1.0)
    disk.free = 1
    with pytest.raises(StorageError):
        space.check()


@pytest.mark.usefixtures("disk")
def test_a_folder_that_is_gone_is_left_to_the_writer(tmp_path: Path) -> None:
    FreeSpace([tmp_path / "gone"], SIZE_OR_PERCENT.parse("99%")).check()


def test_the_machines_own_disk(tmp_path: Path) -> None:
    FreeSpace([tmp_path], SIZE_OR_PERCENT.parse("1")).check()
    with pytest.raises(StorageError):
        FreeSpace([tmp_path], SIZE_OR_PERCENT.parse(f"{1 << 60}")).check()
    assert os.statvfs(tmp_path).f_blocks


def test_the_option() -> None:
    for text in ("10GiB", "5%", "0.5%", "1048577"):
        assert SIZE_OR_PERCENT.render(SIZE_OR_PERCENT.parse(text)) == text
    with pytest.raises(OutOfRange, match="less than 100%"):
        SIZE_OR_PERCENT.parse("100%")
    for text in ("", "%", "-1%", "5 %", "1e1%", "x"):
        with pytest.raises(ValueError, match="should be a size"):
            SIZE_OR_PERCENT.parse(text)
