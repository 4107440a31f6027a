"""Where finished files go: a small contract, and the folder that keeps it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nsqtools import durable, publish
from nsqtools.archive.naming import path_of
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from nsqtools.digest import Digest, PartSums

MARK_BYTES_MAX = 4096
DIRECTORY_MODE = 0o770  # as nsq_to_file (spec: tools, part 1.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What is known of a finished file; times in ns since the epoch, where it keeps any."""

    size_bytes: int
    records: int
    first_ts_ns: int | None
    last_ts_ns: int | None
    first_id: str | None = None
    """Of the message that was published first, and of the last: for the manifest."""
    last_id: str | None = None
    content_bytes: int | None = None
    """Without compression."""
    sha256: str | None = None
    parts: PartSums | None = None
    """Of the file that `sha256` is of, where the destination takes it in parts; in no claim."""

    def with_sums(self, digest: Digest | None) -> FileFacts:
        """The same of a file whose checksums are these; None: they are not known."""
        sha256, parts = (None, None) if digest is None else (digest.sha256, digest.parts)
        return replace(self, sha256=sha256, parts=parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Whose messages an archive file holds, and how. `unique` is what no other file has, nor ever had:
    two files may hold the same bytes."""

    unique: str
    topic: str
    channel: str
    host: str
    record_format: str
    compression: str


class Destination(Protocol):
    """Takes finished files under names that are free, and never replaces one.

    A *name* is relative, with `/` between its parts. Every call blocks, is made by any thread, and
    can be made again after it raised or after a crash: the same file under the same name is no
    other file. All raise `StorageError` or `StoreError` when the destination refuses, and `ArchiveError`
    for a name that leads out of it.
    """

    wants_digest: bool
    """Whether the facts of what is placed must have its SHA-256."""

    part_bytes: int
    """Of what size are the parts whose MD5s it has a use for, too; 0: none."""

    def is_taken(self, name: str) -> bool:
        """Whether anything has this name; the answer may be old when it is used."""
        ...

    def place(self, source: Path, name: str, facts: FileFacts, about: About | None = None) -> None:
        """Put the file there under this name: whole or not at all, and durable on return. `about` is None
        for a manifest.

        Raises `FileExistsError` when another file has the name. `source` is not changed; it may
        stay or be gone afterwards. Called again for a file that it placed before, it changes
        nothing, also when `source` is gone since.
        """
        ...

    def confirm(self, name: str, facts: FileFacts, *, is_placed: bool = False) -> None:
        """Return when the file is there, whole and durable. `is_placed`: `place` said so just now.

        Raises `FileNotFoundError` when nothing has the name: it was never placed, or somebody has
        taken it away. A destination that may forget what it took raises `StoreError` for what
        `is_placed`: it has to be placed again. Raises `StorageError` when what is there is not this
        file.
        """
        ...

    def put_mark(self, name: str, data: bytes) -> None:
        """Put a small file there, in the place of one that has the name; whole and durable on return."""
        ...

    def read_mark(self, name: str) -> bytes:
        """Such a file; nothing when there is none."""
        ...

    def location(self, name: str) -> str:
        """The name as a person would look for it: a path, or a URL."""
        ...

    def describe(self) -> str:
        """What `open_destination` makes this destination from again."""
        ...


class FolderDestination:
    """A folder, by its absolute path."""

    wants_digest = False
    part_bytes = 0

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def is_taken(self, name: str) -> bool:
        return durable.is_taken(path_of(self._folder, name))

    def place(
        self,
        source: Path,
        name: str,
        facts: FileFacts,
        about: About | None = None,
    ) -> None:
        path = path_of(self._folder, name)
        if durable.is_taken(source) or not durable.is_taken(path):
            durable.make_directories(path.parent, DIRECTORY_MODE)
            publish.place(source, path)
        else:
            self.confirm(name, facts)  # an earlier call renamed it, if it is the same file

    def confirm(self, name: str, facts: FileFacts, *, is_placed: bool = False) -> None:
        path = path_of(self._folder, name)
        size_bytes = durable.size_of(path)
        if size_bytes != facts.size_bytes:
            other = OSError(f"there are {size_bytes} bytes where {facts.size_bytes} were placed")
            raise StorageError("publish", path, other)
        durable.fsync_directory(path.parent)

    def put_mark(self, name: str, data: bytes) -> None:
        """By way of always the same other name, so that kills leave no more than one file behind."""
        path = path_of(self._folder, name)
        other = f"{durable.TEMPORARY_PREFIX}{path.name}{durable.TEMPORARY_SUFFIX}"
        durable.write_anew(path.with_name(other), data)
        durable.put_in_place(path.with_name(other), path)

    def read_mark(self, name: str) -> bytes:
        try:
            return durable.read_small(path_of(self._folder, name), MARK_BYTES_MAX)
        except FileNotFoundError:
            return b""

    def location(self, name: str) -> str:
        return str(self._folder / name)

    def describe(self) -> str:
        return str(self._folder)


def open_destination(description: str) -> Destination:
    """The destination that `describe` named.

    Raises `StorageError` when it is not there: a volume that is mounted elsewhere today must not get
    a folder of its old name beside it.
    """
    folder = Path(description)
    if not durable.is_taken(folder):
        gone = OSError(
            errno.ENOENT, "the folder is gone: mount it, or make it, for the file to go on"
        )
        raise StorageError("publish to", folder, gone)
    return FolderDestination(folder)
