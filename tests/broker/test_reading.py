"""Reading the log in threads: whoever is told finds what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nsqtools.broker.block import Block, build_block
from nsqtools.broker.reading import NotAtHand, Reader, Share
from nsqtools.wire.bodies import measured

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.broker.reading import Found, Read


class OneAtATime:
    """Threads whose reads end when the test says so."""

    def __init__(self) -> None:
        self._pending: list[tuple[Read, Callable[[Found], None]]] = []

    def __call__(self, read: Read, done: Callable[[Found], None]) -> None:
        self._pending.append((read, done))

    def finish(self) -> None:
        read, done = self._pending.pop(0)
        done(read())


def test_what_was_written_while_it_was_read_ahead_is_found() -> None:
    log = [build_block(0, measured([b"a"]), 1)]
    threads, told = OneAtATime(), []

    def begin(number: int, size_bytes: int) -> Callable[[], Block | None]:
        there = list(log)
        return lambda: next((block for block in there if block.end > number), None)

    reader = Reader(begin, threads, Share(), lambda: told.append(reader))
    with pytest.raises(NotAtHand):
        reader.get(0)
    threads.finish()
    assert reader.get(0) is log[0]  # and what is behind it is read: nothing yet
    log.append(build_block(1, measured([b"b"]), 1))
    with pytest.raises(NotAtHand):
        reader.get(1)
    threads.finish()
    assert told == [reader, reader]
    with pytest.raises(NotAtHand):
        reader.get(1)
    threads.finish()
    assert reader.get(1) is log[1]
