"""The manifest beside a finished file: what it says, and that it is there with the file, and only then.

That it is there after a kill before any call is shown in `test_killed`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import (
    PAIRS,
    START_NS,
    batch_of,
    claimed,
    claims,
    close,
    read_bodies,
    spec,
    unfinished_file,
    visible,
)

from nsqtools import durable
from nsqtools.archive.claims import Claim
from nsqtools.archive.files import MANIFEST_SUFFIX, find_files
from nsqtools.archive.manifest import MANIFEST_BYTES_MAX, Manifest, manifest_name, read_manifest
from nsqtools.archive.recovery import recover
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import ArchiveError, OptionsError, StorageError
from nsqtools.replay.inputs import find_inputs

COMMITS = [[batch_of([b"two", b"three"], 2)], [batch_of([b"one"], 1), batch_of([b"four"], 4)]]


def beside(path: Path) -> Path:
    return path.with_name(manifest_name(path.name))


def assert_fits(path: Path) -> Manifest:
    """The manifest of a file says what is in it."""
    said = read_manifest(beside(path))
    assert said is not None
    data = path.read_bytes()
    bodies, damage = read_bodies(path)
    assert damage is None
    assert (said.records, said.stored_bytes) == (len(bodies), len(data))
    assert said.sha256 == hashlib.sha256(data).hexdigest()
    return said


def written(folder: Path, record_format: str = "lines", compression: str = "none") -> Path:
    writer = ArchiveWriter(spec(folder, record_format, compression, manifest=True, compact=True))
    for commit in COMMITS:
        writer.commit(commit)
    (published,) = close(writer)
    assert published.no_manifest == ""
    return Path(published.location)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_says_what_the_file_holds(record_format: str, compression: str, tmp_path: Path) -> None:
    """Messages need not come in the order of their publishing."""
    path = written(tmp_path, record_format, compression)
    said = assert_fits(path)
    assert (said.first_ts, said.first_id) == (START_NS + 1_000_000, f"{1:016x}")
    assert (said.last_ts, said.last_id) == (START_NS + 4_000_000, f"{4:016x}")
    assert (said.topic, said.channel, said.host) == ("topic", "channel", "host")
    assert (said.format, said.compression) == (record_format, compression)
    if record_format == "lines":
        assert said.content_bytes == len(b"two three one four ")
    assert claims(tmp_path) == []
    assert visible(tmp_path) == [path, beside(path)]


def test_is_one_line_of_json(tmp_path: Path) -> None:
    said = json.loads(beside(written(tmp_path)).read_text("ascii"))
    assert said["manifest"] == 1
    assert list(said)[1:] == list(Manifest.__dataclass_fields__)


def test_there_is_none_unless_it_is_wanted(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path))
    writer.commit(COMMITS[0])
    (published,) = close(writer)
    assert visible(tmp_path) == [Path(published.location)]


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_recovery_makes_it(record_format: str, compression: str, tmp_path: Path) -> None:
    """Of a file whose writer died; ids are not looked for, and times as far as the file tells them."""
    data, _ = unfinished_file(tmp_path, record_format, compression, COMMITS)
    claimed(tmp_path, data, record_format, compression, manifest=True)
    (result,) = recover(tmp_path)
    assert result.published is not None
    said = assert_fits(Path(result.published))
    assert said.content_bytes
    assert said.first_id is None
    keeps_times = record_format != "lines" or compression == "zstd"
    assert said.first_ts == (START_NS + 1_000_000 if keeps_times else None)


def test_recovery_of_a_damaged_file_makes_it(tmp_path: Path) -> None:
    data, ends = unfinished_file(tmp_path, "framed", "none", COMMITS)
    damaged = bytearray(data)
    damaged[ends[0] + 30] ^= 1
    claimed(tmp_path, damaged, "framed", "none", manifest=True)
    (result,) = recover(tmp_path)
    assert result.published is not None
    assert assert_fits(Path(result.published)).records == 2


def test_a_claim_of_an_older_version_wants_none(tmp_path: Path) -> None:
    data, _ = unfinished_file(tmp_path, "lines", "none", COMMITS)
    claimed(tmp_path, data, "lines", "none")
    (claim_path,) = claims(tmp_path)
    claim = Claim.adopt(claim_path)
    assert claim is not None
    assert not claim.facts.manifest
    claim.close()


def test_a_name_whose_manifest_is_taken_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "topic.log.manifest.json").write_text("somebody's")
    path = written(tmp_path)
    assert path.name == "topic-000001.log"
    assert_fits(path)
    assert (tmp_path / "topic.log.manifest.json").read_text() == "somebody's"


def test_a_name_that_is_taken_in_the_last_moment(tmp_path: Path) -> None:
    """The file is published all the same, nothing is overwritten, and it is told."""
    writer = ArchiveWriter(spec(tmp_path, manifest=True))
    writer.commit(COMMITS[0])
    writer.close()
    taken = tmp_path / "topic.log.manifest.json"
    taken.write_text("somebody's")
    published = writer.finish()
    assert published is not None
    assert published.no_manifest == f"{taken} is somebody else's"
    assert taken.read_text() == "somebody's"
    assert claims(tmp_path) == []


def test_a_disk_that_fails_at_call_n(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails is made again, and there is one file and its manifest in the end."""
    for fail_at in range(200):
        folder = tmp_path / f"{fail_at}"
        folder.mkdir()
        writer = ArchiveWriter(spec(folder, "jsonl", "zstd", manifest=True, compact=True))
        for commit in COMMITS:
            writer.commit(commit)
        writer.close()
        with monkeypatch.context() as patch:
            failing = FailingOs(fail_at)
            failing.install(patch)
            try:
                published = writer.finish()
            except StorageError:
                published = writer.finish()
        assert published is not None
        assert_fits(Path(published.location))
        assert len(visible(folder)) == 2
        assert claims(folder) == []
        if not failing.failed:
            return
    pytest.fail("it never came to its end")


def test_is_no_archive(tmp_path: Path) -> None:
    """Folders and globs leave manifests out."""
    path = written(tmp_path)
    for names in ([str(tmp_path)], [f"{tmp_path}/*"]):
        assert [file.path for file in find_files(names)] == [path]
        assert [one.path for one in find_inputs(names)] == [path]
    path.unlink()
    with pytest.raises(OptionsError):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"manifest": 2}',
        b'{"manifest": 1, "records": true}',
        b" " * (MANIFEST_BYTES_MAX + 1),
    ],
)
def test_what_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a{MANIFEST_SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.manifest\.json"):
        read_manifest(path)


def test_none_is_no_error(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "none") is None
    with pytest.raises(StorageError, match="not a regular file"):
        read_manifest(tmp_path)
    assert durable.is_taken(tmp_path)
