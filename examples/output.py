"""An output of your own: every message of a topic, in capitals, at the end of one file.

python examples/output.py --topic=TOPIC --nsqd-tcp-address=127.0.0.1:4150 --into=/tmp/shouts

Signals, logs, `--status-address`, options from the environment and `--help` come with it.
"""

# ruff: noqa: RUF009 - option() makes a dataclass field

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nsqtools.cli.base import Program
from nsqtools.ending import INTERRUPTED
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.log import configure
from nsqtools.options import FOLDER, option
from nsqtools.outputs.contract import DONE, Again, Answer, Feeding, Refused
from nsqtools.outputs.workers import Workers
from nsqtools.pipeline.options import ConsumingOptions, channel_option
from nsqtools.pipeline.run import Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from nsqtools.wire.messages import Messages


@dataclass(frozen=True, kw_only=True)
class ShoutOptions(ConsumingOptions):
    """What every consuming tool can be told, and where this one writes."""

    program: ClassVar[str] = "shout"
    channel: str = channel_option("shout")
    into: Path = option(FOLDER, default="/tmp", help="folder of the files")  # noqa: S108


class Shout:
    """Of one topic: a hundred messages at once, or what has come in half a second."""

    feeding = Feeding(wait_s=0.5, messages_max=100)

    def __init__(self, topic: str, into: Path, workers: Workers) -> None:
        self._path = into / topic
        self._strand = workers.strand(topic)
        self._shouted = 0

    def counts(self) -> dict[str, int]:
        return {"shouted_messages": self._shouted}

    def trouble(self) -> str:
        return ""

    async def open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        bodies = [body for one in messages for body in one.bodies]
        lines = [body.upper() + b"\n" for body in bodies if body]
        try:
            await self._strand.call(lambda: self._append(b"".join(lines)))
        except OSError as failure:
            return Again(1.0, str(failure), stands=True)
        self._shouted += len(lines)
        return [DONE if body else Refused("nothing to shout") for body in bodies]

    def _append(self, text: bytes) -> None:
        """In a thread of the strand."""
        with self._path.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """A message that is delivered again stands in the file twice."""

    def rotate(self) -> None:
        """There is one file for ever."""

    def hurry(self) -> None:
        """Every delivery is short."""

    async def close(self) -> None:
        """Nothing is open between deliveries."""

    async def abandon(self) -> None:
        """The same."""


async def run(options: ShoutOptions) -> int:
    configure(options.log_level, options.log_prefix, log_format=options.log_format)
    async with Lifecycle(options.shutdown_timeout_s) as life:
        workers = Workers()
        shouting = Run(options, lambda topic: Shout(topic, options.into, workers), done="shouted")
        try:
            return 0 if await shouting.run(life) else INTERRUPTED
        finally:
            workers.close()


if __name__ == "__main__":
    Program(
        name="shout",
        headline="messages in capitals",
        summary="Write messages in capitals to a file a topic.",
        options="__main__:ShoutOptions",
        run="__main__:run",
        examples=(),
    ).main()
