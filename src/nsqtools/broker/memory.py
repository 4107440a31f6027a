"""The newest messages of every topic, in memory: so many a topic, and so many bytes altogether; and the
log of an ephemeral topic, which is there only.

What is dropped is read from disk by whoever still needs it. Dropping a block cuts its link, so that a
slow reader never keeps the chain alive.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

from nsqtools.broker.block import Block
from nsqtools.broker.segment import READ_BYTES

NUMBERS_PER_MS_BITS = 20
NO_BOUND = 1 << 64
# Stands in the place of a block that was dropped, until its place goes, too.
_DROPPED = Block(0, b"", [0], 0)


class MemoryBudget:
    """Bytes in memory over all topics; beyond it the oldest block goes, whosever it is.

    The newest block stays, however large.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._blocks: OrderedDict[Block, Memory] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """What is in memory."""
        return self._bytes

    def add(self, block: Block, memory: Memory) -> None:
        """Count the newest block of a topic, and make room for it."""
        self._blocks[block] = memory
        self._bytes += block.cost_bytes
        while self._bytes > self._bytes_max and len(self._blocks) > 1:
            # The oldest of all is the oldest of its topic, too.
            next(iter(self._blocks.values())).drop_first()

    def remove(self, block: Block) -> None:
        del self._blocks[block]
        self._bytes -= block.cost_bytes


class Room:
    """Bytes that may be held over all topics, for one purpose; whoever holds them counts them here."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0

    @property
    def left_bytes(self) -> int:
        return max(0, self.bytes_max - self.held_bytes)


class Memory:
    """The newest blocks of a topic, linked: no more messages than `messages_max`, or one block.

    The budget, which is for all topics, may drop any of them but the newest of all.
    """

    def __init__(self, messages_max: int, budget: MemoryBudget) -> None:
        self._messages_max = messages_max
        self._budget = budget
        self._blocks: list[Block] = []
        self._head = 0
        self._messages = 0

    def __len__(self) -> int:
        """How many messages there are, with those that nobody needs in a block that somebody does."""
        return self._messages

    @property
    def first(self) -> int | None:
        return self._blocks[self._head].first if self._head < len(self._blocks) else None

    def append(self, block: Block) -> None:
        if self._head < len(self._blocks):
            self._blocks[-1].next = block
        self._blocks.append(block)
        self._messages += len(block)
        while self._head < len(self._blocks) - 1 and self._messages > self._messages_max:
            self.drop_first()
        self._budget.add(block, self)

    def drop_before(self, floor: int) -> None:
        while self._head < len(self._blocks) and self._blocks[self._head].end <= floor:
            self.drop_first()

    def drop_from(self, number: int) -> None:
        """Forget the blocks that begin with `number` or behind it."""
        while self._head < len(self._blocks) and self._blocks[-1].first >= number:
            block = self._blocks.pop()
            self._messages -= len(block)
            self._budget.remove(block)
            block.end = block.first  # who holds it already finds nothing in it
        if self._head < len(self._blocks):
            self._blocks[-1].next = None

    def find(self, number: int) -> Block | None:
        at = bisect_right(self._blocks, number, lo=self._head, key=lambda block: block.first) - 1
        if at < self._head or number >= self._blocks[at].end:
            return None
        return self._blocks[at]

    def drop_first(self) -> None:
        """Forget the oldest block; there must be one."""
        block = self._blocks[self._head]
        block.next = None
        self._messages -= len(block)
        self._budget.remove(block)
        self._blocks[self._head] = _DROPPED
        self._head += 1
        if self._head > 64 and self._head * 2 > len(self._blocks):
            del self._blocks[: self._head]
            self._head = 0


class MemoryLog:
    """The log of an ephemeral topic: nothing on disk; its channels bound what is kept."""

    def __init__(self, now_ms: int, room: Room) -> None:
        self._budget = MemoryBudget(NO_BOUND)
        self._memory = Memory(NO_BOUND, self._budget)
        self._room = room
        self._end = now_ms << NUMBERS_PER_MS_BITS
        self._start = self._end

    @property
    def start(self) -> int:
        return self._start

    @property
    def end(self) -> int:
        return self._end

    @property
    def memory_start(self) -> int:
        return self._start

    @property
    def size_bytes(self) -> int:
        return 0

    @property
    def held_count(self) -> int:
        """How many messages are in memory; blocks go as a whole."""
        return len(self._memory)

    def append(self, block: Block) -> None:
        self._memory.append(block)
        self._room.held_bytes += block.cost_bytes
        self._end = block.end

    def in_memory(self, number: int) -> Block | None:
        return self._memory.find(number)

    def read(
        self, number: int, size_bytes: int = READ_BYTES, before: int = NO_BOUND
    ) -> Block | None:
        return self._memory.find(number)

    def following(self, number: int) -> int:
        return number

    def count(self, first: int, end: int) -> int:
        return end - first

    def number_at(self, time_ns: int) -> int | None:
        """The first message that was published at this time or later; None where there is none."""
        block = self._memory.find(self._start)
        while block is not None and block.timestamp_ns < time_ns:
            block = block.next
        return None if block is None else max(block.first, self._start)

    def trim(self, floor: int) -> None:
        before_bytes = self._budget.size_bytes
        self._memory.drop_before(floor)
        self._room.held_bytes -= before_bytes - self._budget.size_bytes
        self._start = max(self._start, floor)

    def discard(self) -> None:
        """The topic is deleted."""
        self.trim(self._end)
