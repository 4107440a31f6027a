"""A channel that is shared with ordinary consumers: its archive gets a part of the messages.

NSQ hands each message of a channel to one of its clients, so an archiver needs a channel of its own.
Looked after when a topic is subscribed, and now and then; told in the log and as a note of the health.
Several of this program share a channel on purpose, and are known by their user agent.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from typing import TYPE_CHECKING

from nsqtools.client.neighbours import clients_of
from nsqtools.observe.log import get_log
from nsqtools.options import join_address, split_address
from nsqtools.options.shown import SHOWN_LENGTH_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nsqtools.observe.health import Health
    from nsqtools.pipeline.options import ConsumingOptions
    from nsqtools.pipeline.topic import TopicPipeline
    from nsqtools.wire.stats import ChannelClient

log = get_log("pipeline")

# How soon after its subscription a topic is looked after, and how often afterwards.
FIRST_LOOK_S = 1.0
LOOK_INTERVAL_S = 300.0
# How many others are named.
NAMED_MAX = 3
_DEFAULT_TCP_PORT, _DEFAULT_HTTP_PORT = 4150, 4151


class Neighbours:
    """See the module; `pipelines` is looked at anew each time. `part_of` names a topic in the health."""

    def __init__(
        self,
        options: ConsumingOptions,
        nsqd_http_addresses: Sequence[str],
        pipelines: Mapping[str, TopicPipeline],
        health: Health,
        part_of: Callable[[str], str],
    ) -> None:
        self._options = options
        self._pipelines = pipelines
        self._health = health
        self._part_of = part_of
        self._addresses = http_addresses(nsqd_http_addresses, options.nsqd_tcp_address)
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look for ever, if there is somebody to ask. Cancelling it leaves nothing behind."""
        if not (self._addresses or self._options.lookupd_http_address):
            return
        looked_s: dict[str, float] = {}
        now_s = asyncio.get_running_loop().time
        await asyncio.sleep(FIRST_LOOK_S)
        await asyncio.to_thread(importlib.import_module, "aiohttp")  # slow, and not for the loop
        while True:
            for gone in looked_s.keys() - self._pipelines.keys():
                del looked_s[gone]
            for topic in list(self._pipelines):
                due_s = looked_s.get(topic, -LOOK_INTERVAL_S) + LOOK_INTERVAL_S
                pipeline = self._pipelines.get(topic)
                if pipeline is not None and pipeline.consumer.connections and now_s() >= due_s:
                    await self._look(topic)
                    looked_s[topic] = now_s()
            await asyncio.sleep(FIRST_LOOK_S)

    async def _look(self, topic: str) -> None:
        options = self._options
        try:
            clients = await clients_of(
                topic,
                options.channel,
                nsqd_http_addresses=self._addresses,
                lookupd_addresses=options.lookupd_http_address,
                options=options.topic_lookup() if options.lookupd_http_address else None,
            )
        except Exception as failure:  # noqa: BLE001 - nothing depends on the answer
            log.debug("nobody tells who consumes the channel", topic=topic, error=failure)
        else:
            self._tell(topic, others(clients, options.program))

    def _tell(self, topic: str, found: Sequence[ChannelClient]) -> None:
        part = self._part_of(topic)
        if topic not in self._pipelines or not found:
            self._health.note(part, "")
            self._told.discard(topic)
            return
        note = describe(found)
        self._health.note(part, note)
        if topic not in self._told:
            log.warning(
                "the channel has other consumers: only a part of its messages comes here; an archive"
                " needs a channel of its own",
                topic=topic,
                channel=self._options.channel,
                others=note,
            )
            self._told.add(topic)


def others(clients: Iterable[ChannelClient], program: str) -> list[ChannelClient]:
    """Those that are not this program."""
    return [
        client
        for client in clients
        if not (client.user_agent.startswith(f"{program}/") and " nsqtools/" in client.user_agent)
    ]


def describe(found: Sequence[ChannelClient]) -> str:
    """How many there are, and who the first of them are."""
    kinds = Counter(found)
    named = [
        f"{_cut(client.user_agent)} on {_cut(client.hostname)}"
        for client, _ in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:NAMED_MAX]
    ]
    more = ", ..." if len(kinds) > NAMED_MAX else ""
    count = f"{len(found)} other consumer{'s' * (len(found) != 1)}"
    return f"shared with {count}: {', '.join(named)}{more}"


def _cut(said: str) -> str:
    """What a client says of itself."""
    return said[:SHOWN_LENGTH_MAX] or "unknown"


def http_addresses(given: Sequence[str], tcp_addresses: Sequence[str]) -> list[str]:
    """Where nsqds answer HTTP: where they were said to, or at nsqd's default beside its default."""
    if given:
        return list(given)
    hosts = [split_address(address) for address in tcp_addresses]
    return [
        join_address(host, _DEFAULT_HTTP_PORT) for host, port in hosts if port == _DEFAULT_TCP_PORT
    ]
