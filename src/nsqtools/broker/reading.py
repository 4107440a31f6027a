"""Reading the log for channels that are behind: in threads, a piece ahead, and within bounds.

A reader asks for a number and gets the block that holds it, or `NotAtHand`: it is being read, and the
channel is told when it is there. Pieces are linked blocks; while one is delivered the next is read.
All channels together hold about `HELD_BYTES`: the more of them are behind, the shorter their pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from nsqtools.broker.segment import READ_BYTES
from nsqtools.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.broker.block import Block
    from nsqtools.broker.topic import Topic

    Read = Callable[[], Block | None]
    Found = Block | StorageError | None

HELD_BYTES = 64 << 20
READ_BYTES_MIN = 64 << 10
# Each of the channels holds the piece that it delivers and the one behind it.
_PIECES = 2


class NotAtHand(Exception):  # noqa: N818 - no error: it will be
    """A block is on its way from the disk; whoever wanted it is told."""


class Threads(Protocol):
    """What runs a read in a thread, and then `done` on the loop; or both at once."""

    def __call__(self, read: Read, done: Callable[[Found], None]) -> None: ...


def at_once(read: Read, done: Callable[[Found], None]) -> None:
    """Threads without a thread: for a log in memory."""
    try:
        found: Found = read()
    except StorageError as failure:
        found = failure
    done(found)


class Reading(NamedTuple):
    """How the logs of a broker are read: by whom, and how much at a time; `touched` is told that a
    topic's channels may have something to write."""

    threads: Threads
    share: Share
    touched: Callable[[Topic], None]


class Share:
    """How much of what is held each reader may have."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()

    def size_bytes(self, reader: Reader) -> int:
        """How much a reader may ask for at a time; from now on it counts."""
        self._readers.add(reader)
        return max(READ_BYTES_MIN, min(READ_BYTES, HELD_BYTES // (_PIECES * len(self._readers))))

    def give_back(self, reader: Reader) -> None:
        """It holds nothing any more."""
        self._readers.discard(reader)


class Reader:
    """Reads one log for one channel, forward with `ahead`, here and there without.

    `begin` gives what reads the linked blocks from a number on, about as many bytes as it is told;
    `told` is called on the loop when what was not at hand is so now, or cannot be had.
    """

    def __init__(
        self,
        begin: Callable[[int, int], Read],
        threads: Threads,
        share: Share,
        told: Callable[[], None],
        *,
        size_max_bytes: int = READ_BYTES,
        ahead: bool = True,
    ) -> None:
        self._begin = begin
        self._threads = threads
        self._share = share
        self._told = told
        self._size_max_bytes = size_max_bytes
        self._reads_ahead = ahead
        self._block: Block | None = None
        self._asked: int | None = None
        self._is_wanted = False
        self._is_asking = False
        self._is_ahead = False
        self._found: tuple[int, Found] | None = None

    def get(self, number: int) -> Block | None:
        """The block that holds `number`, or the first one behind it; None where there is none.

        Raises NotAtHand, and StorageError where the disk refused; the next call tries again.
        """
        block = self._at_hand(number)
        if block is not None:
            return block
        if self._found is None or self._found[0] != number:
            self._ask(number, is_wanted=True)
        if self._found is None or self._found[0] != number:
            raise NotAtHand
        found, self._found = self._found[1], None
        if isinstance(found, StorageError):
            raise found
        self._block = found
        if found is not None and self._reads_ahead:
            self._ask(_last_of(found).end, is_wanted=False)
        return found

    def drop(self) -> None:
        """Nothing is wanted for now: hold nothing."""
        self._block = self._found = None
        self._share.give_back(self)

    def _at_hand(self, number: int) -> Block | None:
        block = self._block
        if block is None or number < block.first:
            return None
        while block is not None and block.end <= number:
            block = block.next
        self._block = block
        return block

    def _ask(self, number: int, *, is_wanted: bool) -> None:
        self._is_wanted |= is_wanted
        if self._asked is not None:
            return
        self._asked, self._is_ahead = number, not is_wanted
        size_bytes = min(self._size_max_bytes, self._share.size_bytes(self))
        self._is_asking = True
        self._threads(self._begin(number, size_bytes), self._done)
        self._is_asking = False

    def _done(self, found: Found) -> None:
        number, self._asked = self._asked, None
        is_wanted, self._is_wanted = self._is_wanted, False
        # That there was nothing yet says nothing about now, also when it came to be wanted meanwhile.
        if number is not None and (found is not None or not self._is_ahead):
            self._found = (number, found)
        if is_wanted and not self._is_asking:
            self._told()


def _last_of(block: Block) -> Block:
    while block.next is not None:
        block = block.next
    return block
