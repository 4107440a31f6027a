"""Where a file goes on behind damage: the next offset from which it can be read again.

Each compression, and `framed` without one, has something that marks a beginning: a frame's magic
number, a member's, a commit mark. A place that looks like one is believed when what begins there is
whole, checksum included; so no chance likeness in compressed bytes is taken for it. A message may be
gzip itself, and stand in its archive as it is: so behind a member there must be another one, or the end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nsqtools.archive import gzip_members, zstd_frames
from nsqtools.archive.framed import MARK_BYTES, FramedDecoder
from nsqtools.archive.header import MAGIC as HEADER_MAGIC
from nsqtools.archive.stream import BODY_BYTES_MAX, VERIFIED_BYTES_MAX, Damage
from nsqtools.archive.zstd_ahead import new_decompressor
from nsqtools.archive.zstd_reading import DataFrame, decode_frame, next_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.archive.stream import Source

# What is read to try places behind one damage, and what one counts for at least: a file made of magic
# numbers must not cost forever. A damaged commit may have thousands of them in what its messages say.
TRIED_BYTES_MAX = 2 << 30
_TRY_BYTES = 4 << 10
_WINDOW_BYTES = 256 << 10
_MEMBER_START = gzip_members.MAGIC + b"\x08"
# A message that is gzip of fewer members is not taken for the archive's.
_CHAIN_MEMBERS = 8
_GZIP = re.compile(re.escape(_MEMBER_START))
_ZSTD = re.compile(
    rb"%b|%b....(?:%b|%b)"
    % (
        re.escape(zstd_frames.DATA_MAGIC),
        re.escape(zstd_frames.OUR_MAGIC),
        re.escape(zstd_frames.INDEX_TAG),
        re.escape(HEADER_MAGIC),
    ),
    re.DOTALL,
)
_FRAMED = re.compile(rb"(?<=\xff\xff\xff\xff.{8})(?:\x00|%b)" % re.escape(HEADER_MAGIC), re.DOTALL)
# What any of these may need to be seen, before it and from it on.
_LOOK_BEHIND_BYTES = MARK_BYTES
_LOOK_BYTES = 64


def resync(source: Source, compression: str, record_format: str, behind: int) -> int | None:
    """The first offset behind `behind` from which `source` can be read on; None when there is none.

    `source` must be seekable, and is left anywhere. Raises `StorageError`.
    """
    looks, is_whole = {
        "gzip": (_GZIP, _is_member),
        "zstd": (_ZSTD, _is_frame),
    }.get(compression, (_FRAMED, _is_group))
    if compression == "none" and record_format != "framed":
        return None  # lines are cut at newlines, by whoever reads them
    tried_bytes = 0
    for offset in _candidates(source, looks, behind + 1):
        source.seek(offset)
        try:
            if is_whole(source):
                return offset
        except Damage:
            pass
        tried_bytes += max(source.position - offset, _TRY_BYTES)
        if tried_bytes > TRIED_BYTES_MAX:
            break
    return None


def _candidates(source: Source, looks: re.Pattern[bytes], start: int) -> Iterator[int]:
    """Offsets from `start` on at which something looks like a beginning."""
    at = start
    while True:
        before = min(at, _LOOK_BEHIND_BYTES)
        source.seek(at - before)
        data = source.take(before + _WINDOW_BYTES + _LOOK_BYTES)
        end = before + _WINDOW_BYTES
        for found in looks.finditer(data, before):
            if found.start() >= end:
                break
            yield at - before + found.start()
        if len(data) <= end:
            return
        at += _WINDOW_BYTES


def _is_member(source: Source) -> bool:
    """Whether a member is here, and what is behind it begins as members do."""
    if not _inflates(source):
        return False
    for _ in range(_CHAIN_MEMBERS):
        behind = source.peek(len(_MEMBER_START))
        if not behind or behind != _MEMBER_START[: len(behind)]:
            return not behind
        try:
            _inflates(source)
        except Damage:
            return True  # it is another damage
    return True


def _inflates(source: Source) -> bool:
    size = 0
    for piece in gzip_members.member_pieces(source):
        size += len(piece)
        if size > VERIFIED_BYTES_MAX:
            break  # so much that inflates is no chance
    return size > 0


def _is_frame(source: Source) -> bool:
    frame = next_frame(source)
    if not isinstance(frame, DataFrame):
        return True  # an index or a header, tag and length included
    for _ in decode_frame(frame, new_decompressor(), _WINDOW_BYTES):
        break  # of a frame of moderate size that is all of it, and it was checked
    return True


def _is_group(source: Source) -> bool:
    start = source.position
    decoder = FramedDecoder(BODY_BYTES_MAX, header_due=False)
    while decoder.committed_end <= start:
        offset = source.position
        data = source.take_some()
        if not data:
            return False
        for _ in decoder.feed(data, offset):
            return True
    return decoder.committed_end > start
