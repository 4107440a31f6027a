"""What becomes of a sealed file: compacted, placed, confirmed; then it and its claim go.

The claim says at each step what was begun (`archive.claims`), so that the next start goes on where
a crash cut this, with this same code. A step that raised `StorageError` can be made again.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive import manifest
from nsqtools.archive.claims import Claim, Placing
from nsqtools.archive.compaction import NotCompacted, compact, is_worth_it
from nsqtools.archive.naming import first_free
from nsqtools.digest import Digest
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nsqtools.archive.destination import Destination, FileFacts

# Finished files that wait to be published, of one writer: a few rotations while a destination is
# slow. Each holds two descriptors and no memory to speak of; more means that it does not work.
SEALED_FILES_MAX = 4
# How often a name that was free a moment ago may be taken by somebody else.
_PLACE_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A finished file at its destination; times in ns since the epoch, where it keeps any.

    `location` is the name as a person would look for it. `compacted_from_bytes` is its size before
    it was compacted, None when it was not; `not_compacted` says why it should have been and could
    not, and is empty otherwise; so does `no_manifest`, of a manifest whose name somebody took.
    """

    name: str
    location: str
    messages: int
    disk_bytes: int
    first_ts_ns: int | None
    last_ts_ns: int | None
    compacted_from_bytes: int | None = None
    not_compacted: str = ""
    no_manifest: str = ""


class SealedFile:
    """A complete working file and its claim.

    `name_at(0)` is the name that it wants, `name_at(n)` the n-th behind that. `fd` is the open
    working file (-1 when that is gone and only its rewrite is left); it is closed in the end.
    `groups` and `content_bytes` are those of its commits. `on_placed` is told which of the names
    it got.
    """

    def __init__(
        self,
        *,
        claim: Claim,
        path: Path,
        fd: int,
        facts: FileFacts,
        name_at: Callable[[int], str],
        groups: int = 0,
        content_bytes: int = 0,
        on_placed: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.claim = claim
        self.path = path
        self.facts = facts
        self._bumps = 0
        self._on_placed = on_placed
        self._fd = fd
        self._name_at = name_at
        self._groups = groups
        self._content_bytes = content_bytes
        self._compacted_from_bytes: int | None = None
        self._not_compacted = ""

    def finish(self, destination: Destination) -> Published:
        """Take the file through every step that is left. Can be called again when it raised."""
        placing = self.claim.placing
        if placing is None:
            placing = self._prepare(destination)
            placing = prepare_placing(self.claim, placing, self._source(placing), destination)
        placing = self._place(placing, destination)
        no_manifest = self._confirm(placing, destination)
        self._clean_up()
        self._on_placed(self._bumps)
        return Published(
            name=placing.name,
            location=destination.location(placing.name),
            messages=placing.facts.records,
            disk_bytes=placing.facts.size_bytes,
            first_ts_ns=placing.facts.first_ts_ns,
            last_ts_ns=placing.facts.last_ts_ns,
            compacted_from_bytes=self._compacted_from_bytes,
            not_compacted=self._not_compacted,
            no_manifest=no_manifest,
        )

    def _confirm(self, placing: Placing, destination: Destination) -> str:
        """The file is there for good, and its manifest, too; why that is not, or nothing."""
        try:
            destination.confirm(placing.name, placing.facts, is_placed=True)
        except FileNotFoundError:
            return ""  # it was placed just now: somebody was waiting and has taken it away
        return manifest.place(self.claim, placing.name, destination)

    def _prepare(self, destination: Destination) -> Placing:
        """Decide what is placed: the file as it is, or a rewrite of it in large pieces."""
        name = self._name_at(self._bumps)
        as_it_is = Placing(name=name, is_rewrite=False, facts=self.facts)
        wanted = self.claim.facts
        if not wanted.compact or not is_worth_it(
            wanted.compression, self._groups, self._content_bytes
        ):
            return as_it_is
        digest = digest_for(destination, with_manifest=wanted.manifest)
        try:
            size_bytes = compact(
                self._fd,
                self.path,
                self.claim.rewrite_path,
                wanted,
                records=self.facts.records,
                digest=digest,
            )
        except NotCompacted as reason:
            self._not_compacted = str(reason)
            return as_it_is
        self._compacted_from_bytes = self.facts.size_bytes
        facts = replace(self.facts, size_bytes=size_bytes).with_sums(digest)
        return Placing(name=name, is_rewrite=True, facts=facts)

    def _source(self, placing: Placing) -> Path:
        return self.claim.rewrite_path if placing.is_rewrite else self.path

    def _place(self, placing: Placing, destination: Destination) -> Placing:
        source = self._source(placing)
        for _ in range(_PLACE_TRIES):
            try:
                destination.place(source, placing.name, placing.facts, self.claim.about)
            except FileExistsError:
                self._bumps = first_free(
                    self._bumps + 1, lambda number: self._is_taken(destination, number)
                )
                placing = replace(placing, name=self._name_at(self._bumps))
                self.claim.note_placing(placing)
            else:
                return placing
        taken = OSError(errno.EEXIST, f"{_PLACE_TRIES} free names were taken by somebody else")
        raise StorageError("publish", destination.location(placing.name), taken)

    def _is_taken(self, destination: Destination, number: int) -> bool:
        wanted = self.claim.facts.manifest
        return manifest.is_taken(destination, self._name_at(number), with_manifest=wanted)

    def _clean_up(self) -> None:
        if self._fd >= 0:
            durable.remove(self.path, durable.identity(self._fd, self.path))
        self.claim.remove()
        self.release()

    def is_lost(self, destination: Destination) -> bool:
        """Whether somebody took the file away before it was placed; raises `StorageError`."""
        placing = self.claim.placing
        if placing is not None:
            if durable.is_taken(self.claim.rewrite_path if placing.is_rewrite else self.path):
                return False
            return not destination.is_taken(placing.name)
        return not durable.is_at(self.path, durable.identity(self._fd, self.path))

    def release(self) -> None:
        """Let go of file and claim as a crash would."""
        self.claim.close()
        if self._fd >= 0:
            durable.close(self._fd)
            self._fd = -1


def digest_for(destination: Destination, *, with_manifest: bool) -> Digest | None:
    """What takes the checksums that a file is placed with, while it is written; None when none are."""
    if with_manifest or destination.wants_digest:
        return Digest(destination.part_bytes)
    return None


def prepare_placing(
    claim: Claim, placing: Placing, source: Path, destination: Destination
) -> Placing:
    """Note in the claim what is about to be placed, and all that is to be known of it. Durable on return.

    Raises `StorageError`.
    """
    durable.stamp(source)
    if destination.wants_digest:
        placing = replace(placing, facts=manifest.with_digest(placing.facts, source))
    placing = manifest.prepare(claim, placing, source)
    claim.note_placing(placing)
    return placing


class SealedFiles:
    """The sealed files of one writer, oldest first; at most `files_max`. Thread-safe.

    With `leave`, what is too much is let go of as a crash would, and its claim handed over: a spool may
    hold any number of files.
    """

    def __init__(
        self,
        files_max: int = SEALED_FILES_MAX,
        *,
        leave: Callable[[Path], None] | None = None,
    ) -> None:
        self._files_max = files_max
        self._leave = leave
        self._files: deque[SealedFile] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._files)

    def check_room(self) -> None:
        """Raise `StorageError`, saying what waits, when no other file may be put in."""
        with self._lock:
            if len(self._files) < self._files_max or self._leave is not None:
                return
            waiting = OSError(
                errno.EAGAIN,
                f"{len(self._files)} finished files wait to be published, {self._files[0].path} first",
            )
            raise StorageError("finish another file before", self._files[0].path, waiting)

    def put(self, file: SealedFile) -> None:
        self.check_room()
        with self._lock:
            if self._leave is None or len(self._files) < self._files_max:
                self._files.append(file)
                return
        file.release()
        self._leave(file.claim.path)

    def first(self) -> SealedFile | None:
        with self._lock:
            return self._files[0] if self._files else None

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of them was created, in seconds since the epoch; None without one."""
        with self._lock:
            return min((file.claim.facts.created_at for file in self._files), default=None)

    def drop_first(self) -> None:
        with self._lock:
            self._files.popleft()

    def release_all(self) -> None:
        """Leave them to the recovery of the next start, or to whom `leave` tells: that knows of a file
        before it is none of ours any more, or a watermark could pass it."""
        while (file := self.first()) is not None:
            file.release()
            if self._leave is not None:
                self._leave(file.claim.path)
            self.drop_first()
