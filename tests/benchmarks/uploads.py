"""Putting a large file into a store, beside boto3's own `upload_file` of the same bytes.

All go to the same server in turn, with as many parts at once; what can be served without work decides.
A file's checksums are taken while it is written, and so they are at hand; after a restart they are not,
and the file is read for them first: that is measured beside it.
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

from nsqtools.digest import Digest
from nsqtools.options import load
from nsqtools.stores.client import open_store
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsqtools.digest import PartSums
    from nsqtools.stores.client import Store

NAME = "upload"
SERVERS = ("rclone", "moto")
FILE_BYTES = 256 << 20
BUCKET = "bench"
KEY = "upload"
RATIO_MIN = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """Medians for one server, in seconds."""

    server: str
    size_bytes: int
    ours_s: float
    read_first_s: float
    boto3_s: float

    def line(self) -> str:
        """For a person."""
        ours, read_first, theirs = (
            f"{self.size_bytes / 1e6 / s:,.0f} MB/s"
            for s in (self.ours_s, self.read_first_s, self.boto3_s)
        )
        return (
            f"upload to {self.server}: {ours}, boto3's upload_file {theirs}; without checksums at hand"
            f" {read_first}"
        )

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
    digest = Digest(load(StoreOptions, "bench", [], {}).part_size_bytes)
    digest.update(source.read_bytes())
    found = [_measured(name, source, digest, runs) for name in SERVERS]
    source.unlink()
    return found


def _measured(name: str, source: Path, digest: Digest, runs: int) -> Uploads:
    with tempfile.TemporaryDirectory() as kept, StoreServer(name, Path(kept)) as server:
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        flags = [f"--bucket={BUCKET}", f"--endpoint-url={server.endpoint_url}"]
        with open_store(load(StoreOptions, "bench", flags, {})) as store:
            _warm_up(store, client, source)
            times = [_times(store, client, source, digest) for _ in range(runs)]
        client.close()
    ours, read_first, theirs = map(statistics.median, zip(*times, strict=True))
    return Uploads(
        server=name,
        size_bytes=source.stat().st_size,
        ours_s=ours,
        read_first_s=read_first,
        boto3_s=theirs,
    )


def _warm_up(store: Store, client: Any, source: Path) -> None:
    """Connections, and what the store is found to know."""
    small = source.with_name("small")
    small.write_bytes(b"small")
    digest = hashlib.sha256(b"small").hexdigest()
    store.put(small, "small", size_bytes=5, sha256=digest, metadata={})
    client.upload_file(str(small), BUCKET, "small-2")
    small.unlink()


def _times(store: Store, client: Any, source: Path, digest: Digest) -> tuple[float, ...]:
    from boto3.s3.transfer import TransferConfig

    def put(parts: PartSums | None) -> None:
        size = source.stat().st_size
        store.put(source, KEY, size_bytes=size, sha256=digest.sha256, metadata={}, parts=parts)

    def upload_file() -> None:
        parts = TransferConfig(max_concurrency=store.options.upload_concurrency)
        client.upload_file(str(source), BUCKET, KEY, Config=parts)

    times = []
    sends: list[Callable[[], None]] = [lambda: put(digest.parts), lambda: put(None), upload_file]
    for send in sends:
        began_s = time.perf_counter()
        send()
        times.append(time.perf_counter() - began_s)
        client.delete_object(Bucket=BUCKET, Key=KEY)
    return tuple(times)
