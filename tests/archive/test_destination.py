"""The contract of a destination, kept by a folder."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs

from nsqtools import publish
from nsqtools.archive.destination import FileFacts, FolderDestination, open_destination
from nsqtools.errors import ArchiveError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

FACTS = FileFacts(size_bytes=4, records=1, first_ts_ns=None, last_ts_ns=None)


def test_place_and_confirm(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    destination = FolderDestination(tmp_path / "out")
    assert not destination.is_taken("a/b.log")
    with pytest.raises(FileNotFoundError):
        destination.confirm("a/b.log", FACTS)
    for _ in range(2):
        destination.place(source, "a/b.log", FACTS)
        destination.confirm("a/b.log", FACTS)
    assert destination.is_taken("a/b.log")
    assert destination.location("a/b.log") == str(tmp_path / "out" / "a" / "b.log")
    assert (tmp_path / "out" / "a" / "b.log").read_bytes() == b"data"
    assert source.read_bytes() == b"data"
    source.unlink()
    destination.place(source, "a/b.log", FACTS)


def test_never_over_anything(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    destination = FolderDestination(tmp_path)
    (tmp_path / "taken").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        destination.place(source, "taken", FACTS)
    with pytest.raises(StorageError, match="6 bytes where 4 were placed"):
        destination.confirm("taken", FACTS)
    source.unlink()
    with pytest.raises(StorageError):
        destination.place(source, "taken", FACTS)
    assert (tmp_path / "taken").read_bytes() == b"theirs"


def test_without_hard_links_the_source_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"data")
    failing = FailingOs(0, only={"link"}, code=errno.EPERM, failures=9)
    monkeypatch.setattr(publish, "os", failing)
    destination = FolderDestination(tmp_path / "out")
    for _ in range(2):
        destination.place(source, "x", FACTS)
    assert not source.exists()
    assert (tmp_path / "out" / "x").read_bytes() == b"data"


def test_it_is_described_by_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = FolderDestination(tmp_path.relative_to(tmp_path) / "out").describe()
    monkeypatch.chdir("/")
    with pytest.raises(StorageError, match="the folder is gone"):
        open_destination(described)
    (tmp_path / "out").mkdir()
    assert open_destination(described).location("x") == str(tmp_path / "out" / "x")


def test_a_name_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    destination = FolderDestination(tmp_path / "out")
    for name in ("../x", "/x", "link/x"):
        with pytest.raises(ArchiveError):
            destination.place(tmp_path / "source", name, FACTS)
        with pytest.raises(ArchiveError):
            destination.is_taken(name)
    assert os.listdir(tmp_path / "out") == ["link"]  # noqa: PTH208
