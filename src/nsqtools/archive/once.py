"""Each message once: those that an archive has already, and that nsqd delivers again, are found.

A message comes again for three reasons (spec: tools, part 4; client-behaviour, part 6). Its FIN was on
its way when the connection or we ended; it timed out while we held it; or nsqd was killed, and reads
what it had delivered once more. In the first two cases nsqd says so (attempts above 1); in the third it
does not, but these messages come first after the connection was made anew. So as long as nothing
happens nothing is looked up, and what has to be remembered is little: what was committed last of each
nsqd, and what may still come after a connection or a run has ended.

A key that is known is in the archive: what has it is a second copy, however late it comes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.dead_keys import KeyFiles, taken_over
from nsqtools.archive.keys import KEY_BYTES, KeyFile, Keys
from nsqtools.errors import StorageError
from nsqtools.wire.messages import PartedMessages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from nsqtools.wire.messages import Messages

# Messages that may still come, of all nsqds of a topic; beyond that those known longest are forgotten.
AWAITED_MAX = 10_000
# How many messages of an nsqd are looked up, though it says that they are new, after we or a connection
# to it began anew: it reads at most 2,500 again, and what it had in memory (nsqd's --sync-every).
WATCHED = 20_000
_COLLECTED = 64


class Recent:
    """The keys committed last of one nsqd, at least `keys_max` of them where there are so many."""

    def __init__(self, keys_max: int) -> None:
        self.count = 0
        self._keys_max = keys_max
        self._chunks: deque[Keys] = deque()
        self._times: dict[bytes, int] | None = None

    def add(self, keys: Keys) -> None:
        self._chunks.append(keys)
        self.count += len(keys)
        while self._chunks and self.count - len(self._chunks[0]) >= self._keys_max:
            self.drop_first()
        self._times = None

    def drop_first(self) -> int:
        """Gives how many there are fewer."""
        dropped = len(self._chunks.popleft())
        self.count -= dropped
        self._times = None
        return dropped

    def times(self) -> dict[bytes, int]:
        """The publish time of each id."""
        if self._times is None:
            self._times = {one: time for keys in self._chunks for one, time in keys.pairs()}
        return self._times

    def chunks(self) -> Sequence[Keys]:
        return self._chunks


class OnceOnly:
    """See the module. Blocking, for one thread.

    `keys_max` is how many messages nsqd can have in flight to this writer, twice: as many FINs may be
    lost. A key file in the work folder keeps what is needed after a kill.
    """

    def __init__(self, work_dir: Path, topic: str, channel: str, keys_max: int) -> None:
        self.forgotten = 0
        """Keys that did not fit while their messages could still come, and FINs that were refused when
        the key was gone already: nsqd had sent far more than it was asked for, to a process that stood
        still."""
        self._work_dir = work_dir
        self._topic = topic
        self._channel = channel
        self._keys_max = keys_max
        self._recent: dict[str, Recent] = {}
        self._recent_count = 0
        self._awaited: dict[str, dict[bytes, int]] = {}
        self._awaited_count = 0
        self._watched: dict[str, int] = {}
        self._file: KeyFile | None = None
        self._is_open = False

    def open(self, key_files: KeyFiles | None = None) -> None:
        """Take over what writers of this topic and channel left that are gone; `key_files` are those of
        the work folder, where many topics share a look at them. Raises `StorageError`; after that it can
        be called again."""
        if self._is_open:
            return
        with contextlib.ExitStack() as locked:
            taken: list[Path] = []
            files = key_files or KeyFiles(self._work_dir)
            for path in files.of(self._topic, self._channel):
                left = locked.enter_context(taken_over(path))
                if left is not None:
                    if not left.is_awaiting:  # one that recovery could not read is read again
                        taken.append(path)
                    for keys in left.known:
                        self._await(keys.nsqd, keys.pairs())
                        self._watched[keys.nsqd] = WATCHED
            if taken:
                self._begin()
                for path in taken:
                    durable.unlink(path)
        self._is_open = True

    def _begin(self) -> KeyFile:
        """A key file of our own, or another half of it, with what is known."""
        file = self._file
        if file is None:
            half_bytes = 2 * KEY_BYTES * (2 * self._keys_max + AWAITED_MAX)
            file = KeyFile.create(self._work_dir, self._topic, self._channel, half_bytes)
        try:
            file.begin(self._remembered())
        except BaseException:
            if self._file is None:
                self._discard(file)
            raise
        self._file = file
        return file

    def close(self) -> None:
        """Let go of the key file; the next writer of this topic and channel takes it over."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # What comes

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """A message of this nsqd, or, with None, whatever was committed of it lately, even as new."""
        recent = self._recent.get(nsqd)
        if message_id is not None:
            time = None if recent is None else recent.times().get(message_id)
            if time is not None:
                self._await(nsqd, [(message_id, time)])
            elif message_id not in self._awaited.get(nsqd, ()):
                self.forgotten += 1
            return
        if recent is not None:
            self._await(nsqd, recent.times().items())
            self._recent_count -= self._recent.pop(nsqd).count
        if self._awaited.get(nsqd):
            self._watched[nsqd] = WATCHED

    def new_of(self, batches: Sequence[Messages]) -> Sequence[Messages]:
        """The messages that the archive does not have; the batches themselves where that is all."""
        doubtful = {each.nsqd for each in batches if self._is_doubtful(each)}
        if not doubtful:
            return batches
        kept: list[Messages] = []
        seen: dict[str, dict[bytes, int]] = {nsqd: {} for nsqd in doubtful}
        for each in batches:
            found = self._without_known(each, seen[each.nsqd]) if each.nsqd in doubtful else each
            if len(found):
                kept.append(found)
        return kept

    def _is_doubtful(self, messages: Messages) -> bool:
        return messages.nsqd in self._watched or messages.same_attempts != 1

    def _without_known(self, messages: Messages, seen: dict[bytes, int]) -> Messages:
        nsqd = messages.nsqd
        awaited = self._awaited.get(nsqd, {})
        recent = self._recent[nsqd].times() if nsqd in self._recent else {}
        siblings = messages.are_siblings if isinstance(messages, PartedMessages) else ()
        new: list[int] = []
        again: list[tuple[bytes, int]] = []
        is_new = True
        for at, key in enumerate(zip(messages.ids, messages.timestamps, strict=True)):
            if not (siblings and siblings[at]):  # those made of one message have one key
                one, time = key
                is_new = time not in (awaited.get(one), recent.get(one), seen.get(one))
                if is_new:
                    seen[one] = time
                else:
                    again.append(key)
            if is_new:
                new.append(at)
        if not again:
            return messages
        self._came(nsqd, awaited, again)
        return messages.pick(new)

    def _came(
        self, nsqd: str, awaited: dict[bytes, int], again: Sequence[tuple[bytes, int]]
    ) -> None:
        """They are answered once more, and that answer may be lost, too."""
        mine = list(dict.fromkeys(key for key in again if awaited.get(key[0]) == key[1]))
        for one, _ in mine:
            del awaited[one]
        self._awaited_count -= len(mine)
        if mine:
            self._remember(Keys.from_pairs(nsqd, mine))

    # What is committed

    def note(self, unique: str, keys: Sequence[Keys], start: int, end: int) -> None:
        """Note keys before their commit is written into a file. Raises `StorageError`."""
        file = self._file or self._begin()
        if not file.commit(unique, start, end, keys):
            file = self._begin()
            if not file.commit(unique, start, end, keys):
                self.forgotten += sum(map(len, keys))

    def failed(self, unique: str, start: int) -> None:
        """The commit that was to begin there failed. What of it is in the file may never reach the disk,
        whatever is read back: it does not count."""
        if self._file is not None:
            with contextlib.suppress(StorageError):  # the next one to begin there says the same
                if not self._file.void(unique, start):
                    self._begin()  # in which nothing stands of it

    def committed(self, keys: Sequence[Keys]) -> None:
        """The commit is durable."""
        for one in keys:
            self._remember(one)
            if self._watched:
                self._came_new(one.nsqd, len(one))

    def _came_new(self, nsqd: str, count: int) -> None:
        watched = self._watched.get(nsqd, 0) - count
        if watched > 0:
            self._watched[nsqd] = watched
        else:
            self._watched.pop(nsqd, None)

    def sealed(self, unique: str, end: int) -> None:
        """Nothing is appended to a file any more. Raises `StorageError`."""
        file = self._file
        if file is not None and not file.whole(unique, end):
            self._begin()  # with all that was committed into it

    # Inside

    def _remember(self, keys: Keys) -> None:
        recent = self._recent.get(keys.nsqd)
        if recent is None:
            recent = self._recent[keys.nsqd] = Recent(self._keys_max)
        before = recent.count
        recent.add(keys)
        self._recent_count += recent.count - before
        # A little less at once: with many nsqds it must not be done for each of them.
        if self._recent_count > 2 * self._keys_max:
            self._bound_recent(2 * self._keys_max * 7 // 8)

    def _bound_recent(self, keys_max: int) -> None:
        """Of several nsqds together twice as many as of one: they share what may be in flight. First goes
        what is not the newest of those that have more than the others."""
        share = keys_max // len(self._recent)
        for recent in self._recent.values():
            while recent.count > share and len(recent.chunks()) > 1:
                if self._recent_count <= keys_max:
                    return
                self._recent_count -= recent.drop_first()
        for nsqd in list(self._recent):
            if self._recent_count <= keys_max:
                return
            self._recent_count -= self._recent.pop(nsqd).count

    def _await(self, nsqd: str, pairs: Iterable[tuple[bytes, int]]) -> None:
        awaited = self._awaited.setdefault(nsqd, {})
        before = len(awaited)
        awaited.update(pairs)
        self._awaited_count += len(awaited) - before
        while (excess := self._awaited_count - AWAITED_MAX) > 0:
            largest = max(self._awaited.values(), key=len)
            some = list(islice(largest, min(excess, len(largest) // 2 + 1)))
            for one in some:  # one by one the search for the first would be most of it
                del largest[one]
            self._awaited_count -= len(some)
            self.forgotten += len(some)

    def _remembered(self) -> Iterator[Keys]:
        """What a half begins with: what was committed last comes first, should not all of it fit."""
        for recent in self._recent.values():
            yield from _joined(recent.chunks())
        for nsqd, awaited in self._awaited.items():
            if awaited:
                yield Keys.from_pairs(nsqd, awaited.items())

    def _discard(self, file: KeyFile) -> None:
        file.close()
        with contextlib.suppress(StorageError):
            durable.unlink(file.path)


def _joined(chunks: Iterable[Keys]) -> Iterator[Keys]:
    """Chunks of one nsqd in fewer, larger ones."""
    listed = list(chunks)
    for at in range(0, len(listed), _COLLECTED):
        some = listed[at : at + _COLLECTED]
        ids, times = (b"".join(column) for column in zip(*[one[1:] for one in some], strict=True))
        yield Keys(some[0].nsqd, ids, times)
