"""Files of the spool that no output has in hand: of runs that ended, and those that were too many.

A topic does not wait for them. Before it is consumed only the key files are told what is in them, so that
no message is written twice; they are uploaded beside everything else, for as long as that takes, and for
ever where the store refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.claims import Claim, foreign_folders
from nsqtools.archive.dead_keys import KeyFiles, remove_old
from nsqtools.archive.recovery import claims_by_topic, recover
from nsqtools.clock import SystemClock
from nsqtools.errors import NsqToolsError, StorageError
from nsqtools.observe.log import Repeated, get_log
from nsqtools.outputs.file.leftovers import run_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nsqtools.archive.destination import Destination
    from nsqtools.archive.recovery import Recovered
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.outputs.s3.destination import StoreDestination
    from nsqtools.outputs.workers import Strand, Workers

log = get_log("spool")

# Topics whose files are uploaded at once.
TOPICS_MAX = 4
# How soon is looked again whether something waits, and how long a file that failed is left alone.
LOOK_S = 1.0
AGAIN_S = 30.0
_IN_HAND = "somebody else has the file in hand: another nsqtools"


class Backlog:
    """Of one spool, shared by the outputs of a process. `destination` is that of this run; files that are
    for another bucket go there, by `open_destination`."""

    def __init__(
        self,
        spool_dir: Path,
        workers: Workers,
        destination: StoreDestination,
        *,
        open_destination: Callable[[str], StoreDestination],
        hook: PublishHook | None = None,
    ) -> None:
        self.files = 0
        """Files that were uploaded."""
        self.key_files = KeyFiles(spool_dir)
        self._spool_dir = spool_dir
        self._workers = workers
        self._destination = destination
        self._open_destination = open_destination
        self._hook = hook
        self._lock = threading.Lock()
        # Under the lock.
        self._claims: dict[str, list[Path]] = {}
        self._others: list[tuple[str, Path]] = []
        self._others_at_s = 0.0
        self._reasons: dict[str, str] = {}
        self._scanning = asyncio.Lock()
        self._is_scanned = False
        self._busy: dict[str, Strand] = {}
        self._troubles: dict[str, Repeated] = {}

    # What an output asks

    async def finish(self, topic: str) -> int:
        """Return when the key files are told what is in the topic's files; gives how many wait.

        Raises StorageError.
        """
        await self._scan()
        return self.failed_of(topic)

    def left(self, topic: str, claim: Path) -> None:
        """A file is let go of by its writer. From any thread."""
        with self._lock:
            self._claims.setdefault(topic, []).append(claim)

    def abandoned(self, topic: str) -> None:
        """An output has let go of all its files as a crash would: the folder is read again."""
        self._is_scanned = False
        self.key_files.look_again()

    def failed_of(self, topic: str) -> int:
        """How many files of a topic wait."""
        return len(self._claims.get(topic, ()))

    def trouble_of(self, topic: str) -> str:
        """Why files of a topic cannot be uploaded; nothing when none has failed."""
        return self._reasons.get(topic, "")

    @property
    def waiting(self) -> int:
        """How many files wait."""
        with self._lock:
            return sum(map(len, self._claims.values()))

    # Uploading

    async def run(self) -> None:
        """Upload what waits, for ever. Cancelling it leaves the rest to the next start."""
        slots = asyncio.Semaphore(TOPICS_MAX)
        while True:
            with contextlib.suppress(StorageError):  # told when a topic is opened
                await self._scan()
            if self._others and time.monotonic() >= self._others_at_s:
                async with self._scanning:
                    await self._workers.background.strand("backlog").call(self._look_at_others)
            with self._lock:
                topics = [topic for topic, claims in self._claims.items() if claims]
            if topics and not self._destination.opens_in_s:
                async with asyncio.TaskGroup() as group:
                    for topic in topics:
                        group.create_task(self._upload_topic(topic, slots))
            await asyncio.sleep(max(LOOK_S, self._destination.opens_in_s, self._stands_s()))

    def _stands_s(self) -> float:
        """How long to leave what failed alone, when it is not the store that fails all."""
        failed = any(self._reasons.values())
        return AGAIN_S if failed and not self._destination.trouble else 0.0

    async def settle(self, timeout_s: float) -> None:
        """When `run` was cancelled: wait for the files that are being uploaded, no longer than this."""
        calls = [asyncio.ensure_future(one.call(lambda: None)) for one in self._busy.values()]
        if calls:
            await asyncio.wait(calls, timeout=timeout_s)
            for call in calls:
                call.cancel()

    async def _upload_topic(self, topic: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            with self._lock:
                claims = list(self._claims.get(topic, ()))
            strand = self._workers.background.strand(f"backlog of {topic}")
            self._busy[topic] = strand
            for claim in claims:
                if self._destination.opens_in_s:
                    break
                await self._try_to_upload(strand, topic, claim)
            del self._busy[topic]  # not when it is cancelled: `settle` waits for it

    async def _try_to_upload(self, strand: Strand, topic: str, claim: Path) -> None:
        try:
            await strand.call(partial(self._upload, topic, claim))
        except Exception as fault:
            logging.getLogger("nsqtools.outputs").error(
                "a fault in nsqtools topic=%s", topic, exc_info=fault
            )
            self._note(topic, claim, f"{type(fault).__name__}: {fault}")

    def _upload(self, topic: str, claim: Path) -> None:
        """In a worker's thread."""
        found = next(self._recovered(claim, self._open_destination), None)
        if found is None:
            # Somebody else has it in hand for now (`nsqtools spool upload`), or it is gone.
            self._note(topic, claim, _IN_HAND if durable.is_taken(claim) else "")
            return
        self._note(topic, claim, found.reason if found.failed else "")
        if not found.failed:
            self.files += found.published is not None
            self._abort_cut(found)
            _tell(topic, found)
            if self._hook is not None:
                run_hook(self._hook, found)

    def _recovered(
        self, claim: Path, open_destination: Callable[[str], Destination]
    ) -> Iterator[Recovered]:
        return recover(
            self._spool_dir,
            claims=[claim],
            key_files=self.key_files,
            open_destination=open_destination,
        )

    def _abort_cut(self, found: Recovered) -> None:
        if found.published is not None and found.claimed is not None:
            destination = self._open_destination(found.claimed.destination)
            destination.abort_cut_uploads(found.name, found.stored_bytes)

    def _note_keys(self, found: dict[str, list[Path]]) -> None:
        """Only what `recover` does where the destination is not there: the key files are told. What
        somebody has in hand, another archiver or an output of ours, is left out of `found`."""
        others = []
        for topic, claims in found.items():
            free = []
            for claim in claims:
                if next(self._recovered(claim, _later), None) is not None:
                    free.append(claim)
                else:
                    others.append((topic, claim))
            claims[:] = free
        with self._lock:
            self._others = others

    def _look_at_others(self) -> None:
        """Whoever had them in hand may have been killed since."""
        self._others_at_s = time.monotonic() + AGAIN_S
        held, free = [], []
        for topic, claim in self._others:
            if _is_held(claim):
                held.append((topic, claim))
            elif durable.is_taken(claim):
                free.append((topic, claim))
        if free:
            self.key_files.look_again()  # theirs may be newer than our list
        with self._lock:
            self._others = held
        for topic, claim in free:
            if claim not in self._claims.get(topic, ()):
                self.left(topic, claim)

    def _note(self, topic: str, claim: Path, failed: str) -> None:
        trouble = self._troubles.setdefault(
            topic,
            Repeated(log, "a file of the spool cannot be uploaded now", clock=SystemClock()),
        )
        self._reasons[topic] = failed
        if failed:
            trouble.failed(failed, topic=topic)
            return
        trouble.recovered("files of the spool are uploaded again", topic=topic)
        with self._lock:
            self._claims[topic].remove(claim)
            if not self._claims[topic]:
                del self._claims[topic]

    async def _scan(self) -> None:
        async with self._scanning:
            if self._is_scanned:
                return
            strand = self._workers.background.strand("backlog")
            found = await strand.call(lambda: claims_by_topic(self._spool_dir))
            # Before the first of them is uploaded: a file that is being uploaded is locked.
            await strand.call(lambda: self._note_keys(found))
            await strand.call(lambda: remove_old(self._spool_dir, SystemClock().time()))
            for folder in await strand.call(lambda: foreign_folders(self._spool_dir)):
                log.warning(
                    "another user's claims of files are in the spool: they are for a run of that user"
                    " to upload, or for us after a chown of the folder and the files",
                    path=folder,
                )
            with self._lock:
                for topic, claims in found.items():
                    known = self._claims.setdefault(topic, [])
                    known += [claim for claim in claims if claim not in known]
            self._is_scanned = True


def _tell(topic: str, found: Recovered) -> None:
    facts = {
        "topic": topic or "-",
        "channel": found.channel or "-",
        "path": found.path,
        "published": found.published or "-",
        "records": found.records,
        "cut_bytes": found.cut_bytes,
        "reason": found.reason,
    }
    if found.published is None or found.cut_bytes:
        log.warning("a file of a run that did not end", **facts)
    else:
        log.info("uploaded from the spool", **facts)


def _is_held(claim: Path) -> bool:
    try:
        adopted = Claim.adopt(claim)
    except NsqToolsError:
        return False  # uploading it will say what is wrong
    if adopted is None:
        return durable.is_taken(claim)
    adopted.close()
    return False


def _later(_description: str) -> Destination:
    raise StorageError("upload from", "the spool", OSError("later"))
