"""A topic: takes messages, writes them to its log, and hands them to its channels.

`pumped` is nsqd's topic pump as a number: messages before it belong to the channels, those behind it
wait in the topic. It stands still while the topic is paused or has no channel; so the first channel
gets what waited, and a later one only what comes after it (spec: tcp-protocol, part 7).

Publishing is a group commit: what publishers bring within one turn of the loop becomes one block and
one write; then all of them are answered.
"""

from __future__ import annotations

import contextlib
import json
import logging
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.broker.block import build_block
from nsqtools.broker.channel import Channel
from nsqtools.broker.data_path import named_in
from nsqtools.broker.journal import ChannelState, Journal
from nsqtools.broker.log import DiskLog
from nsqtools.broker.memory import Memory, MemoryLog
from nsqtools.broker.publishing import Publish, runs_of
from nsqtools.broker.reading import Reader, at_once
from nsqtools.broker.segment import READ_BYTES
from nsqtools.broker.topic_folder import (
    CHANNEL_SUFFIX,
    DELETED_SUFFIX,
    STATE_FILE,
    read_state,
    remove_folder,
)
from nsqtools.errors import StorageError
from nsqtools.wire.bodies import measured
from nsqtools.wire.names import is_ephemeral

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nsqtools.broker.alarms import Alarms
    from nsqtools.broker.files import OpenFiles
    from nsqtools.broker.memory import MemoryBudget, Room
    from nsqtools.broker.options import NsqdOptions
    from nsqtools.broker.publishing import Answer, Answers
    from nsqtools.broker.reading import Read, Reading
    from nsqtools.wire.bodies import Bodies


log = logging.getLogger("nsqtools.broker.topic")

EXITING = "exiting"


class Topic:
    """See the module. All methods run on the broker's loop, but for `sync`.

    `now_ns` gives wall time in nanoseconds, `now_s` monotonic seconds; `files` bounds what is open;
    `defer` runs a function in the thread that syncs files; `changed` is told when a channel appears or
    goes; `budget` bounds what all topics keep in memory, `reading` is how they are read from disk;
    `alarms` say which channels are to be looked at; `copies` bounds what channels copy, and what an
    ephemeral topic holds.
    """

    def __init__(
        self,
        name: str,
        folder: Path | None,
        options: NsqdOptions,
        *,
        now_ns: Callable[[], int],
        now_s: Callable[[], float],
        files: OpenFiles,
        defer: Callable[[Callable[[], None]], object],
        changed: Callable[[str], None],
        budget: MemoryBudget,
        reading: Reading,
        alarms: Alarms,
        copies: Room,
    ) -> None:
        self.name = name
        self.folder = folder
        self.ephemeral = is_ephemeral(name)
        self.channels: dict[str, Channel] = {}
        self.paused = False
        self.message_count = 0
        self.message_bytes = 0
        self.dropped_count = 0
        self.unsynced_count = 0
        self.exiting = False
        self._holds = 0
        self.now_s = now_s
        self._options = options
        self._now_ns = now_ns
        self._files = files
        self._defer = defer
        self._changed = changed
        self._budget = budget
        self._reading = reading
        self.alarms = alarms
        self.copies = copies
        self._waiting: list[Publish] = []
        self._uncounted: list[tuple[int, int]] = []
        # What is not on the disk: the folder's name, the state, journals of new channels.
        self._is_placed = False
        self._unsaved: bytes | None = None
        self._new_journals: list[Journal] = []
        self.log: DiskLog | MemoryLog
        if folder is None:
            self.log = MemoryLog(now_ns() // 1_000_000, copies)
        else:
            self.log = self._open_log(folder)
        self.pumped = self._saved_pumped = self.log.start
        if folder is not None:
            self._load_state(folder)

    @property
    def depth(self) -> int:
        """Messages that wait in the topic itself, for a channel or for the end of a pause."""
        return self.log.count(self.pumped, self.committed)

    @property
    def committed(self) -> int:
        """Messages before this number are as safe as was promised, and may be delivered."""
        if self._options.durable and isinstance(self.log, DiskLog):
            return self.log.confirmed_end
        return self.log.end

    @property
    def backend_depth(self) -> int:
        memory_start = self.log.memory_start
        return self.log.count(self.pumped, memory_start) if self.pumped < memory_start else 0

    # Publishing

    def put(self, bodies: Bodies, delay_ms: int, answer: Answer) -> None:
        """Take messages; `answer` is called with None once they are written, or with why not.

        The caller sees to it that `commit` runs within this turn of the loop.
        """
        self._waiting.append(Publish(bodies, delay_ms, answer))

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def commit(self) -> Answers:
        """Write what was put; gives the answers, which are due now or after a sync."""
        waiting, self._waiting = self._waiting, []
        answers: Answers = []
        for run in runs_of(waiting):
            error = EXITING if self.exiting else self._append(run.bodies, run.delay_ms)
            answers += [(answer, error) for answer in run.answers]
        return answers

    def pump(self) -> None:
        """Hand what waits to the channels, unless there is none or the topic is paused."""
        first, end = self.pumped, self.committed
        if self.paused or self._holds or not self.channels or first == end:
            return
        self.pumped = end
        for channel in list(self.channels.values()):
            channel.pumped(first, end)
        if isinstance(self.log, MemoryLog):
            self._bound(self.log)

    def hold(self) -> None:
        """Keep what is published in the topic until `release`."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1
        if not self.exiting:
            self.pump()

    # Channels

    def channel(self, name: str) -> Channel:
        """The channel of that name, made when it is missing. Raises StorageError."""
        channel = self.channels.get(name)
        if channel is None:
            state = ChannelState(self._first_for_new())
            journal = self._journal(name)
            if journal is not None and isinstance(self.log, DiskLog):
                journal.create(state)
                self._new_journals.append(journal)
                self.log.name_changed()
            channel = self._add(name, state, journal)
            log.info("TOPIC(%s): new channel(%s)", self.name, name)
            self._changed(self.name)
            self.pump()
        return channel

    def delete_channel(self, name: str) -> None:
        """Raises StorageError; then nothing has changed."""
        channel = self.channels[name]
        channel.journal.remove()
        del self.channels[name]
        channel.discard()
        if isinstance(self.log, DiskLog):
            self.log.name_changed()
        self._save_state()
        log.info("TOPIC(%s): deleting channel(%s)", self.name, name)
        self._changed(self.name)

    def reader(
        self, told: Callable[[], None], *, size_max_bytes: int = READ_BYTES, ahead: bool = True
    ) -> Reader:
        """What reads the log from disk for a channel, which may have something to write then."""

        def begin(number: int, size_bytes: int) -> Read:
            end = self.committed
            return lambda: self.log.read(number, size_bytes, end)

        def told_and_kept() -> None:
            if not self.exiting:
                told()
                self._reading.touched(self)

        threads = self._reading.threads if isinstance(self.log, DiskLog) else at_once
        share = self._reading.share
        return Reader(
            begin, threads, share, told_and_kept, size_max_bytes=size_max_bytes, ahead=ahead
        )

    # Administration

    def pause(self, *, paused: bool) -> None:
        self.paused = paused
        self._save_state()
        self.pump()

    def empty(self) -> None:
        """Drop what waits in the topic; the channels keep theirs. Raises StorageError."""
        first, self.pumped = self.pumped, self.committed
        for channel in self.channels.values():
            channel.void(first, self.pumped)
        # The channels first: what they were not told to pass over would be theirs to deliver.
        self.flush()
        for channel in self.channels.values():
            channel.journal.check()
        self._save_state()

    # What is on the disk

    @property
    def wants_sync(self) -> bool:
        """Whether there is anything that is not on the disk."""
        if not isinstance(self.log, DiskLog):
            return False
        return self.log.wants_sync or bool(self._new_journals) or self._unsaved is not None

    def sync(self) -> None:
        """Bring everything to the disk. For the syncing thread; raises StorageError."""
        if not isinstance(self.log, DiskLog) or self.folder is None:
            return
        if not self._is_placed:
            durable.fsync_directory(self.folder.parent)
            self._is_placed = True
        for journal in list(self._new_journals):
            journal.sync()
            self._new_journals.remove(journal)
        # Before the state, which a full disk refuses: only what is sealed can go, and make room.
        self.log.sync()
        unsaved = self._unsaved
        if unsaved is not None:
            durable.replace_file(self.folder / STATE_FILE, unsaved)
            if self._unsaved is None:  # deleted meanwhile: the folder may be that of a new topic
                durable.unlink(self.folder / STATE_FILE)
            elif self._unsaved is unsaved:
                self._unsaved = None

    def confirm(self) -> None:
        """A sync of all that was committed has succeeded."""
        self._uncounted.clear()
        self.unsynced_count = 0
        if isinstance(self.log, DiskLog):
            self.log.confirm()

    def roll_back(self) -> None:
        """A sync has failed: what was committed since the last `confirm` is taken back."""
        for messages, size_bytes in self._uncounted:
            self.message_count -= messages
            self.message_bytes -= size_bytes
        self._uncounted.clear()
        if isinstance(self.log, DiskLog):
            self.log.roll_back()

    def leave_doubtful(self) -> None:
        """Let the next sync write anew what an earlier one failed for. Raises StorageError."""
        if isinstance(self.log, DiskLog) and not self.exiting:
            self.log.leave_doubtful()

    def keep_pumped(self) -> bool:
        """Keep how far ephemeral channels alone have come, which no journal does: a channel that comes
        after a restart is not to get it all again. Whether there is something to be kept."""
        if self.folder is None or self.pumped == self._saved_pumped or self._has_journals:
            return False
        self._save_state()
        return True

    def floor(self) -> int:
        """The first message that is still needed."""
        return min([self.pumped, *(channel.floor() for channel in self.channels.values())])

    def flush(self) -> None:
        """Write the channels' journals. Raises StorageError."""
        for channel in self.channels.values():
            channel.journal.flush()

    def close(self) -> None:
        """Stop: nothing is taken any more; one more `sync` brings everything to the disk.

        Raises StorageError for what the disk refused.
        """
        self.exiting = True
        self._refuse_waiting()
        self._save_state()
        with contextlib.ExitStack() as all_of_it:
            # Each of these is done, even when one before it has failed.
            if isinstance(self.log, DiskLog):
                all_of_it.callback(self.log.close)
            for channel in self.channels.values():
                channel.disconnect()
                all_of_it.callback(channel.close)

    def remove(self) -> None:
        """Delete the topic with everything that it holds. Raises StorageError; then nothing has changed.

        The folder is out of the way at once, so that the name is free; the files go in the syncing
        thread. `sweep` does what a crash in between leaves.
        """
        gone = None
        if self.folder is not None and isinstance(self.log, DiskLog):
            gone = self.folder.with_name(f"{self.folder.name}.{self.log.end}{DELETED_SUFFIX}")
            with durable.storage("rename", self.folder):
                self.folder.rename(gone)
            self._unsaved = None
        self.log.discard()
        self.exiting = True
        self._refuse_waiting()
        for name in list(self.channels):
            channel = self.channels.pop(name)
            channel.discard()
            with contextlib.suppress(StorageError):  # its folder has gone
                channel.journal.remove()
        if gone is not None:
            self._defer(lambda: remove_folder(gone))

    # Inside

    def _bound(self, log: MemoryLog) -> None:
        """A log in memory is no longer than twice what waits or is held, with what may wait."""
        room = self._options.mem_queue_size
        if log.count(log.start, log.end) > 2 * room:
            self._shorten(log, room)

    def _shorten(self, log: MemoryLog, room: int) -> None:
        """Let go of what nobody needs. Where that is no less than the rest, and `room` more messages, it
        is not held by that: the channels keep copies. So each message is copied once at most."""
        log.trim(self.floor())
        channels = self.channels.values()
        needed = room + self.depth + sum(channel.uncopied for channel in channels)
        if log.held_count >= max(1, 2 * needed):
            for channel in channels:
                channel.carry_over(self.pumped)
            log.trim(self.floor())

    def _first_for_new(self) -> int:
        """Where a new channel begins."""
        return self.log.start if self._options.start_from == "oldest" else self.pumped

    def _open_log(self, folder: Path) -> DiskLog:
        options = self._options
        with durable.storage("make directory", folder):
            is_new = not folder.is_dir()
            if is_new:
                folder.mkdir(0o770)
        try:
            disk = DiskLog(
                folder,
                memory=Memory(max(1, options.mem_queue_size), self._budget),
                segment_size_max_bytes=options.max_bytes_per_file,
                now_ms=self._now_ns() // 1_000_000,
                files=self._files,
                defer=self._defer,
            )
            if is_new and disk.refused is not None:
                raise disk.refused
            return disk
        except StorageError:
            if is_new:  # a restart would find the topic that was refused
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    def _save_state(self) -> None:
        """Keep what the channels' journals do not know, with the next sync."""
        self._saved_pumped = self.pumped
        pumped = self.pumped if self.paused or not self._has_journals else None
        state = {"version": 1, "paused": self.paused, "pumped": pumped}
        self._unsaved = json.dumps(state).encode()

    @property
    def _has_journals(self) -> bool:
        """Whether any channel would be here after a restart."""
        return not all(channel.ephemeral for channel in self.channels.values())

    def _refuse_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for publish in waiting:
            publish.answer(EXITING)

    def _load_state(self, folder: Path) -> None:
        for name in named_in(folder, CHANNEL_SUFFIX):
            self._load_channel(name, folder / f"{name}{CHANNEL_SUFFIX}")
        state = read_state(folder / STATE_FILE)
        self.paused = bool(state.get("paused"))
        pumped = state.get("pumped")
        held = self.paused or not self.channels
        if held and isinstance(pumped, int):
            self.pumped = self._saved_pumped = min(max(pumped, self.log.start), self.log.end)
        elif not held:
            self.pumped = self.log.end

    def _load_channel(self, name: str, path: Path) -> None:
        journal = Journal(path, self._files)
        state, cut_bytes = journal.load()
        if journal.is_blank:
            log.error(
                "a channel's journal says nothing, the channel gets all that the log has path=%s",
                path,
            )
        elif cut_bytes:
            log.warning("a channel's journal was cut path=%s cut_bytes=%d", path, cut_bytes)
        state.cursor = min(max(state.cursor, self.log.start), self.log.end)
        self._add(name, state, journal)

    def _add(self, name: str, state: ChannelState, journal: Journal | None) -> Channel:
        limited = self.ephemeral or is_ephemeral(name)
        channel = Channel(
            name,
            self,
            state=state,
            journal=journal,
            depth_max=self._options.mem_queue_size if limited else None,
            max_msg_timeout_s=self._options.max_msg_timeout_s,
        )
        self.channels[name] = channel
        return channel

    def _journal(self, name: str) -> Journal | None:
        if self.folder is None or is_ephemeral(name):
            return None
        return Journal(self.folder / f"{name}{CHANNEL_SUFFIX}", self._files)

    def _append(self, bodies: Bodies, delay_ms: int) -> str | None:
        kept = self._fitting(bodies, self.log) if isinstance(self.log, MemoryLog) else bodies
        count = len(bodies.each)
        if kept is not None:
            now_ns = self._now_ns()
            due_ns = now_ns + delay_ms * 1_000_000 if delay_ms else 0
            try:
                self.log.append(build_block(self.log.end, kept, now_ns, due_ns))
            except StorageError as failure:
                return str(failure)
            self.unsynced_count += len(kept.each)
        self.message_count += count
        self.message_bytes += bodies.size_bytes
        if self._options.durable:
            self._uncounted.append((count, bodies.size_bytes))
        return None

    def _fitting(self, bodies: Bodies, log: MemoryLog) -> Bodies | None:
        """What of them an ephemeral topic takes; the others are dropped."""
        count = left = len(bodies.each)
        if self.paused or not self.channels:
            left = min(count, max(0, self._options.mem_queue_size - self.depth))
        if not self._has_room(log):
            left = 0
        self.dropped_count += count - left
        if left == count:
            return bodies
        return measured(bodies.each[:left]) if left else None

    def _has_room(self, log: MemoryLog) -> bool:
        if not self.copies.left_bytes:
            self._shorten(log, 0)
        return self.copies.left_bytes > 0
