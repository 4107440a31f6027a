"""Walks over files without compression and over gzip: their content, and what is wrong beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools.archive.gzip_members import gzip_blocks, read_gzip_header
from nsqtools.archive.header import HeaderError
from nsqtools.archive.stream import BLOCK_BYTES_MAX, Block, Damage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsqtools.archive.stream import Source


class PlainWalk:
    """A file whose bytes are its content, in large pieces behind what was looked at: where a thread
    decodes them beside a loop that publishes, the two change hands with each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.late: Damage | None = None

    def blocks(self) -> Iterator[Block]:
        while True:
            offset = self._source.position
            data = self._source.take_some(BLOCK_BYTES_MAX)
            if not data:
                return
            yield Block(data=data, offset=offset)


class GzipWalk:
    """The members of a file. Decompression passes over a damaged file header: it is kept in `late`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.late: Damage | None = None

    def blocks(self) -> Iterator[Block]:
        try:
            read_gzip_header(self._source)
        except HeaderError as error:
            self.late = Damage(0, error.reason)
        yield from gzip_blocks(self._source)
