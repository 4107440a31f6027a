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

from nsqtools.archive.destination import FolderDestination
from nsqtools.archive.finishing import SEALED_FILES_MAX, SealedFiles
from nsqtools.archive.formats import COMPRESSIONS, RECORD_FORMATS, new_encoding
from nsqtools.archive.groups import encode_groups
from nsqtools.archive.keys import Keys
from nsqtools.archive.naming import needs_revision
from nsqtools.archive.once import OnceOnly
from nsqtools.archive.open_files import OpenFiles
from nsqtools.archive.partition import Periods, Piece, Settled
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.stream import BODY_BYTES_MAX
from nsqtools.archive.watermark import Watermark
from nsqtools.clock import SystemClock
from nsqtools.errors import ArchiveError, NsqToolsError, StorageError
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.archive.destination import Destination
    from nsqtools.archive.finishing import Published, SealedFile
    from nsqtools.archive.groups import Group
    from nsqtools.archive.naming import FileNaming
    from nsqtools.archive.object_names import ObjectNaming
    from nsqtools.archive.part_file import PartFile
    from nsqtools.archive.partition import ByPublishTime
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
    naming: FileNaming | ObjectNaming
    record_format: str = "lines"
    compression: str = "none"
    level: int | None = None
    compact: bool = True
    manifest: bool = False
    """Whether each finished file gets a manifest beside it."""
    keys_max: int = 0
    """How many messages may be delivered again without our knowing: 0: they are not looked for."""
    rotation: RotationPolicy = field(default_factory=RotationPolicy)
    partition: ByPublishTime | None = None
    """Whether messages go into the file of their publish time; None: of their arrival."""
    live_name: bool = False
    """Whether an open file is there under its finished name, too; it is not compacted then."""

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
        if self.live_name and self.has_work_dir:
            return "an open file has its finished name only in the folder where it is written"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became durable. `ambiguous` counts bodies that hold a newline in `lines`.

    `created` are the working files that this commit opened.
    """

    messages: int = 0
    body_bytes: int = 0
    disk_bytes: int = 0
    ambiguous: int = 0
    created: tuple[Path, ...] = ()
    duplicates: int = 0
    """Messages that were in the archive already."""

    def __add__(self, other: Commit) -> Commit:
        return Commit(
            messages=self.messages + other.messages,
            body_bytes=self.body_bytes + other.body_bytes,
            disk_bytes=self.disk_bytes + other.disk_bytes,
            ambiguous=self.ambiguous + other.ambiguous,
            created=self.created + other.created,
            duplicates=self.duplicates + other.duplicates,
        )


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
        leave: Callable[[Path], None] | None = None,
    ) -> None:
        """`destination` is where finished files go, by default the output directory. `leave` gets the
        claims of sealed files that are too many to be kept in hand; by default commits stop then."""
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
                rotated=spec.rotation.is_on or spec.partition is not None,
                separate_work_dir=spec.has_work_dir,
            ),
        )
        self._naming.stem(self._clock.time())
        self._encoder, new_container = new_encoding(
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
        self.sealed = SealedFiles(
            SEALED_FILES_MAX + (spec.partition.open_files_max if spec.partition else 0),
            leave=leave,
        )
        """Complete files that wait for `finish`."""
        self._files = OpenFiles(
            spec,
            self._naming,
            destination=self._destination,
            described=self._described,
            new_container=new_container,
            sealed=self.sealed,
            on_sealed=self._note_sealed,
            clock=self._clock,
        )
        self._periods = None if spec.partition is None else Periods(self._naming)
        self._settled = Settled()
        self._settled_commit = Commit()
        self._stem = ""
        self._stem_second = -1
        self._finishing = threading.Lock()

    @property
    def next_tick(self) -> float | None:
        """In how many seconds to call `tick`; None while no file is open, or time ends none."""
        return self._files.next_tick()

    @property
    def oldest_unfinished_s(self) -> float | None:
        """When the oldest file was created that is not published, in seconds since the epoch."""
        both = (self.sealed.oldest_s, self._files.oldest_s)
        return min((one for one in both if one is not None), default=None)

    def watermark(self) -> Watermark:
        """What says how far this archive is complete. Raises `ArchiveError` for a name that cannot be."""
        naming = self._naming
        return Watermark(
            self._spec, naming.period_at, self._clock, self._destination, naming.mark_folder
        )

    def commit(self, batches: Sequence[Messages]) -> Commit:
        """Append messages to the archive; they, and the names of their files, are durable on return.

        When it raises after some of several files took theirs, the same call once more writes the rest.
        Raises `ArchiveError`, too, for a body of more than `BODY_BYTES_MAX`, which no reader takes.
        """
        batches = self._settled.rest_of(batches)
        delivered = count_messages(batches)
        if self.once is not None:
            batches = self.once.new_of(batches)
        new = count_messages(batches)
        if new:
            _check_bodies(batches)
            self._seal_if_due()
            self._commit_pieces(self._pieces(batches))
        made = self._settled_commit + Commit(duplicates=delivered - new)
        self._settled_commit = Commit()
        self._settled.clear()
        return made

    def _pieces(self, batches: Sequence[Messages]) -> list[Piece]:
        if self._periods is None:
            return [Piece(self._stem_now(), batches)]
        return self._periods.split(batches)

    def _commit_pieces(self, pieces: Sequence[Piece]) -> None:
        done: list[Piece] = []
        try:
            for piece in pieces:
                self._settled_commit += self._commit_piece(piece)
                done.append(piece)
        except BaseException:
            for piece in done:
                self._settled.add(piece.batches)
            raise

    def _commit_piece(self, piece: Piece) -> Commit:
        file = self._files.file_of(piece.stem, lambda: self._closes_in_s(piece))
        is_first = file.size_bytes == 0
        groups, ambiguous = encode_groups(self._encoder, piece.batches, is_first=is_first)
        disk_bytes = self._append(file, groups, piece.batches)
        return Commit(
            messages=count_messages(piece.batches),
            body_bytes=sum(each.size_bytes for each in piece.batches),
            disk_bytes=disk_bytes,
            ambiguous=ambiguous,
            created=(file.path,) if is_first else (),
        )

    def tick(self) -> None:
        """Seal files whose name, age or idle time says so; never creates one."""
        self._seal_if_due()

    def catch_up(self) -> None:
        """Do what nobody has to wait for, before there is something else to be done."""
        self._files.catch_up()

    def rotate(self) -> None:
        """Seal what is open now (SIGHUP); the next commit opens another."""
        self._files.seal_all()

    def close(self) -> None:
        """Seal what is open; then call `finish` until it returns None.

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
            except NsqToolsError:
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
        self._files.abandon()
        if self.once is not None:
            self.once.close()
        self.leave_sealed()

    def leave_sealed(self) -> None:
        """Let go of what is not published yet, for the next start to recover."""
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
            self._files.failed(file)
            raise

    def _drop_if_lost(self, file: SealedFile) -> None:
        try:
            if not file.is_lost(self._destination):
                return
        except NsqToolsError:
            return
        with contextlib.suppress(StorageError):
            file.claim.remove()
        file.release()
        self.sealed.drop_first()

    def _seal_if_due(self) -> None:
        if len(self._files):
            self._files.seal_due(self._stem_now() if self._periods is None else None)

    def _note_sealed(self, file: PartFile) -> None:
        if self.once is not None:
            self.once.sealed(file.unique, file.commits_end)

    def _closes_in_s(self, piece: Piece) -> float | None:
        """The end of a period is told by the machine's clock once: that may be set meanwhile."""
        if self._periods is None or self._spec.partition is None:
            return None
        first_ns, _ = piece.batches[0].time_range_ns()
        end_s = self._periods.ends_at(first_ns)
        if end_s is None:
            return None
        return max(0.0, end_s - self._clock.time()) + self._spec.partition.lateness_s

    def _stem_now(self) -> str:
        """The stem at this time, worked out once a second."""
        now = self._clock.time()
        if int(now) != self._stem_second:
            self._stem = self._naming.stem(now)
            self._stem_second = int(now)
        return self._stem


def _check_bodies(batches: Sequence[Messages]) -> None:
    for each in batches:
        if each.has_body_of_more(BODY_BYTES_MAX):
            size = each.body_bytes_max
            raise ArchiveError(f"a body of {size} bytes is larger than {BODY_BYTES_MAX}")
