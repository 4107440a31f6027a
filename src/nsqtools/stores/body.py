"""What is sent: a stretch of a file, read as it goes out, no faster than the bandwidth allows."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import zlib
from typing import TYPE_CHECKING, Any

from nsqtools.errors import StorageError

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

HASHED_BYTES = 1 << 20
# How much of a second may go out at once after a pause, and so the size of what is read when slow.
BURST_S = 0.1
_READ_BYTES_MIN = 512
# What goes out at a time. Whoever sends asks for 16 KiB, and after each the interpreter changes hands:
# that takes longer than the sending, of all threads that have something else to do.
SEND_BYTES = 256 << 10


class Bandwidth:
    """Bytes a second for all uploads together, 0: no limit. Times are seconds of the caller's clock.

    A reservation is always granted, at a time: what was taken too early is paid for by the next.
    """

    def __init__(self, per_s: int, now_s: float) -> None:
        self._per_s = per_s
        self._free_at_s = now_s
        self._lock = threading.Lock()

    def largest_read(self, wanted: int) -> int:
        """How many bytes to send at once, so that a slow rate is even."""
        if not self._per_s:
            return wanted
        return min(wanted, max(_READ_BYTES_MIN, int(self._per_s * BURST_S)))

    def reserve(self, size_bytes: int, now_s: float) -> float:
        """How many seconds to wait before sending that many."""
        if not self._per_s:
            return 0.0
        with self._lock:
            start_s = max(self._free_at_s, now_s - BURST_S)
            self._free_at_s = start_s + size_bytes / self._per_s
            return max(0.0, start_s - now_s)


class Stretch:
    """Part of a file: where it begins, how long it is, and its checksums."""

    def __init__(self, file: io.FileIO, path: Path, offset: int, size_bytes: int) -> None:
        self.file = file
        self.path = path
        self.offset = offset
        self.size_bytes = size_bytes
        self.checksums: dict[str, Any] = {}
        """What boto3 is told of it."""
        self.md5 = ""
        self.is_unread = False
        """Whether its MD5 is of another time: what the store got has to fit it."""

    def read(self, at: int, size_bytes: int) -> bytes:
        """Bytes from `at` within it; raises `StorageError`, also where the file has become shorter."""
        try:
            data = os.pread(self.file.fileno(), size_bytes, self.offset + at)
        except OSError as error:
            raise StorageError("read", self.path, error) from error
        if not data and size_bytes:
            shorter = OSError(0, "the file became shorter while it was uploaded")
            raise StorageError("read", self.path, shorter)
        return data

    def take_known(self, md5: str) -> None:
        """The MD5 that it had when it was written, in hexadecimal."""
        self.md5, self.is_unread = md5, True
        self.checksums = {"ContentMD5": _base64(bytes.fromhex(md5))}

    def take_checksums(self, whole: hashlib._Hash, *, crc32: bool) -> None:
        """Read all of it once; `whole` gets it, too. `crc32` is for AWS, Content-MD5 for others."""
        md5, crc, at = hashlib.md5(usedforsecurity=False), 0, 0
        while at < self.size_bytes:
            data = self.read(at, min(HASHED_BYTES, self.size_bytes - at))
            whole.update(data)
            if crc32:
                crc = zlib.crc32(data, crc)
            else:
                md5.update(data)
            at += len(data)
        if crc32:
            self.checksums = {"ChecksumCRC32": _base64(crc.to_bytes(4, "big"))}
        else:
            self.md5 = md5.hexdigest()
            self.checksums = {"ContentMD5": _base64(md5.digest())}


class Body:
    """A stretch as boto3 reads it to send it. It signs the checksum in the place of the content, and so
    what it reads goes out."""

    def __init__(self, stretch: Stretch, take: Callable[[int], int]) -> None:
        """`take` is told how many bytes are wanted, waits, and says how many there may be."""
        self._stretch = stretch
        self._take = take
        self._at = 0
        self.failure: StorageError | None = None
        """Why the file could not be read: what boto3 makes of that is not to be told from the network."""

    def __len__(self) -> int:
        return self._stretch.size_bytes

    def read(self, size: int | None = -1) -> bytes:
        """Also more than `size`: it is sent as it is given."""
        left = self._stretch.size_bytes - self._at
        wanted = left if size is None or size < 0 else min(max(size, SEND_BYTES), left)
        if not wanted:
            return b""
        wanted = self._take(wanted)
        try:
            data = self._stretch.read(self._at, wanted)
        except StorageError as error:
            self.failure = error
            raise
        self._at += len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence]
        self._at = max(0, base + offset)
        return self._at


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def sha256_checksum(sha256: str) -> dict[str, str]:
    """A SHA-256 in hexadecimal as boto3 is told of it."""
    return {"ChecksumSHA256": _base64(bytes.fromhex(sha256))}
