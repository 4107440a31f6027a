"""Manifests in the hands of the commands: compared by verify, kept fitting where a file is replaced."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.archive.helpers import PAIRS, batch_of, close, spec
from tests.archive.test_manifest import assert_fits, beside
from tests.programs.archive.helpers import numbered

from nsqtools import durable
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.programs.archive.helpers import Ran


def archived(folder: Path, record_format: str = "lines", compression: str = "none") -> Path:
    folder.mkdir(exist_ok=True)
    writer = ArchiveWriter(spec(folder, record_format, compression, manifest=True))
    for commit in numbered(4):
        writer.commit(commit)
    (published,) = close(writer)
    return Path(published.location)


def change(path: Path, **members: Any) -> None:
    said = json.loads(beside(path).read_bytes()) | members
    beside(path).write_text(json.dumps(said))


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_verify_finds_what_fits(
    record_format: str, compression: str, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    archived(tmp_path, record_format, compression)
    told = run("verify", tmp_path)
    assert told.code == 0, told.text
    assert "ok: 1 file" in told.text


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"records": 41}, "records 40 for 41"),
        ({"stored_bytes": 1}, "stored bytes 840 for 1"),
        ({"content_bytes": 839}, "content bytes 840 for 839"),
        (
            {"compression": "gzip", "format": "jsonl"},
            "format lines for jsonl, compression none for gzip",
        ),
        ({"sha256": "0"}, "another SHA-256"),
        ({"sha256": None}, "its sha256 is not what it should be"),
    ],
)
def test_verify_says_what_does_not(
    members: dict[str, Any], reason: str, tmp_path: Path, run: Callable[..., Ran]
) -> None:
    path = archived(tmp_path)
    change(path, **members)
    told = run("verify", path)
    assert told.code == 4
    assert reason in told.text


def test_verify_finds_a_changed_byte_of_plain_lines(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    """Which have no checksum of their own."""
    path = archived(tmp_path)
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    told = run("verify", path)
    assert told.code == 4
    assert "another SHA-256" in told.text


def test_newlines_within_messages_are_no_damage(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = archived(tmp_path)
    change(path, records=39)
    assert run("verify", path).code == 0


def test_ls_lists_no_manifest(tmp_path: Path, run: Callable[..., Ran]) -> None:
    path = archived(tmp_path)
    (told,) = run("ls", "--json", tmp_path).json
    assert told["name"] == str(path)


def test_a_file_that_is_compacted_in_place_keeps_one_that_fits(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    path = archived(tmp_path, "framed", "zstd")
    before = assert_fits(path)
    told = run("compact", "--replace", path)
    assert told.code == 0, told.text
    after = assert_fits(path)
    assert after.stored_bytes < before.stored_bytes
    assert (after.first_id, after.content_bytes) == (before.first_id, before.content_bytes)
    assert run("verify", tmp_path).code == 0


def test_a_file_that_gets_another_name_takes_it_along(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    path = archived(tmp_path, "lines", "gzip")
    told = run("index", "--replace", path)
    assert told.code == 0, told.text
    (new,) = (each for each in tmp_path.iterdir() if each.suffix == ".zst")
    assert assert_fits(new).compression == "zstd"
    assert not beside(path).exists()
    assert run("verify", tmp_path).code == 0


def test_a_file_that_could_not_be_replaced_keeps_its_own(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archived(tmp_path, "framed", "zstd")
    before = assert_fits(path)

    put_in_place = durable.put_in_place

    def refuse(source: Path, target: Path) -> None:
        if target == path:
            raise StorageError("rename", target, OSError(errno.EIO, "the disk"))
        put_in_place(source, target)

    monkeypatch.setattr(durable, "put_in_place", refuse)
    assert run("compact", "--replace", path).code == 5
    assert assert_fits(path) == before


def test_messages_that_look_like_records_are_no_damage(
    tmp_path: Path, run: Callable[..., Ran]
) -> None:
    """Lines of a jsonl archive, archived again as lines."""
    inner = archived(tmp_path / "jsonl", "jsonl")
    (tmp_path / "lines").mkdir()
    writer = ArchiveWriter(spec(tmp_path / "lines", manifest=True))
    writer.commit([batch_of(inner.read_bytes().splitlines())])
    close(writer)
    told = run("verify", tmp_path)
    assert told.code == 0, told.text
