"""What a file of messages can be: the record formats, and the compressions around them.

Writer, reader and recovery know them from here only; another one is an entry in a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsqtools.archive import gzip_members, zstd_frames
from nsqtools.archive.framed import FramedDecoder, FramedEncoder
from nsqtools.archive.groups import PlainContainer
from nsqtools.archive.gzip_members import GzipContainer, gzip_groups, read_gzip_header
from nsqtools.archive.header import HEADER_BYTES_MAX, MAGIC, encode_header
from nsqtools.archive.jsonl import JsonlEncoder
from nsqtools.archive.jsonl_reading import JsonlDecoder
from nsqtools.archive.lines import LinesDecoder, LinesEncoder
from nsqtools.archive.survey import (
    survey_framed,
    survey_gzip,
    survey_jsonl,
    survey_lines,
    survey_plain,
    survey_zstd,
)
from nsqtools.archive.walks import GzipWalk, PlainWalk
from nsqtools.archive.zstd_frames import ZstdContainer
from nsqtools.archive.zstd_walk import ZstdWalk, zstd_groups
from nsqtools.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsqtools.archive.groups import Container, Group, RecordEncoder
    from nsqtools.archive.stream import RecordDecoder, Source, Walk
    from nsqtools.archive.survey import Survey

# Bytes that are enough to tell what a file is.
START_BYTES = 64


class NewEncoder(Protocol):
    """Makes the encoder of one archive; `header` is the file header of each of its files."""

    def __call__(self, *, topic: str, header: bytes) -> RecordEncoder: ...


class NewDecoder(Protocol):
    """Makes the decoder of one pass over content; `header_due`: that is the content of a whole file."""

    def __call__(self, *, body_bytes_max: int, header_due: bool) -> RecordDecoder: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFormat:
    """How messages become bytes.

    `keeps_ids`: id, publish time and attempts are kept, too. `has_stream_header`: content begins
    with the file header, so that recognising one tells the format. `is_any_line`: a record is a line,
    whatever stands in it. `survey` finds what is whole of an unfinished file without compression.
    """

    name: str
    new_encoder: NewEncoder
    new_decoder: NewDecoder
    keeps_ids: bool
    has_stream_header: bool
    is_any_line: bool
    survey: Callable[[Source, Survey], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What stands around the records.

    `new_containers` takes a file header and a level, and gives what makes the container of each file
    of one writer; `new_rewrite` gives that of a rewrite, which has more time and is to be small.
    `begins` tells from the first START_BYTES. `peek_header` gives what stands where a file header
    would, if anything. `has_index`: a sealed file can be read from its middle, and it is known how many
    records it has. `survey` finds what is whole of an unfinished file; `read_groups` gives those of a
    sealed one, where there is something to gain by joining them.
    """

    name: str
    suffix: str
    levels: range
    default_level: int
    new_containers: Callable[[bytes, int], Callable[[], Container]]
    new_rewrite: Callable[[bytes, int], Container]
    begins: Callable[[bytes], bool]
    peek_header: Callable[[Source], bytes | None]
    new_walk: Callable[[Source], Walk]
    has_index: bool
    survey: Callable[[Source, Survey, RecordFormat], None]
    read_groups: Callable[[Source], Iterator[Group]] | None


def _lines_encoder(*, topic: str, header: bytes) -> LinesEncoder:
    return LinesEncoder()


def _lines_decoder(*, body_bytes_max: int, header_due: bool) -> LinesDecoder:
    return LinesDecoder(body_bytes_max)


def _jsonl_encoder(*, topic: str, header: bytes) -> JsonlEncoder:
    return JsonlEncoder(topic)


def _jsonl_decoder(*, body_bytes_max: int, header_due: bool) -> JsonlDecoder:
    return JsonlDecoder(body_bytes_max)


def _framed_encoder(*, topic: str, header: bytes) -> FramedEncoder:
    return FramedEncoder(header)


def _framed_decoder(*, body_bytes_max: int, header_due: bool) -> FramedDecoder:
    return FramedDecoder(body_bytes_max, header_due=header_due)


def _plain_containers(_header: bytes, _level: int) -> Callable[[], Container]:
    return PlainContainer


def _plain_rewrite(_header: bytes, _level: int) -> Container:
    return PlainContainer()


def _gzip_containers(header: bytes, level: int) -> Callable[[], Container]:
    return lambda: GzipContainer(header, level)


def _gzip_rewrite(header: bytes, level: int) -> Container:
    return GzipContainer(header, level, is_rewrite=True)


def _zstd_containers(header: bytes, level: int) -> Callable[[], Container]:
    return lambda: ZstdContainer(header, level)


def _begins_as_gzip(start: bytes) -> bool:
    return start.startswith(gzip_members.MAGIC)


def _begins_as_zstd(start: bytes) -> bool:
    data_magic = zstd_frames.DATA_MAGIC
    return start.startswith(data_magic) or zstd_frames.is_skippable_magic(start[:4])


# Of a header no more is asked for than is needed to tell: a pipe may hold it back, and what it gave
# with it.
def _peek_plain_header(source: Source) -> bytes | None:
    if not source.peek(START_BYTES).startswith(MAGIC):
        return None
    return source.peek(HEADER_BYTES_MAX)


def _peek_zstd_header(source: Source) -> bytes | None:
    if not source.peek(START_BYTES).startswith(zstd_frames.OUR_MAGIC):
        return None
    frame = source.peek(zstd_frames.SKIPPABLE_BYTES + HEADER_BYTES_MAX)
    header = frame[zstd_frames.SKIPPABLE_BYTES :]
    return header if header.startswith(MAGIC) else None


LINES = RecordFormat(
    name="lines",
    new_encoder=_lines_encoder,
    new_decoder=_lines_decoder,
    keeps_ids=False,
    has_stream_header=False,
    is_any_line=True,
    survey=survey_lines,
)
JSONL = RecordFormat(
    name="jsonl",
    new_encoder=_jsonl_encoder,
    new_decoder=_jsonl_decoder,
    keeps_ids=True,
    has_stream_header=False,
    is_any_line=False,
    survey=survey_jsonl,
)
FRAMED = RecordFormat(
    name="framed",
    new_encoder=_framed_encoder,
    new_decoder=_framed_decoder,
    keeps_ids=True,
    has_stream_header=True,
    is_any_line=False,
    survey=survey_framed,
)
NONE = Compression(
    name="none",
    suffix="",
    levels=range(1),
    default_level=0,
    new_containers=_plain_containers,
    new_rewrite=_plain_rewrite,
    begins=lambda _start: False,  # what no other recognises
    peek_header=_peek_plain_header,
    new_walk=PlainWalk,
    has_index=False,
    survey=survey_plain,
    read_groups=None,
)
GZIP = Compression(
    name="gzip",
    suffix=".gz",
    levels=range(1, 10),
    default_level=6,
    new_containers=_gzip_containers,
    new_rewrite=_gzip_rewrite,
    begins=_begins_as_gzip,
    peek_header=read_gzip_header,
    new_walk=GzipWalk,
    has_index=False,
    survey=survey_gzip,
    read_groups=gzip_groups,
)
ZSTD = Compression(
    name="zstd",
    suffix=".zst",
    levels=range(1, 23),
    default_level=3,
    new_containers=_zstd_containers,
    new_rewrite=ZstdContainer,
    begins=_begins_as_zstd,
    peek_header=_peek_zstd_header,
    new_walk=ZstdWalk,
    has_index=True,
    survey=survey_zstd,
    read_groups=zstd_groups,
)

RECORD_FORMATS = {found.name: found for found in (LINES, JSONL, FRAMED)}
COMPRESSIONS = {found.name: found for found in (NONE, GZIP, ZSTD)}


def find_formats(record_format: str, compression: str) -> tuple[RecordFormat, Compression]:
    """Those of these names; raises `ArchiveError` for one that is not known here."""
    try:
        return RECORD_FORMATS[record_format], COMPRESSIONS[compression]
    except KeyError as error:
        raise ArchiveError(
            f"a record format or compression that is not known here: {error.args[0]}",
            hint="Start the nsqtools that wrote it, or a later one.",
        ) from error


class Encoding(NamedTuple):
    """How one archive writes: its records, and what stands around them in each of its files."""

    encoder: RecordEncoder
    new_container: Callable[[], Container]


def new_encoding(
    *, record_format: str, compression: str, level: int, topic: str, channel: str, host: str
) -> Encoding:
    """Of formats that are known; the rest is what the file header says."""
    header = encode_header(record_format=record_format, topic=topic, channel=channel, host=host)
    return Encoding(
        RECORD_FORMATS[record_format].new_encoder(topic=topic, header=header),
        COMPRESSIONS[compression].new_containers(header, level),
    )
