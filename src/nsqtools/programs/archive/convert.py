"""From what a reader gives to what `cat` writes. Nothing is written or warned of here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nsqtools.archive.ahead import ahead
from nsqtools.archive.framed import FramedEncoder
from nsqtools.archive.header import encode_header
from nsqtools.archive.jsonl import JsonlEncoder
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.stream import BODY_BYTES_MAX
from nsqtools.errors import ArchiveError
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsqtools.archive.reader import ArchiveInfo, ArchiveReader
    from nsqtools.archive.stream import Block, Records
    from nsqtools.transform.search import Search

LINES, RAW, JSONL, FRAMED = "lines", "raw", "jsonl", "framed"


@dataclass(slots=True, kw_only=True)
class Wanted:
    """What of a file, in which format; `ambiguous` counts bodies written as lines that hold a newline.

    `is_open`: a last line without an end is not whole yet. `reads_ahead`: decompress in a thread, which a
    pipe, where nothing may come for long, should not have.
    """

    record_format: str
    since_ns: int | None
    until_ns: int | None
    grep: Search | None
    is_open: bool = False
    reads_ahead: bool = False
    ambiguous: int = 0


def converted(reader: ArchiveReader, wanted: Wanted, name: str) -> Iterator[bytes | bytearray]:
    """What is to be written of a file, in pieces. Raises `ArchiveError` where the format wants what the
    file does not keep, and as `ArchiveReader.batches` does, behind everything whole."""
    keeps_ids = reader.selects_exactly
    if not keeps_ids and wanted.record_format in (JSONL, FRAMED):
        raise ArchiveError(
            f"{name}: lines keep no time and no id, so that no {wanted.record_format} can be made of"
            " them",
            hint="Leave --format out, or name --format=lines or --format=raw.",
        )
    if not keeps_ids:
        blocks = reader.content(wanted.since_ns, wanted.until_ns)
        return _text(ahead(blocks) if wanted.reads_ahead else blocks, wanted, name)
    return _records(reader, wanted)


def _text(blocks: Iterator[Block], wanted: Wanted, name: str) -> Iterator[bytes]:
    """Of `lines`, as they stand. Each gets an end: another file may follow."""
    pieces = (block.data for block in blocks)
    if wanted.grep is None and not wanted.is_open and wanted.record_format == LINES:
        data = NEWLINE
        for data in pieces:
            yield data
        if not data.endswith(NEWLINE):
            yield NEWLINE
        return
    for lines in _whole_lines(pieces, name, drop_rest=wanted.is_open):
        chosen = lines if wanted.grep is None else b"".join(wanted.grep.lines(lines))
        if chosen:
            yield chosen.replace(NEWLINE, b"") if wanted.record_format == RAW else chosen


def _whole_lines(pieces: Iterator[bytes], name: str, *, drop_rest: bool) -> Iterator[bytes]:
    held: list[bytes] = []
    held_bytes = 0
    for data in pieces:
        cut = data.rfind(NEWLINE) + 1
        if cut:
            yield b"".join((*held, data[:cut])) if held else data[:cut]
            held, held_bytes = [], 0
        if cut < len(data):
            held.append(data[cut:])
            held_bytes += len(data) - cut
        if held_bytes > BODY_BYTES_MAX:
            raise ArchiveError(f"{name}: a line of more than {BODY_BYTES_MAX} bytes")
    if held and not drop_rest:
        yield b"".join((*held, NEWLINE))


def _records(reader: ArchiveReader, wanted: Wanted) -> Iterator[bytes | bytearray]:
    """Of formats that keep times and ids."""
    encode = _encoder(reader.info, wanted)
    is_first = True
    batches = reader.batches(wanted.since_ns, wanted.until_ns)
    for batch in ahead(batches) if wanted.reads_ahead else batches:
        chosen = batch
        if wanted.grep is not None:
            keep = wanted.grep.positions(batch.bodies)
            if not keep:
                continue
            chosen = batch.pick(keep)
        if is_first and wanted.record_format == FRAMED:
            yield _header(reader.info)
        is_first = False
        yield encode(chosen)


def _encoder(info: ArchiveInfo, wanted: Wanted) -> Callable[[Records], bytes | bytearray]:
    def lines(batch: Records) -> bytes:
        wanted.ambiguous += sum(NEWLINE in body for body in batch.bodies)
        return NEWLINE.join([*batch.bodies, b""])

    def raw(batch: Records) -> bytes:
        return b"".join(batch.bodies)

    jsonl_encoder = JsonlEncoder(info.meta.get("topic", ""))
    framed_encoder = FramedEncoder(b"")

    def jsonl(batch: Records) -> bytes | bytearray:
        if batch.lines is not None:
            return NEWLINE.join([*batch.lines, b""])  # as it stands, other members included
        return jsonl_encoder.encode([batch.messages or Messages([])]).content

    def framed(batch: Records) -> bytes | bytearray:
        return framed_encoder.encode([batch.messages or Messages([])]).content

    return {LINES: lines, RAW: raw, JSONL: jsonl, FRAMED: framed}[wanted.record_format]


def _header(info: ArchiveInfo) -> bytes:
    return encode_header(
        record_format=FRAMED,
        topic=info.meta.get("topic", ""),
        channel=info.meta.get("channel", ""),
        host=info.meta.get("host", ""),
    )
