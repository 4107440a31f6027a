"""An archive in a store without a spool: nothing is acknowledged before its object is confirmed.

Messages gather in memory, where the consumer has them anyway, until there is enough for an object, or
the oldest has waited long enough, or no more can come because all that may be in flight is there. The
pipeline holds and touches them until the store has confirmed the object. What a kill cuts off, or an
outage beyond nsqd's --max-msg-timeout, comes again, and may then stand in the store twice. Messages that
nsqd has taken back are taken out of the object in the making, and one that has no others is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.destination import FileFacts
from nsqtools.archive.manifest import manifest_name, manifest_of
from nsqtools.archive.naming import first_free
from nsqtools.archive.object_names import name_when_complete
from nsqtools.archive.part_file import Extent
from nsqtools.archive.streaming import StreamWriter
from nsqtools.clock import SystemClock
from nsqtools.errors import DataPathInUse, NsqToolsError, StorageError
from nsqtools.observe.log import get_log
from nsqtools.outputs.contract import DONE, Again, Feeding
from nsqtools.outputs.file.hook import published_file
from nsqtools.outputs.trouble import Trouble
from nsqtools.wire.messages import count_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nsqtools.archive.destination import About, Destination
    from nsqtools.archive.object_names import TopicObjectNaming
    from nsqtools.archive.rotation import RotationPolicy
    from nsqtools.archive.streaming import StreamSpec
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.file.hook import PublishHook
    from nsqtools.outputs.workers import Workers
    from nsqtools.wire.messages import Messages

# The oldest message of an object waits so long, unless --rotate-interval says another.
INTERVAL_S = 60.0
# All that may be in flight is there, or nearly: nothing more is coming.
_WINDOW_SHARE = 0.9
# More than this may be all that the consumer can hold: then it is quiet, and the object is uploaded.
_QUIET_BYTES = 8 << 20
_QUIET_S = 1.0
SCRATCH_PREFIX, SCRATCH_SUFFIX = "nsq_to_s3-", ".object"
_SCRATCH = re.compile(f"{SCRATCH_PREFIX}[a-z0-9_]{{8}}{re.escape(SCRATCH_SUFFIX)}", re.ASCII)
_COUNTS = ("disk_bytes", "files", "ambiguous_messages", "failures", "unanswered_messages")
# At the end of a run what stands goes back to nsqd at once.
_NOT_NOW = Again(1.0, "the run ends", stands=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSpec:
    """What to write for one topic. `window` is how many messages may be in flight; `scratch_dir` is where
    an object is a file while it is uploaded."""

    stream: StreamSpec
    about: About
    manifest: bool
    naming: TopicObjectNaming
    rotation: RotationPolicy
    window: int
    sync_interval_s: float
    scratch_dir: Path


@dataclass(slots=True)
class Making:
    """An object in the making."""

    about: About
    created_at_s: float
    batches: list[Messages] = field(default_factory=list)
    messages: int = 0
    size_bytes: int = 0
    answers: dict[asyncio.Future[Answer], int] = field(default_factory=dict)
    """Who waits for it, and with how many messages."""
    ends: list[asyncio.TimerHandle] = field(default_factory=list)

    def add(self, messages: Sequence[Messages]) -> None:
        self.batches += messages
        self._count(messages, 1)

    def take_out(self, messages: Sequence[Messages]) -> None:
        """What was added by one call."""
        gone = set(map(id, messages))
        self.batches = [each for each in self.batches if id(each) not in gone]
        self._count(messages, -1)

    def _count(self, messages: Sequence[Messages], sign: int) -> None:
        self.messages += sign * count_messages(messages)
        self.size_bytes += sign * sum(each.size_bytes for each in messages)


class DirectOutput:
    """An `Output`; see `contract`, and the module."""

    def __init__(
        self,
        spec: DirectSpec,
        workers: Workers,
        destination: Destination,
        *,
        hook: PublishHook | None = None,
    ) -> None:
        self._interval_s = spec.rotation.rotate_interval_s or INTERVAL_S
        self.feeding = Feeding(
            wait_s=min(spec.sync_interval_s, _QUIET_S),
            deliveries_max=spec.window,
            gives_back=True,
            lets_go=True,
            holds_s=self._interval_s,
        )
        self._spec = spec
        self._destination = destination
        self._hook = hook
        self._strand = workers.background.strand(f"objects of {spec.about.topic}")
        self._log = get_log("archive").bind(topic=spec.about.topic, channel=spec.about.channel)
        self._trouble = Trouble(
            self._log, "an object cannot be uploaded", "objects are uploaded again"
        )
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._making: Making | None = None
        self._uploads: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._clock = SystemClock()
        spec.naming.stem(self._clock.time())

    async def open(self) -> None:
        """There is nothing to find: what was not uploaded comes again."""

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        """Returns when the object that these messages are in is in the store."""
        if self._ending.is_set():
            return _NOT_NOW
        loop = asyncio.get_running_loop()
        making = self._making
        if making is None:
            about = replace(self._spec.about, unique=secrets.token_hex(16))
            making = self._making = Making(about, self._clock.time())
            making.ends.append(loop.call_later(self._interval_s, self._end, making))
        making.add(messages)
        answer: asyncio.Future[Answer] = loop.create_future()
        making.answers[answer] = count_messages(messages)
        self._end_if_large(making, loop)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._making is making:
                making.take_out(messages)
                del making.answers[answer]
            raise

    def _end_if_large(self, making: Making, loop: asyncio.AbstractEventLoop) -> None:
        rules = self._spec.rotation
        is_full = making.messages >= _WINDOW_SHARE * self._spec.window
        is_large = 0 < rules.rotate_size_bytes <= making.size_bytes
        if is_full or is_large or 0 < rules.rotate_records <= making.messages:
            self._end(making)
            return
        idle_s = rules.rotate_idle_s
        if making.size_bytes >= _QUIET_BYTES:
            idle_s = min(idle_s or _QUIET_S, _QUIET_S)
        if idle_s:
            for timer in making.ends[1:]:
                timer.cancel()
            making.ends[1:] = [loop.call_later(idle_s, self._end, making)]

    def _end(self, making: Making) -> None:
        """Nothing is added any more: it is uploaded."""
        if self._making is not making:
            return
        self._making = None
        for timer in making.ends:
            timer.cancel()
        task = asyncio.get_running_loop().create_task(self._upload(making))
        self._uploads.add(task)
        task.add_done_callback(self._uploads.discard)

    async def _upload(self, making: Making) -> None:
        """Until it is there, however long that takes."""
        answer: Answer = _NOT_NOW
        try:
            while any(not waiter.done() for waiter in making.answers):
                failure = await self._try_to_place(making)
                if failure is None:
                    self._trouble.over()
                    self._count_late(making)
                    answer = DONE
                    break
                self._counts["failures"] += 1
                delay_s = self._trouble.failed(failure)
                if self._ending.is_set():
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._ending.wait()
            else:
                if making.answers and not self._ending.is_set():
                    self._log.warning(
                        "given up: nsqd has taken the messages back", messages=making.messages
                    )
        finally:
            for waiter in making.answers:
                if not waiter.done():
                    waiter.set_result(answer)

    def _count_late(self, making: Making) -> None:
        """Nobody waits any more for messages that nsqd has taken back while they were on their way."""
        late = sum(messages for waiter, messages in making.answers.items() if waiter.done())
        if late:
            self._counts["unanswered_messages"] += late
            self._log.warning(
                "stored when nsqd had taken the messages back: they come again", messages=late
            )

    async def _try_to_place(self, making: Making) -> NsqToolsError | None:
        """Why it is not there, or None."""
        try:
            await self._strand.call(partial(self._place, making))
        except NsqToolsError as failure:
            return failure
        except Exception as fault:
            logging.getLogger("nsqtools.outputs").error(
                "a fault in nsqtools topic=%s", self._spec.about.topic, exc_info=fault
            )
            return NsqToolsError(f"a fault in nsqtools: {type(fault).__name__}: {fault}")
        return None

    # In a worker's thread

    def _place(self, making: Making) -> None:
        with self._written(making) as (path, facts):
            names = name_when_complete(
                self._spec.naming.stem(making.created_at_s), facts, making.created_at_s
            )
            name = self._place_file(path, names, facts, making.about)
            if self._spec.manifest:
                self._place_manifest(name, facts, making.about)
        self._counts["files"] += 1
        self._counts["disk_bytes"] += facts.size_bytes
        location = self._destination.location(name)
        self._log.info("finished", path=location, messages=facts.records, bytes=facts.size_bytes)
        if self._hook is not None:
            self._hook.published(published_file(location, making.about, facts), _ignore)

    def _place_file(
        self, path: Path, names: Callable[[int], str], facts: FileFacts, about: About
    ) -> str:
        """Under the first name that is free; gives that."""
        number = 0
        while True:
            try:
                self._destination.place(path, names(number), facts, about)
            except FileExistsError:
                number = first_free(number + 1, lambda at: self._destination.is_taken(names(at)))
            else:
                self._destination.confirm(names(number), facts, is_placed=True)
                return names(number)

    def _place_manifest(self, name: str, facts: FileFacts, about: About) -> None:
        """In the place of one of an earlier try."""
        said = manifest_of(about, facts).encode()
        self._destination.put_mark(manifest_name(name), said)

    @contextlib.contextmanager
    def _written(self, making: Making) -> Iterator[tuple[Path, FileFacts]]:
        """The object as a file, for as long as the block."""
        try:
            fd, name = tempfile.mkstemp(
                prefix=SCRATCH_PREFIX, suffix=SCRATCH_SUFFIX, dir=self._spec.scratch_dir
            )
        except OSError as error:
            raise StorageError("create a file in", self._spec.scratch_dir, error) from error
        path = Path(name)
        try:
            durable.lock_file(fd, path)  # see `remove_dead`
            writer = StreamWriter(self._spec.stream, fd, name)
            _, ambiguous = writer.commit(making.batches)
            writer.close()
            yield path, _facts_of(making, path, writer.content_bytes)
            self._counts["ambiguous_messages"] += ambiguous
        finally:
            durable.close(fd)
            with contextlib.suppress(StorageError):  # the next start removes it
                durable.unlink(path)

    # On the loop

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """Nothing is remembered: what comes again is written again."""

    def rotate(self) -> None:
        """Upload what there is."""
        if self._making is not None:
            self._end(self._making)

    def hurry(self) -> None:
        """What is on its way is tried once more; what is in the making is uploaded now."""
        self.rotate()
        self._ending.set()

    async def close(self) -> None:
        """Wait for what is on its way."""
        self.hurry()
        if self._uploads:
            await asyncio.wait(self._uploads)

    async def abandon(self) -> None:
        """What is not there comes again."""
        for task in self._uploads:
            task.cancel()

    def trouble(self) -> str:
        """Why nothing can be uploaded."""
        return self._trouble.reason

    def counts(self) -> Mapping[str, int]:
        """What was done since the start."""
        return self._counts


def remove_dead(scratch_dir: Path) -> None:
    """Remove what runs that were killed have left there: whoever lives has its own locked. Blocks."""
    for path in map(
        scratch_dir.joinpath, filter(_SCRATCH.fullmatch, durable.names_in(scratch_dir))
    ):
        with contextlib.suppress(OSError, StorageError, DataPathInUse):
            if not path.is_file() or path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            fd = durable.open_existing(path)
            try:
                durable.lock_file(fd, path)
                path.unlink(missing_ok=True)
            finally:
                durable.close(fd)


def _ignore(_went_well: bool) -> None:
    """The hook itself tells of what fails."""


def _facts_of(making: Making, path: Path, content_bytes: int) -> FileFacts:
    extent = Extent()
    for each in making.batches:
        extent.add(each)
    facts = FileFacts(
        size_bytes=durable.size_of(path),
        records=making.messages,
        first_ts_ns=None,
        last_ts_ns=None,
        content_bytes=content_bytes,
    )
    return replace(extent.added_to(facts), sha256=durable.sha256_of(path))
