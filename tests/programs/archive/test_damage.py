"""Files cut at every byte and with every byte changed: what verify, cat and repair say of them.

One archive of each pair, of three small commits. `verify` names damage; `cat` prints what is whole in
front of it; `repair` writes a file that is whole, with nothing that was not in the old one.
"""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import random
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest
import zstandard
from tests.archive.failing_os import FailingFile, FailingOs
from tests.archive.helpers import PAIRS, batch_of, read_bodies
from tests.programs.archive.helpers import Ran, archive_of

from nsqtools.archive.examination import Examined, State, examine
from nsqtools.archive.files import FoundFile, open_file
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.programs.archive.repair import scan_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nsqtools.archive.scan import Scan

    Run = Callable[..., Ran]

BODIES = [b"one", b"", b"two " * 9, "drei é".encode(), b"4", b"five"]
COMMITS = [[batch_of(BODIES[at : at + 2], at)] for at in (0, 2, 4)]
# How far apart the damages are: those of which verify is asked, and those of which everything is.
STRIDES = [(3, 21), pytest.param((1, 1), marks=pytest.mark.soak)]


class Shrinking:
    """An open file that loses its second half before its Nth call."""

    def __init__(self, opened: BinaryIO, path: Path, call: int) -> None:
        self._opened = opened
        self._path = path
        self._left = call

    @property
    def is_whole(self) -> bool:
        """Whether there were fewer calls."""
        return self._left > 0

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if not self._left:
            os.truncate(self._path, self._path.stat().st_size // 2)
        return getattr(self._opened, name)


def verified(path: Path) -> State | str:
    """What verify would say, without a process or a table."""
    try:
        with open_file(FoundFile(path=path)) as opened:
            return examine(opened, str(path), whole=True).state
    except ArchiveError:  # its version, or its record format, is not known any more
        return State.DAMAGED


def is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(body in rest for body in part)


def check_all(run: Run, path: Path, *, exact: bool = True) -> None:
    """cat and repair of a damaged file; of what has no checksum the bodies may be others."""
    state = verified(path)
    ran = run("verify", path)
    assert ran.code == (4 if state is State.DAMAGED else 0), ran.err
    if state is State.DAMAGED:
        assert "at byte " in ran.text + ran.err or "not known here" in ran.err
    ran = run("cat", "--format=lines", path)
    assert ran.code in (0, 4), ran.err
    if exact:
        assert is_subsequence(ran.out.split(b"\n")[:-1], BODIES)
    before = path.read_bytes()
    target = path.with_name("new.bin")
    ran = run("repair", f"--output={target}", path)
    assert path.read_bytes() == before
    if state is not State.DAMAGED:
        assert (ran.code, target.exists()) == (0, False), ran.err
        return
    assert target.exists() == (ran.code == 0), ran.err
    if target.exists():
        assert verified(target) is not State.DAMAGED
        bodies, damage = read_bodies(target)
        assert damage is None
        assert not exact or is_subsequence(bodies, BODIES)
        assert f" {len(bodies)} record" in ran.text
        target.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_cut_at_every_byte(
    run: Run, tmp_path: Path, record_format: str, compression: str, strides: tuple[int, int]
) -> None:
    data = archive_of(tmp_path / "a", record_format, compression, COMMITS).read_bytes()
    path = tmp_path / "cut.bin"
    states = {}
    is_checked = compression != "none" or record_format == "framed"
    for size in range(8, len(data), strides[0]):
        path.write_bytes(data[:size])
        states[size] = verified(path)
        if size % strides[1] == 8 % strides[1]:
            check_all(run, path, exact=is_checked)
    # Nothing shows that these end too early: they are cut between two commits, or two lines.
    quiet = [size for size, state in states.items() if state is not State.DAMAGED]
    if (record_format, compression) == ("lines", "none"):
        assert quiet == list(states)
    elif compression == "zstd":
        assert quiet == []
    elif compression == "gzip" or record_format == "framed":
        assert len(quiet) <= len(COMMITS)
    else:
        first = data.index(b"\n")  # a piece of the first line is a text like any other
        assert len([size for size in quiet if size > first]) <= 2 * len(BODIES)


@pytest.mark.slow
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_every_byte_changed(
    run: Run, tmp_path: Path, record_format: str, compression: str, strides: tuple[int, int]
) -> None:
    data = archive_of(tmp_path / "a", record_format, compression, COMMITS).read_bytes()
    path = tmp_path / "changed.bin"
    is_checked = compression != "none" or record_format == "framed"
    quiet = []
    for at in range(0, len(data), strides[0]):
        changed = bytearray(data)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        if verified(path) is not State.DAMAGED:
            quiet.append(at)
        if at % strides[1] == 0:
            check_all(run, path, exact=is_checked)
    if compression == "zstd" or (record_format, compression) == ("framed", "none"):
        assert quiet == []
    elif compression == "gzip":
        # Time, operating system and the like of a member are covered by nothing, and mean nothing.
        assert len(quiet) <= 4 * 10
    else:
        assert quiet


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["lines", "jsonl", "framed"])
def test_what_lies_behind_damage_is_saved(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    whole = path.read_bytes()
    data = bytearray(whole)
    middle = {"gzip": b"\x1f\x8b\x08\x00", "zstd": b"\x28\xb5\x2f\xfd"}[compression]
    second = whole.index(middle, whole.index(middle) + 4)
    data[second + 12] ^= 0xFF
    path.write_bytes(data)
    ran = run("verify", "--json", path)
    (told,) = ran.json
    (damage,) = told["damages"]
    assert (ran.code, told["state"], told["records"]) == (4, "damaged", 4)
    assert damage["start"] == second
    assert whole[damage["end"] :].startswith(middle)
    assert damage["records"] == (2 if compression == "zstd" else None)
    ran = run("repair", path)
    assert ran.code == 0
    assert f"at byte {second}" in ran.text
    (repaired,) = [one for one in tmp_path.iterdir() if ".repaired." in one.name]
    assert read_bodies(repaired) == (BODIES[:2] + BODIES[4:], None)
    assert repaired.name == path.name.replace(".log", ".repaired.log")
    assert path.read_bytes() == data


def test_what_lies_behind_damage_in_framed(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "none", COMMITS)
    data = bytearray(path.read_bytes())
    data[data.index(b"two two")] ^= 0xFF
    path.write_bytes(data)
    assert run("verify", "--json", path).json[0]["records"] == 4
    assert run("repair", f"--output={tmp_path}/new", path).code == 0
    assert read_bodies(tmp_path / "new") == (BODIES[:2] + BODIES[4:], None)


@pytest.mark.parametrize("members", [1, 2])
def test_a_message_that_is_gzip_is_no_member_of_the_archive(
    run: Run, tmp_path: Path, members: int
) -> None:
    """What does not compress is stored as it is, and so are the members within it."""
    made = random.Random(2)
    bodies = [
        b"".join(gzip.compress(b"within " + made.randbytes(3000), mtime=0) for _ in range(members))
        for _ in range(6)
    ]
    contents = [b"".join(body + b"\n" for body in bodies[at : at + 2]) for at in (0, 2, 4)]
    path = tmp_path / "a.log.gz"
    parts = [gzip.compress(content, 0, mtime=0) for content in contents]
    damaged = bytearray(parts[1])
    damaged[10] ^= 0xFF
    assert bodies[2] in damaged
    path.write_bytes(parts[0] + damaged + parts[2])
    assert run("repair", f"--output={tmp_path}/new.gz", path).code == 0
    assert gzip.decompress((tmp_path / "new.gz").read_bytes()) == contents[0] + contents[2]


@pytest.mark.parametrize(
    ("record_format", "compression"), [pair for pair in PAIRS if pair[1] != "none"]
)
def test_a_file_whose_beginning_is_lost_is_what_its_first_whole_part_is(
    run: Run, tmp_path: Path, record_format: str, compression: str
) -> None:
    """It was taken for lines, and what was repaired of `framed` was none that anybody could read."""
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    data = path.read_bytes()
    first = {"gzip": b"\x1f\x8b\x08\x00", "zstd": b"\x28\xb5\x2f\xfd"}[compression]
    rest = bytearray(data[data.index(first) :])
    rest[14] ^= 0xFF
    path.write_bytes(rest)
    (told,) = run("verify", "--json", path).json
    assert (told["state"], told["format"], told["records"]) == ("damaged", record_format, 4)
    assert run("repair", f"--output={tmp_path}/new", path).code == 0
    assert read_bodies(tmp_path / "new") == (BODIES[2:], None)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_file_that_becomes_shorter_while_it_is_read(
    tmp_path: Path, record_format: str, compression: str
) -> None:
    """At each call to the operating system; it was a fault of ours, and ended the run."""
    commits = [[batch_of([b"%d" % (at * 10 + number) for number in range(10)])] for at in range(9)]
    path = archive_of(tmp_path, record_format, compression, commits)
    data = path.read_bytes()
    found = []
    for call in itertools.count(1):
        path.write_bytes(data)
        with open_file(FoundFile(path=path)) as opened:
            shrinking = Shrinking(opened, path, call)
            try:
                found.append(examine(cast("BinaryIO", shrinking), str(path), whole=True).records)
            except ArchiveError:
                found.append(None)
        if shrinking.is_whole:
            break
    assert found[-1] == 90
    assert any(records is None or records < 90 for records in found)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_whatever_call_fails_on_an_open_file_is_told_with_its_name(
    tmp_path: Path, record_format: str, compression: str
) -> None:
    """The system's own error left, when the file was to be read from its start again."""
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    for call in itertools.count():
        failing = FailingOs(call, code=errno.ESTALE, only={"read", "seek", "tell"})
        with open_file(FoundFile(path=path)) as opened:
            file = cast("BinaryIO", FailingFile(opened, failing))
            told = f"{path}"
            try:
                assert examine(file, str(path), whole=True).records == len(BODIES)
            except StorageError as error:
                told = str(error)
        assert str(path) in told
        if not failing.failed:
            assert call > 5
            return


def test_of_a_file_that_became_shorter_nothing_is_repaired(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made an archive of nothing, that was damaged itself."""
    path = archive_of(tmp_path, "framed", "gzip", COMMITS)
    path.write_bytes(path.read_bytes()[:-1])

    second_pass = scan_of

    def shrink_first(opened: BinaryIO, found: Examined) -> Scan:
        os.truncate(path, 0)
        return second_pass(opened, found)

    monkeypatch.setattr("nsqtools.programs.archive.repair.scan_of", shrink_first)
    ran = run("repair", path)
    assert ran.code == 5
    assert "became shorter" in ran.err
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [path.name]


def test_a_message_that_is_an_archive_adds_nothing_to_another(run: Run, tmp_path: Path) -> None:
    within = archive_of(tmp_path / "within", "framed", "none", COMMITS).read_bytes()
    bodies = [b"%d %b" % (number, within) for number in range(6)]
    commits = [[batch_of(bodies[at : at + 2], at)] for at in (0, 2, 4)]
    path = archive_of(tmp_path, "framed", "none", commits)
    data = bytearray(path.read_bytes())
    data[data.index(b"2 \x89NSQA")] ^= 0xFF
    path.write_bytes(data)
    assert run("repair", f"--output={tmp_path}/new", path).code == 0
    assert read_bodies(tmp_path / "new") == (bodies[:2] + bodies[4:], None)


def test_one_bad_line_of_jsonl(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "jsonl", "none", COMMITS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b'{"ts":1}\n'
    path.write_bytes(b"".join(lines))
    ran = run("verify", "--json", path)
    assert ran.json[0]["damages"] == [
        {
            "start": len(b"".join(lines[:3])),
            "end": len(b"".join(lines[:4])),
            "reason": "a line that is no record (not the members of a record)",
            "torn": False,
            "records": 1,
        }
    ]
    assert run("repair", f"--output={tmp_path}/new", path).code == 0
    assert (tmp_path / "new").read_bytes() == b"".join([*lines[:3], *lines[4:]])


def test_an_index_that_is_damaged_is_made_anew(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "lines", "zstd", COMMITS)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"NSQI") + 10] ^= 1
    path.write_bytes(data)
    ran = run("verify", path)
    assert ran.code == 4
    assert "an index that does not fit the data at byte" in ran.text
    assert run("repair", f"--output={tmp_path}/new", path).code == 0
    assert run("ls", "--json", tmp_path / "new").json[0]["records"] == len(BODIES)


def test_nothing_whole_is_no_file(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "zstd", [COMMITS[0]])
    path.write_bytes(path.read_bytes()[:120])
    ran = run("repair", path)
    assert ran.code == 4
    assert "nothing in it is whole" in ran.err
    assert [one for one in tmp_path.iterdir() if one.is_file()] == [path]


def test_a_name_that_is_taken_is_left_alone(run: Run, tmp_path: Path) -> None:
    path = archive_of(tmp_path, "framed", "zstd", COMMITS)
    path.write_bytes(path.read_bytes()[:-1])
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    ran = run("repair", f"--output={taken}", path)
    assert (ran.code, taken.read_bytes()) == (5, b"mine")
    assert "there is a file of this name already" in ran.err
    assert not list(tmp_path.glob("*.tmp"))
    assert run("repair", f"--output={taken}", path, path.parent).code == 2


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_line_without_an_end_is_damage_and_takes_no_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """A bomb: some kilobytes that are a line of 4 MB, where 1 MB is the most."""
    for module in ("scan", "rewriting"):
        monkeypatch.setattr(f"nsqtools.archive.{module}.BODY_BYTES_MAX", 1 << 20)
    monkeypatch.setattr("nsqtools.programs.archive.convert.BODY_BYTES_MAX", 1 << 20)
    data = b"one\n" + b"x" * (4 << 20)
    path = tmp_path / "bomb"
    packed = {"none": data, "gzip": gzip.compress(data), "zstd": zstandard.compress(data)}
    path.write_bytes(packed[compression])
    ran = run("verify", path)
    assert ran.code == 4
    assert "a line of more than 1048576 bytes at byte" in ran.text
    for name in ("index", "cat"):
        ran = run(name, *(["--grep=x"] if name == "cat" else []), path)
        assert ran.code == (0 if (name, compression) == ("index", "none") else 4)
    assert [one.name for one in tmp_path.iterdir()] == ["bomb"]


@pytest.mark.parametrize("zeros", [60, 200, 10_000])
@pytest.mark.parametrize(
    ("record_format", "compression"), [pair for pair in PAIRS if pair[1] != "none"]
)
def test_a_file_whose_beginning_says_nothing_is_what_its_name_says(
    run: Run, tmp_path: Path, record_format: str, compression: str, zeros: int
) -> None:
    """It was taken for text of somebody else's, in which there is nothing to check."""
    path = archive_of(tmp_path, record_format, compression, COMMITS)
    data = path.read_bytes()
    path.write_bytes(bytes(min(zeros, len(data))) + data[zeros:])
    ran = run("verify", path)
    assert ran.code == 4
    assert "at byte 0" in ran.text
    ran = run("cat", path)
    assert (ran.code, ran.out) == (4, b"")
