"""A broker inside your own program, for a test or a single machine.

python examples/embedded_broker.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.client.consumer import Consumer
from nsqtools.client.options import ConsumerOptions, ProducerOptions
from nsqtools.client.producer import Producer


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = NsqdOptions(data_path=Path(folder), tcp_address="127.0.0.1:0", http_address="")
        async with Broker(options) as broker:
            async with Producer(broker.tcp_address, ProducerOptions()) as producer:
                await producer.connected(timeout_s=5)
                await producer.publish_many("greetings", [b"hello", b"world"])
            await consume_two(broker.tcp_address)


async def consume_two(nsqd: str) -> None:
    async with Consumer("greetings", "print", ConsumerOptions(), nsqd_addresses=[nsqd]) as consumer:
        seen = 0
        async for message in consumer:
            print(message.body.decode())
            message.finish()
            seen += 1
            if seen == 2:
                break
        await consumer.stop(timeout_s=1)
        await consumer.close()


if __name__ == "__main__":
    asyncio.run(main())
