"""What a broker refuses to start on."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support.nsqd import EmbeddedNsqd

from nsqtools import durable
from nsqtools.broker.data_path import ForeignData
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    "name", ["nsqd.dat", "orders.diskqueue.000000.dat", "orders:archive.diskqueue.meta.dat"]
)
async def test_the_data_of_a_real_nsqd_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"its messages")
    with pytest.raises(ForeignData, match="data path of a real nsqd") as caught:
        await EmbeddedNsqd(tmp_path, {}).start()
    assert name in str(caught.value)
    assert "--data-path" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that is mounted read-only: that stops root, too."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_folder_that_cannot_be_written_is_refused(read_only: Path) -> None:
    with pytest.raises(StorageError, match="Read-only file system") as caught:
        await EmbeddedNsqd(read_only, {}).start()
    assert "--data-path" in caught.value.hint


async def test_a_folder_that_refuses_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _mode: int) -> int:
        raise StorageError("create", path, PermissionError(13, os.strerror(13)))

    monkeypatch.setattr(durable, "create", refuse)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        await EmbeddedNsqd(tmp_path, {}).start()
    assert f"user {os.geteuid()}" in caught.value.hint


async def test_nothing_of_the_test_for_writing_stays(tmp_path: Path) -> None:
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    await nsqd.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("found", ["nsqd.dat", "missing"])
def test_the_program_says_it_in_words(tmp_path: Path, found: str) -> None:
    folder = tmp_path if found == "nsqd.dat" else tmp_path / "missing"
    if found == "nsqd.dat":
        (tmp_path / found).write_bytes(b"{}")
    ended = subprocess.run(
        [sys.executable, "-m", "nsqtools", "nsqd", f"--data-path={folder}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 5
    assert "Traceback" not in ended.stderr
    assert f"nsqd: {'' if found == 'nsqd.dat' else 'open data path '}{folder}" in ended.stderr
    assert "hint: " in ended.stderr


@pytest.mark.parametrize("name", ["c.channel", "topic.json"])
async def test_a_pipe_among_a_topics_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.topic").mkdir()
    os.mkfifo(tmp_path / "t.topic" / name)
    with pytest.raises(StorageError, match="not a regular file"):
        await EmbeddedNsqd(tmp_path, {}).start()


@pytest.mark.parametrize("raw", [b"[1]", b"[" * 60_000, b"\xff"])
async def test_a_damaged_state_costs_no_topic(
    tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.topic").mkdir()
    (tmp_path / "t.topic" / "topic.json").write_bytes(raw)
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    assert not nsqd.broker.topics["t"].paused
    await nsqd.stop()
    assert "is taken as not paused" in caplog.text


@pytest.mark.parametrize("raw", [b"", b"NSQTCHN\x01", b"no journal"])
async def test_a_journal_that_says_nothing_is_told(
    tmp_path: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.topic").mkdir()
    (tmp_path / "t.topic" / "c.channel").write_bytes(raw)
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    assert set(nsqd.broker.topics["t"].channels) == {"c"}
    await nsqd.stop()
    assert "journal says nothing" in caplog.text


async def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, os.strerror(13), path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        await EmbeddedNsqd(tmp_path, {}).start()
    assert f"user {os.geteuid()}" in caught.value.hint


async def test_names_that_are_none_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.topic").mkdir()
    (tmp_path / "x y.topic").mkdir()
    (tmp_path / "t.topic" / "c d.channel").write_bytes(b"")
    nsqd = EmbeddedNsqd(tmp_path, {})
    await nsqd.start()
    assert set(nsqd.broker.topics) == {"t"}
    assert not nsqd.broker.topics["t"].channels
    await nsqd.stop()
    assert f"left alone path={tmp_path}/x y.topic" in caplog.text
    assert f"left alone path={tmp_path}/t.topic/c d.channel" in caplog.text
    assert (tmp_path / "x y.topic").exists()
