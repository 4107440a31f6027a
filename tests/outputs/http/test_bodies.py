"""What requests say of messages."""

from __future__ import annotations

import asyncio
import os

import zstandard

from nsqtools.outputs.http.batches import Batching
from nsqtools.outputs.http.bodies import Bodies
from nsqtools.outputs.workers import Workers

LARGE = os.urandom(1 << 20).hex().encode()
ROUNDS = 10
SMALL = os.urandom(50) * 100


async def test_large_and_small_bodies_are_compressed_at_once() -> None:
    """A large one in a thread, small ones on the loop meanwhile: neither touches the other."""
    workers = Workers()
    batching = Batching(messages_max=9, bytes_max=1 << 20, wait_s=0.1, format="lines")
    bodies = Bodies("t", batching, "zstd", None, workers.strand("requests of t"))
    try:
        for _ in range(ROUNDS):
            large = asyncio.ensure_future(bodies.compressed(LARGE))
            while not large.done():
                await asyncio.sleep(0)
                assert _plain(await bodies.compressed(SMALL)) == SMALL
            assert _plain(await large) == LARGE
    finally:
        workers.close()


def _plain(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(body)
