"""Files of small commits, rewritten before they are published."""

from __future__ import annotations

import errno
import random
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import (
    PAIRS,
    START_NS,
    batch_of,
    claims,
    close,
    read_bodies,
    read_payloads,
    spec,
    visible,
)

from nsqtools.archive import compaction
from nsqtools.archive.compaction import PIECE_BYTES, is_worth_it
from nsqtools.archive.formats import find_formats
from nsqtools.archive.groups import Group
from nsqtools.archive.gzip_members import GzipContainer
from nsqtools.archive.reader import open_archive
from nsqtools.archive.stream import Source
from nsqtools.archive.survey import survey
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.archive.zstd_frames import compressor_of

if TYPE_CHECKING:
    from nsqtools.archive.finishing import Published
    from nsqtools.wire.messages import Messages

WORDS = [b"alpha", b"beta", b"gamma", b"delta", b"status=200", b"status=404", b"host=web1"]
OVERHEAD_BYTES = 300


def log_lines(count: int) -> list[bytes]:
    rng = random.Random(count)
    return [
        b"2023-11-14T22:13:%02d.%03dZ level=info path=/api/v1/%s user=%d %s"
        % (
            number // 40 % 60,
            number % 1000,
            rng.choice(WORDS),
            rng.randrange(1000),
            b" ".join(WORDS),
        )
        for number in range(count)
    ]


def slow_topic(
    folder: Path, bodies: list[bytes], record_format: str, compression: str, *, compact: bool
) -> Published:
    """A file of one message a commit."""
    writer = ArchiveWriter(spec(folder, record_format, compression, compact=compact))
    for number, body in enumerate(bodies):
        writer.commit([batch_of([body], number)])
    (published,) = close(writer)
    assert claims(folder) == []
    return published


def one_piece(content: bytes, compression: str) -> int:
    """What the content takes in one frame or member."""
    if compression == "zstd":
        return len(compressor_of(3).compress(content))
    group = Group(content=content, records=1, times=lambda: (0, 0))
    return len(GzipContainer(b"", 6).encode([group]))


@pytest.mark.parametrize("count", [40, 2000])
@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_small_commits_take_what_one_piece_takes(
    compression: str, count: int, tmp_path: Path
) -> None:
    bodies = log_lines(count)
    published = slow_topic(tmp_path, bodies, "lines", compression, compact=True)
    path = Path(published.location)
    assert read_bodies(path) == (bodies, None)
    assert published.disk_bytes == path.stat().st_size
    assert published.not_compacted == ""
    expected = one_piece(b"\n".join([*bodies, b""]), compression)
    assert published.disk_bytes < expected * 1.1 + OVERHEAD_BYTES
    # What it was before shows that there was something to gain.
    assert published.compacted_from_bytes is not None
    assert published.compacted_from_bytes > 4 * published.disk_bytes
    assert published.messages == count


@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_rewrite_is_as_small_as_gzip_makes_it(level: int, tmp_path: Path) -> None:
    """Commits have no time for that; a rewrite holds up nobody."""
    rng = random.Random(level)
    paths = [b"/products/%d/%d" % (number, rng.randrange(10**6)) for number in range(300)]
    bodies = [
        b'{"ts":%.3f,"user":%d,"ip":"10.%d.%d.%d","path":"%s","status":%d,"ms":%.2f,"agent":"%s"}'
        % (
            1.7e9 + at * 0.013,
            rng.randrange(200_000),
            *rng.randbytes(3),
            rng.choice(paths),
            rng.choice((200, 200, 200, 404)),
            rng.expovariate(0.02),
            rng.choice((b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", b"curl/8.1")),
        )
        for at in range(5000)
    ]
    writer = ArchiveWriter(spec(tmp_path, "lines", "gzip", level=level, compact=True))
    for at in range(0, len(bodies), 50):
        writer.commit([batch_of(bodies[at : at + 50], at)])
    (published,) = close(writer)
    whole = zlib.compress(b"\n".join([*bodies, b""]), level)
    assert published.disk_bytes < len(whole) * 1.1 + OVERHEAD_BYTES


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_the_content_is_the_same(record_format: str, compression: str, tmp_path: Path) -> None:
    bodies = [*log_lines(50), b"two\nlines", b"", b"\x00\xff"]
    paths = []
    for compact in (True, False):
        published = slow_topic(
            tmp_path / str(compact), bodies, record_format, compression, compact=compact
        )
        paths.append(Path(published.location))
        assert (published.compacted_from_bytes is not None) == (compact and compression != "none")
    one, other = paths
    assert read_bodies(one) == read_bodies(other)
    if record_format != "lines":
        assert read_payloads(one) == read_payloads(other)
    with open_archive(one) as reader:
        if compression == "zstd":
            assert reader.info.sealed
            assert (reader.info.frames, reader.info.records) == (1, len(bodies))
            assert reader.info.first_ts_ns == START_NS


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_pieces_are_bounded(
    compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "PIECE_BYTES", 1000)
    bodies = [*log_lines(100), b"x" * 5000, *log_lines(20)]
    published = slow_topic(tmp_path, bodies, "framed", compression, compact=True)
    path = Path(published.location)
    assert read_bodies(path) == (bodies, None)
    with path.open("rb") as file:
        found = survey(file.fileno(), path, *find_formats("framed", compression))
    assert found.content_bytes > 20_000
    assert 15 < found.groups < 40
    if compression == "zstd":
        with open_archive(path) as reader:
            assert reader._index is not None
            assert sorted(reader._index.content_sizes)[-2] <= 1000
            times = list(reader._index.first_ts_ns)
            assert times == sorted(times)


def test_large_commits_are_left_as_they_are(tmp_path: Path) -> None:
    assert PIECE_BYTES == 1 << 20
    assert not is_worth_it("zstd", 4, 4 * (256 << 10))
    assert is_worth_it("zstd", 4, 4 * (256 << 10) - 1)
    assert not is_worth_it("zstd", 1, 10)
    assert not is_worth_it("none", 4, 4)
    writer = ArchiveWriter(spec(tmp_path, compression="zstd", compact=True))
    for number in range(3):
        large: Messages = batch_of([b"%d" % number * 300_000], number)
        writer.commit([large])
    (published,) = close(writer)
    assert published.compacted_from_bytes is None
    with open_archive(Path(published.location)) as reader:
        assert reader.info.frames == 3


@pytest.mark.parametrize("call", ["open", "pwrite", "fdatasync"])
def test_a_full_disk_publishes_the_file_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = log_lines(20)
    writer = ArchiveWriter(spec(tmp_path, compression="zstd", compact=True))
    for number, body in enumerate(bodies):
        writer.commit([batch_of([body], number)])
    writer.close()
    failing = FailingOs(0, only={call}, code=errno.ENOSPC)
    failing.install(monkeypatch)
    published = writer.finish()
    assert failing.failed == [call]
    assert published is not None
    assert "No space left" in published.not_compacted
    assert published.compacted_from_bytes is None
    assert read_bodies(Path(published.location)) == (bodies, None)
    assert claims(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "compression"),
    [
        ("content", "zstd"),
        ("content", "gzip"),
        ("cut", "zstd"),
        ("cut", "gzip"),
        ("records", "zstd"),
    ],
)
def test_a_rewrite_that_is_not_the_same_is_not_published(
    fault: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compressor, the disk or we ourselves may err: the file is read back."""
    real = compaction._joined

    def wrong(groups: list[Group]) -> Group:
        group = real(groups)
        content = bytearray(group.content)
        if fault == "content":
            content[5] ^= 1
        elif fault == "cut":
            del content[-30:]
        records = group.records + (fault == "records")
        return Group(
            content=content,
            records=records,
            times=group.times,
        )

    monkeypatch.setattr(compaction, "_joined", wrong)
    bodies = log_lines(20)
    published = slow_topic(tmp_path, bodies, "lines", compression, compact=True)
    assert "the rewrite has another" in published.not_compacted
    assert read_bodies(Path(published.location)) == (bodies, None)
    assert len(visible(tmp_path)) == 1


def test_a_compressor_is_shared_by_all_files_of_a_thread_and_level() -> None:
    """Each costs some 3 MB: a hundred topics took 273 MB with one each."""
    assert compressor_of(3) is compressor_of(3)
    assert compressor_of(3) is not compressor_of(5)
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.append(compressor_of(3)))
    thread.start()
    thread.join()
    assert others[0] is not compressor_of(3)


def test_a_damaged_file_is_not_rewritten(tmp_path: Path) -> None:
    writer = ArchiveWriter(spec(tmp_path, compression="gzip", compact=True))
    for number, body in enumerate(log_lines(20)):
        writer.commit([batch_of([body], number)])
    writer.close()
    (part,) = tmp_path.glob("*.part")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    published = writer.finish()
    assert published is not None
    assert published.not_compacted
    assert Path(published.location).read_bytes() == data


def test_many_small_frames_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is in proportion to the file, however many frames it has."""
    writer = ArchiveWriter(spec(tmp_path, compression="zstd", compact=True))
    for number in range(3000):
        writer.commit([batch_of([b"%d" % number], number)])
    writer.close()
    read = 0
    real = Source._read

    def counting(source: Source, count: int) -> bytes:
        nonlocal read
        data = real(source, count)
        read += len(data)
        return data

    monkeypatch.setattr(Source, "_read", counting)
    published = writer.finish()
    assert published is not None
    assert published.compacted_from_bytes is not None
    assert read <= published.compacted_from_bytes + 2 * published.disk_bytes
