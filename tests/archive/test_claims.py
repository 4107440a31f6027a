"""Claims: written before anything else, held by the living, understood or left alone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import START_S, claims

from nsqtools import durable
from nsqtools.archive.claims import (
    FOLDERS_MAX,
    Claim,
    ClaimFacts,
    Placing,
    claim_paths,
    topic_of,
)
from nsqtools.archive.destination import FileFacts
from nsqtools.digest import PartSums
from nsqtools.errors import ArchiveError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

FACTS = ClaimFacts(
    working="d/topic.log.part",
    destination="/data/\udcff",
    name="d/topic.log",
    record_format="lines",
    compression="zstd",
    level=3,
    compact=True,
    topic="topic",
    channel="channel",
    host="h\u00f6st",
    created_at=START_S,
)
FILE = FileFacts(size_bytes=4, records=1, first_ts_ns=2**64 - 1, last_ts_ns=None)
PLACING = Placing(name="d/topic-000001.log", is_rewrite=True, facts=FILE)


def take(folder: Path) -> Claim:
    claim = Claim.take(folder, FACTS)
    claim.mark_created()
    claim.note_placing(PLACING)
    return claim


def test_what_is_claimed_is_read_back(tmp_path: Path) -> None:
    claim = take(tmp_path)
    assert list(claim_paths(tmp_path)) == [claim.path]
    assert claim.path.parent == tmp_path / f".nsqtools-{os.geteuid()}"
    assert claim.path.parent.stat().st_mode & 0o777 == 0o700
    assert claim.path.stat().st_mode & 0o777 == 0o600
    assert Claim.adopt(claim.path) is None  # its writer lives
    claim.close()
    found = Claim.adopt(claim.path)
    assert found is not None
    assert (found.facts, found.is_created, found.placing) == (FACTS, True, PLACING)
    found.note_placing(None)
    found.close()
    found = Claim.adopt(claim.path)
    assert found is not None
    assert found.placing is None
    found.rewrite_path.write_bytes(b"x")
    found.remove()
    found.remove()
    assert claims(tmp_path) == []
    assert Claim.adopt(claim.path) is None


def test_checksums_of_parts_are_not_written_down(tmp_path: Path) -> None:
    """They may be many; and an older version does not know them."""
    claim = take(tmp_path)
    parts = PartSums(part_bytes=4, md5s=("0" * 32,))
    claim.note_placing(replace(PLACING, facts=replace(FILE, sha256="1" * 64, parts=parts)))
    claim.close()
    assert b"parts" not in claim.path.read_bytes()
    found = Claim.adopt(claim.path)
    assert found is not None
    assert found.placing == replace(PLACING, facts=replace(FILE, sha256="1" * 64))
    found.close()


def test_whose_claim_it_is_can_be_read_without_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recoveries at the same time, each of its topic, must not hide a claim from each other."""
    claim = take(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "lock_file", None)
        assert topic_of(claim.path) == "topic"
        assert topic_of(claim.path.with_name("gone.claim")) == ""
    claim.path.write_bytes(b"{}\n")
    assert topic_of(claim.path) == ""
    claim.close()


def test_a_claim_cut_anywhere(tmp_path: Path) -> None:
    claim = take(tmp_path)
    claim.close()
    data = claim.path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 3
    for cut in range(len(data) + 1):
        claim.path.write_bytes(data[:cut])
        found = Claim.adopt(claim.path)
        if cut < ends[0]:
            assert found is None
            assert not claim.path.exists()
            continue
        assert found is not None
        assert found.facts == FACTS
        assert found.is_created == (cut >= ends[1])
        assert found.placing == (PLACING if cut >= ends[2] else None)
        found.mark_created()
        found.note_placing(PLACING)
        found.close()
        assert claim.path.read_bytes() == data


def test_a_damaged_claim_is_not_understood(tmp_path: Path) -> None:
    claim = take(tmp_path)
    claim.close()
    data = claim.path.read_bytes()
    end = data.index(b"\n")
    for at in range(0, end, 7):
        broken = bytearray(data)
        broken[at] ^= 0x02
        claim.path.write_bytes(broken)
        with pytest.raises(ArchiveError, match="damaged claim"):
            Claim.adopt(claim.path)
        assert claim.path.read_bytes() == broken
    claim.path.write_bytes(b"[" * 300_000)
    with pytest.raises(ArchiveError, match="more than"):
        Claim.adopt(claim.path)


def test_a_later_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsqtools.archive.claims.VERSION", 2)
    claim = take(tmp_path)
    claim.close()
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="version 2 is not known"):
        Claim.adopt(claim.path)
    assert claims(tmp_path) == [claim.path]


def test_a_name_that_somebody_else_has_is_passed_over(tmp_path: Path) -> None:
    own = f".nsqtools-{os.geteuid()}"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / own).symlink_to(tmp_path / "elsewhere")
    (tmp_path / f"{own}-1").write_bytes(b"")
    claim = take(tmp_path)
    assert claim.path.parent == tmp_path / f"{own}-2"
    # It is found when the obstacles are gone, too.
    claim.close()
    (tmp_path / own).unlink()
    (tmp_path / f"{own}-1").unlink()
    assert list(claim_paths(tmp_path)) == [claim.path]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_names_that_are_passed_over_are_bounded(tmp_path: Path) -> None:
    own = f".nsqtools-{os.geteuid()}"
    for number in range(FOLDERS_MAX):
        (tmp_path / (own if number == 0 else f"{own}-{number}")).write_bytes(b"")
    with pytest.raises(StorageError, match="taken by somebody else"):
        Claim.take(tmp_path, FACTS)


def test_recovery_in_the_moment_before_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes an empty claim for a torn one and removes it; the writer takes another."""
    real = durable.lock_file
    seen: list[Path] = []

    def lock_file(fd: int, path: Path) -> None:
        if not seen:
            seen.append(path)
            assert Claim.adopt(path) is None
            assert not path.exists()
        real(fd, path)

    monkeypatch.setattr(durable, "lock_file", lock_file)
    claim = Claim.take(tmp_path, replace(FACTS, compact=False))
    assert seen
    assert seen != [claim.path]
    assert claims(tmp_path) == [claim.path]
    claim.close()


def test_a_pipe_in_the_place_of_a_claim_is_not_waited_for(tmp_path: Path) -> None:
    claim = take(tmp_path)
    claim.close()
    claim.path.unlink()
    os.mkfifo(claim.path)
    with pytest.raises(StorageError):
        Claim.adopt(claim.path)
