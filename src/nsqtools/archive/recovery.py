"""What happens at every start: files of writers that are gone are completed and published.

The claims in the work directory name them (`archive.claims`): the work is in proportion to the
files that were open, and what nobody claimed is not looked at. A file is cut to its last whole
commit, sealed, and finished as its writer would have. The survey reads it once, in pieces, and
changes nothing; every change after it can be cut by another crash and made again.

Running out of bytes is what a crash looks like, and is cut off. Any other fault is damage: then
the file is kept whole as `.part.bad`, and what is sound before the fault is published.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nsqtools import durable, publish
from nsqtools.archive.claims import Claim, Placing, claim_paths, open_if_there, topic_of
from nsqtools.archive.dead_keys import KeyFiles, is_awaited, note_whole
from nsqtools.archive.destination import FileFacts, open_destination
from nsqtools.archive.files import PART_SUFFIX
from nsqtools.archive.finishing import SealedFile, prepare_placing
from nsqtools.archive.formats import find_formats
from nsqtools.archive.naming import REVISIONS_MAX, bump, path_of
from nsqtools.archive.object_names import is_open, name_when_complete
from nsqtools.archive.stream import Damage
from nsqtools.archive.survey import Survey, survey
from nsqtools.errors import ArchiveError, NsqToolsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from nsqtools.archive.claims import ClaimFacts
    from nsqtools.archive.destination import Destination
    from nsqtools.archive.finishing import Published

BAD_SUFFIX = ".bad"
# What fails once may work the next moment.
READ_TRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of one working file; times in ns since the epoch where the file tells them.

    `published` is its location at its destination; None when nothing in it was whole, or it was
    left as it is. `failed`: it could not be recovered now, and will be tried again at the next
    start. `reason` says more, of either. `claimed` is known of what did not fail. `channel` is what its
    claim says; "" when that says nothing.
    """

    path: Path
    published: str | None
    records: int
    cut_bytes: int
    reason: str
    channel: str = ""
    failed: bool = False
    claimed: ClaimFacts | None = None
    name: str = ""
    """The name at its destination, of a file that was published."""
    stored_bytes: int = 0
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None


def recover(
    work_dir: Path,
    *,
    claims: Iterable[Path] | None = None,
    key_files: KeyFiles | None = None,
    open_destination: Callable[[str], Destination] = open_destination,
    begun: Callable[[ClaimFacts], object] = lambda facts: None,
) -> Iterator[Recovered]:
    """Finish every claimed file below `work_dir` whose writer is gone, one after the other.

    With `claims`, what these paths claim only; `key_files` are those of `work_dir`, where calls share a
    look at them. `begun` is called before each file, which may take long; those of living writers are
    passed over without it. A file that cannot be recovered is told of as `failed`, and ends nothing.
    Raises `StorageError` when the claims cannot be listed. What is not iterated is left as it is.
    """
    files = key_files or KeyFiles(work_dir)
    for path in claim_paths(work_dir) if claims is None else claims:
        subject, channel = path, ""
        try:
            claim = Claim.adopt(path)
            if claim is None:
                continue
            with contextlib.closing(claim):
                channel = claim.facts.channel
                subject = path_of(work_dir, claim.facts.working)
                begun(claim.facts)
                try:
                    destination = open_destination(claim.facts.destination or str(work_dir))
                except StorageError:
                    _note_keys(claim, subject, files)
                    raise
                result = _Recovery(claim, subject, destination, files).run()
        except NsqToolsError as error:
            reason = f"{error} ({error.hint})" if error.hint else str(error)
            yield _failed(subject, channel, reason)
        else:
            if result is not None:
                yield replace(result, channel=channel, claimed=claim.facts)


def claims_by_topic(work_dir: Path) -> dict[str, list[Path]]:
    """The claims in a work directory, also of living writers; under "" those that name no topic.

    Raises `StorageError` when they cannot be listed.
    """
    found: dict[str, list[Path]] = {}
    for path in claim_paths(work_dir):
        found.setdefault(_topic_of(path), []).append(path)
    return found


def _topic_of(path: Path) -> str:
    """Tried again: the topic of a claim that is not known does not wait for it."""
    for _ in range(READ_TRIES):
        with contextlib.suppress(StorageError):
            return topic_of(path)
    return ""  # recovering it will say what is wrong


def _note_keys(claim: Claim, path: Path, files: KeyFiles) -> None:
    """Tell the writer's key file how far a file is whole that cannot be published now: its topic goes
    on meanwhile, and what is in it is not to be written again."""
    facts = claim.facts
    if not claim.is_created or claim.placing is not None or not durable.is_taken(path):
        return
    if is_awaited(files.of(facts.topic, facts.channel), claim.unique):
        fd = durable.open_existing(path)
        try:
            _survey(claim, path, fd, files)
        finally:
            durable.close(fd)


def _survey(claim: Claim, path: Path, fd: int, files: KeyFiles) -> Survey:
    """How much of the file is whole commits; the writer's key file is told."""
    facts = claim.facts
    record_format, compression = find_formats(facts.record_format, facts.compression)
    found = survey(fd, path, record_format, compression)
    end = note_whole(files.of(facts.topic, facts.channel), claim.unique, found.commits_end)
    if end < found.commits_end and (found.damage is None or found.damage.torn):
        durable.truncate(fd, end, path)
        damage = found.damage or Damage(end, "a cut commit", torn=True)
        size_bytes = found.size_bytes
        found = survey(fd, path, record_format, compression)
        found.size_bytes, found.damage = size_bytes, damage
    return found


def _failed(path: Path, channel: str, reason: str) -> Recovered:
    return Recovered(
        path=path,
        published=None,
        records=0,
        cut_bytes=0,
        reason=reason,
        channel=channel,
        failed=True,
    )


def _facts_of(found: Survey) -> FileFacts:
    """What is known of a file that is cut and sealed as the survey says."""
    return FileFacts(
        size_bytes=found.end + len(found.trailer),
        records=found.records,
        first_ts_ns=found.first_ts_ns,
        last_ts_ns=found.last_ts_ns,
        content_bytes=found.content_bytes or found.end,
    )


class _Recovery:
    """One claim of a writer that is gone. Raises `StorageError` and `ArchiveError`."""

    def __init__(
        self, claim: Claim, path: Path, destination: Destination, key_files: KeyFiles
    ) -> None:
        self._claim = claim
        self._path = path
        self._destination = destination
        self._key_files = key_files

    def run(self) -> Recovered | None:
        """What became of the file; None when there is nothing to tell."""
        fd = open_if_there(self._path)
        if fd is None:
            return self._without_working_file()
        try:
            return self._with_working_file(fd)
        finally:
            durable.close(fd)

    def _with_working_file(self, fd: int) -> Recovered | None:
        if not self._claim.is_created:
            return self._not_begun(fd)
        placing = self._claim.placing
        if placing is not None:
            if self._can_resume(placing):
                return self._resume(placing, fd)
            self._claim.note_placing(None)  # its rewrite is lost: the file is still whole
        found = _survey(self._claim, self._path, fd, self._key_files)
        if found.damage is not None and not found.damage.torn:
            return self._set_aside(fd, found)
        if found.records == 0:
            self._remove(fd)
            reason = "removed: nothing whole in it"
            return self._result(None, found, cut_bytes=found.size_bytes, reason=reason)
        self._complete(fd, found)
        reason = f"cut: {found.damage.reason}" if found.damage else "published as it was"
        return self._publish(fd, found, reason)

    def _not_begun(self, fd: int) -> Recovered | None:
        """Nothing was ever committed. A file that has our name may be somebody else's."""
        if durable.size_of(self._path) == 0:
            self._remove(fd)
            return None
        self._claim.remove()
        reason = "left alone: it was there before its writer could create it"
        return self._result(None, Survey(), cut_bytes=0, reason=reason)

    def _without_working_file(self) -> Recovered | None:
        placing = self._claim.placing
        if placing is None:
            self._claim.remove()
            if not self._claim.is_created:
                return None
            reason = "gone: it was moved or removed, and had not been published"
            return self._result(None, Survey(), cut_bytes=0, reason=reason)
        if placing.is_rewrite and durable.is_taken(self._claim.rewrite_path):
            return self._resume(placing, fd=-1)
        if self._was_placed(placing):
            return self._resume(placing, fd=-1)
        location = self._destination.location(placing.name)
        reason = f"gone: nor is it at {location}, where it was being placed"
        self._claim.remove()
        return self._result(None, Survey(), cut_bytes=0, reason=reason)

    def _can_resume(self, placing: Placing) -> bool:
        """Whether the source of a move that was cut is there, or the move was made."""
        source = self._claim.rewrite_path if placing.is_rewrite else self._path
        try:
            return durable.size_of(source) == placing.facts.size_bytes
        except FileNotFoundError:
            return self._was_placed(placing)

    def _was_placed(self, placing: Placing) -> bool:
        try:
            self._destination.confirm(placing.name, placing.facts)
        except FileNotFoundError:
            return False
        return True

    def _resume(self, placing: Placing, fd: int) -> Recovered:
        published = self._finish(fd, placing.facts)
        return Recovered(
            path=self._path,
            published=published.location,
            records=published.messages,
            cut_bytes=0,
            reason="finished a move that was cut",
            name=published.name,
            stored_bytes=published.disk_bytes,
            first_ts_ns=published.first_ts_ns,
            last_ts_ns=published.last_ts_ns,
        )

    def _complete(self, fd: int, found: Survey) -> None:
        if found.end < found.size_bytes:
            durable.truncate(fd, found.end, self._path)
        if found.trailer:
            durable.write_at(fd, found.trailer, found.end, self._path)
        # Even an unchanged file may hold a commit that was written and not yet synced.
        durable.sync_data(fd, self._path)
        durable.fsync_directory(self._path.parent)

    def _publish(self, fd: int, found: Survey, reason: str) -> Recovered:
        published = self._finish(fd, _facts_of(found), found)
        if published.not_compacted:
            reason = f"{reason}; not compacted: {published.not_compacted}"
        cut_bytes = max(found.size_bytes - found.end, 0)
        result = self._result(published.location, found, cut_bytes=cut_bytes, reason=reason)
        return replace(result, name=published.name, stored_bytes=published.disk_bytes)

    def _finish(self, fd: int, facts: FileFacts, found: Survey | None = None) -> Published:
        file = SealedFile(
            claim=self._claim,
            path=self._path,
            fd=-1 if fd < 0 else durable.duplicate(fd, self._path),
            facts=facts,
            name_at=self._names_of(facts),
            groups=found.groups if found else 0,
            content_bytes=found.content_bytes if found else 0,
        )
        try:
            return file.finish(self._destination)
        finally:
            file.release()

    def _names_of(self, facts: FileFacts) -> Callable[[int], str]:
        claimed = self._claim.facts
        if is_open(claimed.name):
            return name_when_complete(claimed.name, facts, claimed.created_at)
        return lambda number: bump(claimed.name, number)

    def _set_aside(self, fd: int, found: Survey) -> Recovered:
        """Keep the damaged file as `.bad`, and publish what is sound in front of the damage."""
        assert found.damage is not None, "nothing to set aside"  # noqa: S101
        bad = self._keep_as_bad()
        self._hide(fd)
        reason = f"kept as {bad.name}: {found.damage.reason} at byte {found.damage.offset}"
        cut_bytes = found.size_bytes - found.end
        if found.records == 0:
            self._remove(fd)
            return self._result(None, found, cut_bytes=found.size_bytes, reason=reason)
        self._write_sound_part(fd, found)
        source = self._claim.rewrite_path
        facts = _facts_of(found)
        placing = Placing(name=self._names_of(facts)(0), is_rewrite=True, facts=facts)
        prepare_placing(self._claim, placing, source, self._destination)
        return replace(self._resume(placing, fd), cut_bytes=cut_bytes, reason=reason)

    def _write_sound_part(self, fd: int, found: Survey) -> None:
        target = self._claim.rewrite_path
        durable.unlink(target)  # of an attempt that was cut
        writing = durable.create(target)
        try:
            publish.copy_prefix(fd, writing, found.end, self._path, target)
            durable.write_at(writing, found.trailer, found.end, target)
            durable.sync_data(writing, target)
        finally:
            durable.close(writing)

    def _keep_as_bad(self) -> Path:
        for number in range(REVISIONS_MAX):
            suffix = BAD_SUFFIX if number == 0 else f"{BAD_SUFFIX}.{number}"
            bad = self._path.with_name(self._path.name + suffix)
            try:
                publish.keep_as(self._path, bad)
            except FileExistsError:
                continue
            return bad
        raise ArchiveError(f"more than {REVISIONS_MAX} files named {self._path.name}{BAD_SUFFIX}")

    def _hide(self, fd: int) -> None:
        """It loses the name under which it was shown while it was written, if it was."""
        if self._claim.facts.live:
            shown = self._path.with_name(self._path.name.removesuffix(PART_SUFFIX))
            durable.remove(shown, durable.identity(fd, self._path))

    def _remove(self, fd: int) -> None:
        self._hide(fd)
        durable.remove(self._path, durable.identity(fd, self._path))
        self._claim.remove()

    def _result(
        self, published: str | None, found: Survey, *, cut_bytes: int, reason: str
    ) -> Recovered:
        return Recovered(
            path=self._path,
            published=published,
            records=found.records,
            cut_bytes=cut_bytes,
            reason=reason,
            first_ts_ns=found.first_ts_ns,
            last_ts_ns=found.last_ts_ns,
        )
