"""The working files of one topic that messages go into now: opened under free names, sealed when due.

There is one, but for archives by publish time (`archive.partition`).
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive import manifest
from nsqtools.archive.claims import ClaimFacts
from nsqtools.archive.destination import DIRECTORY_MODE
from nsqtools.archive.files import PART_SUFFIX
from nsqtools.archive.finishing import SealedFile, digest_for
from nsqtools.archive.naming import first_free, path_of
from nsqtools.archive.object_names import name_when_complete
from nsqtools.archive.part_file import PartFile
from nsqtools.archive.rotation import FileState, next_rotation, reason_to_rotate
from nsqtools.archive.zstd_frames import FRAMES_PER_FILE
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nsqtools.archive.destination import Destination
    from nsqtools.archive.finishing import SealedFiles
    from nsqtools.archive.groups import Container
    from nsqtools.archive.naming import TopicNaming
    from nsqtools.archive.object_names import TopicObjectNaming
    from nsqtools.archive.writer import ArchiveSpec
    from nsqtools.clock import Clock

# Of as many names it is remembered which revisions were used.
_NAMES_MAX = 256


class OpenFiles:
    """Blocking, for one thread. Raises `StorageError`; after that any call can be made again.

    `described` is what claims say of the destination. Sealed files go into `sealed`; before one does,
    `on_sealed` is called with it.
    """

    def __init__(
        self,
        spec: ArchiveSpec,
        naming: TopicNaming | TopicObjectNaming,
        *,
        destination: Destination,
        described: str,
        new_container: Callable[[], Container],
        sealed: SealedFiles,
        on_sealed: Callable[[PartFile], None],
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._naming = naming
        self._destination = destination
        self._described = described
        self._new_container = new_container
        self._sealed = sealed
        self._on_sealed = on_sealed
        self._clock = clock
        # By stem; what was written into last stands last.
        self._files: dict[str, PartFile] = {}
        self._revisions = _Revisions()

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[PartFile]:
        return iter(self._files.values())

    @property
    def oldest_s(self) -> float | None:
        """When the oldest of them was created, in seconds since the epoch."""
        return min((file.claim.facts.created_at for file in self), default=None)

    def file_of(self, stem: str, closes_in_s: Callable[[], float | None]) -> PartFile:
        """The file of this name, opened where there is none. `closes_in_s` is asked for one that is
        opened: in how many seconds it ends though its name stays; None: never."""
        file = self._files.pop(stem, None)
        if file is None:
            self._make_room()
            file = self._open(stem, closes_in_s())
        self._files[stem] = file
        return file

    def catch_up(self) -> None:
        """Do what nobody has to wait for."""
        for file in self:
            file.catch_up()

    def next_tick(self) -> float | None:
        """In how many seconds to call `seal_due`; None for never."""
        if any(file.is_sealed for file in self):
            return 0.0
        change_s = None
        if self._spec.partition is None and self._files:
            time_s = self._clock.time()
            change = self._naming.next_change(time_s)
            change_s = None if change is None else change - time_s
        now = self._clock.monotonic()
        ticks = [
            next_rotation(self._spec.rotation, _state_of(file), now=now, name_change_s=change_s)
            for file in self
        ]
        return min((tick for tick in ticks if tick is not None), default=None)

    def seal_due(self, stem_now: str | None) -> None:
        """Seal what name, age, size or idle time ends. `stem_now` is the only name there may be; None
        where there may be several."""
        now = self._clock.monotonic()
        for file in list(self):
            reason = reason_to_rotate(
                self._spec.rotation,
                _state_of(file),
                stem=file.stem if stem_now is None else stem_now,
                frames_max=FRAMES_PER_FILE,
                now=now,
            )
            if file.is_sealed or reason is not None:
                self._seal(file)

    def seal_all(self) -> None:
        for file in list(self):
            self._seal(file)

    def abandon(self) -> None:
        """Let go of them as a crash would."""
        for file in self:
            file.close()
        self._files.clear()

    def failed(self, file: PartFile) -> None:
        """A commit into it failed: one that is empty is taken back, one that somebody moved away must not
        stop the archive for ever. One that resists is used again."""
        if file.size_bytes:
            self._forget_if_lost(file)
            return
        try:
            file.discard()
        except StorageError:
            self._forget_if_lost(file)  # its name may be gone all the same
            return
        del self._files[file.stem]
        self._revisions.unused(file.stem, file.revision)

    def _make_room(self) -> None:
        """Of too many the one that waited longest for a message is finished."""
        partition = self._spec.partition
        if partition is not None and len(self._files) >= partition.open_files_max:
            self._seal(next(iter(self)))

    def _forget_if_lost(self, file: PartFile) -> None:
        try:
            if not file.is_lost():
                return
        except StorageError:
            return
        with contextlib.suppress(StorageError):
            file.claim.remove()  # what stays of it is removed at the next start
        file.close()
        del self._files[file.stem]

    def _seal(self, file: PartFile) -> None:
        if file.size_bytes == 0:
            file.discard()
            del self._files[file.stem]
            return
        self._sealed.check_room()
        try:
            file.seal()
        except StorageError:
            self._forget_if_lost(file)
            raise
        self._on_sealed(file)
        self._sealed.put(
            SealedFile(
                claim=file.claim,
                path=file.path,
                fd=file.fd,
                facts=file.facts,
                name_at=self._names_of(file),
                groups=file.groups,
                content_bytes=file.content_bytes,
                on_placed=lambda number: self._revisions.used(file.stem, file.revision + number),
            )
        )
        del self._files[file.stem]

    def _names_of(self, file: PartFile) -> Callable[[int], str]:
        if self._naming.is_late:
            claimed = file.claim.facts
            return name_when_complete(claimed.name, file.facts, claimed.created_at)
        return lambda number: self._naming.name(file.stem, file.revision + number)

    def _open(self, stem: str, closes_in_s: float | None) -> PartFile:
        # Not even a name that was moved away since is used twice.
        revision = 0 if self._naming.revision_is_optional else self._revisions.next_of(stem)
        while True:
            revision = first_free(revision, lambda wanted: self._is_taken(stem, wanted))
            file = self._create(stem, revision, closes_in_s)
            if file is not None:
                self._revisions.used(stem, revision)
                return file

    def _create(self, stem: str, revision: int, closes_in_s: float | None) -> PartFile | None:
        spec = self._spec
        name = self._naming.name(stem, revision)
        working = self._naming.working_name(stem, revision)
        path = path_of(spec.work_dir, working)
        durable.make_directories(path.parent, DIRECTORY_MODE)
        facts = ClaimFacts(
            working=working,
            destination=self._described,
            name=name,
            record_format=spec.record_format,
            compression=spec.compression,
            level=spec.effective_level,
            compact=spec.compact and not spec.live_name,
            topic=spec.topic,
            channel=spec.channel,
            host=spec.host,
            created_at=self._clock.time(),
            manifest=spec.manifest,
            live=spec.live_name,
        )
        now = self._clock.monotonic()
        return PartFile.create(
            work_dir=spec.work_dir,
            path=path,
            facts=facts,
            container=self._new_container(),
            stem=stem,
            revision=revision,
            now=now,
            closes_at=None if closes_in_s is None else now + closes_in_s,
            digest=digest_for(self._destination, with_manifest=spec.manifest),
        )

    def _is_taken(self, stem: str, revision: int) -> bool:
        if self._naming.is_late:
            return False
        name = self._naming.name(stem, revision)
        return manifest.is_taken(
            self._destination, name, with_manifest=self._spec.manifest
        ) or durable.is_taken(path_of(self._spec.work_dir, name + PART_SUFFIX))


def _state_of(file: PartFile) -> FileState:
    return FileState(
        stem=file.stem,
        opened_at=file.opened_at,
        last_commit_at=file.last_commit_at,
        closes_at=file.closes_at,
        size_bytes=file.size_bytes,
        records=file.records,
        frames=file.container.frames,
    )


class _Revisions:
    """The last revision that each of the names used last got. Thread-safe."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._lock = threading.Lock()

    def next_of(self, stem: str) -> int:
        with self._lock:
            return self._last.get(stem, -1) + 1

    def used(self, stem: str, revision: int) -> None:
        """A file got this name, perhaps behind the one that it was opened under."""
        with self._lock:
            self._last[stem] = max(revision, self._last.pop(stem, -1))
            if len(self._last) > _NAMES_MAX:
                del self._last[next(iter(self._last))]

    def unused(self, stem: str, revision: int) -> None:
        """It was taken back, and nobody has seen it."""
        with self._lock:
            if self._last.get(stem) == revision:
                self._last[stem] = revision - 1
