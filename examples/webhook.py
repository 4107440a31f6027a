"""A webhook that refuses some messages: they become dead letters, and come back when it is mended.

python examples/webhook.py
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.client.options import ProducerOptions
from nsqtools.client.producer import Producer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ORDERS = [b"order 1", b"order 2, paid in florins", b"order 3"]


class Webhook:
    """Takes orders, but not in florins, until somebody teaches it."""

    def __init__(self) -> None:
        self.knows_florins = False
        self.orders: list[str] = []
        self.answers: asyncio.Queue[int] = asyncio.Queue()

    async def take(self, request: web.BaseRequest) -> web.Response:
        order = await request.text()
        status = 422 if "florins" in order and not self.knows_florins else 204
        if status == 204:
            self.orders.append(order)
        self.answers.put_nowait(status)
        return web.Response(status=status, text="unknown currency" if status == 422 else None)


async def main() -> None:
    webhook = Webhook()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = NsqdOptions(data_path=folder, tcp_address="127.0.0.1:0", http_address="")
        async with Broker(options) as broker, serving(webhook) as url:
            nsqd = f"--nsqd-tcp-address={broker.tcp_address}"
            letters = folder / "dead-letters"
            flags = (nsqd, f"--post={url}/{{topic}}", f"--dead-letter-dir={letters}")
            async with program("nsq_to_http", "--topic=orders", *flags):
                async with Producer(broker.tcp_address, ProducerOptions()) as producer:
                    await producer.connected(timeout_s=5)
                    await producer.publish_many("orders", ORDERS)
                for _ in ORDERS:
                    await webhook.answers.get()
            print("taken:", ", ".join(sorted(webhook.orders)))

            webhook.knows_florins = True
            async with program("nsq_to_http", "--topic=orders", *flags):
                again = ("--topic=orders", nsqd, "--where=status=422", "--progress=never")
                async with program("file_to_nsq", *again, str(letters)) as redrive:
                    await redrive.wait()
                await webhook.answers.get()
            print("then:", webhook.orders[-1])


@contextlib.asynccontextmanager
async def serving(webhook: Webhook) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(webhook.take))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def program(name: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the command line tools, ended in order with the block."""
    command = (sys.executable, "-m", "nsqtools", name, *flags)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


if __name__ == "__main__":
    asyncio.run(main())
