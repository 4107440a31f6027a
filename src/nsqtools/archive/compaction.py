"""A file of many small commits is rewritten into pieces of about 1 MiB before it is published.

Small commits compress badly: nothing is found that repeats in another, and each brings its own
tables, note and index entry. The rewrite holds the same content, byte for byte, in as many groups
as it takes. It is read back and compared before it is handed out, and the source is not changed.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zlib_ng.zlib_ng import crc32

from nsqtools import durable
from nsqtools.archive.formats import COMPRESSIONS, find_formats
from nsqtools.archive.groups import Group
from nsqtools.archive.header import encode_header
from nsqtools.archive.lines import NEWLINE
from nsqtools.archive.stream import Damage, Source
from nsqtools.archive.survey import survey
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nsqtools.archive.claims import ClaimFacts
    from nsqtools.archive.groups import Container
    from nsqtools.digest import Digest

# Content in one piece: beyond it compression gains little, and a reader by time reads too much.
PIECE_BYTES = 1 << 20
# Files whose commits hold this much on average are left as they are: busy topics pay nothing.
WORTH_IT_BELOW_BYTES = 256 << 10


class NotCompacted(Exception):  # noqa: N818 - it is an answer: the file stays as it is
    """Why a file was not rewritten; nothing of the attempt is left, if the disk allows that."""


@dataclass(slots=True)
class Content:
    """What was read from the source, to be found again in the rewrite."""

    size_bytes: int = 0
    crc32: int = 0
    lines: int = 0


def is_worth_it(compression: str, groups: int, content_bytes: int) -> bool:
    """Whether a file of so many groups with so much content is to be rewritten."""
    small = groups > 1 and content_bytes < groups * WORTH_IT_BELOW_BYTES
    return COMPRESSIONS[compression].read_groups is not None and small


def compact(
    fd: int,
    path: Path,
    target: Path,
    wanted: ClaimFacts,
    *,
    records: int,
    digest: Digest | None = None,
) -> int:
    """Rewrite the sealed file into `target`; returns its size, when it is durable and verified.

    `digest` is told what is written. Memory is bounded by a piece and a group. Raises
    `NotCompacted`, whatever the reason.
    """
    try:
        durable.unlink(target)  # of an attempt that was cut
        writing = durable.create(target)
    except (StorageError, FileExistsError) as error:
        raise NotCompacted(str(error)) from error
    try:
        return _compact(fd, path, writing, target, wanted, records, digest)
    except (StorageError, Damage) as error:
        with contextlib.suppress(StorageError):
            durable.unlink(target)  # where that fails it goes with the claim
        raise NotCompacted(str(error)) from error
    finally:
        durable.close(writing)


def _compact(
    fd: int,
    path: Path,
    writing: int,
    target: Path,
    wanted: ClaimFacts,
    records: int,
    digest: Digest | None,
) -> int:
    container = _new_container(wanted)
    read_groups = COMPRESSIONS[wanted.compression].read_groups
    assert read_groups is not None, "asked whether it is worth it"  # noqa: S101
    content = Content()
    try:
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
            file.seek(0)
            groups = read_groups(Source(file, path))
            end = write_groups(groups, container, content, writing, target, digest)
    except OSError as error:
        raise StorageError("read", path, error) from error
    record_format, compression = find_formats(wanted.record_format, wanted.compression)
    if record_format.is_any_line and not compression.has_index:
        records = content.lines  # a newline within a message cannot be told from its end
    verify(writing, target, wanted.record_format, wanted.compression, content, records)
    return end


def write_groups(
    groups: Iterator[Group],
    container: Container,
    content: Content,
    writing: int,
    target: Path,
    digest: Digest | None = None,
) -> int:
    """Write a file of these groups, neighbours joined; returns its size, when it is durable.

    What was in the groups is added to `content`, `digest` is told what is written. Raises
    `StorageError`, and whatever `groups` does.
    """
    end = 0
    data: bytes | bytearray = container.file_header

    def write() -> None:
        nonlocal end
        durable.write_at(writing, data, end, target)
        end += len(data)
        if digest is not None:
            digest.update(data)

    for piece in _pieces(groups, content):
        write()
        data = container.encode([piece])
        container.keep()
    data += container.trailer()
    write()
    durable.sync_data(writing, target)
    return end


def _new_container(wanted: ClaimFacts) -> Container:
    header = encode_header(
        record_format=wanted.record_format,
        topic=wanted.topic,
        channel=wanted.channel,
        host=wanted.host,
    )
    return COMPRESSIONS[wanted.compression].new_rewrite(header, wanted.level)


def _pieces(groups: Iterator[Group], content: Content) -> Iterator[Group]:
    """Neighbours joined up to `PIECE_BYTES`; a larger group stays by itself."""
    held: list[Group] = []
    held_bytes = 0
    for group in groups:
        content.size_bytes += len(group.content)
        content.crc32 = crc32(group.content, content.crc32)
        content.lines += group.content.count(NEWLINE)
        if held and held_bytes + len(group.content) > PIECE_BYTES:
            yield _joined(held)
            held, held_bytes = [], 0
        held.append(group)
        held_bytes += len(group.content)
    if held:
        yield _joined(held)


def _joined(groups: list[Group]) -> Group:
    return Group(
        content=b"".join([group.content for group in groups]),
        records=sum(group.records for group in groups),
        times=lambda: (
            min(group.first_ts_ns for group in groups),
            max(group.last_ts_ns for group in groups),
        ),
    )


def verify(
    fd: int, path: Path, record_format: str, compression: str, content: Content, records: int
) -> None:
    """Read a compressed file back, with every check; raises `Damage` when it is not the same content."""
    found = survey(fd, path, *find_formats(record_format, compression))
    if found.damage is not None:
        raise found.damage
    if (found.content_bytes, found.content_crc32) != (content.size_bytes, content.crc32):
        raise Damage(found.end, "the rewrite has another content than the file")
    if found.records != records or found.end != found.size_bytes or found.trailer:
        raise Damage(found.end, "the rewrite has another number of records than the file")
