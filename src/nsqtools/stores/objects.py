"""Objects as they stand in a store: what is known of one, and reading it in part."""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from nsqtools.errors import StoreError
from nsqtools.stores.connection import TRIES
from nsqtools.stores.failures import Changed, Request, explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import WriteableBuffer

    from nsqtools.stores.connection import Connection

SHA256 = "sha256"
UNIQUE = "file"
# A read behind a seek fetches what is asked for; reading on half of what was read so, up to this.
READ_AHEAD_BYTES_MAX = 8 << 20
# The start of an archive is its header, which is read in two steps.
START_BYTES = 16 << 10
# The end of an archive is its index, which is read in several small steps.
TAIL_BYTES = 64 << 10
# What was fetched is kept for whoever goes back to it: the start and the end of an archive, mostly.
_KEPT_SPANS = 4
# As they are in a header; all else is escaped.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What a store says of an object. From a list it has no metadata."""

    key: str
    size_bytes: int
    etag: str
    """"" from a list."""
    modified_s: float
    """Seconds since the epoch, by the store's clock."""
    storage_class: str = "STANDARD"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """What we said of its content; "" for objects of others, and where a store keeps no metadata."""
        return self.metadata.get(SHA256, "")


def encode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """As headers can carry them: what is not printable ASCII is escaped as in a URL."""
    return {name.lower(): quote(value, safe=_PLAIN) for name, value in metadata.items()}


def decode_metadata(headers: Mapping[str, str]) -> dict[str, str]:
    """The opposite; names are in lower case."""
    return {name.lower(): unquote(value) for name, value in headers.items()}


def of_head(key: str, answer: Mapping[str, Any]) -> StoredObject:
    """From the answer to a HEAD."""
    return StoredObject(
        key=key,
        size_bytes=int(answer.get("ContentLength", 0)),
        etag=str(answer.get("ETag", "")),
        modified_s=answer["LastModified"].timestamp() if "LastModified" in answer else 0.0,
        storage_class=str(answer.get("StorageClass") or "STANDARD"),
        metadata=decode_metadata(answer.get("Metadata", {})),
    )


def of_list(entry: Mapping[str, Any]) -> StoredObject:
    """From a line of a list, whose ETag is not always that of the object (rclone's server)."""
    return StoredObject(
        key=str(entry["Key"]),
        size_bytes=int(entry.get("Size", 0)),
        etag="",
        modified_s=entry["LastModified"].timestamp() if "LastModified" in entry else 0.0,
        storage_class=str(entry.get("StorageClass") or "STANDARD"),
    )


class ObjectReader(io.RawIOBase):
    """An object as a file that can be sought in: GETs of the ranges that are read. For one thread.

    Behind a seek as much is fetched as is asked for, reading on fetches ever more at once, up to
    READ_AHEAD_BYTES_MAX; memory is bounded by a few times that. No more than half of what is read on
    end is fetched in vain. A GET that is cut is taken up where it was. Raises `StoreError`, also
    (`failures.Changed`) when the object is no longer the one that was opened, and `FileNotFoundError`
    when it is gone.
    """

    def __init__(self, connection: Connection, bucket: str, stored: StoredObject) -> None:
        super().__init__()
        self._connection = connection
        self._request = Request("get_object", bucket, stored.key)
        self._stored = stored
        self._at = 0
        self._spans: list[tuple[int, bytes]] = []
        self._etag = stored.etag
        self._expected_stop = stored.size_bytes
        self._run_bytes = 0
        """What was fetched on end."""
        self._next = -1
        """Where the next read begins if it only reads on."""
        self.name = self._request.place
        self.requests = 0
        """GETs that were made, the failed ones, too."""
        self.fetched_bytes = 0
        """What they brought."""

    @property
    def stored(self) -> StoredObject:
        """What is read."""
        return self._stored

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stored.size_bytes}
        if base[whence] + offset < 0:
            raise ValueError("negative seek position")
        self._at = base[whence] + offset
        return self._at

    def expect(self, stop: int | None) -> None:
        """Fetch nothing ahead from this offset on; None: that is not known any more."""
        self._expected_stop = self._stored.size_bytes if stop is None else stop

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As much as was fetched already, or a GET brings."""
        view = memoryview(buffer).cast("B")
        if self.closed:
            raise ValueError("read of a closed file")
        if not len(view) or self._at >= self._stored.size_bytes:
            return 0
        start, data = self._span_at(self._at) or self._fetch(len(view))
        piece = memoryview(data)[self._at - start :][: len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _span_at(self, at: int) -> tuple[int, bytes] | None:
        for start, data in reversed(self._spans):
            if start <= at < start + len(data):
                return start, data
        return None

    def _fetch(self, wanted: int) -> tuple[int, bytes]:
        """A GET, or several where it is cut, from where we are, or a little before at the end, and of a
        little more at the start."""
        self._run_bytes = self._run_bytes if self._at == self._next else 0
        wanted = wanted if self._at else max(wanted, START_BYTES)
        ahead = min(self._run_bytes // 2, READ_AHEAD_BYTES_MAX, self._expected_stop - self._at)
        start = min(self._at, max(self._stored.size_bytes - TAIL_BYTES, self._ends_before()))
        stop = min(self._at + max(wanted, ahead), self._stored.size_bytes)
        data = self._get(start, stop)
        self._run_bytes += len(data)
        self._next = stop
        self._spans = [*self._spans[-(_KEPT_SPANS - 1) :], (start, data)]
        return start, data

    def _ends_before(self) -> int:
        """Where the last span before us ends: nothing is fetched twice for the sake of the tail."""
        ends = [start + len(data) for start, data in self._spans]
        return max((end for end in ends if end <= self._at), default=0)

    def _get(self, start: int, stop: int) -> bytes:
        got = bytearray()
        attempt = 0
        while len(got) < stop - start:
            before = len(got)
            try:
                self._connection.until_closed(partial(self._get_some, start + before, stop, got))
            except StoreError as error:
                attempt = attempt + 1 if len(got) == before else 1
                if not error.is_passing or isinstance(error, Changed) or attempt >= TRIES:
                    raise
                self._connection.wait_after(attempt - 1)
        return bytes(got)

    def _get_some(self, start: int, stop: int, got: bytearray) -> None:
        """One GET into `got`, which keeps what came before a failure."""
        self.requests += 1
        most_bytes = len(got) + stop - start
        unchanged = {"IfMatch": self._etag} if self._etag else {}
        answer = self._connection.call(
            self._request, Range=f"bytes={start}-{stop - 1}", **unchanged
        )
        body = answer["Body"]
        try:
            self._check_same(answer, start, stop)
            while data := body.read(io.DEFAULT_BUFFER_SIZE * 32):
                got += data
                self.fetched_bytes += len(data)
                self._check_size(len(got), most_bytes)
        except Exception as error:  # noqa: BLE001 - whatever boto3 and urllib3 raise while reading
            failure = explain(error, self._request, time.time())
        else:
            return
        finally:
            body.close()
        raise failure

    def _check_size(self, size_bytes: int, most_bytes: int) -> None:
        if size_bytes > most_bytes:
            raise self._request.failed("more came than was asked for", is_passing=False)

    def _check_same(self, answer: Mapping[str, Any], start: int, stop: int) -> None:
        """That it is the same object still, for stores that pass over If-Match."""
        told = str(answer.get("ContentRange", ""))
        wanted = f"bytes {start}-{stop - 1}/{self._stored.size_bytes}"
        self._etag = self._etag or answer.get("ETag", "")
        if answer.get("ETag", "") != self._etag or (told and told != wanted):
            raise Changed(
                self._request.operation,
                self._request.place,
                "the object was changed while it was read",
                is_passing=True,
            )
        if not told and (start or stop < self._stored.size_bytes):
            raise self._request.failed("the store gives no ranges", is_passing=False)
