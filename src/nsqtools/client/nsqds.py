"""Which nsqds to be connected to, and staying so: every address, for ever, with jitter.

Addresses are given, or listed by nsqlookupd. One that nsqlookupd listed is called again only after
it was asked once more, some time after the connection was lost: subscribing to a topic that has just
been deleted would make it anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nsqtools.client.backoff import ReconnectDelay
from nsqtools.client.discovery import Discovery

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterable

    from nsqtools.client.lookup import LookupPoller
    from nsqtools.client.options import ConsumerOptions

# How long after a loss nsqlookupd is asked: an nsqd that deletes a topic closes its connections first,
# and then takes it off the list.
ASK_AFTER_S = 2.0
ANSWER_MAX_S = 5.0


class Nsqds:
    """`connect_once` makes one connection and returns when it has ended, with how long it lived, in
    seconds (0: it never came up)."""

    def __init__(
        self,
        topic: str,
        options: ConsumerOptions,
        *,
        nsqd_addresses: Iterable[str],
        lookupd_addresses: Iterable[str],
        connect_once: Callable[[str], Awaitable[float]],
        rng: random.Random,
        discovery: Discovery | None = None,
    ) -> None:
        self._topic = topic
        self._options = options
        self._given = tuple(nsqd_addresses)
        self._lookupd_addresses = tuple(lookupd_addresses)
        self._connect_once = connect_once
        self._rng = rng
        self._shared = discovery or Discovery()
        self._listed: frozenset[str] = frozenset()
        self._keepers: dict[str, list[asyncio.Task[None]]] = {}
        self._poller: LookupPoller | None = None
        self._discovering: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def wanted(self) -> frozenset[str]:
        """`host:port` of every nsqd that there should be a connection to."""
        return self._listed.union(self._given)

    @property
    def has_asked(self) -> bool:
        """Whether some nsqlookupd has answered, or none is to be asked."""
        return not self._lookupd_addresses or (self._poller is not None and self._poller.has_answer)

    @property
    def failing_lookupds(self) -> dict[str, int]:
        """How many times in a row each nsqlookupd that is failing now has failed."""
        return {} if self._poller is None else self._poller.failing

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        for address in self._given:
            self._keep(address)
        if self._lookupd_addresses:
            self._discovering = tasks.create_task(self._discover())

    def stop(self) -> None:
        """Call nobody any more; what is connected stays."""
        self._stopped = True
        if self._discovering is not None:
            self._discovering.cancel()

    def close(self) -> None:
        """End every connection, and what is being connected."""
        self.stop()
        for keepers in self._keepers.values():
            for keeper in keepers:
                keeper.cancel()

    def lost(self) -> None:
        """A connection has ended: nsqlookupd may know where the topic is now."""
        if self._poller is not None:
            self._poller.poke()

    def _keep(self, address: str) -> None:
        is_given = address in self._given
        if address in self._keepers or self._stopped or not (is_given or self._shared.may_call()):
            return
        keepers = self._keepers[address] = [
            self._tasks.create_task(self._keep_connected(address))
            for _ in range(self._options.connections_per_nsqd)
        ]
        for keeper in [] if is_given else keepers:
            self._shared.calls(keeper)

    async def _keep_connected(self, address: str) -> None:
        """Connect, subscribe, and do so again whenever the connection ends."""
        delay = ReconnectDelay(self._rng, max_s=self._options.lookupd_poll_interval_s)
        try:
            while not self._stopped and address in self.wanted:
                lived_s = await self._connect_once(address)
                if not self._stopped:
                    await self._pause(address, delay.after(lived_s))
        finally:
            self._keepers.pop(address, None)

    async def _pause(self, address: str, delay_s: float) -> None:
        if address in self._given or self._poller is None:
            await asyncio.sleep(delay_s)
            return
        await asyncio.sleep(
            max(delay_s, min(ASK_AFTER_S, 2 * self._options.lookupd_poll_interval_s))
        )
        await self._poller.ask_now(ANSWER_MAX_S)

    async def _discover(self) -> None:
        from nsqtools.client.lookup import LookupPoller  # HTTP loads slowly

        self._poller = LookupPoller(
            self._lookupd_addresses,
            self._topic,
            rng=self._rng,
            options=self._options.lookup(),
            discovery=self._shared,
        )
        await self._poller.run(self._found)

    def _found(self, producers: frozenset[str]) -> None:
        self._listed = producers
        for address in sorted(producers):
            self._keep(address)
