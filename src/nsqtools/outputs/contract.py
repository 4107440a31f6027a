"""What an output is: the one seam between what consumes and what keeps (see the package's docstring)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsqtools.wire.messages import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """How an output wants to be fed.

    A delivery holds at most `messages_max` messages and about `bytes_max` bytes (None: whatever there
    is); no message waits longer than `wait_s` seconds for others to join it; up to `deliveries_max`
    deliveries are under way at once. With `gives_back`, what was not delivered yet when the run
    ends, and what cannot go in then, goes back to nsqd at once; otherwise all of it is delivered, until
    the deadline of the end. With `lets_go` a delivery may take as long as nsqd leaves its messages with
    us: it is cancelled when one of them is taken back, its time being over or its connection gone. An
    output that gathers by itself holds a delivery for up to `holds_s` seconds before it does anything
    with it: so long one may be under way and nothing is wrong.
    """

    wait_s: float
    messages_max: int | None = None
    bytes_max: int | None = None
    deliveries_max: int = 1
    gives_back: bool = False
    lets_go: bool = False
    holds_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """It is where it should be, durably: FIN."""


@dataclass(frozen=True, slots=True)
class Again:
    """Not now: hold it, TOUCH it, and deliver it once more after `after_s` seconds.

    With `stands` the whole output stands still: nothing else is delivered meanwhile, and nsqd is
    asked for nothing (a full disk, an outage). Without, only these messages wait.
    """

    after_s: float
    reason: str
    stands: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Never, for this reason. The message is not lost: nsqd gets it back, to come again much later."""

    reason: str


@dataclass(frozen=True, slots=True)
class Removed:
    """It was not asked for: FIN, and counted as removed by that, not as delivered. It is the answer of
    the filters in front of an output (`pipeline.transforming`)."""

    by: str


Answer = Done | Again | Refused | Removed
DONE = Done()


class Output(Protocol):
    """Where the messages of one topic go. All methods are called on the loop.

    An output owns its errors: what can be expected to go wrong (a full disk, a status 503) is an
    answer, and the output itself tells of it in the log. What it raises all the same is told, with
    its traceback, and taken for `Again` with `stands`. Nothing it does ends another topic.
    """

    @property
    def feeding(self) -> Feeding:
        """How it wants to be fed; asked before each delivery."""

    def counts(self) -> Mapping[str, int]:
        """What it did since the start, by name (`files`, `disk_bytes`): for metrics and summaries.
        The names are always the same, the numbers only grow."""

    def trouble(self) -> str:
        """What does not work now although messages are answered; nothing when all is well. For health."""

    async def open(self) -> None:
        """Get ready, whatever time that takes; messages come only after it has returned.

        What it raises is told, and it is called again later.
        """

    async def deliver(self, messages: Sequence[Messages]) -> Answer | Sequence[Answer]:
        """Take messages, and answer for all of them, or for each, in their order.

        The columns belong to the caller: they are not to be changed, and not to be kept after the
        answer. Cancelling it must leave what was delivered either whole or not there.
        """

    def may_come_again(self, nsqd: str, message_id: bytes | None) -> None:
        """What was done may be delivered once more: this message, for which nsqd took no FIN; or, with
        None, any of those that came last from this nsqd (`host:port`), because its connection ended.
        Must not block."""

    def rotate(self) -> None:
        """Asked by SIGHUP: finish what is being filled, soon. Must not block."""

    def hurry(self) -> None:
        """The run ends: finish what is under way, and answer `Again` for what was not begun. Deliveries
        may still come. Must not block."""

    async def close(self) -> None:
        """Everything is answered: finish what is open. Called again when it has raised."""

    async def abandon(self) -> None:
        """Let go of everything as a crash would, at once; the next `open` finds it."""
