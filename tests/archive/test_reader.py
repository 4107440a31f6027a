"""Plain logs, other people's files, selecting by time, bounds and damage."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import tracemalloc
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.archive.helpers import (
    FORMATS,
    START_NS,
    batch_of,
    payload,
    read_bodies,
    unfinished_file,
    write_file,
)

from nsqtools.archive import stream
from nsqtools.archive.framed import FramedDecoder, FramedEncoder
from nsqtools.archive.header import MAGIC, encode_header
from nsqtools.archive.lines import LinesDecoder
from nsqtools.archive.reader import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    _batches_of,
    open_archive,
)
from nsqtools.archive.stream import Records
from nsqtools.errors import ArchiveError, DamagedArchive, StorageError
from nsqtools.wire.messages import Messages

MS = 1_000_000


@pytest.mark.parametrize(
    ("data", "bodies"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"a\r\nb", [b"a\r", b"b"]),
        (b"no end", [b"no end"]),
        ("é\u2028x\x0bz\x85\n".encode(), ["é\u2028x\x0bz\x85".encode()]),
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
    ],
)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "zstd without size"])
def test_plain_logs(data: bytes, bodies: list[bytes], compression: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    if compression == "gzip":
        data = gzip.compress(data[:3]) + gzip.compress(data[3:])
    elif compression == "zstd":
        data = zstandard.compress(data[:3]) + zstandard.compress(data[3:])
    elif compression == "zstd without size":
        writer = zstandard.ZstdCompressor().compressobj()
        data = writer.compress(data) + writer.flush()
    path.write_bytes(data)
    with open_archive(path) as reader:
        assert reader.info.record_format == "lines"
        assert reader.info.compression == compression.split()[0]
        assert reader.info.meta == {}
    assert read_bodies(path) == (bodies, None)


def test_what_the_bytes_say_can_be_overridden(tmp_path: Path) -> None:
    path = write_file(tmp_path, "jsonl", "none", [[batch_of([b"a"])]])
    assert read_bodies(path, record_format="lines")[0] == [path.read_bytes()[:-1]]
    path.write_bytes(b"\x1f\x8b is how this log begins\n")
    assert read_bodies(path, compression="none")[0] == [b"\x1f\x8b is how this log begins"]
    path.write_bytes(MAGIC + b"\n")
    found = read_bodies(path, record_format="lines")[0]
    assert b"\n".join(found) == MAGIC
    with pytest.raises(ArchiveError, match="unknown record format"):
        open_archive(path, record_format="csv")
    with pytest.raises(ArchiveError, match="unknown compression"):
        open_archive(path, compression="lz4")


def test_jsonl_of_others_is_lines(tmp_path: Path) -> None:
    record = {"ts": 1, "id": "0" * 16, "attempts": 1, "nsqd": "n", "topic": "t", "body": "b"}
    path = tmp_path / "x"
    for change in ({"more": 1}, {"ts": "1"}, {"id": "short"}, {"ts": -1}, {"ts": True}):
        path.write_text(json.dumps(record | change) + "\n")
        with open_archive(path) as reader:
            assert reader.info.record_format == "lines", change
    path.write_text(json.dumps(record, indent=None) + "\n" + json.dumps(record | {"topic": 5}))
    bodies, damage = read_bodies(path)
    assert bodies == [b"b"]
    assert damage is not None
    assert damage.offset == len(json.dumps(record)) + 1


@pytest.mark.parametrize(
    "second",
    [
        b"[" * 100_000,
        b'{"ts":' + b"9" * 5000 + b"}",
        b"\xff",
        b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body":"\\ud800"}',
        b'{"ts":1,"id":"0000000000000000","attempts":1,"nsqd":"n","topic":"t","body_b64":"?"}',
        b'{"ts":1,"id":"\xe2\x82\xac000000000000000","attempts":1,"nsqd":"n","topic":"t","body":""}',
        b'{"ts":1,"id":"0000000000000000","attempts":65536,"nsqd":"n","topic":"t","body":""}',
        b"{},{}",
    ],
)
def test_hostile_jsonl(second: bytes, tmp_path: Path) -> None:
    path = write_file(tmp_path, "jsonl", "none", [[batch_of([b"a", b"b"])]])
    path.write_bytes(path.read_bytes() + second + b"\n")
    bodies, damage = read_bodies(path)
    assert bodies == [b"a", b"b"]
    assert damage is not None
    assert damage.reason.startswith("a line that is no record")


def test_everything_that_jsonl_keeps(tmp_path: Path) -> None:
    commits = [[batch_of([b"a"], 0, "one:1"), batch_of([b"b", b"c"], 1, 'two"\n:2')]]
    path = write_file(tmp_path, "jsonl", "gzip", commits)
    with open_archive(path) as reader:
        (batch,) = reader.batches()
    assert batch.nsqds == ["one:1", 'two"\n:2', 'two"\n:2']
    assert batch.messages is not None
    assert batch.messages.attempts == [1, 2, 3]
    for line in gzip.decompress(path.read_bytes()).splitlines():
        assert list(json.loads(line)) == ["ts", "id", "attempts", "nsqd", "topic", "body"]


TIMED = [
    [batch_of([b"%d" % (10 * commit + at) for at in range(10)], 10 * commit)]
    for commit in range(10)
]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("record_format", ["framed", "jsonl"])
@settings(max_examples=12)
@given(bounds=st.tuples(st.integers(-5, 105), st.integers(-5, 105)))
def test_selecting_by_time(
    record_format: str,
    compression: str,
    bounds: tuple[int, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"time-{record_format}-{compression}"
    path = folder / "done"
    if not path.exists():
        write_file(folder, record_format, compression, TIMED).rename(path)
    since, until = (START_NS + bound * MS for bound in bounds)
    expected = [b"%d" % at for at in range(100) if bounds[0] <= at < bounds[1]]
    with open_archive(path) as reader:
        batches = list(reader.batches(since, until))
        assert [body for batch in batches for body in batch.bodies] == expected
        for batch in batches:
            assert batch.bodies[0] == b"%d" % batch.first_record
        after = [body for batch in reader.batches(since_ns=since) for body in batch.bodies]
        assert after == [b"%d" % at for at in range(100) if bounds[0] <= at]
        before = [body for batch in reader.batches(until_ns=until) for body in batch.bodies]
        assert before == [b"%d" % at for at in range(100) if at < bounds[1]]
        assert sum(len(batch.bodies) for batch in reader.batches()) == 100


def test_lines_with_an_index_give_whole_frames(tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", "zstd", TIMED)
    with open_archive(path) as reader:
        found = list(reader.batches(START_NS + 15 * MS, START_NS + 20 * MS))
        assert [body for batch in found for body in batch.bodies] == [
            b"%d" % at for at in range(10, 20)
        ]
        assert found[0].first_record == 10


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_lines_without_an_index_cannot_be_selected(compression: str, tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", compression, TIMED)
    with open_archive(path) as reader, pytest.raises(ArchiveError, match="lines keep no time"):
        reader.batches(since_ns=1)


def test_only_the_frames_that_overlap_are_read(tmp_path: Path) -> None:
    commits = [[batch_of([os.urandom(100_000)], number)] for number in range(20)]
    path = write_file(tmp_path, "framed", "zstd", commits)
    with path.open("rb", buffering=0) as file:
        counting = Counting(file)
        reader = open_archive(counting, name="x")
        (batch,) = reader.batches(START_NS + 7 * MS, START_NS + 8 * MS)
    assert batch.bodies == [commits[7][0].bodies[0]]
    assert counting.taken < 1_000_000 < path.stat().st_size


class Counting(io.RawIOBase):
    """Counts what is read, in pieces of at most 16 KiB."""

    def __init__(self, file: io.FileIO) -> None:
        self._inner = file
        self.taken = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def read(self, size: int = -1, /) -> bytes:
        data = self._inner.read(min(size, 16384))
        assert data is not None
        self.taken += len(data)
        return data


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_file_that_shrinks_while_it_is_read(compression: str, tmp_path: Path) -> None:
    commits = [[batch_of([os.urandom(75_000).hex().encode()], number)] for number in range(10)]
    data, ends = unfinished_file(tmp_path, "lines", compression, commits)
    path = tmp_path / "x"
    path.write_bytes(data)
    found: list[bytes] = []
    with open_archive(path) as reader:
        batches = reader.batches()
        found += next(batches).bodies
        os.truncate(path, ends[6])  # an end that looks like any other
        with pytest.raises(DamagedArchive, match="became shorter") as caught:
            found.extend(body for batch in batches for body in batch.bodies)
    assert found == [commit[0].bodies[0] for commit in commits[: len(found)]]
    assert len(found) <= 7
    assert (caught.value.offset, caught.value.records) == (ends[6], len(found))


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\n")
    with open_archive(path) as reader:
        path.write_bytes(b"a\nb\n")
        found = [body for batch in reader.batches() for body in batch.bodies]
    assert found == [b"a", b"b"]


@pytest.mark.parametrize("name", ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_a_file_of_the_kernel_has_another_size_than_it_says(name: str) -> None:
    path = Path(name)
    if not path.exists():
        pytest.skip("this kernel has no such file")
    assert read_bodies(path) == (path.read_bytes().splitlines(), None)


def test_a_long_first_line_does_not_hide_the_format(tmp_path: Path) -> None:
    path = write_file(tmp_path, "jsonl", "none", [[batch_of([b"x" * (3 << 20), b"y"])]])
    with open_archive(path) as reader:
        assert reader.info.record_format == "jsonl"
        assert [batch.bodies[-1] for batch in reader.batches()] == [b"x" * (3 << 20), b"y"]


def test_an_unsealed_file_is_selected_from_by_record(tmp_path: Path) -> None:
    data, _ = unfinished_file(tmp_path, "framed", "zstd", TIMED)
    path = tmp_path / "x.part"
    path.write_bytes(data)
    with open_archive(path) as reader:
        assert not reader.info.sealed
        found = [b for batch in reader.batches(START_NS + 95 * MS) for b in batch.bodies]
    assert found == [b"95", b"96", b"97", b"98", b"99"]


@pytest.mark.parametrize("record_format", FORMATS)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_batches_are_bounded(record_format: str, compression: str, tmp_path: Path) -> None:
    many = [payload(0, b"")] * (BATCH_RECORDS_MAX * 2 + 1)
    large = [payload(0, b"x" * 300_000)] * 20
    commits = [[Messages(many, nsqd="n")], [Messages(large, nsqd="n")]]
    path = write_file(tmp_path, record_format, compression, commits)
    with open_archive(path) as reader:
        total = 0
        for batch in reader.batches():
            assert batch.first_record == total
            assert len(batch.bodies) <= BATCH_RECORDS_MAX
            assert sum(map(len, batch.bodies)) <= BATCH_BYTES_MAX + 300_000
            total += len(batch.bodies)
    assert total == len(many) + len(large)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([1] * BATCH_RECORDS_MAX, [BATCH_RECORDS_MAX]),
        ([0] * (2 * BATCH_RECORDS_MAX + 1), [BATCH_RECORDS_MAX, BATCH_RECORDS_MAX, 1]),
        ([BATCH_BYTES_MAX, 0, 0, 1, BATCH_BYTES_MAX + 1, 0], [3, 1, 1, 1]),
        ([BATCH_BYTES_MAX // 2] * 5, [2, 2, 1]),
    ],
)
def test_a_run_is_cut_into_batches_of_which_messages_are_made_once(
    sizes: list[int], counts: list[int]
) -> None:
    bodies = [bytes([at % 256]) * size for at, size in enumerate(sizes)]
    payloads = [payload(at, body) for at, body in enumerate(bodies)]
    made: list[Messages] = []

    def make() -> Messages:
        made.append(Messages(payloads))
        return made[0]

    run = Records(bodies=bodies, offset=7, make_messages=make, make_lines=lambda: payloads)
    batches = list(_batches_of(run, 100))
    assert [len(batch.bodies) for batch in batches] == counts
    assert [batch.first_record - 100 for batch in batches] == [
        0,
        *itertools.accumulate(counts[:-1]),
    ]
    assert [body for batch in batches for body in batch.bodies] == bodies
    assert [one for batch in batches for one in batch.lines or []] == payloads
    found = [batch.messages.payloads for batch in batches if batch.messages is not None]
    assert [one for batch in found for one in batch] == payloads
    assert len(made) == 1


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_line_has_a_limit(compression: str, tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", compression, [[batch_of([b"short", b"x" * 5000, b"y"])]])
    with open_archive(path, body_bytes_max=4999) as reader:
        batches = reader.batches()
        assert next(batches).bodies == [b"short"]
        with pytest.raises(DamagedArchive, match="a line of more than 4999 bytes"):
            next(batches)
    assert read_bodies(path)[1] is None


def test_memory_is_bounded_by_what_a_bomb_declares(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    packer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 20)
    data = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    bomb.write_bytes(data)
    tracemalloc.start()
    try:
        with open_archive(bomb) as reader, pytest.raises(DamagedArchive, match="a line of more"):
            list(reader.batches())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 << 20


def test_large_members_and_frames_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gzip_members", "zstd_reading", "zstd_walk"):
        monkeypatch.setattr(f"nsqtools.archive.{module}.VERIFIED_BYTES_MAX", 1000)
    lines = [b"%06d" % number for number in range(200_000)]
    data = b"\n".join(lines) + b"\n"
    for number, packed in enumerate((gzip.compress(data), zstandard.compress(data))):
        path = tmp_path / str(number)
        path.write_bytes(packed)
        assert read_bodies(path) == (lines, None)
        path.write_bytes(packed[:-3])
        bodies, damage = read_bodies(path)
        assert damage is not None
        assert bodies == lines[: len(bodies)]
        assert len(bodies) > 1000


def test_damage_in_the_index_is_reported_after_the_data(tmp_path: Path) -> None:
    path = write_file(tmp_path, "framed", "zstd", TIMED)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"NSQI") + 20] ^= 1
    path.write_bytes(data)
    bodies, damage = read_bodies(path)
    assert len(bodies) == 100
    assert damage is not None
    assert damage.reason == "an index that does not fit the data"
    with open_archive(path) as reader:
        assert not reader.info.sealed
        batches = reader.batches(since_ns=START_NS + 99 * MS)
        assert next(batches).bodies == [b"99"]
        with pytest.raises(DamagedArchive):
            next(batches)


def test_an_index_that_lies_about_a_frame(tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", "zstd", TIMED)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 8] ^= 1
    path.write_bytes(data)
    with open_archive(path) as reader, pytest.raises(DamagedArchive) as caught:
        list(reader.batches(since_ns=START_NS))
    assert caught.value.records == 0


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    header = bytearray(encode_header(record_format="framed", topic="t", channel="c", host="h"))
    header[9] = 2
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "big")
    path = tmp_path / "x"
    path.write_bytes(header)
    with pytest.raises(ArchiveError, match="format version 2 is not known"):
        open_archive(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StorageError):
            open_archive(path)


def test_a_stream_is_read_once(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"a\nb\n")
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        reader = open_archive(file)
        assert [batch.bodies for batch in reader.batches()] == [[b"a", b"b"]]
        with pytest.raises(ArchiveError, match="read once"):
            reader.batches()
    path = tmp_path / "x"
    path.write_bytes(b"a\nb\n")
    with open_archive(path) as again:
        assert len(list(again.batches())) == len(list(again.batches())) == 1


def test_a_file_object_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = write_file(tmp_path, "lines", "zstd", TIMED)
    stream_of = io.BytesIO(b"prefix" + path.read_bytes())
    stream_of.seek(6)
    reader = open_archive(stream_of)
    assert reader.info.frames == 10
    assert sum(len(batch.bodies) for batch in reader.batches()) == 100
    assert sum(len(batch.bodies) for batch in reader.batches(since_ns=START_NS + 50 * MS)) == 50


@given(
    bodies=st.lists(st.binary(max_size=30), max_size=20),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
)
def test_decoders_take_pieces_cut_anywhere(bodies: list[bytes], cuts: list[int]) -> None:
    header = encode_header(record_format="framed", topic="t", channel="c", host="h")
    encoder = FramedEncoder(header)
    data = header + b"".join(encoder.encode([batch_of([body])]).content for body in bodies)
    framed = FramedDecoder(1000, header_due=True)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found: list[bytes] = []
    for start, stop in itertools.pairwise(edges):
        for run in framed.feed(data[start:stop], start):
            found += run.bodies
    assert list(framed.finish()) == []
    assert found == bodies
    assert framed.committed_end == len(data)

    text = b"\n".join(bodies)
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    lines = LinesDecoder(1000)
    found = []
    for start, stop in itertools.pairwise(edges):
        for run in lines.feed(text[start:stop], start):
            assert text[run.offset :].startswith(run.bodies[0])
            found += run.bodies
    found += [body for run in lines.finish() for body in run.bodies]
    assert found == (text.removesuffix(b"\n").split(b"\n") if text else [])


@given(
    groups=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    cuts=st.lists(st.integers(0, 20_000), max_size=5),
)
def test_runs_of_one_size_survive_any_cut(
    groups: list[list[tuple[int, int]]], cuts: list[int]
) -> None:
    bodies = [
        [b"%d" % number * size for size, count in runs for number in range(count)]
        for runs in groups
    ]
    encoder = FramedEncoder(b"")
    data = b"".join(encoder.encode([batch_of(group)]).content for group in bodies)
    decoder = FramedDecoder(1000, header_due=False)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found: list[bytes] = []
    for start, stop in itertools.pairwise(edges):
        for run in decoder.feed(data[start:stop], start):
            found += run.bodies
    assert found == [body for group in bodies for body in group]
    assert decoder.committed_end == len(data)


def test_a_long_record_is_not_joined_for_every_piece() -> None:
    encoder = FramedEncoder(b"")
    data = bytes(encoder.encode([batch_of([b"x" * (8 << 20)])]).content)
    decoder = FramedDecoder(stream.BODY_BYTES_MAX, header_due=False)
    found = []
    for at in range(0, len(data), 4096):
        for run in decoder.feed(data[at : at + 4096], at):
            found += run.bodies
    assert [len(body) for body in found] == [8 << 20]


class LostPlace(io.BytesIO):
    """A disk that finds the end of a file, and not the way back."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().seek(offset, whence)


def test_a_file_left_at_its_end_is_not_empty() -> None:
    file = LostPlace(b"one\ntwo\n")
    with pytest.raises(StorageError, match="Input/output error"):
        list(open_archive(file, record_format="lines", name="x").batches())
