"""What is known of one archive file: by its index, or by reading all of it with every check.

This is what `ls` shows and `verify` says; nothing is changed, and each file is opened once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from nsqtools.archive.files import is_unfinished
from nsqtools.archive.formats import (
    COMPRESSIONS,
    FRAMED,
    GZIP,
    LINES,
    NONE,
    RECORD_FORMATS,
    START_BYTES,
    ZSTD,
)
from nsqtools.archive.header import HEADER_BYTES_MAX, MAGIC, HeaderError, decode_header
from nsqtools.archive.jsonl_reading import topic_of
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.reader import LOOK_BYTES, named_compression, open_archive
from nsqtools.archive.scan import Lost, Scan, Text, first_whole_format
from nsqtools.archive.stream import READ_BYTES, Damage, Records, Source, can_seek, seek
from nsqtools.archive.zstd_frames import ANY_TIME
from nsqtools.errors import DamagedArchive

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from nsqtools.archive.reader import ArchiveInfo, ArchiveReader

# A thread that decompresses while this one checks what came out. Of two cores a second such thread takes
# from the others more than it gives: 1.5 s instead of 1.1 s for 1.2 GB of lines.
DECODERS = 1
# Damages that are kept of one file; of more only the count.
LOSSES_KEPT_MAX = 100


class State(StrEnum):
    """What a file is, as far as it can be told from outside its writer.

    `open`: a `.part` that its writer has not finished. `sealed`: finished, and not at its place yet.
    `foreign`: not written by us, as far as can be told; it can be read where it is text. A file of
    `lines` or `jsonl` without compression has no mark, and counts as ours when it is text.
    """

    OPEN = "open"
    SEALED = "sealed"
    PUBLISHED = "published"
    DAMAGED = "damaged"
    FOREIGN = "foreign"


@dataclass(slots=True, kw_only=True)
class Examined:
    """One file. Sizes are in bytes, times in ns since the epoch; None is not known.

    `checked`: all of it was read; otherwise its index was believed. `groups` are the members or frames
    with content that were read. `content_bytes` is what it holds without compression. `losses` are the
    first of `losses_count`; of an open file the end that is not whole yet is `unfinished_bytes`, and no
    loss.
    """

    name: str
    stored_bytes: int
    state: State
    record_format: str = ""
    compression: str = ""
    topic: str = ""
    channel: str = ""
    host: str = ""
    checked: bool = False
    groups: int = 0
    records: int | None = None
    content_bytes: int | None = None
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None
    losses: list[Lost] = field(default_factory=list)
    losses_count: int = 0
    unfinished_bytes: int = 0

    @property
    def is_unfinished(self) -> bool:
        """Whether its writer has not finished it, by its names."""
        return is_unfinished(self.name)

    def add_times(self, first_ts_ns: int, last_ts_ns: int) -> None:
        if (first_ts_ns, last_ts_ns) == ANY_TIME:
            return
        if self.first_ts_ns is None or first_ts_ns < self.first_ts_ns:
            self.first_ts_ns = first_ts_ns
        if self.last_ts_ns is None or last_ts_ns > self.last_ts_ns:
            self.last_ts_ns = last_ts_ns

    def lose(self, lost: Lost) -> None:
        self.losses_count += 1
        if len(self.losses) < LOSSES_KEPT_MAX:
            self.losses.append(lost)
        self.state = State.DAMAGED


def open_reader(file: BinaryIO, name: str, *, read_bytes: int = READ_BYTES) -> ArchiveReader:
    """As `open_archive`; also of a file whose first bytes are damaged, as far as its header tells what
    it was, or what is whole behind it. What can seek is read from its start. Raises as that does."""
    is_seekable = can_seek(file, name)
    if is_seekable:
        seek(file, name, 0)
    try:
        reader = open_archive(file, name=name, read_bytes=read_bytes)
        if reader.info.meta or not is_seekable:
            return reader
    except DamagedArchive:
        if not is_seekable:
            raise
        reader = None
    start = _start_of(file, name, HEADER_BYTES_MAX + START_BYTES)
    record_format, compression = _was(start)
    tells = MAGIC in start[:START_BYTES] and record_format != ""
    if reader is not None and reader.info.compression not in (NONE.name, compression):
        tells, record_format = False, ""  # it is the header of another file that was put behind
    if reader is not None and not tells:
        if reader.info.compression == NONE.name or reader.info.record_format != LINES.name:
            return reader  # what it is can be told from what follows
        compression = reader.info.compression
    elif compression == NONE.name and (named := named_compression(name)):
        compression = named
    if compression == NONE.name:
        record_format = record_format or FRAMED.name
    elif not record_format:
        record_format = first_whole_format(Source(file, name), COMPRESSIONS[compression]).name
        seek(file, name, 0)
    return open_archive(file, name=name, record_format=record_format, compression=compression)


def _start_of(file: BinaryIO, name: str, count: int) -> bytes:
    """The first bytes of what can seek, which stands at its start then. Raises `StorageError`."""
    seek(file, name, 0)
    source = Source(file, name, read_bytes=count)
    try:
        return source.peek(count)
    except Damage:
        return b""  # it became shorter meanwhile, which is met again
    finally:
        source.seek(0)


def _was(start: bytes) -> tuple[str, str]:
    """Record format, "" where nothing tells it, and compression of a file from whose first bytes on
    something is damaged."""
    at = start.find(MAGIC, 0, START_BYTES)
    compression = NONE if at < 8 else ZSTD if at == 8 else GZIP
    try:
        named = [decode_header(start[max(at, 0) :]).meta["format"]]
    except HeaderError:
        named = [name for name in RECORD_FORMATS if b'"format":"%b"' % name.encode() in start]
    return named[0] if named and named[0] in RECORD_FORMATS else "", compression.name


def examine(
    file: BinaryIO,
    name: str,
    *,
    whole: bool,
    quick: bool = False,
    on_read: Callable[[int], None] = lambda offset: None,
) -> Examined:
    """What there is to know of an open file.

    `whole`: read all of it, with every check. Otherwise an index is believed; and with `quick` nothing
    is read to count where there is none. `on_read` is told now and then how far the reading has come,
    in bytes. Raises `StorageError`, and `ArchiveError` for a version that is not known here.
    """
    is_seekable = can_seek(file, name)
    stored_bytes = seek(file, name, 0, os.SEEK_END) if is_seekable else 0
    start = _start_of(file, name, LOOK_BYTES) if is_seekable else b""
    reader = open_reader(file, name, read_bytes=LOOK_BYTES if is_seekable else READ_BYTES)
    info = reader.info
    found = Examined(
        name=name,
        stored_bytes=stored_bytes,
        state=_state(name, info, start),
        record_format=info.record_format,
        compression=info.compression,
        topic=info.meta.get("topic", "") or topic_of(start),
        channel=info.meta.get("channel", ""),
        host=info.meta.get("host", ""),
    )
    if info.records is not None and not whole:
        found.records, found.content_bytes = info.records, info.content_bytes
        found.first_ts_ns, found.last_ts_ns = info.first_ts_ns, info.last_ts_ns
        if not info.meta:
            found.lose(Lost(start=0, end=0, reason="a damaged file header", torn=False))
    elif not quick:
        if is_seekable:
            seek(file, name, 0)
            _read_whole(Source(file, name), found, on_read)
        else:
            _read_stream(reader, found)
    return found


def _state(name: str, info: ArchiveInfo, start: bytes) -> State:
    if is_unfinished(name):
        return State.SEALED if info.sealed else State.OPEN
    if info.compression == "none":
        is_ours = info.record_format != "lines" or (b"\0" not in start and start != b"")
    else:
        is_ours = bool(info.meta) or MAGIC in start
    return State.PUBLISHED if is_ours else State.FOREIGN


def _read_whole(source: Source, found: Examined, on_read: Callable[[int], None]) -> None:
    is_open = found.state is State.OPEN
    record_format = RECORD_FORMATS[found.record_format]
    compression = COMPRESSIONS[found.compression]
    scan = Scan(source, record_format, compression, is_open=is_open, threads=DECODERS)
    found.checked = True
    found.records = 0
    counter = _Counter(found)
    for item in scan:
        if not isinstance(item, Lost):
            counter.add(item)
            on_read(item.offset)
        elif is_open and item.torn:
            found.unfinished_bytes = found.stored_bytes - item.start
        else:
            found.lose(item)
    found.content_bytes = scan.content_bytes
    found.groups = scan.groups
    counter.finish()


def _read_stream(reader: ArchiveReader, found: Examined) -> None:
    """What cannot seek is read to its first damage."""
    found.checked = True
    found.records = 0
    counter = _Counter(found)
    try:
        for batch in reader.batches():
            counter.add(batch)
            found.stored_bytes = batch.offset
    except DamagedArchive as damage:
        found.lose(Lost(start=damage.offset, end=damage.offset, reason=damage.reason, torn=False))


class _Counter:
    """Adds up what is whole, and compares it with what the file says of it."""

    def __init__(self, found: Examined) -> None:
        self._found = found
        self._ends_line = True

    def add(self, item: Records | Text) -> None:
        if isinstance(item, Text):
            self._add_text(item)
        else:
            self._add_records(item)

    def _add_text(self, text: Text) -> None:
        found = self._found
        self._ends_line = text.data.endswith(NEWLINE)
        if text.entry is None:
            found.records = (found.records or 0) + text.data.count(NEWLINE)
            return
        found.records = (found.records or 0) + text.entry.records
        found.add_times(text.entry.first_ts_ns, text.entry.last_ts_ns)
        if (lost := text.miscounted()) is not None:
            found.lose(lost)

    def _add_records(self, run: Records) -> None:
        found = self._found
        found.records = (found.records or 0) + len(run.bodies)
        if run.messages is not None and run.bodies:
            found.add_times(*run.messages.time_range_ns())

    def finish(self) -> None:
        found = self._found
        if not self._ends_line and found.state is not State.OPEN:
            found.records = (found.records or 0) + 1
