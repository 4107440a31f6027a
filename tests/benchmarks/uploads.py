"""Putting a large file into a store, beside boto3's own `upload_file` of the same bytes.

Both go to the same server in turn, with as many parts at once; what can be served without work decides.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.table import Target
from tests.support.stores import ENVIRONMENT, StoreServer

from nsqtools.options import load
from nsqtools.stores.client import open_store
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from nsqtools.stores.client import Store

NAME = "upload"
SERVERS = ("rclone", "moto")
FILE_BYTES = 256 << 20
BUCKET = "bench"
RATIO_MIN = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Medians for one server, in seconds."""

    server: str
    size_bytes: int
    ours_s: float
    boto3_s: float

    def line(self) -> str:
        """For a person."""
        ours, theirs = (self.size_bytes / 1e6 / s for s in (self.ours_s, self.boto3_s))
        return f"upload to {self.server}: {ours:,.0f} MB/s, boto3's upload_file {theirs:,.0f} MB/s"

    def target(self) -> Target:
        ratio = self.boto3_s / self.ours_s
        return Target(
            what=f"upload to {self.server} beside boto3",
            wanted=f">= {RATIO_MIN:.0%} of its speed",
            measured=f"{ratio:.0%}",
            met=ratio >= RATIO_MIN,
        )


def measure(folder: Path, size_bytes: int, runs: int) -> list[Uploads]:
    """Every server, run after run."""
    os.environ.update(ENVIRONMENT)
    source = folder / "upload"
    source.write_bytes(os.urandom(1 << 20) * max(1, size_bytes >> 20))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = [_measured(name, source, digest, runs) for name in SERVERS]
    source.unlink()
    return found


def _measured(name: str, source: Path, sha256: str, runs: int) -> Uploads:
    with tempfile.TemporaryDirectory() as kept, StoreServer(name, Path(kept)) as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        flags = [f"--bucket={BUCKET}", f"--endpoint-url={server.endpoint_url}"]
        with open_store(load(StoreOptions, "bench", flags, {})) as store:
            _warm_up(store, client, source)
            pairs = [_pair(store, client, source, sha256) for _ in range(runs)]
        client.close()
    ours, theirs = zip(*pairs, strict=True)
    return Uploads(
        server=name,
        size_bytes=source.stat().st_size,
        ours_s=statistics.median(ours),
        boto3_s=statistics.median(theirs),
    )


def _warm_up(store: Store, client: Any, source: Path) -> None:
    """Connections, and what the store is found to know."""
    small = source.with_name("small")
    small.write_bytes(b"small")
    digest = hashlib.sha256(b"small").hexdigest()
    store.put(small, "small", size_bytes=5, sha256=digest, metadata={})
    client.upload_file(str(small), BUCKET, "small-2")
    small.unlink()


def _pair(store: Store, client: Any, source: Path, sha256: str) -> tuple[float, float]:
    from boto3.s3.transfer import TransferConfig

    began_s = time.perf_counter()
    store.put(source, "ours", size_bytes=source.stat().st_size, sha256=sha256, metadata={})
    between_s = time.perf_counter()
    parts = TransferConfig(max_concurrency=store.options.upload_concurrency)
    client.upload_file(str(source), BUCKET, "theirs", Config=parts)
    ended_s = time.perf_counter()
    for key in ("ours", "theirs"):
        client.delete_object(Bucket=BUCKET, Key=key)
    return between_s - began_s, ended_s - between_s
