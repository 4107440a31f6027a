"""An archive of a topic on standard output (`nsq_to_file --output=-`).

Messages are done when their bytes are written, which for a pipe means that the kernel has them: whoever
reads may still lose them. When nobody reads any more the run ends, and what was not written goes back to
nsqd.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from nsqtools import durable
from nsqtools.archive.streaming import NAME, StreamWriter
from nsqtools.errors import StorageError
from nsqtools.observe.log import get_log
from nsqtools.outputs.contract import DONE, Again, Feeding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nsqtools.archive.streaming import StreamSpec
    from nsqtools.outputs.contract import Answer
    from nsqtools.outputs.workers import Workers
    from nsqtools.wire.messages import Messages

STDOUT, STDERR = 1, 2
# The end has been asked for; until it comes there is nothing to try.
_STANDS_S = 1.0


@contextlib.contextmanager
def taken_stdout() -> Iterator[int]:
    """Standard output as another descriptor, for the archive alone: what is printed meanwhile, such as by
    a function of the user, goes to standard error. Of the whole process. Raises `StorageError`."""
    with durable.storage("open", NAME):
        fd = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
    try:
        yield fd
    finally:
        sys.stdout.flush()
        os.dup2(fd, STDOUT)


class StreamOutput:
    """An `Output`; see `contract`. `on_broken` is called once, on the loop, when nothing can be written
    any more: the run is to end."""

    def __init__(
        self,
        spec: StreamSpec,
        workers: Workers,
        *,
        wait_s: float,
        on_broken: Callable[[StorageError], None],
        fd: int,
    ) -> None:
        self.feeding = Feeding(wait_s=wait_s)
        self._writer = StreamWriter(spec, fd)
        self._strand = workers.strand("standard output")
        self._on_broken = on_broken
        self._log = get_log("archive").bind(topic=spec.topic, channel=spec.channel)
        self._counts = {"written_bytes": 0, "ambiguous_messages": 0}

    async def open(self) -> None:
        """It is open."""

    async def deliver(self, messages: Sequence[Messages]) -> Answer:
        """Write; there is no second try."""
        try:
            written, ambiguous = await self._strand.call(lambda: self._writer.commit(messages))
        except StorageError as failure:
            self._broken(failure)
            return Again(_STANDS_S, str(failure), stands=True)
        if ambiguous and not self._counts["ambiguous_messages"]:
            self._log.warning(
                "a message holds a newline: as lines it cannot be told apart on replay; use"
                " --format=framed or jsonl",
            )
        self._counts["written_bytes"] += written
        self._counts["ambiguous_messages"] += ambiguous
        return DONE

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """Nothing is remembered: what comes again is written again."""

    def rotate(self) -> None:
        """A stream has one part."""

    def hurry(self) -> None:
        """What was delivered is being written already."""

    async def close(self) -> None:
        """Complete the stream; raises nothing, for another try would do no better."""
        try:
            await self._strand.call(self._writer.close)
        except StorageError as failure:
            self._broken(failure)

    async def abandon(self) -> None:
        """What is written is written."""

    def trouble(self) -> str:
        """Why nothing can be written."""
        return "" if self._writer.broken is None else str(self._writer.broken)

    def counts(self) -> Mapping[str, int]:
        """What was done since the start."""
        return self._counts

    def _broken(self, failure: StorageError) -> None:
        if not self.feeding.gives_back:
            self.feeding = replace(self.feeding, gives_back=True)
            self._on_broken(failure)
