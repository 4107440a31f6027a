"""Consume a channel in batches: acknowledge a whole batch with one write.

python examples/consume.py TOPIC CHANNEL 127.0.0.1:4150
"""

from __future__ import annotations

import asyncio
import sys

from nsqtools.client.consumer import Consumer
from nsqtools.client.options import ConsumerOptions


async def main(topic: str, channel: str, nsqd: str) -> None:
    options = ConsumerOptions(max_in_flight=1000, user_agent="example")
    async with Consumer(topic, channel, options, nsqd_addresses=[nsqd]) as consumer:
        while batches := await consumer.receive():
            for batch in batches:
                print(
                    f"{len(batch)} messages from {batch.nsqd}, such as {batch.messages.bodies[0]!r}"
                )
                batch.finish()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
