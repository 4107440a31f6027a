"""The writer of one topic's archive: commits and rotation; finishing beside them.

A commit is durable when `commit` returns: its bytes by fdatasync, the name of its file by fsync of
the directory. A commit that raised left nothing behind and can be made again with the same
messages. A file is created with its first message; OPEN, SEALED and PUBLISHED are described in
docs/formats.md, "States of a file".

Rotation only seals a file, which is one small write. What takes long (compaction, a copy, an
upload) is `finish`, called by another thread while commits go on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive import manifest
from nsqtools.archive.claims import ClaimFacts
from nsqtools.archive.destination import DIRECTORY_MODE, FolderDestination
from nsqtools.archive.files import PART_SUFFIX
from nsqtools.archive.finishing import SealedFile, SealedFiles
from nsqtools.archive.formats import COMPRESSIONS, RECORD_FORMATS, new_encoding
from nsqtools.archive.groups import encode_groups
from nsqtools.archive.keys import Keys
from nsqtools.archive.naming import first_free, needs_revision, path_of
from nsqtools.archive.once import OnceOnly
from nsqtools.archive.part_file import PartFile
from nsqtools.archive.rotation import FileState, RotationPolicy, next_rotation, reason_to_rotate
from nsqtools.archive.stream import BODY_BYTES_MAX
from nsqtools.archive.zstd_frames import FRAMES_PER_FILE
from nsqtools.clock import SystemClock
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.archive.destination import Destination
    from nsqtools.archive.finishing import Published
    from nsqtools.archive.groups import Group
    from nsqtools.archive.naming import FileNaming
    from nsqtools.clock import Clock
    from nsqtools.wire.messages import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSpec:
    """What to write for one topic, and where. `level` None means the compression's default.

    `compact`: files of many small commits are rewritten before they are published.
    `work_dir` and `output_dir` may be the same folder; they are compared after links are resolved.
    """

    topic: str
    channel: str
    host: str
    output_dir: Path
    work_dir: Path
    naming: FileNaming
    record_format: str = "lines"
    compression: str = "none"
    level: int | None = None
    compact: bool = True
    manifest: bool = False
    """Whether each finished file gets a manifest beside it."""
    keys_max: int = 0
    """How many messages may be delivered again without our knowing: 0: they are not looked for."""
    rotation: RotationPolicy = field(default_factory=RotationPolicy)

    @property
    def has_work_dir(self) -> bool:
        return os.path.realpath(self.work_dir) != os.path.realpath(self.output_dir)

    @property
    def effective_level(self) -> int:
        return COMPRESSIONS[self.compression].default_level if self.level is None else self.level

    def problem(self) -> str | None:
        """What is wrong with format, compression or level; None when they will do."""
        if self.record_format not in RECORD_FORMATS:
            return f"unknown record format {self.record_format}"
        if self.compression not in COMPRESSIONS:
            return f"unknown compression {self.compression}"
        levels = COMPRESSIONS[self.compression].levels
        if self.effective_level not in levels:
            within = f"{levels[0]}-{levels[-1]}"
            return f"{self.compression} level {self.effective_level} is not within {within}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became durable. `ambiguous` counts bodies that hold a newline in `lines`.

    `created` is the working file that this commit opened.
    """

    messages: int
    body_bytes: int
    disk_bytes: int
    ambiguous: int
    created: Path | None
    duplicates: int = 0
    """Messages that were in the archive already."""


class ArchiveWriter:
    """Blocking. `finish` is for one thread, all other calls for one other; none waits for a process.

    Raises `ArchiveError` for a specification that cannot be written, and, from the calls,
    `StorageError`; after that any call can be repeated.
    """

    def __init__(
        self,
        spec: ArchiveSpec,
        *,
        clock: Clock | None = None,
        destination: Destination | None = None,
    ) -> None:
        """`destination` is where finished files go, by default the output directory."""
        if problem := spec.problem():
            raise ArchiveError(problem)
        self._spec = spec
        self._clock = clock or SystemClock()
        self._destination = destination or FolderDestination(spec.output_dir)
        # A folder that holds both may be moved, or mounted elsewhere, before a file is recovered.
        is_one = destination is None and not spec.has_work_dir
        self._described = "" if is_one else self._destination.describe()
        self._naming = spec.naming.format_for(
            spec.topic,
            spec.compression,
            channel=spec.channel,
            revision_needed=needs_revision(
                compression=spec.compression,
                rotated=spec.rotation.is_on,
                separate_work_dir=spec.has_work_dir,
            ),
        )
        self._naming.stem(self._clock.time())
        self._encoder, self._new_container = new_encoding(
            record_format=spec.record_format,
            compression=spec.compression,
            level=spec.effective_level,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
        )
        self.once = (
            OnceOnly(spec.work_dir, spec.topic, spec.channel, spec.keys_max)
            if spec.keys_max
            else None
        )
        """What finds messages that come again; `open` it first."""
        self.sealed = SealedFiles()
        """Complete files that wait for `finish`."""
        self._file: PartFile | None = None
        self._stem = ""
        self._stem_second = -1
        self._last_name = ("", -1)
        self._last_name_lock = threading.Lock()
        self._finishing = threading.Lock()

    @property
    def next_tick(self) -> float | None:
        """In how many seconds to call `tick`; None while no file is open, or time ends none."""
        if self._file is None:
            return None
        if self._file.is_sealed:
            return 0.0
        time_s = self._clock.time()
        change = self._naming.next_change(time_s)
        return next_rotation(
            self._spec.rotation,
            self._state(self._file),
            now=self._clock.monotonic(),
            name_change_s=None if change is None else change - time_s,
        )

    @property
    def oldest_unfinished_s(self) -> float | None:
        """When the oldest file was created that is not published, in seconds since the epoch."""
        if (oldest_s := self.sealed.oldest_s) is not None:
            return oldest_s
        return None if self._file is None else self._file.claim.facts.created_at

    def period_at(self, time_s: float) -> str:
        """`<DATETIME>` for a time."""
        return self._naming.datetime_at(time_s)

    def commit(self, batches: Sequence[Messages]) -> Commit:
        """Append messages to the archive; they, and their file's name, are durable on return.

        Raises `ArchiveError`, too, for a body of more than `BODY_BYTES_MAX`, which no reader takes.
        """
        delivered = count_messages(batches)
        if self.once is not None:
            batches = self.once.new_of(batches)
        messages = count_messages(batches)
        if not messages:
            return Commit(
                messages=0,
                body_bytes=0,
                disk_bytes=0,
                ambiguous=0,
                created=None,
                duplicates=delivered,
            )
        if (largest := max(each.body_bytes_max for each in batches)) > BODY_BYTES_MAX:
            raise ArchiveError(f"a body of {largest} bytes is larger than {BODY_BYTES_MAX}")
        self._seal_if_due()
        if self._file is None:
            self._file = self._open()
        file = self._file
        is_first = file.size_bytes == 0
        groups, ambiguous = encode_groups(self._encoder, batches, is_first=is_first)
        disk_bytes = self._append(file, groups, batches)
        return Commit(
            messages=messages,
            body_bytes=sum(each.size_bytes for each in batches),
            disk_bytes=disk_bytes,
            ambiguous=ambiguous,
            created=file.path if is_first else None,
            duplicates=delivered - messages,
        )

    def tick(self) -> None:
        """Seal the open file if its name, age or idle time says so; never creates one."""
        self._seal_if_due()

    def rotate(self) -> None:
        """Seal the open file now (SIGHUP); the next commit opens another."""
        if self._file is not None:
            self._seal(self._file)

    def close(self) -> None:
        """Seal the open file; then call `finish` until it returns None.

        When it raises, the file is still there for another try.
        """
        self.rotate()

    def finish(self) -> Published | None:
        """Publish the oldest sealed file; None when there is none.

        When it raises `StorageError` the file is still there for another try, unless somebody took
        it away. A thread that is cut here leaves it to the recovery of the next start.
        """
        with self._finishing:
            file = self.sealed.first()
            if file is None:
                return None
            try:
                published = file.finish(self._destination)
            except StorageError:
                self._drop_if_lost(file)
                raise
            self.sealed.drop_first()
            return published

    def release(self) -> None:
        """Let go of what the next writer needs, when all is finished: it may be of this process."""
        if self.once is not None:
            self.once.close()

    def abandon(self) -> None:
        """Let go of all files as a crash would; recovery finds them at the next start."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.once is not None:
            self.once.close()
        with self._finishing:
            self.sealed.release_all()

    def _append(self, file: PartFile, groups: list[Group], batches: Sequence[Messages]) -> int:
        once, now = self.once, self._clock.monotonic()
        try:
            if once is None:
                disk_bytes = file.append(groups, now)
            else:
                keys = [Keys.of(each) for each in batches if len(each)]
                disk_bytes = file.append(groups, now, partial(once.note, file.unique, keys))
                once.committed(keys)
            file.note(batches)
            return disk_bytes
        except BaseException:
            if once is not None:
                once.failed(file.unique, file.size_bytes)
            if file.size_bytes == 0:
                self._discard_quietly(file)
            else:
                self._forget_if_lost(file)
            raise

    def _discard_quietly(self, file: PartFile) -> None:
        """Take back a file whose first commit failed; one that resists is used again."""
        try:
            file.discard()
        except StorageError:
            return
        self._file = None
        with self._last_name_lock:
            if self._last_name == (file.stem, file.revision):
                self._last_name = (file.stem, file.revision - 1)  # nobody has seen it

    def _forget_if_lost(self, file: PartFile) -> None:
        """A file that was moved away by somebody must not stop the archive for ever."""
        try:
            if not file.is_lost():
                return
        except StorageError:
            return
        with contextlib.suppress(StorageError):
            file.claim.remove()  # what stays of it is removed at the next start
        file.close()
        self._file = None

    def _drop_if_lost(self, file: SealedFile) -> None:
        try:
            if not file.is_lost(self._destination):
                return
        except StorageError:
            return
        with contextlib.suppress(StorageError):
            file.claim.remove()
        file.release()
        self.sealed.drop_first()

    def _seal_if_due(self) -> None:
        file = self._file
        if file is None:
            return
        reason = reason_to_rotate(
            self._spec.rotation,
            self._state(file),
            stem=self._stem_now(),
            frames_max=FRAMES_PER_FILE,
            now=self._clock.monotonic(),
        )
        if file.is_sealed or reason is not None:
            self._seal(file)

    def _seal(self, file: PartFile) -> None:
        if file.size_bytes == 0:
            file.discard()
            self._file = None
            return
        self.sealed.check_room()
        try:
            file.seal()
        except StorageError:
            self._forget_if_lost(file)
            raise
        if self.once is not None:
            self.once.sealed(file.unique, file.commits_end)
        self.sealed.put(
            SealedFile(
                claim=file.claim,
                path=file.path,
                fd=file.fd,
                facts=file.facts,
                name_at=self._names_from(file.stem, file.revision),
                groups=file.groups,
                content_bytes=file.content_bytes,
                on_placed=lambda number: self._note_name(file.stem, file.revision + number),
            )
        )
        self._file = None

    def _names_from(self, stem: str, revision: int) -> Callable[[int], str]:
        return lambda number: self._naming.name(stem, revision + number)

    def _open(self) -> PartFile:
        stem = self._stem_now()
        revision = self._first_revision(stem)
        while True:
            revision = first_free(revision, lambda wanted: self._is_taken(stem, wanted))
            file = self._create(stem, revision)
            if file is not None:
                with self._last_name_lock:
                    self._last_name = (stem, revision)
                return file

    def _create(self, stem: str, revision: int) -> PartFile | None:
        spec = self._spec
        name = self._naming.name(stem, revision)
        path = path_of(spec.work_dir, name + PART_SUFFIX)
        durable.make_directories(path.parent, DIRECTORY_MODE)
        facts = ClaimFacts(
            working=name + PART_SUFFIX,
            destination=self._described,
            name=name,
            record_format=spec.record_format,
            compression=spec.compression,
            level=spec.effective_level,
            compact=spec.compact,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
            created_at=self._clock.time(),
            manifest=spec.manifest,
        )
        return PartFile.create(
            work_dir=spec.work_dir,
            path=path,
            facts=facts,
            container=self._new_container(),
            stem=stem,
            revision=revision,
            now=self._clock.monotonic(),
        )

    def _first_revision(self, stem: str) -> int:
        """Not even a name that was moved away since is used twice."""
        with self._last_name_lock:
            last_stem, last = self._last_name
        return last + 1 if stem == last_stem and not self._naming.revision_is_optional else 0

    def _note_name(self, stem: str, revision: int) -> None:
        """A finished file got this name, perhaps behind the one that it was opened under."""
        with self._last_name_lock:
            last_stem, last = self._last_name
            if stem == last_stem:
                self._last_name = (stem, max(revision, last))

    def _is_taken(self, stem: str, revision: int) -> bool:
        name = self._naming.name(stem, revision)
        return manifest.is_taken(
            self._destination, name, with_manifest=self._spec.manifest
        ) or durable.is_taken(path_of(self._spec.work_dir, name + PART_SUFFIX))

    def _stem_now(self) -> str:
        """The stem at this time, worked out once a second."""
        now = self._clock.time()
        if int(now) != self._stem_second:
            self._stem = self._naming.stem(now)
            self._stem_second = int(now)
        return self._stem

    def _state(self, file: PartFile) -> FileState:
        return FileState(
            stem=file.stem,
            opened_at=file.opened_at,
            last_commit_at=file.last_commit_at,
            size_bytes=file.size_bytes,
            records=file.records,
            frames=file.container.frames,
        )
