"""The SHA-256 of a file while somebody else reads it, so that it need not be read twice."""

from __future__ import annotations

import hashlib
import io
import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_BYTES = 1 << 20


class DigestingFile(io.RawIOBase):
    """A file that can seek, as it is. It is not closed with this one."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()
        self._digested_bytes = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        """What goes on where the digest is becomes part of it; the rest was, or has its turn."""
        view = memoryview(buffer).cast("B")
        at = self._file.tell()
        data = self._file.read(len(view))
        view[: len(data)] = data
        known = self._digested_bytes - at
        if 0 <= known < len(data):
            self._digest.update(memoryview(data)[known:])
            self._digested_bytes = at + len(data)
        return len(data)

    def hexdigest(self) -> str:
        """Of the whole file; what nobody has read is read. Raises as reading does."""
        self.seek(self._digested_bytes)
        while self.read(_READ_BYTES):
            pass
        return self._digest.hexdigest()
