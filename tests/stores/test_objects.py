"""Reading objects in part: what is fetched for what is read, and what happens on the way."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.archive.helpers import START_NS, payload, write_file

from nsqtools.archive.reader import open_archive
from nsqtools.errors import StoreError
from nsqtools.options import load
from nsqtools.stores.failures import Changed
from nsqtools.stores.named import NamedObjects
from nsqtools.stores.objects import (
    READ_AHEAD_BYTES_MAX,
    START_BYTES,
    TAIL_BYTES,
    decode_metadata,
    encode_metadata,
)
from nsqtools.stores.options import StoreAccess
from nsqtools.wire.messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.faults import FaultProxy, Kind
    from tests.support.stores import StoreServer

    from nsqtools.stores.client import Store

CONTENT = random.Random(1).randbytes(3_000_000)
HOUR_MESSAGES = 10_000
MINUTE_NS = 60 * 10**9


@pytest.fixture
def stored(server: StoreServer, bucket: str) -> bytes:
    """The content of the object `o`."""
    put(server, bucket, CONTENT)
    return CONTENT


def put(server: StoreServer, bucket: str, content: bytes, key: str = "o") -> None:
    """As anybody would, over whatever has the key."""
    client = server.client()
    client.put_object(Bucket=bucket, Key=key, Body=content)
    client.close()


@given(st.dictionaries(st.sampled_from(["Topic", "host", "x-y"]), st.text()))
def test_metadata_come_back(metadata: dict[str, str]) -> None:
    metadata = {name: value.encode("utf-8", "replace").decode() for name, value in metadata.items()}
    encoded = encode_metadata(metadata)
    assert all(value.isascii() and value.isprintable() for value in encoded.values())
    assert decode_metadata(encoded) == {name.lower(): value for name, value in metadata.items()}


def test_reading_on_fetches_ever_more_at_once(
    store: Store, proxy: FaultProxy, stored: bytes
) -> None:
    with store.open("o") as file:
        pieces = iter(lambda: file.read(64 << 10), b"")
        assert b"".join(pieces) == stored
        assert file.fetched_bytes == len(stored)
        assert file.requests <= 12
        assert file.requests == proxy.count("GET")
        assert file.read(1) == b""


def test_a_read_behind_a_seek_fetches_what_is_asked_for(store: Store, stored: bytes) -> None:
    with store.open("o") as file:
        for at in (2_000_000, 1_000_000, 500_000):
            assert file.seek(at) == file.tell() == at
            assert file.read(1000) == stored[at : at + 1000]
        assert (file.requests, file.fetched_bytes) == (3, 3000)


def test_what_was_fetched_is_not_fetched_again(store: Store, stored: bytes) -> None:
    """The end comes in one piece, and the start is kept meanwhile, as it is read in an archive."""
    with store.open("o") as file:
        assert file.read(1000) == stored[:1000]
        for back in (9, 500, 10_000, TAIL_BYTES):
            assert file.seek(-back, os.SEEK_END) == len(stored) - back
            assert file.read(back) == stored[-back:]
        file.seek(0)
        assert file.read(1000) == stored[:1000]
        assert (file.requests, file.fetched_bytes) == (2, START_BYTES + TAIL_BYTES)


def test_any_reads_give_what_a_file_gives(store: Store, stored: bytes, tmp_path: Path) -> None:
    path = tmp_path / "o"
    path.write_bytes(stored)
    choice = random.Random(2)
    with store.open("o") as file, path.open("rb") as like:
        for _ in range(60):
            at, whence = choice.choice([(choice.randrange(len(stored) + 10), 0), (-5, 2), (0, 1)])
            assert file.seek(at, whence) == like.seek(at, whence)
            size = choice.choice([0, 1, 100, 70_000, 600_000])
            wanted = like.read(size)
            got = file.read(size)
            while got is not None and len(got) < len(wanted):  # a raw file may give less
                got += file.read(size - len(got)) or pytest.fail("ended early")
            assert got == wanted


@pytest.mark.parametrize("kind", ["cut-answer", "reset", "lose-answer"])
def test_a_get_that_is_cut_is_taken_up_where_it_was(
    store: Store, proxy: FaultProxy, stored: bytes, kind: Kind
) -> None:
    proxy.fail(kind, "GET", times=3)
    with store.open("o") as file:
        assert file.read(len(stored)) == stored
        assert file.requests == 4
        assert file.fetched_bytes == len(stored)


def test_a_store_that_is_busy_is_asked_again(
    store: Store, proxy: FaultProxy, stored: bytes
) -> None:
    proxy.fail_with(503, "SlowDown", "GET", times=3)
    with store.open("o") as file:
        assert file.read(10) == stored[:10]
        proxy.fail_with(503, "SlowDown", "GET", times=100)
        file.seek(1_000_000)
        with pytest.raises(StoreError, match="SlowDown"):
            file.read(10)


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) - 1, 10], ids=str)
def test_an_object_that_changes_while_it_is_read_is_noticed(
    store: Store, server: StoreServer, bucket: str, stored: bytes, size: int
) -> None:
    with store.open("o") as file:
        assert file.read(10) == stored[:10]
        put(server, bucket, b"x" * size)
        file.seek(1_000_000)
        with pytest.raises(StoreError) as caught:
            file.read(10)
        assert isinstance(caught.value, Changed) or caught.value.code == "InvalidRange"


def test_an_object_that_goes_while_it_is_read(store: Store, stored: bytes) -> None:
    with store.open("o") as file:
        assert file.read(10) == stored[:10]
        store.delete("o")
        store.delete("o")
        file.seek(1_000_000)
        with pytest.raises(FileNotFoundError):
            file.read(10)
    with pytest.raises(FileNotFoundError):
        store.open("o")


ENDLESS = """<ListBucketResult><IsTruncated>true</IsTruncated>
<NextContinuationToken>again</NextContinuationToken></ListBucketResult>"""
ENDLESS_UPLOADS = """<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>
<NextKeyMarker>again</NextKeyMarker></ListMultipartUploadsResult>"""


def test_a_list_without_an_end_is_given_up(store: Store, proxy: FaultProxy) -> None:
    """Of a store that says the same place for where to go on."""
    proxy.fail("status", "list-type=2", status=200, body=ENDLESS.encode(), times=1000)
    with pytest.raises(StoreError, match="the same page of the list again") as caught:
        list(store.list("t/"))
    assert not caught.value.is_passing
    assert proxy.count("list-type=2") == 2
    proxy.fail("status", "?uploads", status=200, body=ENDLESS_UPLOADS.encode(), times=1000)
    with pytest.raises(StoreError, match="the same page of the list again"):
        store.abort_orphans("t/", 0, lambda _: True)


def test_a_list_of_more_than_can_be_held_is_refused(
    proxy: FaultProxy,
    bucket: str,
    server: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(5):
        put(server, bucket, b"x", f"t/{number}")
    monkeypatch.setattr("nsqtools.stores.named.OBJECTS_MAX", 4)
    access = load(StoreAccess, "x", [f"--endpoint-url={proxy.endpoint_url}"], {})
    with NamedObjects(access) as remotes:
        assert len(remotes.find(f"s3://{bucket}/t/1")) == 1
        with pytest.raises(StoreError, match="more than 4 objects have names that begin so"):
            remotes.find(f"s3://{bucket}/t/")


def test_a_list_is_read_page_by_page(
    store: Store,
    server: StoreServer,
    bucket: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nsqtools.stores.client.LIST_PAGE", 100)
    client = server.client()
    keys = sorted(f"t/{number:04} é+%" for number in range(110))
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    client.put_object(Bucket=bucket, Key="u", Body=b"x")
    client.close()
    proxy.fail_with(503, "SlowDown", "GET", times=2)
    listed = store.list("t/")
    first = next(listed)
    assert (first.key, first.size_bytes) == (keys[0], 1)
    assert proxy.count("GET") == 3
    assert [first.key, *(one.key for one in listed)] == keys
    assert proxy.count("GET") == 4
    assert [one.key for one in store.list("t/", after=keys[107])] == keys[108:]
    assert list(store.list("nothing")) == []
    with store.open(first) as file:  # as it was listed, without another look
        assert file.read() == b"x"
    assert not proxy.count("HEAD")


@pytest.mark.slow
@pytest.mark.parametrize("record_format", ["framed", "lines"])
def test_a_minute_of_an_archive_is_read_with_few_of_its_bytes(
    store: Store, server: StoreServer, bucket: str, tmp_path: Path, record_format: str
) -> None:
    """An hour of 100 MB, written once a commit of a megabyte."""
    bodies = random.Random(3)
    step_ns = 60 * MINUTE_NS // HOUR_MESSAGES
    commits = [
        [
            Messages(
                [
                    payload(
                        number,
                        bodies.randbytes(10_000).hex().encode(),
                        ts_ns=START_NS + number * step_ns,
                    )
                    for number in range(first, first + 100)
                ],
                nsqd="n",
            )
        ]
        for first in range(0, HOUR_MESSAGES, 100)
    ]
    path = write_file(tmp_path, record_format, "zstd", commits)
    del commits
    size = path.stat().st_size
    client = server.client()
    client.upload_file(str(path), bucket, "hour")
    client.close()
    since = START_NS + 31 * MINUTE_NS
    with store.open("hour") as file, open_archive(file) as archive:
        opening_bytes = file.fetched_bytes
        got = [body for run in archive.batches(since, since + MINUTE_NS) for body in run.bodies]
    with open_archive(path) as archive:
        wanted = [body for run in archive.batches(since, since + MINUTE_NS) for body in run.bodies]
    assert got == wanted
    assert len(got) >= HOUR_MESSAGES // 60
    assert size > 100_000_000
    assert opening_bytes < size // 200
    assert file.fetched_bytes < size // 20
    assert file.requests < 16


def test_a_reader_holds_little(
    opened: Callable[..., Store], server: StoreServer, bucket: str
) -> None:
    put(server, bucket, bytes(40 << 20))
    with opened().open("o") as file:
        while file.read(256 << 10):
            assert sum(len(data) for _, data in file._spans) <= 4 * READ_AHEAD_BYTES_MAX
        assert file.fetched_bytes == 40 << 20


@pytest.mark.parametrize("what", ["read", "list"])
def test_closing_ends_a_read_that_stalls(
    opened: Callable[..., Store], proxy: FaultProxy, stored: bytes, what: str
) -> None:
    """Nobody waits for the answer any more, though the store may keep us waiting for a minute."""
    store = opened("--store-timeout=1m")
    file = store.open("o")
    proxy.fail("stall", "GET")
    asked = partial(file.read, 10) if what == "read" else lambda: list(store.list())
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(asked)
        while not proxy.count("GET"):
            time.sleep(0.01)
        store.close()
        with pytest.raises(StoreError, match="closed"):
            reading.result(timeout=30)
    with pytest.raises(StoreError, match="closed"):
        file.read(10)
