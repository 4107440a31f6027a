"""A bucket as the destination of archive files."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

from nsqtools.archive.destination import MARK_BYTES_MAX
from nsqtools.clock import SystemClock
from nsqtools.errors import ArchiveError, StoreError
from nsqtools.outputs.s3.orphans import abort_of, abort_old

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeVar

    from nsqtools.archive.destination import About, FileFacts
    from nsqtools.archive.object_names import ObjectNaming
    from nsqtools.clock import Clock
    from nsqtools.stores.client import Store
    from nsqtools.stores.options import StoreOptions

    T = TypeVar("T")

# How long a store that failed is left alone; it doubles with each failure.
CLOSED_FIRST_S = 0.5
CLOSED_MAX_S = 60.0
JSON = "application/json"
# What a browser or `aws s3 cp` saves under a key that ends with .gz or .zst is that file: it has the type
# of the compression, and no content encoding, which would have it unpacked on the way.
_COMPRESSED = {"gzip": "application/gzip", "zstd": "application/zstd"}
_PLAIN = {"lines": "text/plain; charset=utf-8", "jsonl": "application/x-ndjson"}
_BYTES = "application/octet-stream"
_FORGOTTEN = "the store took it, and does not have it"


class StoreDestination:
    """A `Destination`; see `archive.destination`. For any number of threads.

    A store that cannot be reached or is overloaded is left alone for a while by all who use it: what they
    ask raises the same StoreError at once. What it refuses for one key concerns that key alone.
    """

    wants_digest = True

    def __init__(self, store: Store, *, clock: Clock | None = None) -> None:
        self._store = store
        self.part_bytes = store.part_bytes
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        # All under the lock.
        self._failure: StoreError | None = None
        self._closings = 0
        self._closed_s = 0.0
        self._opens_at = 0.0
        self.failures = 0
        """Answers and connections that failed."""

    def prepare(self, wait_s: float) -> None:
        """Have the first request cost no more than the others; waits so long for it, at the most."""
        self._store.connection.prepare(wait_s)

    @property
    def opens_in_s(self) -> float:
        """In how many seconds the store is asked again; 0: at once."""
        with self._lock:
            if self._failure is None:
                return 0.0
            return max(0.0, self._opens_at - self._clock.monotonic())

    @property
    def trouble(self) -> str:
        """Why the store is left alone, or was the last time; nothing when it works."""
        failure = self._failure
        if failure is None:
            return ""
        return f"{failure} ({failure.hint})" if failure.hint else str(failure)

    def is_taken(self, name: str) -> bool:
        return self._ask(lambda: self._store.is_taken(name))

    def place(self, source: Path, name: str, facts: FileFacts, about: About | None = None) -> None:
        sha256 = facts.sha256
        assert sha256 is not None, "placed without a digest"  # noqa: S101 - see wants_digest
        self._ask(
            lambda: self._store.put(
                source,
                name,
                size_bytes=facts.size_bytes,
                sha256=sha256,
                metadata={} if about is None else _metadata(facts, about),
                unique="" if about is None else about.unique,
                parts=facts.parts,
                content_type=JSON if about is None else _content_type(about),
            )
        )

    def confirm(self, name: str, facts: FileFacts, *, is_placed: bool = False) -> None:
        self._ask(lambda: self._confirm(name, facts, is_placed))

    def put_mark(self, name: str, data: bytes) -> None:
        self._ask(lambda: self._store.replace(name, data, content_type=JSON))

    def read_mark(self, name: str) -> bytes:
        try:
            return self._ask(lambda: self._store.read_small(name, MARK_BYTES_MAX))
        except FileNotFoundError:
            return b""

    def location(self, name: str) -> str:
        return self._store.location(name).url  # --on-publish gets it: all of it

    def abort_cut_uploads(self, name: str, size_bytes: int) -> None:
        """Of a file that is there now: what a kill has left of earlier tries."""
        if size_bytes >= self._store.options.multipart_threshold_bytes:
            abort_of(self._store, name)

    def abort_old_uploads(self, naming: ObjectNaming) -> None:
        """What this host began long ago, and nobody goes on with."""
        abort_old(self._store, naming)

    def describe(self) -> str:
        return f"s3://{self._store.bucket}"

    def _confirm(self, name: str, facts: FileFacts, is_placed: bool) -> None:
        try:
            self._store.confirm(name, facts.size_bytes, facts.sha256 or "")
        except FileNotFoundError:
            if not is_placed:
                raise
            # Somebody may have taken it away; once more is better than never.
            location = self.location(name)
            raise StoreError("confirm", location, _FORGOTTEN, is_passing=True) from None

    def _ask(self, question: Callable[[], T]) -> T:
        with self._lock:
            if self._failure is not None and self._clock.monotonic() < self._opens_at:
                raise self._failure
            closings = self._closings
        try:
            answer = question()
        except StoreError as failure:
            self._failed(failure, closings)
            raise
        except (FileExistsError, FileNotFoundError):
            self._works()
            raise
        self._works()
        return answer

    def _failed(self, failure: StoreError, closings: int) -> None:
        """`closings` is how often it was closed when this was asked: what was under way together with
        what has closed it meanwhile says nothing new."""
        with self._lock:
            self.failures += 1
            if closings != self._closings:
                return
            if not failure.is_passing:
                self._failure = None  # it answers again, though with a refusal
                return
            self._failure = failure
            self._closings += 1
            self._closed_s = min(max(CLOSED_FIRST_S, self._closed_s * 2), CLOSED_MAX_S)
            wait_s = self._closed_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            self._opens_at = self._clock.monotonic() + wait_s

    def _works(self) -> None:
        with self._lock:
            self._failure = None
            self._closed_s = 0.0


class Destinations:
    """The buckets that files of a spool are for; each is opened once. For any number of threads."""

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._opened: dict[str, StoreDestination] = {}
        self._stores: list[Store] = []

    def open(self, description: str) -> StoreDestination:
        """What `StoreDestination.describe` named. Raises `ArchiveError` for what is no bucket."""
        with self._lock:
            found = self._opened.get(description)
            if found is None:
                found = self._opened[description] = self._open(description)
            return found

    def _open(self, description: str) -> StoreDestination:
        from nsqtools.stores.client import open_store
        from nsqtools.stores.location import parse_location

        try:
            bucket = parse_location(description).bucket
        except ValueError as error:
            raise ArchiveError(
                f"{description!r} is no bucket: {error}",
                hint="It is a file of nsq_to_file: start that with this folder as its --work-dir.",
            ) from error
        store = open_store(self._options, bucket=bucket)
        self._stores.append(store)
        return StoreDestination(store)

    def close(self) -> None:
        """End what is under way."""
        for store in self._stores:
            store.close()


def _metadata(facts: FileFacts, about: About) -> dict[str, str]:
    """What a reader of the object's head wants to know; times in ns since the epoch."""
    known = {
        "topic": about.topic,
        "channel": about.channel,
        "host": about.host,
        "format": about.record_format,
        "compression": about.compression,
        "records": str(facts.records),
        "first-ts": facts.first_ts_ns,
        "last-ts": facts.last_ts_ns,
        "raw-bytes": facts.content_bytes,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _content_type(about: About) -> str:
    return _COMPRESSED.get(about.compression) or _PLAIN.get(about.record_format, _BYTES)
