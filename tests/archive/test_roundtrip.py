"""What is written is what is read: any bytes, every format in every compression, cut anywhere."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.archive.helpers import (
    COMPRESSIONS,
    PAIRS,
    any_commits,
    batch_of,
    claimed,
    claims,
    close,
    read_bodies,
    read_payloads,
    spec,
    unfinished_file,
    visible,
    write_file,
)

from nsqtools.archive import jsonl
from nsqtools.archive.header import looks_damaged
from nsqtools.archive.reader import open_archive
from nsqtools.archive.recovery import recover
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.wire.frames import BODY_SIZE_MAX_BYTES

if TYPE_CHECKING:
    from nsqtools.wire.messages import Messages

COMMITS = [
    [batch_of([b"one", b"", b"\x00\xff\n two"])],
    [batch_of([b"three"], 3), batch_of([b"four" * 9], 4, "127.0.0.2:4150")],
    [batch_of(['{"five": "é\u2028"}'.encode(), b"six"], 5)],
]
TEXT_COMMITS = [
    [batch_of([b"one", b"", b"two"])],
    [batch_of([b"three"], 3), batch_of([b"four" * 9], 4, "127.0.0.2:4150")],
    [batch_of(['{"five": "é\u2028"}'.encode(), b"six"], 5)],
]


def payloads_of(commits: list[list[Messages]]) -> list[bytes]:
    return [payload for commit in commits for messages in commit for payload in messages.payloads]


def bodies_of(commits: list[list[Messages]]) -> list[bytes]:
    return [payload[26:] for payload in payloads_of(commits)]


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
@settings(max_examples=12)
@given(commits=any_commits)
def test_any_messages_round_trip(
    record_format: str, compression: str, commits: list[list[Messages]]
) -> None:
    bodies = bodies_of(commits)
    if (record_format, compression) == ("lines", "none"):
        # Without a header the content is all there is to recognise a file by.
        assume(not bodies[0].startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))
        assume(bodies[0][1:4] != b"\x2a\x4d\x18")
        assume(not looks_damaged(b"\n".join(bodies)[:64]))
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder), record_format, compression, commits)
        with open_archive(path) as reader:
            assert reader.info.record_format == record_format
            assert reader.info.compression == compression
        if record_format == "lines":
            found, damage = read_bodies(path)
            assert damage is None
            assert found == b"\n".join(bodies).split(b"\n")
        else:
            assert read_payloads(path) == payloads_of(commits)


# Of what one body is made: what escapes double or blow up, what JSON leaves alone, what is no text.
PIECES = [b"\x00", b'"', b"\\", b"\n", b"\x7f", b"a", "\u20ac".encode(), b"\xff", b"\x1f\t"]
LIMIT = 3000


@pytest.mark.parametrize("always_text", [100, jsonl.ALWAYS_TEXT_BYTES_MAX])
@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
@settings(max_examples=8)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), short=st.integers(0, 3))
def test_any_body_up_to_the_limit_can_be_read(
    record_format: str, compression: str, always_text: int, pieces: list[bytes], short: int
) -> None:
    bodies = [b"x", (b"".join(pieces) * LIMIT)[: LIMIT - short], b"y"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "ALWAYS_TEXT_BYTES_MAX", always_text)
        path = write_file(Path(folder), record_format, compression, [[batch_of(bodies)]])
        with open_archive(path, body_bytes_max=LIMIT) as reader:
            found = [body for batch in reader.batches() for body in batch.bodies]
    assert b"\n".join(found) == b"\n".join(bodies)


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_largest_bodies_can_be_read(compression: str, tmp_path: Path) -> None:
    bodies = [b"\x00" * BODY_SIZE_MAX_BYTES, b'"' * BODY_SIZE_MAX_BYTES]
    path = write_file(tmp_path, "jsonl", compression, [[batch_of(bodies)]])
    with open_archive(path) as reader:
        assert reader.info.record_format == "jsonl"
        found = [body for batch in reader.batches() for body in batch.bodies]
    assert found == bodies


def test_text_becomes_base64_only_where_escapes_would_blow_it_up(tmp_path: Path) -> None:
    size = jsonl.ALWAYS_TEXT_BYTES_MAX
    bodies = [b"\x00" * size, b"a" * (size + 1), b"\x00" * (size + 1)]
    path = write_file(tmp_path, "jsonl", "none", [[batch_of(bodies)]])
    kinds = [list(json.loads(line))[-1] for line in path.read_bytes().splitlines()]
    assert kinds == ["body", "body", "body_b64"]


@pytest.mark.parametrize(
    ("compression", "level"),
    [("gzip", level) for level in range(1, 10)] + [("zstd", level) for level in (1, 2, 3, 4, 19)],
)
def test_every_level_finds_what_repeats(compression: str, level: int, tmp_path: Path) -> None:
    noise = random.Random(level).randbytes(150_000).replace(b"\n", b" ")
    bodies = [noise, noise, b"short"]
    writer = ArchiveWriter(spec(tmp_path, compression=compression, level=level))
    writer.commit([batch_of(bodies)])
    (published,) = close(writer)
    assert read_bodies(Path(published.location)) == (bodies, None)
    # gzip's window is 32 KiB; zstd's reaches the first body from the second.
    copies = 1 if compression == "zstd" else 2
    assert len(noise) * copies < published.disk_bytes < len(noise) * copies * 1.1


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_file_cut_anywhere_gives_a_prefix_and_recovers_to_whole_commits(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    data, ends = unfinished_file(tmp_path, record_format, compression, TEXT_COMMITS)
    bodies = bodies_of(TEXT_COMMITS)
    whole_lines = (record_format, compression) in (("lines", "none"), ("jsonl", "none"))
    for cut in range(len(data) + 1):
        part = claimed(tmp_path, data[:cut], record_format, compression)
        commits = sum(end <= cut for end in ends)
        expected = bodies_of(TEXT_COMMITS[:commits])
        if whole_lines:
            expected = bodies[: data[:cut].count(b"\n")]
        found, damage = read_bodies(part)
        check_prefix(found, expected, bodies, exact=not whole_lines)
        at_commit = cut in (0, *ends)
        if not whole_lines and not at_commit and expected:
            assert damage is not None
            assert damage.records == len(expected)
            assert damage.offset <= cut
        if at_commit:
            assert damage is None
        (result,) = recover(tmp_path)
        assert result.records == len(expected)
        assert not part.exists()
        if expected:
            assert result.published is not None
            published = Path(result.published)
            assert read_bodies(published) == (expected, None)
            published.unlink()
        else:
            assert result.published is None
        assert visible(tmp_path) == claims(tmp_path) == []


def check_prefix(
    found: list[bytes], expected: list[bytes], bodies: list[bytes], *, exact: bool
) -> None:
    if exact and found != expected:
        # Too little is left to know the file by: a few bytes of a header, read as a line.
        assert not expected
        return
    assert found[: len(expected)] == expected
    if len(found) > len(expected):  # the beginning of a line
        assert len(found) == len(expected) + 1
        if len(expected) < len(bodies):
            assert bodies[len(expected)].startswith(found[-1]) or not expected


@pytest.mark.parametrize(
    ("record_format", "compression"),
    [pair for pair in PAIRS if pair[1] != "none" or pair[0] == "framed"],
)
@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_a_flipped_byte_never_gives_a_wrong_record_in_silence(
    record_format: str, compression: str, mask: int, tmp_path: Path
) -> None:
    path = write_file(tmp_path, record_format, compression, TEXT_COMMITS)
    data = path.read_bytes()
    bodies = bodies_of(TEXT_COMMITS)
    reported = 0
    positions = range(len(data)) if mask == 1 else range(0, len(data), 3)
    for at in positions:
        broken = bytearray(data)
        broken[at] ^= mask
        path.write_bytes(broken)
        found, damage = read_bodies(path)
        if damage is None:
            assert found == bodies, at
        else:
            reported += 1
            assert found == bodies[: len(found)], at
            assert damage.records == len(found)
    # Times and the like in the headers of members (frames) say nothing of records.
    assert len(positions) - reported <= 12 * (len(TEXT_COMMITS) + 1)


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_pipe_reads_like_a_file(
    record_format: str, compression: str, step: int, tmp_path: Path
) -> None:
    path = write_file(tmp_path, record_format, compression, COMMITS)
    stream = Trickle(path.read_bytes(), step)
    reader = open_archive(stream, name="-")
    found = [body for batch in reader.batches() for body in batch.bodies]
    expected, damage = read_bodies(path)
    assert damage is None
    assert found == expected
    assert reader.info.record_format == record_format


class Trickle(io.RawIOBase):
    """A stream that cannot seek and gives `step` bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        count = self._step if size is None or size < 0 else min(size, self._step)
        data, self._data = self._data[:count], self._data[count:]
        return data


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_stock_tools_open_every_finished_file(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    tool = {"none": "cat", "gzip": "zcat", "zstd": "zstdcat"}[compression]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    plain = write_file(tmp_path / "plain", record_format, "none", COMMITS)
    path = write_file(tmp_path / "packed", record_format, compression, COMMITS)
    if compression == "gzip":
        subprocess.run(["gzip", "-t", path], check=True)
    done = subprocess.run([tool, path], check=True, capture_output=True)
    assert done.stdout == plain.read_bytes()
    assert done.stderr == b""


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_files_put_together_are_a_file(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    one = write_file(tmp_path / "one", record_format, compression, TEXT_COMMITS)
    both = tmp_path / "both"
    both.write_bytes(one.read_bytes() * 2)
    assert read_bodies(both) == (bodies_of(TEXT_COMMITS) * 2, None)


@settings(max_examples=60)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "any")
        path.write_bytes(data)
        found, damage = read_bodies(path)
        assert damage is not None or b"\n".join(found) == data.removesuffix(b"\n")
