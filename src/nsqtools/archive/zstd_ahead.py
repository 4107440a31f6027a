"""Decoding zstd frames ahead, in threads: the library releases the interpreter while it decodes.

`Frames` is the stream of a file's frames that `ZstdWalk` reads. Without threads it is `next_frame`, one
call after the other. With threads, data frames of ordinary size are decoded while those before them
are looked at, a few at a time; all else is as it would be without.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import zstandard

from nsqtools.archive.stream import Damage
from nsqtools.archive.zstd_reading import DataFrame, decode_frame, decode_whole, next_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from nsqtools.archive.stream import Source
    from nsqtools.archive.zstd_reading import Skippable

# The largest window that the zstd tool decodes without being asked (`--long=27`).
WINDOW_BYTES_MAX = 1 << 27
# Frames are decoded ahead when a hand-over costs less than they do, and not when a few of them would
# take much memory.
AHEAD_BYTES_MIN = 64 << 10
AHEAD_BYTES_MAX = 4 << 20
FRAMES_AHEAD = 8

_decompressors = threading.local()


def new_decompressor() -> zstandard.ZstdDecompressor:
    """One that refuses windows which would take too much memory."""
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)


def _decompressor() -> zstandard.ZstdDecompressor:
    """This thread's."""
    found: zstandard.ZstdDecompressor | None = getattr(_decompressors, "one", None)
    if found is None:
        found = _decompressors.one = new_decompressor()
    return found


class _Met(NamedTuple):
    """A frame that was read, what follows it at which offset, and its content where that is made ahead;
    or damage that was met instead."""

    frame: Skippable | DataFrame | None
    end: int
    content: Future[bytes] | None = None
    damage: Damage | None = None


class Frames:
    """The frames of a source from where it stands; `threads` 0: nothing is read or decoded ahead."""

    def __init__(self, source: Source, threads: int = 0) -> None:
        self._source = source
        self._met: deque[_Met] = deque()
        self._pool = ThreadPoolExecutor(threads, "archive-decode") if threads else None
        self._content: Future[bytes] | None = None
        self.position = source.position
        """Offset behind the frame that was given last; of a data frame, when it was decoded."""

    def close(self) -> None:
        """Let go of the threads; nothing is asked for any more."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def next(self) -> Skippable | DataFrame | None:
        """As `next_frame`."""
        if self._pool is None:
            frame = next_frame(self._source)
            self.position = self._source.position
            return frame
        self._read_ahead()
        met = self._met.popleft()
        if met.damage is not None:
            raise met.damage
        self._content, self.position = met.content, met.end
        return met.frame

    def decoded(self, frame: DataFrame, piece_bytes: int) -> Iterator[bytes]:
        """As `decode_frame`, of the frame that `next` gave last."""
        content, self._content = self._content, None
        if content is not None:
            yield content.result()
            return
        yield from decode_frame(frame, _decompressor(), piece_bytes)
        self.position = self._source.position

    def _read_ahead(self) -> None:
        """Read until there are some; no further than a frame that is not decoded ahead, or the end."""
        while len(self._met) < FRAMES_AHEAD:
            if self._met and not self._may_pass(self._met[-1]):
                return
            self._met.append(self._read())

    def _may_pass(self, met: _Met) -> bool:
        is_end = met.frame is None or met.damage is not None
        return not is_end and not (isinstance(met.frame, DataFrame) and met.content is None)

    def _read(self) -> _Met:
        assert self._pool is not None, "closed"  # noqa: S101
        try:
            frame = next_frame(self._source)
            content = None
            size = getattr(frame, "content_bytes", None)
            if isinstance(frame, DataFrame) and AHEAD_BYTES_MIN <= (size or 0) <= AHEAD_BYTES_MAX:
                data = b"".join(frame.pieces())
                content = self._pool.submit(_decode, frame, data)
            return _Met(frame, self._source.position, content)
        except Damage as damage:
            return _Met(None, self._source.position, damage=damage)


def _decode(frame: DataFrame, data: bytes) -> bytes:
    return decode_whole(frame, _decompressor(), data)
