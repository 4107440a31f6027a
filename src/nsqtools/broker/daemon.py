"""`nsqtools nsqd`: the broker as a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsqtools import __version__
from nsqtools.broker.metrics import BrokerMetrics, tell_health
from nsqtools.broker.server import Broker
from nsqtools.ending import INTERRUPTED
from nsqtools.lifecycle import Lifecycle
from nsqtools.observe.counters import Registry
from nsqtools.observe.log import configure, get_log
from nsqtools.observe.status import StatusServer

if TYPE_CHECKING:
    from nsqtools.broker.options import NsqdOptions

# Closing writes what the channels hold; nothing of it waits for a peer.
SHUTDOWN_TIMEOUT_S = 60.0


async def run(options: NsqdOptions) -> int:
    """Serve until SIGTERM or SIGINT. Raises as `Broker` does when it cannot start."""
    configure(options.log_level, options.log_prefix, log_format=options.log_format)
    registry = Registry()
    broker = Broker(options)
    BrokerMetrics(broker, registry)
    async with (
        Lifecycle(SHUTDOWN_TIMEOUT_S) as life,
        StatusServer(
            options.status_address,
            registry,
            life.health,
            status=lambda: {"program": "nsqd", "version": __version__},
            refresh=lambda: tell_health(broker, life.health),
        ),
    ):
        if unused := options.without_effect():
            get_log("broker").info("options without effect here", options=" ".join(unused))
        await broker.__aenter__()
        try:
            life.ready(f"listening on {options.tcp_address}")
            get_log("broker").info(
                "serving", topics=len(broker.topics), tcp=broker.tcp_port, http=broker.http_port
            )
            await life.stopping.wait()
        finally:
            # What was answered is written already: a second signal loses nothing.
            closing = broker.__aexit__(None, None, None)
            is_closed = await life.drain(closing, what="closing the broker")
        return 0 if is_closed else INTERRUPTED
