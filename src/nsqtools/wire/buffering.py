"""The unfinished bytes between two reads, shared by both roles.

A read that ends in the middle of a frame or a command leaves a tail. The tail is joined with the next
read in one copy; while something large is incomplete, bytes are only appended (no copy of what is
there already), so that a 5 MiB body that trickles in costs linear time.
"""

from __future__ import annotations


class Tail:
    """Bytes kept until at least `need` of them are there."""

    __slots__ = ("_kept", "need")

    def __init__(self) -> None:
        self._kept = bytearray()
        self.need = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> bytearray:
        """What is kept now; read it, do not change it."""
        return self._kept

    def keep(self, rest: bytes, need: int) -> None:
        """Remember `rest` (the end of a read) until there are `need` bytes from its start."""
        self._kept += rest
        self.need = need

    def append(self, data: bytes | memoryview) -> None:
        self._kept += data

    def join(self, data: bytes | memoryview) -> bytes | None:
        """What was kept, with `data`, as one run of bytes; None while too little is there."""
        if not self._kept:
            return bytes(data)
        self._kept += data
        return self.take()

    def take(self) -> bytes | None:
        """All that is kept, when it is enough."""
        if len(self._kept) < self.need:
            return None
        joined = bytes(self._kept)
        self._kept = bytearray()
        self.need = 0
        return joined
