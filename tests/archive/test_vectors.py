"""The golden files: docs/formats.md as bytes.

`python -m tests.archive.test_vectors` writes them anew; a difference is a new version of a format.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from tests.archive.helpers import FORMATS, PAIRS, START_NS, batch_of, read_payloads, write_file

from nsqtools.archive.header import encode_header
from nsqtools.archive.reader import open_archive
from nsqtools.archive.zstd_frames import decode_index, encode_seek_table, frame_sizes, skippable

VECTORS = Path(__file__).parent.parent / "vectors" / "archive"
SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst"}
COMMITS = [
    [batch_of([b"plain text", b""])],
    [batch_of([b'quote " backslash \\ tab \t', "é\u2028\U0001f600".encode()], 2)],
    [batch_of([b"two\nlines"], 4, "127.0.0.1:4150"), batch_of([b"\x00\xff\xfe"], 5, "[::1]:4150")],
]
PAYLOADS = [payload for commit in COMMITS for found in commit for payload in found.payloads]


def vector(record_format: str, compression: str) -> Path:
    return VECTORS / f"{record_format}.log{SUFFIX[compression]}"


def encode(record_format: str, compression: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_file(Path(folder), record_format, compression, COMMITS).read_bytes()


@pytest.mark.parametrize("record_format", FORMATS)
def test_uncompressed_files_are_written_byte_for_byte(record_format: str) -> None:
    assert encode(record_format, "none") == vector(record_format, "none").read_bytes()


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_golden_files_are_read(record_format: str, compression: str) -> None:
    path = vector(record_format, compression)
    with open_archive(path) as reader:
        info = reader.info
        bodies = [body for batch in reader.batches() for body in batch.bodies]
    assert (info.record_format, info.compression) == (record_format, compression)
    if compression != "none":
        meta = {"format": record_format, "topic": "topic", "channel": "channel", "host": "host"}
        assert info.meta == meta
    if record_format == "lines":
        assert bodies == vector("lines", "none").read_bytes().removesuffix(b"\n").split(b"\n")
    else:
        assert read_payloads(path) == PAYLOADS


@pytest.mark.parametrize("record_format", FORMATS)
def test_what_we_add_to_zstd_is_written_byte_for_byte(record_format: str) -> None:
    data = vector(record_format, "zstd").read_bytes()
    header = skippable(
        encode_header(record_format=record_format, topic="topic", channel="channel", host="host")
    )
    assert data.startswith(header)
    with open_archive(vector(record_format, "zstd")) as reader:
        assert (reader.info.frames, reader.info.records) == (3, len(PAYLOADS))
        assert (reader.info.first_ts_ns, reader.info.last_ts_ns) == (
            START_NS,
            START_NS + 5_000_000,
        )
    frames, _, magic = struct.unpack("<IBI", data[-9:])
    assert (frames, magic) == (8, 0x8F92EAB1)
    table_bytes = 8 + 8 * frames + 9
    index_bytes = 8 + 4 + 4 + 3 * 36 + 4
    index = decode_index(data[-table_bytes - index_bytes + 8 : -table_bytes])
    assert index is not None
    assert list(index.records) == [2, 2, 2]
    assert data.endswith(encode_seek_table(frame_sizes(len(header), index, index_bytes)))
    for entry in (index[at] for at in range(3)):
        assert data[entry.offset : entry.offset + 4] == b"\x28\xb5\x2f\xfd"
        note = struct.unpack_from("<4sI4sIQQ", data, entry.offset + entry.size_bytes)
        expected = (b"\x5a\x2a\x4d\x18", 28, b"NSQC", 2, entry.first_ts_ns, entry.last_ts_ns)
        assert note == expected


@pytest.mark.parametrize("record_format", FORMATS)
def test_the_first_gzip_member_is_written_byte_for_byte(record_format: str) -> None:
    header = encode_header(
        record_format=record_format, topic="topic", channel="channel", host="host"
    )
    extra = b"NQ" + struct.pack("<H", len(header)) + header
    member = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra
    member += b"\x03\x00" + bytes(8)
    assert vector(record_format, "gzip").read_bytes().startswith(member)
    assert encode(record_format, "gzip").startswith(member + b"\x1f\x8b\x08" + bytes(6) + b"\xff")


def test_the_file_header_is_what_the_document_says() -> None:
    data = vector("framed", "none").read_bytes()
    magic, version, length = struct.unpack_from(">8sHI", data)
    assert (magic, version) == (b"\x89NSQA\r\n\x1a", 1)
    text = data[14 : 14 + length].decode()
    assert text == '{"format":"framed","topic":"topic","channel":"channel","host":"host"}'
    first = 14 + length + 4
    assert data[first : first + 4] == struct.pack(">i", 26 + len("plain text"))
    assert data[first + 4 : first + 40] == PAYLOADS[0]


def main() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    for record_format, compression in PAIRS:
        vector(record_format, compression).write_bytes(encode(record_format, compression))


if __name__ == "__main__":
    main()
