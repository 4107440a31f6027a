"""The folders of a run, as its start finds them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs

from nsqtools.errors import StorageError
from nsqtools.outputs.file.folders import prepare_folder

if TYPE_CHECKING:
    from pathlib import Path

SHARED = "other users can write to this folder"


@pytest.mark.parametrize(("mode", "is_told"), [(0o700, 0), (0o775, 0), (0o1777, 1), (0o702, 1)])
def test_a_folder_that_others_can_write_to_is_told(
    mode: int, is_told: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    prepare_folder(folder)
    told = [record.getMessage() for record in caplog.records]
    assert sum(SHARED in each and str(folder) in each for each in told) == is_told
    assert list(folder.iterdir()) == []


def test_a_folder_of_another_user_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid():
        pytest.skip("only root may give folders away")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    prepare_folder(folder)
    assert SHARED in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_waited_for(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FailingOs(0, only={"pwrite"}, code=code).install(monkeypatch)
    prepare_folder(tmp_path)
    assert "the disk is full: topics wait until there is room" in caplog.text


def test_a_folder_that_cannot_be_written_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingOs(0, only={"pwrite"}, code=errno.EROFS).install(monkeypatch)
    with pytest.raises(StorageError, match="Read-only file system"):
        prepare_folder(tmp_path)
