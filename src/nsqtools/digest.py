"""Checksums of a file that are taken while it is written, so that nobody has to read it for them.

They are of what was to be written: a file that has rotted since, or was changed, does not fit them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

LATER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSums:
    """The MD5s, in hexadecimal, of a file's parts in their order; the last part may be smaller."""

    part_bytes: int
    md5s: tuple[str, ...]


class Digest:
    """The SHA-256 of all that it is told, and with `part_bytes` the MD5 of each part of that size."""

    def __init__(self, part_bytes: int = 0) -> None:
        self._part_bytes = part_bytes
        self._whole = hashlib.sha256()
        self._md5s: list[str] = []
        self._part = hashlib.md5(usedforsecurity=False)
        self._left = part_bytes
        self._waiting: list[bytes | bytearray] = []
        self._waiting_bytes = 0

    def update(self, data: bytes | bytearray) -> None:
        """The next bytes of the file."""
        self.catch_up()
        self._take(data)

    def later(self, data: bytes | bytearray) -> None:
        """The next bytes, which are not changed any more: looked at by `catch_up`, or when they are much,
        or when somebody asks for a checksum."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > LATER_BYTES_MAX:
            self.catch_up()

    def catch_up(self) -> None:
        """Look at all that there is."""
        if self._waiting:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            for data in waiting:
                self._take(data)

    def _take(self, data: bytes | bytearray) -> None:
        self._whole.update(data)
        if not self._part_bytes:
            return
        view = memoryview(data)
        while len(view) >= self._left:
            self._part.update(view[: self._left])
            view = view[self._left :]
            self._md5s.append(self._part.hexdigest())
            self._part = hashlib.md5(usedforsecurity=False)
            self._left = self._part_bytes
        self._part.update(view)
        self._left -= len(view)

    @property
    def sha256(self) -> str:
        """Of all so far, in hexadecimal."""
        self.catch_up()
        return self._whole.hexdigest()

    @property
    def parts(self) -> PartSums | None:
        """The parts so far; None when they were not asked for."""
        if not self._part_bytes:
            return None
        self.catch_up()
        last = [self._part.hexdigest()] if self._left < self._part_bytes else []
        return PartSums(part_bytes=self._part_bytes, md5s=(*self._md5s, *last))
