"""The writer of one topic's archive: commits, rotation, publication.

A commit is durable when `commit` returns: its bytes by fdatasync, the name of its file by fsync of
the directory. A commit that raised left nothing behind and can be made again with the same
messages. A file is created with its first message; OPEN, SEALED and PUBLISHED are described in
docs/formats.md, "States of a file".
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.formats import COMPRESSIONS, RECORD_FORMATS
from nsqtools.archive.groups import GROUP_BYTES_MAX, Group, payload_bytes, split
from nsqtools.archive.header import encode_header
from nsqtools.archive.naming import PART_SUFFIX, first_free, needs_revision, path_of
from nsqtools.archive.part_file import PartFile
from nsqtools.archive.rotation import FileState, RotationPolicy, next_rotation, reason_to_rotate
from nsqtools.archive.stream import BODY_BYTES_MAX
from nsqtools.archive.zstd_frames import FRAMES_PER_FILE
from nsqtools.errors import ArchiveError, StorageError
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.archive.naming import FileNaming
    from nsqtools.wire.messages import Messages

DIRECTORY_MODE = 0o770  # as nsq_to_file (spec: tools, part 1.3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSpec:
    """What to write for one topic, and where. `level` None means the compression's default.

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
class Published:
    """A finished file under its final name."""

    path: Path
    messages: int
    disk_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became durable. `ambiguous` counts bodies that hold a newline in `lines`.

    `created` is the working file that this commit opened; `published` are the files finished since
    the last report, by this call or by one that then raised.
    """

    messages: int
    body_bytes: int
    disk_bytes: int
    ambiguous: int
    created: Path | None
    published: list[Published]


class ArchiveWriter:
    """Blocking; every call is made by one thread at a time, none waits for another process.

    Raises `ArchiveError` for a specification that cannot be written, and, from the calls,
    `StorageError`; after that any call can be repeated.
    """

    def __init__(self, spec: ArchiveSpec, *, clock: Callable[[], float] = time.time) -> None:
        if problem := spec.problem():
            raise ArchiveError(problem)
        self._spec = spec
        self._clock = clock
        self._naming = spec.naming.format_for(
            spec.topic,
            spec.compression,
            revision_needed=needs_revision(
                compression=spec.compression,
                rotated=spec.rotation.is_on,
                separate_work_dir=spec.has_work_dir,
            ),
        )
        self._naming.stem(clock())
        header = encode_header(
            record_format=spec.record_format,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
        )
        record_format = RECORD_FORMATS[spec.record_format]
        self._encoder = record_format.new_encoder(topic=spec.topic, header=header)
        compression = COMPRESSIONS[spec.compression]
        self._new_container = compression.new_containers(header, spec.effective_level)
        self._file: PartFile | None = None
        self._published: list[Published] = []
        self._stem = ""
        self._stem_second = -1
        self._last_name = ("", -1)

    @property
    def next_tick(self) -> float | None:
        """When to call `tick` next, in seconds since the epoch; None while no file is open."""
        if self._file is None:
            return None
        now = self._clock()
        if self._file.is_sealed:
            return now
        change = self._naming.next_change(now)
        return next_rotation(self._spec.rotation, self._state(self._file), next_name_change=change)

    def commit(self, batches: Sequence[Messages]) -> Commit:
        """Append messages to the archive; they, and their file's name, are durable on return.

        Raises `ArchiveError`, too, for a body of more than `BODY_BYTES_MAX`, which no reader takes.
        """
        now = self._clock()
        messages = count_messages(batches)
        if not messages:
            return Commit(
                messages=0,
                body_bytes=0,
                disk_bytes=0,
                ambiguous=0,
                created=None,
                published=self._report(),
            )
        if (largest := max(each.body_bytes_max for each in batches)) > BODY_BYTES_MAX:
            raise ArchiveError(f"a body of {largest} bytes is larger than {BODY_BYTES_MAX}")
        self._finish_if_due(now)
        if self._file is None:
            self._file = self._open(now)
        file = self._file
        is_first = file.size_bytes == 0
        groups, ambiguous = self._encode(batches, is_first=is_first)
        disk_bytes = self._append(file, groups, now)
        return Commit(
            messages=messages,
            body_bytes=sum(each.size_bytes for each in batches),
            disk_bytes=disk_bytes,
            ambiguous=ambiguous,
            created=file.path if is_first else None,
            published=self._report(),
        )

    def tick(self) -> list[Published]:
        """Finish the open file if its name, age or idle time says so; never creates one."""
        self._finish_if_due(self._clock())
        return self._report()

    def rotate(self) -> list[Published]:
        """Finish the open file now (SIGHUP); the next commit opens another."""
        if self._file is not None:
            self._finish(self._file)
        return self._report()

    def close(self) -> list[Published]:
        """Finish the open file. When it raises, the file is still there for another try."""
        return self.rotate()

    def abandon(self) -> None:
        """Let go of the open file as a crash would; recovery finds it at the next start."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _report(self) -> list[Published]:
        published, self._published = self._published, []
        return published

    def _encode(self, batches: Sequence[Messages], *, is_first: bool) -> tuple[list[Group], int]:
        full = [messages for messages in batches if len(messages)]
        groups: list[Group] = []
        ambiguous = 0
        before = self._encoder.stream_header if is_first else b""
        for part in [full] if payload_bytes(full) <= GROUP_BYTES_MAX else split(full):
            encoded = self._encoder.encode(part)
            content = before + encoded.content if before else encoded.content
            groups.append(Group(content=content, batches=part))
            ambiguous += encoded.ambiguous
            before = b""
        return groups, ambiguous

    def _append(self, file: PartFile, groups: list[Group], now: float) -> int:
        try:
            return file.append(groups, now)
        except BaseException:
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

    def _forget_if_lost(self, file: PartFile) -> None:
        """A file that was moved away by somebody must not stop the archive for ever."""
        try:
            lost = file.is_lost()
        except StorageError:
            return
        if lost:
            file.close()
            self._file = None

    def _finish_if_due(self, now: float) -> None:
        file = self._file
        if file is None:
            return
        reason = reason_to_rotate(
            self._spec.rotation,
            self._state(file),
            stem=self._stem_at(now),
            frames_max=FRAMES_PER_FILE,
            now=now,
        )
        if file.is_sealed or reason is not None:
            self._finish(file)

    def _finish(self, file: PartFile) -> None:
        if file.size_bytes == 0:
            file.discard()
            self._file = None
            return
        try:
            file.seal()
            path = self._publish(file)
        except StorageError:
            self._forget_if_lost(file)
            raise
        self._file = None
        self._published.append(
            Published(
                path=path,
                messages=file.records,
                disk_bytes=file.size_bytes,
            )
        )

    def _publish(self, file: PartFile) -> Path:
        """Publish under the file's own revision, or the next that is free."""
        while True:
            if file.destination is None:
                file.destination = self._output_path(file.stem, file.revision)
                durable.make_directories(file.destination.parent, DIRECTORY_MODE)
            try:
                file.publish()
            except FileExistsError:
                file.destination = None
                file.revision = first_free(
                    file.revision + 1,
                    lambda revision: durable.is_taken(self._output_path(file.stem, revision)),
                )
            else:
                self._last_name = (file.stem, max(file.revision, self._last_name[1]))
                return file.destination

    def _open(self, now: float) -> PartFile:
        stem = self._stem_at(now)
        revision = 0
        if stem == self._last_name[0] and not self._naming.revision_is_optional:
            # Not even a name that was moved away since is used twice.
            revision = self._last_name[1] + 1
        while True:
            revision = first_free(revision, lambda wanted: self._is_taken(stem, wanted))
            path = self._part_path(stem, revision)
            durable.make_directories(path.parent, DIRECTORY_MODE)
            file = PartFile.create(
                path=path,
                container=self._new_container(),
                stem=stem,
                revision=revision,
                now=now,
            )
            if file is not None:
                self._last_name = (stem, revision)
                return file

    def _is_taken(self, stem: str, revision: int) -> bool:
        return durable.is_taken(self._output_path(stem, revision)) or durable.is_taken(
            self._part_path(stem, revision)
        )

    def _output_path(self, stem: str, revision: int) -> Path:
        return path_of(self._spec.output_dir, self._naming.name(stem, revision))

    def _part_path(self, stem: str, revision: int) -> Path:
        name = self._naming.name(stem, revision) + PART_SUFFIX
        return path_of(self._spec.work_dir, name)

    def _stem_at(self, now: float) -> str:
        """The stem at `now`, worked out once a second."""
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
