"""How a store is asked: what objects get, how fast they go, many threads, and the end."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.stores.test_upload import IN_PARTS, LARGE, SMALL, Sample

from nsqtools.errors import OptionsError, StoreError
from nsqtools.options import load
from nsqtools.stores.body import Bandwidth
from nsqtools.stores.client import open_store
from nsqtools.stores.connection import TRIES, is_aws
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.faults import FaultProxy
    from tests.support.stores import StoreServer

    from nsqtools.stores.client import Store

FIRST_REQUEST = """
import os
import sys
from nsqtools.errors import StoreError
from nsqtools.options import load
from nsqtools.stores.client import open_store
from nsqtools.stores.failures import Request
from nsqtools.stores.options import StoreOptions

os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
words = ["--bucket=abc", "--endpoint-url=http://127.0.0.1:1", "--region=r"]
with open_store(load(StoreOptions, "x", words, {})) as store:
    store.connection.prepare(60)
    before, client = set(sys.modules), store.connection._client
    try:
        store.connection.call(Request("head_object", "abc", "key"))
    except StoreError:
        assert client is not None and client is store.connection._client
        print(sorted(set(sys.modules) - before))
"""


def test_nothing_is_left_to_be_made_by_the_first_request() -> None:
    """In another process: here it is all there already."""
    found = subprocess.run(
        [sys.executable, "-c", FIRST_REQUEST], check=True, capture_output=True, text=True
    )
    assert found.stdout == "[]\n"


def test_what_cannot_be_prepared_is_told_by_the_first_request() -> None:
    with open_store(load(StoreOptions, "x", ["--bucket=abc", "--profile=none-such"], {})) as store:
        store.connection.prepare(60)
        with pytest.raises(StoreError, match="none-such"):
            store.head("key")


def test_credentials_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()

    def connect() -> None:
        goes_on.wait()
        raise StoreError("connect to", "S3", "no credentials", is_passing=False)

    with open_store(load(StoreOptions, "x", ["--bucket=abc"], {})) as store:
        monkeypatch.setattr(store.connection, "_connect", connect)
        store.connection.prepare(0.01)
        assert store.connection._client is None
        goes_on.set()


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_an_object_gets(
    opened: Callable[..., Store], server: StoreServer, tmp_path: Path, content: bytes
) -> None:
    if server.name == "rclone":
        pytest.skip("this store keeps none of it")
    store = opened(
        *IN_PARTS,
        *("--sse=AES256", "--storage-class=STANDARD_IA", "--object-tag=team=a b"),
        *("--object-tag=x=1", "--acl=bucket-owner-full-control", "--requester-pays"),
    )
    sample = Sample(tmp_path, content)
    sample.put(store)
    sample.confirm(store)
    assert sample.read(store) == content
    client = server.client()
    head = client.head_object(Bucket=store.bucket, Key="t/file.zst")
    tags = client.get_object_tagging(Bucket=store.bucket, Key="t/file.zst")["TagSet"]
    client.close()
    assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")
    assert head["ContentType"] == "application/zstd"
    assert sorted((tag["Key"], tag["Value"]) for tag in tags) == [("team", "a b"), ("x", "1")]
    assert [one.key for one in store.list()] == ["t/file.zst"]
    assert store.abort_orphans("", 0, lambda _: True) == ()
    store.delete("t/file.zst")


def test_where_aws_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_aws("https://s3.eu-west-3.amazonaws.com")
    assert is_aws("https://s3.cn-north-1.amazonaws.com.cn")
    assert not is_aws("https://amazonaws.com.example.org")
    assert not is_aws("https://s3.example.org/.amazonaws.com")


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:9"])
def test_checksums_are_as_the_store_takes_them(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a store, too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    with open_store(load(StoreOptions, "x", ["--bucket=abc", "--region=eu-west-3"], {})) as store:
        config = store.connection._connected().meta.config
        assert store.connection.is_aws is not bool(url)
        checksums = {config.request_checksum_calculation, config.response_checksum_validation}
        assert checksums == {"when_required" if url else "when_supported"}


def test_boto3_is_loaded_with_the_first_request() -> None:
    program = "import sys, nsqtools.stores; sys.exit('boto3' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_store_has_a_bucket() -> None:
    with pytest.raises(OptionsError):
        open_store(load(StoreOptions, "x", [], {}))


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_the_checksums_of_aws_are_taken(
    opened: Callable[..., Store],
    server: StoreServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
) -> None:
    if server.name == "rclone":
        pytest.skip("this store passes over them, and keeps them wrong")
    monkeypatch.setattr("nsqtools.stores.connection.is_aws", lambda _: True)
    store = opened(*IN_PARTS)
    sample = Sample(tmp_path, content)
    sample.put(store)
    sample.confirm(store)
    sample.put(store)
    assert sample.read(store) == content
    with pytest.raises(FileExistsError):
        Sample(tmp_path, content + b"!").put(store)


def test_many_threads_share_a_store(opened: Callable[..., Store], tmp_path: Path) -> None:
    store = opened(*IN_PARTS)
    samples = [Sample(tmp_path, b"%d" % number * 1000, f"{number}") for number in range(40)]
    samples.append(Sample(tmp_path, LARGE, "large"))

    def put(sample: Sample) -> bool:
        sample.put(store, sample.path.name)
        sample.confirm(store, sample.path.name)
        return sample.read(store, sample.path.name) == sample.content

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(put, samples))
    assert len(list(store.list())) == len(samples)


def test_one_key_gets_one_object_whoever_puts_it(store: Store, tmp_path: Path) -> None:
    """The same file several times at once is no error; one of them may have to try again, as who has it
    uploaded does: rclone's server answers 500 at times, when several put what it has just begun."""
    sample = Sample(tmp_path, SMALL)

    def put(_: int) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                sample.put(store)
                return
            except StoreError as failure:
                if not failure.is_passing or not tries_left:
                    raise

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(put, range(6)))
    sample.confirm(store)


def test_bandwidth_is_shared_and_even() -> None:
    bandwidth = Bandwidth(1000, 0.0)
    assert bandwidth.largest_read(16384) == 512
    assert bandwidth.reserve(500, 10.0) == 0
    assert bandwidth.reserve(500, 10.0) == pytest.approx(0.4)  # a tenth of a second came at once
    assert bandwidth.reserve(500, 10.0) == pytest.approx(0.9)
    assert bandwidth.reserve(500, 20.0) == 0
    assert Bandwidth(10_000_000, 0.0).largest_read(16384) == 16384
    unbounded = Bandwidth(0, 0.0)
    assert unbounded.reserve(1 << 40, 0.0) == unbounded.reserve(1, 0.0) == 0


def test_an_upload_keeps_to_its_rate(
    opened: Callable[..., Store], proxy: FaultProxy, tmp_path: Path
) -> None:
    store = opened("--max-upload-rate=2M")
    sample = Sample(tmp_path, bytes(1_000_000))
    began = time.monotonic()
    sample.put(store)
    assert time.monotonic() - began > 0.35
    assert proxy.sent_bytes == 1_000_000
    sample.confirm(store)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_closing_ends_what_is_under_way(
    opened: Callable[..., Store], proxy: FaultProxy, tmp_path: Path, content: bytes
) -> None:
    """An upload that would take hours."""
    store = opened(*IN_PARTS[:2], "--max-upload-rate=1")
    sample = Sample(tmp_path, content)
    with ThreadPoolExecutor(1) as threads:
        putting = threads.submit(sample.put, store)
        while not proxy.count("PUT"):
            time.sleep(0.01)
        store.close()
        with pytest.raises(StoreError) as caught:
            putting.result()
    assert caught.value.is_passing
    with pytest.raises(StoreError, match="closed"):
        store.head("t/file.zst")
    assert not [one for one in threading.enumerate() if one.name.startswith("part")]


def test_a_store_that_loses_metadata_is_read_to_confirm(
    store: Store, server: StoreServer, tmp_path: Path
) -> None:
    """rclone's server keeps metadata in memory: after a restart there are none."""
    if server.name == "moto":
        pytest.skip("moto's server has nothing left after a restart")
    sample = Sample(tmp_path, SMALL)
    sample.put(store)
    server.restart()
    assert not store.head("t/file.zst").sha256
    sample.confirm(store)
    sample.put(store)
    with pytest.raises(StoreError, match="another object"):
        store.confirm("t/file.zst", len(SMALL), hashlib.sha256(b"other").hexdigest())
