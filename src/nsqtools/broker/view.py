"""What HTTP, statistics, options and metrics need of the broker, which is above all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from nsqtools.broker.accepting import Admission
    from nsqtools.broker.budget import BodyBudget
    from nsqtools.broker.options import NsqdOptions
    from nsqtools.broker.registrar import Registrar
    from nsqtools.broker.session import Session
    from nsqtools.broker.topic import Topic
    from nsqtools.wire.bodies import Bodies
    from nsqtools.wire.identify import ServerLimits
    from nsqtools.wire.limits import CommandLimits


class BrokerView(Protocol):
    """A broker, seen from outside."""

    options: NsqdOptions
    start_time_s: int
    bodies: BodyBudget
    admission: Admission
    command_limits: CommandLimits
    server_limits: ServerLimits
    topics: dict[str, Topic]

    @property
    def sessions(self) -> AbstractSet[Session]:
        """The connections over TCP."""

    @property
    def health(self) -> str:
        """What /ping says."""

    @property
    def registrar(self) -> Registrar | None:
        """None before the start."""

    @property
    def tcp_port(self) -> int:
        """The real one; -1 for a path."""

    @property
    def http_port(self) -> int:
        """As `tcp_port`."""

    def topic(self, name: str) -> Topic:
        """The topic of that name, made when it is missing. Raises StorageError."""

    def delete_topic(self, name: str) -> None:
        """Raises StorageError."""

    def delete_channel(self, topic: Topic, name: str) -> None:
        """Raises StorageError."""

    def put(
        self, topic: Topic, bodies: Bodies, delay_ms: int, answer: Callable[[str | None], None]
    ) -> None:
        """Publish; `answer` is called once, later, with None or with why not."""

    def touched(self, topic: Topic) -> None:
        """Something was settled: journals are to be written at the end of this turn."""

    async def keep(self, topic: Topic) -> None:
        """Return when everything of the topic is on the disk. Raises StorageError."""

    async def number_at(self, topic: Topic, time_ns: int) -> int | None:
        """The first message that was published then or later; None for none. Raises StorageError."""
