"""The dead letters of a run: a folder of archives, or a topic."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from nsqtools.archive.naming import FileNaming, host_identifier
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveSpec
from nsqtools.client.producer import Producer
from nsqtools.errors import ArchiveError
from nsqtools.outputs.file.folders import prepare_folder
from nsqtools.outputs.file.leftovers import Leftovers
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.http.dead_letter import DeadLetter, DeadLetterArchive, DeadLetterTopic
from nsqtools.outputs.workers import Workers
from nsqtools.wire.names import is_valid_name

if TYPE_CHECKING:
    from types import TracebackType

    from nsqtools.programs.nsq_to_http.options import NsqToHttpOptions

FILENAME_FORMAT = "<TOPIC>.<HOST><REV>.<DATETIME>.jsonl"
DATETIME_FORMAT = "%Y-%m-%d_%H"


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


class DeadLetters:
    """What the dead letters of all topics share; leaving the block lets go of it.

    Entering raises StorageError for a folder that cannot be written.
    """

    def __init__(self, options: NsqToHttpOptions) -> None:
        self._options = options
        self._exits = AsyncExitStack()
        self._producers: list[Producer] = []

    async def __aenter__(self) -> Self:
        options = self._options
        self.workers = Workers()
        self._exits.callback(self.workers.close)
        if (folder := options.dead_letter_dir) is not None:
            await asyncio.to_thread(prepare_folder, folder)
            self._leftovers = Leftovers(folder, self.workers)
            rest = asyncio.create_task(self._leftovers.finish_rest(set(options.topic)))
            self._exits.push_async_callback(_cancel, rest)
        for address in self._addresses():
            producer = Producer(address, options.producer())
            self._producers.append(await self._exits.enter_async_context(producer))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    def of(self, topic: str) -> DeadLetter | None:
        """That of a topic; None where none is wanted. Raises ArchiveError for a name that cannot be."""
        options = self._options
        if options.dead_letter_topic:
            name = options.dead_letter_topic_of(topic)
            if not is_valid_name(name) or name == topic:
                raise ArchiveError(f"topic {topic}: its dead letter topic cannot be {name!r}")
            return DeadLetterTopic(name, self._producers)
        if options.dead_letter_dir is None:
            return None
        archive = FileOutput(
            self._spec(topic), self.workers, sync_interval_s=0.0, leftovers=self._leftovers
        )
        return DeadLetterArchive(archive)

    def _addresses(self) -> tuple[str, ...]:
        options = self._options
        if not options.dead_letter_topic:
            return ()
        return options.dead_letter_nsqd_tcp_address or options.nsqd_tcp_address

    def _naming(self) -> FileNaming:
        return FileNaming(
            host=host_identifier(""),
            filename_format=FILENAME_FORMAT,
            datetime_format=DATETIME_FORMAT,
            utc=True,
        )

    def _spec(self, topic: str) -> ArchiveSpec:
        options = self._options
        folder = options.dead_letter_dir
        if folder is None:
            raise ValueError("there is no folder of dead letters")
        naming = self._naming()
        return ArchiveSpec(
            topic=topic,
            channel=options.channel,
            host=naming.host,
            output_dir=folder,
            work_dir=folder,
            naming=naming,
            record_format="jsonl",
            compression="none",
            level=None,
            rotation=RotationPolicy(),
        )
