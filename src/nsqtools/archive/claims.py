"""Claims: which working files are ours, and what is to become of them.

    <work dir>/.nsqtools-<uid>/<unique>.claim       one for each working file, locked by its writer
    <work dir>/.nsqtools-<uid>/<unique>.rewrite     the file that takes its place, while it is made
    <work dir>/.nsqtools-<uid>/<unique>.manifest    its manifest, until that is placed

A claim is a few lines of JSON (docs/formats.md, "Claims"), appended and fsynced in the order of a
working file's life:

    what it is      before the working file is created
    created         when it was, under a name that was free: from here on it is ours
    placing         before the finished file gets its name at the destination

The claim goes last, when the file is published or discarded. So whatever a crash cuts, the claim
says what is to be done; what has no claim of ours is never touched. Nobody but the holder of a
claim's lock changes the claim, its rewrite or its working file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from zlib_ng.zlib_ng import crc32

from nsqtools import durable
from nsqtools.archive.destination import About, FileFacts
from nsqtools.errors import ArchiveError, DataPathInUse, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAGIC = "nsqtools claim"
VERSION = 1
FOLDER_PREFIX = ".nsqtools-"
_FOLDER_NAME = re.compile(r"\.nsqtools-\d+(-\d+)?", re.ASCII)
CLAIM_SUFFIX = ".claim"
REWRITE_SUFFIX = ".rewrite"
MANIFEST_SUFFIX = ".manifest"
# Names that others may have taken in a shared work directory before we give up.
FOLDERS_MAX = 8
# Paths are at most 4 KiB each, six times that when every character is escaped; the rest is small.
CLAIM_BYTES_MAX = 256 << 10
# How often another process may look at a claim in the moment between its creation and its lock.
_TAKE_TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFacts:
    """What a claim says of its working file; names are relative, with `/` between their parts.

    `destination` is what `Destination.describe` returned, or "" for the work directory itself;
    `created_at` is in seconds since the epoch.
    """

    working: str
    destination: str
    name: str
    record_format: str
    compression: str
    level: int
    compact: bool
    topic: str
    channel: str
    host: str
    created_at: float
    manifest: bool = False
    """Whether a manifest is placed beside the finished file."""
    live: bool = False
    """Whether it has its finished name already while it is written, as a hard link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """Under which name the finished file goes to the destination, and what it holds.

    `is_rewrite`: it is the claim's rewrite, and not the working file itself.
    """

    name: str
    is_rewrite: bool
    facts: FileFacts


class Claim:
    """One claim whose lock we hold, until `remove`, `close` or the end of the process."""

    def __init__(self, fd: int, path: Path, facts: ClaimFacts) -> None:
        self.path = path
        self.facts = facts
        self.is_created = False
        self.placing: Placing | None = None
        self._fd = fd
        self._end = 0

    @classmethod
    def take(cls, work_dir: Path, facts: ClaimFacts) -> Claim:
        """Write a new claim; it is durable and locked on return. Raises `StorageError`."""
        folder = make_claim_folder(work_dir)
        for _ in range(_TAKE_TRIES):
            unique = f"{os.getpid()}-{secrets.token_hex(8)}"
            claim = cls._try_to_take(folder / (unique + CLAIM_SUFFIX), facts)
            if claim is not None:
                return claim
        busy = OSError(f"looked at by another process {_TAKE_TRIES} times in a row")
        raise StorageError("claim a file in", folder, busy)

    @classmethod
    def _try_to_take(cls, path: Path, facts: ClaimFacts) -> Claim | None:
        try:
            claim = cls(durable.create(path, 0o600), path, facts)
        except FileExistsError:
            return None
        try:
            durable.lock_file(claim._fd, path)
            claim._append({"magic": MAGIC, "version": VERSION, **asdict(facts)})
            durable.fsync_directory(path.parent)
            if durable.is_at(path, durable.identity(claim._fd, path)):
                return claim
        except DataPathInUse:
            pass  # recovery found it before it was locked, and removes it
        except BaseException:
            with contextlib.suppress(StorageError):
                claim.remove()
            claim.close()
            raise
        claim.close()
        return None

    @classmethod
    def adopt(cls, path: Path) -> Claim | None:
        """Lock and read what another writer claimed; None when that lives, or it is gone.

        One that was torn while it was written, before its working file was made, is removed.
        Raises `StorageError`, and `ArchiveError` for one that cannot be understood.
        """
        fd = open_if_there(path)
        if fd is None:
            return None
        try:
            claim = cls._adopt(fd, path)
        except BaseException:
            durable.close(fd)
            raise
        if claim is None:
            durable.close(fd)
        return claim

    @classmethod
    def _adopt(cls, fd: int, path: Path) -> Claim | None:
        try:
            durable.lock_file(fd, path)
        except DataPathInUse:
            return None
        file = durable.identity(fd, path)
        if not durable.is_at(path, file):
            return None
        found = _read(fd, path)
        if not found:
            durable.remove(path, file)
            return None
        claim = cls(fd, path, _facts_of(found[0][0], path))
        claim._take_over(found)
        return claim

    def _take_over(self, found: list[tuple[dict[str, Any], int]]) -> None:
        for record, end in found:
            self._end = end
            self.is_created = self.is_created or record.get("created") is True
            if "placing" in record:
                placing = record["placing"]
                self.placing = None if placing is None else _placing_of(placing, self.path)
        durable.truncate(self._fd, self._end, self.path)

    @property
    def unique(self) -> str:
        """What no other claim has, nor ever had."""
        return self.path.stem

    @property
    def about(self) -> About:
        """What a destination is told of its file."""
        return About(
            unique=self.unique,
            topic=self.facts.topic,
            channel=self.facts.channel,
            host=self.facts.host,
            record_format=self.facts.record_format,
            compression=self.facts.compression,
        )

    @property
    def rewrite_path(self) -> Path:
        """Where the file that takes the working file's place is made; nobody else uses it."""
        return self.path.with_suffix(REWRITE_SUFFIX)

    @property
    def manifest_path(self) -> Path:
        """Where the file's manifest is until it is placed; nobody else uses it."""
        return self.path.with_suffix(MANIFEST_SUFFIX)

    def mark_created(self) -> None:
        """The working file was created, under a name that was free; durable on return."""
        if not self.is_created:
            self._append({"created": True})
            self.is_created = True

    def note_placing(self, placing: Placing | None) -> None:
        """Say where the finished file is about to be placed; durable on return."""
        if placing != self.placing:
            self._append({"placing": None if placing is None else _said_of(placing)})
            self.placing = placing

    def _append(self, record: dict[str, Any]) -> None:
        line = _encode(record)
        durable.write_at(self._fd, line, self._end, self.path)
        durable.sync_data(self._fd, self.path)
        self._end += len(line)

    def remove(self) -> None:
        """Remove rewrite, manifest and claim, and let go. Can be called again after a `StorageError`."""
        if self._fd < 0:
            return
        for made in (self.rewrite_path, self.manifest_path):
            if durable.is_taken(made):
                durable.remove(made)
        durable.remove(self.path, durable.identity(self._fd, self.path))
        self.close()

    def close(self) -> None:
        """Let go of the claim as a crash would: whoever recovers takes it over."""
        if self._fd >= 0:
            durable.close(self._fd)
            self._fd = -1


def claim_paths(work_dir: Path) -> Iterator[Path]:
    """The claims in a work directory, in order of their names; raises `StorageError`.

    Those in every folder of ours, by whatever name: it may have been given to us by `chown`.
    """
    for folder in claim_folders(work_dir):
        for name in durable.names_in(folder):
            if name.endswith(CLAIM_SUFFIX):
                yield folder / name


def open_if_there(path: Path) -> int | None:
    """As `durable.open_existing`, a file that somebody else may have removed; None for one that is gone.
    Raises `StorageError`."""
    try:
        return durable.open_existing(path)
    except StorageError:
        if durable.is_taken(path):
            raise
        return None


def claim_folders(work_dir: Path) -> Iterator[Path]:
    """Every folder of claims that is ours; raises `StorageError`."""
    for folder in _all_folders(work_dir):
        if durable.is_own_directory(folder):
            yield folder


def foreign_folders(work_dir: Path) -> list[Path]:
    """Folders of claims that belong to other users; raises `StorageError`."""
    return [each for each in _all_folders(work_dir) if not durable.is_own_directory(each)]


def _all_folders(work_dir: Path) -> list[Path]:
    names = durable.names_in(work_dir) if durable.is_taken(work_dir) else []
    return [work_dir / name for name in sorted(names) if _FOLDER_NAME.fullmatch(name)]


def topic_of(path: Path) -> str:
    """The topic of a claim, which is not locked for that; "" for one that does not say, or is gone.

    Raises `StorageError`.
    """
    try:
        facts = facts_in(path)
    except ArchiveError:
        return ""
    return "" if facts is None else facts.topic


def facts_in(path: Path) -> ClaimFacts | None:
    """What a claim says of its file, without a lock; None for one that is torn, or gone.

    Raises `StorageError`, and `ArchiveError` for one that cannot be understood.
    """
    fd = open_if_there(path)
    if fd is None:
        return None
    try:
        found = _read(fd, path)
        return _facts_of(found[0][0], path) if found else None
    finally:
        durable.close(fd)


def _folders(work_dir: Path) -> Iterator[Path]:
    own = f"{FOLDER_PREFIX}{os.geteuid()}"
    for number in range(FOLDERS_MAX):
        yield work_dir / (own if number == 0 else f"{own}-{number}")


def make_claim_folder(work_dir: Path) -> Path:
    """The folder of our claims; others may have taken the first names in a shared directory."""
    for folder in _folders(work_dir):
        if durable.make_private_directory(folder):
            return folder
    taken = OSError(f"{FOLDERS_MAX} names from {folder.name} on are taken by somebody else")
    raise StorageError("make a folder for claims in", work_dir, taken)


def _encode(record: dict[str, Any]) -> bytes:
    text = _canonical(record)
    return b'{"crc32":%d,"says":%s}\n' % (crc32(text), text)


def _canonical(record: dict[str, Any]) -> bytes:
    # Only ASCII: a path that is no UTF-8 is kept as the surrogates that stand for its bytes.
    return json.dumps(record, separators=(",", ":"), sort_keys=True).encode("ascii")


def _read(fd: int, path: Path) -> list[tuple[dict[str, Any], int]]:
    """What the claim says, each with the offset behind it; nothing when it is torn.

    The tail behind the last whole line is left out: it was being written when its writer died.
    """
    data = durable.read_at_most(fd, CLAIM_BYTES_MAX + 1, path)
    if len(data) > CLAIM_BYTES_MAX:
        raise _damaged(path, f"more than {CLAIM_BYTES_MAX} bytes")
    found: list[tuple[dict[str, Any], int]] = []
    end = 0
    for line in data.split(b"\n")[:-1]:
        end += len(line) + 1
        try:
            found.append((_decode(line), end))
        except ValueError as error:
            if end == len(data):
                break  # cut while it was written: its blocks came out of order
            raise _damaged(path, str(error)) from error
    return found


def _decode(line: bytes) -> dict[str, Any]:
    try:
        outer = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    record = outer.get("says") if isinstance(outer, dict) else None
    if not isinstance(record, dict):
        raise ValueError("no claim")  # noqa: TRY004 - of the file, not of a type
    if outer.get("crc32") != crc32(_canonical(record)):
        raise ValueError("a wrong checksum")
    return record


def _facts_of(record: dict[str, Any], path: Path) -> ClaimFacts:
    if record.get("magic") != MAGIC:
        raise _damaged(path, "not a claim")
    if record.get("version") != VERSION:
        raise ArchiveError(
            f"{path}: claim version {record.get('version')} is not known here",
            hint="Start the nsqtools that wrote it, or a later one.",
        )
    try:
        return ClaimFacts(
            **{
                one.name: record[one.name]
                for one in fields(ClaimFacts)
                if one.name in record or one.default is MISSING
            }
        )
    except KeyError as error:
        raise _damaged(path, f"no {error.args[0]}") from error


def _said_of(placing: Placing) -> dict[str, Any]:
    said = asdict(placing)
    del said["facts"]["parts"]  # whoever takes the file over reads it for them
    return said


def _placing_of(record: dict[str, Any], path: Path) -> Placing:
    try:
        facts = FileFacts(**record["facts"])
        return Placing(name=record["name"], is_rewrite=record["is_rewrite"], facts=facts)
    except (TypeError, KeyError) as error:
        raise _damaged(path, "a placing that is none") from error


def _damaged(path: Path, reason: str) -> ArchiveError:
    return ArchiveError(
        f"{path}: a damaged claim ({reason})",
        hint="The file that it claims is left alone; finish it by hand.",
    )
