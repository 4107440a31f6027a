"""Brokers of one process, each with its share of a backlog: `python -m tests.benchmarks.many ...`.

Two lines of JSON: the ports, when every backlog is there; then how long a consumer of all of them
took from its first subscription until the last message was acknowledged. No request is made while
the clock runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks import traffic

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.cli.command import run_on_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.broker.channel import Channel

LOOK_S = 0.002
TIMEOUT_S = 300.0


async def serve(words: list[str]) -> int:
    """Folder, file of messages, topic (and channel), brokers, messages. Raises RuntimeError when nobody
    empties the channels in time."""
    folder, messages, topic = Path(words[0]), Path(words[1]), words[2]
    brokers, count = int(words[3]), int(words[4])
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for number in range(brokers):
            path = folder / f"broker-{number}"
            path.mkdir()
            options = NsqdOptions(data_path=path, tcp_address="127.0.0.1:0", http_address="")
            running.append(await stack.enter_async_context(Broker(options)))
        channels: list[Channel] = []
        for number, broker in enumerate(running):
            share = count // brokers + (number < count % brokers)
            channel = broker.topic(topic).channel(topic)
            channels.append(channel)
            port = broker.tcp_port
            await asyncio.to_thread(traffic.write, port, topic, messages, share)
        waiting = sum(channel.depth for channel in channels)
        tell({"ports": [broker.tcp_port for broker in running]})
        started_s = time.perf_counter()
        await _until(lambda: any(channel.subscribers for channel in channels))
        subscribed_s = time.perf_counter()
        await _until(lambda: not any(channel.depth or channel.in_flight for channel in channels))
        seconds = time.perf_counter() - subscribed_s
        tell({"messages": waiting, "seconds": seconds, "start_s": subscribed_s - started_s})
    return 0


async def _until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not true():
        if time.monotonic() > deadline_s:
            raise RuntimeError("the channels are not emptied")
        await asyncio.sleep(LOOK_S)


def tell(found: dict[str, object]) -> None:
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(run_on_loop(serve, words))
