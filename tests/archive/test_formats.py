"""Every entry of the tables says of itself what writer and reader find."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import COMPRESSIONS as NAMES_OF_COMPRESSIONS
from tests.archive.helpers import FORMATS, PAIRS, batch_of, write_file

from nsqtools.archive.formats import COMPRESSIONS, RECORD_FORMATS, START_BYTES
from nsqtools.archive.header import MAGIC, decode_header, encode_header
from nsqtools.archive.reader import open_archive
from nsqtools.archive.stream import Source
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_tables_name_what_the_documents_name() -> None:
    assert list(RECORD_FORMATS) == list(FORMATS)
    assert list(COMPRESSIONS) == list(NAMES_OF_COMPRESSIONS)
    for name, compression in COMPRESSIONS.items():
        assert compression.name == name
        assert compression.default_level in compression.levels


@pytest.mark.parametrize(("record_format", "compression"), PAIRS)
def test_a_file_is_what_its_entries_say(
    record_format: str, compression: str, tmp_path: Path
) -> None:
    path = write_file(tmp_path, record_format, compression, [[batch_of([b"a", b"b"])]])
    inside, around = RECORD_FORMATS[record_format], COMPRESSIONS[compression]
    assert path.name.endswith(around.suffix)
    start = path.read_bytes()[:START_BYTES]
    begun = [found.name for found in COMPRESSIONS.values() if found.begins(start)]
    assert begun == ([] if compression == "none" else [compression])
    source = Source(io.BytesIO(path.read_bytes()), path)
    header = around.peek_header(source)
    if compression == "none" and not inside.has_stream_header:
        assert header is None
    else:
        assert header is not None
        assert decode_header(header).meta["format"] == record_format
    content = b"".join(block.data for block in around.new_walk(source).blocks())
    assert content.startswith(MAGIC) == inside.has_stream_header
    with open_archive(path) as reader:
        (records,) = reader.batches()
        assert (records.messages is not None) == inside.keeps_ids
        assert (reader.info.frames is not None) == around.has_index


def test_a_record_format_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(encode_header(record_format="csv", topic="t", channel="c", host="h"))
    with pytest.raises(ArchiveError, match="unknown record format csv"):
        open_archive(path)
