"""One archive file while it is written: `<name>.part`, claimed, durable up to `size_bytes`.

    append*  ->  seal            (discard, when nothing was ever appended)

Every step can be called again after it raised `StorageError`: `append` cuts the file back to what
is durable before anything else, `seal` goes on where it was. What becomes of a sealed file is in
`archive.finishing`.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from nsqtools import durable, publish
from nsqtools.archive.claims import Claim
from nsqtools.archive.destination import FileFacts
from nsqtools.archive.files import PART_SUFFIX
from nsqtools.archive.object_names import is_open
from nsqtools.errors import StorageError
from nsqtools.wire.payloads import PAYLOAD_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from nsqtools.archive.claims import ClaimFacts
    from nsqtools.archive.groups import Container, Group
    from nsqtools.digest import Digest
    from nsqtools.wire.messages import Messages


class Extent:
    """The messages of a file that were published first and last, as the beginnings of their payloads,
    which sort by time."""

    def __init__(self) -> None:
        self._ends: list[bytes] = []

    def add(self, messages: Messages) -> None:
        if len(messages):
            ends = (*self._ends, *messages.ends())
            self._ends = [min(ends), max(ends)]

    def added_to(self, facts: FileFacts) -> FileFacts:
        """The facts with times and ids."""
        if not self._ends:
            return facts
        (first_ts, _, first_id), (last_ts, _, last_id) = map(PAYLOAD_HEADER.unpack, self._ends)
        return replace(
            facts,
            first_ts_ns=first_ts,
            last_ts_ns=last_ts,
            first_id=first_id.decode("latin-1"),
            last_id=last_id.decode("latin-1"),
        )


class PartFile:
    """The file and what is known of it. `stem` and `revision` are what its name was made from.

    `opened_at`, `last_commit_at` and `closes_at`, when it ends though its name stays (None: never), are
    on the clock that never goes back (`Clock.monotonic`).
    `commits_end` is where the last commit ends; what seals the file stands behind it.
    """

    def __init__(
        self,
        *,
        fd: int,
        path: Path,
        claim: Claim,
        container: Container,
        stem: str,
        revision: int,
        now: float,
        closes_at: float | None = None,
        digest: Digest | None = None,
    ) -> None:
        self.path = path
        self.claim = claim
        self.container = container
        self.stem = stem
        self.revision = revision
        self.opened_at = now
        self.last_commit_at = now
        self.closes_at = closes_at
        self.size_bytes = 0
        self.commits_end = 0
        self.records = 0
        self.groups = 0
        self.content_bytes = 0
        self._extent = Extent() if claim.facts.manifest or is_open(claim.facts.name) else None
        self.is_sealed = False
        self.fd = fd
        self._identity: tuple[int, int] | None = None
        self._has_garbage = False
        self._digest = digest

    @classmethod
    def create(
        cls,
        *,
        work_dir: Path,
        path: Path,
        facts: ClaimFacts,
        container: Container,
        stem: str,
        revision: int,
        now: float,
        closes_at: float | None = None,
        digest: Digest | None = None,
    ) -> PartFile | None:
        """Claim and create the file; None when the name is taken since it was looked for.

        The claim is durable before the file is there; the file's name is with the first `append`.
        `digest` is told what is written.
        """
        claim = Claim.take(work_dir, facts)
        try:
            fd = durable.create(path)
        except BaseException as error:
            _give_up(claim)
            if isinstance(error, FileExistsError):
                return None
            raise
        file = cls(
            fd=fd,
            path=path,
            claim=claim,
            container=container,
            stem=stem,
            revision=revision,
            now=now,
            closes_at=closes_at,
            digest=digest,
        )
        try:
            claim.mark_created()
            if facts.live:
                publish.show(path, file.live_path)
        except BaseException as error:
            with contextlib.suppress(StorageError):
                file.discard()
            file.close()
            if isinstance(error, FileExistsError):
                return None
            raise
        return file

    @property
    def live_path(self) -> Path:
        """Where it is shown while it is written, if it is."""
        return self.path.with_name(self.path.name.removesuffix(PART_SUFFIX))

    @property
    def facts(self) -> FileFacts:
        """What the file holds; some message must be in it."""
        first_ts_ns, last_ts_ns = self.container.time_range_ns or (None, None)
        facts = FileFacts(
            size_bytes=self.size_bytes,
            records=self.records,
            first_ts_ns=first_ts_ns,
            last_ts_ns=last_ts_ns,
            content_bytes=self.content_bytes,
        ).with_sums(self._digest)
        return facts if self._extent is None else self._extent.added_to(facts)

    def note(self, batches: Sequence[Messages]) -> None:
        """Messages were appended: remember the first and the last of them, for the manifest."""
        if self._extent is not None:
            for messages in batches:
                self._extent.add(messages)

    @property
    def unique(self) -> str:
        """What no other file has, nor ever had."""
        return self.claim.unique

    def append(
        self, groups: Sequence[Group], now: float, before: Callable[[int, int], None] | None = None
    ) -> int:
        """Write one commit; returns the bytes it took, when they and the name are durable.

        `before` is called with where it begins and ends, before it is written, when nothing stands
        there.
        """
        self._cut_garbage()
        data = self.container.encode(groups)
        if self.size_bytes == 0:
            data = self.container.file_header + data
        if before is not None:
            before(self.size_bytes, self.size_bytes + len(data))
        self._write(data)
        self.container.keep()
        self.commits_end = self.size_bytes
        self.records += sum(group.records for group in groups)
        self.groups += len(groups)
        self.content_bytes += sum(len(group.content) for group in groups)
        self.last_commit_at = now
        return len(data)

    def seal(self) -> None:
        """Complete the file; nothing can be appended after this."""
        if self.is_sealed:
            return
        trailer = self.container.trailer()
        if trailer or self._has_garbage:
            self._write(trailer)
        self.is_sealed = True

    def _write(self, data: bytes | bytearray) -> None:
        self._cut_garbage()
        try:
            durable.write_at(self.fd, data, self.size_bytes, self.path)
            durable.sync_data(self.fd, self.path)
            if self.size_bytes == 0:
                durable.fsync_directory(self.path.parent)
            self._check_place()
        except BaseException:
            self._cut_back()
            raise
        self.size_bytes += len(data)
        if self._digest is not None:
            self._digest.later(data)

    def catch_up(self) -> None:
        """Do what nobody has to wait for: the checksums of what was written."""
        if self._digest is not None:
            self._digest.catch_up()

    def _cut_garbage(self) -> None:
        if self._has_garbage:
            durable.truncate(self.fd, self.size_bytes, self.path)
            self._has_garbage = False

    def _check_place(self) -> None:
        if self.is_lost():
            gone = OSError(errno.ENOENT, "the file was moved or removed while it was written")
            raise StorageError("write", self.path, gone)

    def is_lost(self) -> bool:
        """Whether somebody took the file away from its name."""
        if self._identity is None:
            self._identity = durable.identity(self.fd, self.path)
        return not durable.is_at(self.path, self._identity)

    def _cut_back(self) -> None:
        self._has_garbage = True
        with contextlib.suppress(StorageError):
            durable.truncate(self.fd, self.size_bytes, self.path)
            self._has_garbage = False

    def discard(self) -> None:
        """Remove the file, in which nothing was committed, and its claim."""
        assert self.size_bytes == 0, "discarded with commits in it"  # noqa: S101
        file = durable.identity(self.fd, self.path)
        if self.claim.facts.live:
            durable.remove(self.live_path, file)
        durable.remove(self.path, file)
        self.claim.remove()
        self.close()

    def close(self) -> None:
        """Close the file and let go of its claim, leaving both as they are."""
        self.claim.close()
        if self.fd >= 0:
            durable.close(self.fd)
            self.fd = -1


def _give_up(claim: Claim) -> None:
    with contextlib.suppress(StorageError):
        claim.remove()
    claim.close()
