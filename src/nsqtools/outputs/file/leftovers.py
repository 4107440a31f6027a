"""What runs that did not end left in a work folder: finished topic by topic, each before its topic flows.

Other topics do not wait for it. What a run left of topics that are not archived any more is finished
as well. A file that cannot be finished now is told, and tried again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nsqtools.archive.claims import foreign_folders
from nsqtools.archive.dead_keys import KeyFiles, remove_old
from nsqtools.archive.recovery import claims_by_topic, recover
from nsqtools.clock import SystemClock
from nsqtools.errors import StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.file.hook import PublishedFile

if TYPE_CHECKING:
    from pathlib import Path

    from nsqtools.archive.claims import ClaimFacts
    from nsqtools.archive.recovery import Recovered
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.outputs.workers import Workers

log = get_log("archive")

# How long a file that could not be finished is left alone.
AGAIN_S = 60.0


class Leftovers:
    """Of one work folder, shared by the outputs of a process."""

    def __init__(
        self, work_dir: Path, workers: Workers, *, hook: PublishHook | None = None
    ) -> None:
        self.key_files = KeyFiles(work_dir)
        """Those that there were when the claims were looked at."""
        self._hook = hook
        self._work_dir = work_dir
        self._workers = workers
        self._claims: dict[str, list[Path]] | None = None
        self._scanning = asyncio.Lock()
        self._busy: dict[str, asyncio.Lock] = {}
        self._told: set[Path] = set()
        self._abandoned: set[str] = set()

    def abandoned(self, topic: str) -> None:
        """This run has let go of a file of this topic: it is looked for at the next `finish`."""
        self._abandoned.add(topic)

    async def finish(self, topic: str) -> int:
        """Finish what was left of a topic; gives how many files could not be.

        Raises StorageError when the folder cannot be read. Cancelling it does not stop the file that
        is being finished.
        """
        claims = await self._scan()
        async with self._busy.setdefault(topic, asyncio.Lock()):
            strand = self._workers.background.strand(f"leftovers of {topic}")
            if topic in self._abandoned:
                await self._look_again(topic, claims)
            mine = claims.pop(topic, [])
            if not mine:
                return 0
            failed = mine  # whatever it raises
            try:
                failed = await strand.call(lambda: self._recover(topic, mine))
            finally:
                if failed:
                    claims[topic] = failed
            return len(failed)

    def trouble_of(self, topic: str) -> str:
        """What a topic's health says of it; nothing when all are finished."""
        failed = self.failed_of(topic)
        return f"{failed} files of a run that did not end are not finished" if failed else ""

    def failed_of(self, topic: str) -> int:
        """How many files of a topic could not be finished, or are still to be."""
        return len((self._claims or {}).get(topic, ()))

    async def finish_rest(self, besides: set[str]) -> None:
        """Finish what was left of all other topics, and try again what cannot be finished, for ever.

        Cancelling it leaves the rest to the next start.
        """
        trouble = Repeated(log, "the work folder cannot be read", clock=SystemClock())
        while True:
            try:
                claims = await self._scan()
                for topic in sorted(claims.keys() - besides):
                    await self.finish(topic)
            except StorageError as failure:
                trouble.failed(failure)
            else:
                trouble.recovered("the work folder can be read again")
            besides = set()
            await asyncio.sleep(AGAIN_S)

    async def _scan(self) -> dict[str, list[Path]]:
        async with self._scanning:
            if self._claims is None:
                strand = self._workers.background.strand("leftovers")
                self._claims = await strand.call(lambda: claims_by_topic(self._work_dir))
                await strand.call(lambda: remove_old(self._work_dir, SystemClock().time()))
                for folder in await strand.call(lambda: foreign_folders(self._work_dir)):
                    log.warning(
                        "another user's claims of unfinished files are there: they are for a run of"
                        " that user to finish, or for us after a chown of the folder and the files",
                        path=folder,
                    )
            return self._claims

    async def _look_again(self, topic: str, claims: dict[str, list[Path]]) -> None:
        """Look at the claims once for all topics that have let go of a file by now: a full disk makes all
        of them do so."""
        async with self._scanning:
            if topic not in self._abandoned:
                return  # the look for another topic was for this one, too
            abandoned, self._abandoned = self._abandoned, set()
            try:
                strand = self._workers.background.strand("leftovers")
                now = await strand.call(lambda: claims_by_topic(self._work_dir))
            except BaseException:
                self._abandoned |= abandoned
                raise
            self.key_files.look_again()
            for each in abandoned:
                claims[each] = now.get(each, [])

    def _recover(self, topic: str, claims: list[Path]) -> list[Path]:
        """In a worker's thread: gives the claims of the files that failed, twice: their topic is about to
        flow, and would write again what it cannot know to be in them."""
        return self._try_to_recover(topic, self._try_to_recover(topic, claims))

    def _try_to_recover(self, topic: str, claims: list[Path]) -> list[Path]:
        failed = []
        for claim in claims:
            is_new = claim not in self._told
            begun = _tell_begun if is_new else _tell_nothing
            for found in recover(
                self._work_dir, claims=[claim], key_files=self.key_files, begun=begun
            ):
                if found.failed:
                    failed.append(claim)
                if not found.failed or is_new:
                    _tell(topic, found)
                self._run_hook(found)
                self._told.add(claim)
        return failed

    def _run_hook(self, found: Recovered) -> None:
        if self._hook is not None:
            run_hook(self._hook, found)


def run_hook(hook: PublishHook, found: Recovered) -> None:
    """Have the command run for a file that recovery has published."""
    claimed = found.claimed
    if claimed is None or found.published is None:
        return
    file = PublishedFile(
        path=found.published,
        topic=claimed.topic,
        channel=claimed.channel,
        host=claimed.host,
        record_format=claimed.record_format,
        compression=claimed.compression,
        records=found.records,
        stored_bytes=found.stored_bytes,
        first_ts_ns=found.first_ts_ns,
        last_ts_ns=found.last_ts_ns,
    )
    hook.published(file, lambda _: None)


def _tell_begun(facts: ClaimFacts) -> None:
    log.info(
        "finishing a file of a run that did not end",
        topic=facts.topic,
        channel=facts.channel,
        name=facts.name,
    )


def _tell_nothing(_facts: ClaimFacts) -> None:
    """It was told when it was tried first."""


def _tell(topic: str, found: Recovered) -> None:
    what = "recovered a file of a run that did not end"
    if found.failed:
        what = "a file of a run that did not end cannot be finished now, and is tried again"
    elif found.published is None:
        what = "a file of a run that did not end is not published"
    log.warning(
        what,
        topic=topic or "-",
        channel=found.channel or "-",
        path=found.path,
        published=found.published or "-",
        records=found.records,
        cut_bytes=found.cut_bytes,
        reason=found.reason,
    )
