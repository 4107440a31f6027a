"""The start of nsq_to_file, before any topic: its folders."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.pipeline.helpers import archive_options

from nsqtools.errors import StorageError
from nsqtools.programs.nsq_to_file import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("work_dir", "folders"), [("archive", 1), ("work", 2)])
def test_a_full_disk_stops_no_start(
    work_dir: str,
    folders: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Topics wait for room as they do later; each folder is told once."""
    work = f"--work-dir={tmp_path / work_dir}"
    options = archive_options(tmp_path / "archive", "--nsqd-tcp-address=127.0.0.1:1", work)
    FailingOs(0, failures=99, only={"pwrite"}).install(monkeypatch)
    run._prepare(options)
    told = [one for one in caplog.messages if "topics wait until there is room" in one]
    assert len(told) == folders
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_refuses_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = archive_options(tmp_path / "archive", "--nsqd-tcp-address=127.0.0.1:1")
    FailingOs(0, failures=99, only={"pwrite"}, code=errno.EROFS).install(monkeypatch)
    with pytest.raises(StorageError, match="Read-only"):
        run._prepare(options)
