"""A bucket as a destination: when it is left alone and by whom, what objects say of themselves."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from nsqtools.archive.destination import About, FileFacts
from nsqtools.clock import ManualClock
from nsqtools.digest import Digest
from nsqtools.errors import ArchiveError, StoreError
from nsqtools.options import load
from nsqtools.outputs.s3.destination import (
    CLOSED_FIRST_S,
    CLOSED_MAX_S,
    Destinations,
    StoreDestination,
)
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy

    from nsqtools.stores.client import Store

TOGETHER = 8
ABOUT = About(
    unique="u",
    topic="clicks",
    channel="archive",
    host="höst",
    record_format="jsonl",
    compression="zstd",
)


def away(reason: str = "connection refused") -> StoreError:
    return StoreError("put", "s3://bucket/key", reason, is_passing=True)


def refused() -> StoreError:
    return StoreError("put", "s3://bucket/key", "403 AccessDenied", is_passing=False)


class AskedStore:
    """What is asked of it is told; it fails as it is set to."""

    bucket = "bucket"
    part_bytes = 0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None

    def is_taken(self, key: str) -> bool:
        self.asked.append(key)
        if self.failure is not None:
            raise self.failure
        return True


class Late(AskedStore):
    """Answers when all of several have asked."""

    def __init__(self) -> None:
        super().__init__()
        self._all_asked = threading.Barrier(TOGETHER)

    def is_taken(self, key: str) -> bool:
        self._all_asked.wait(30)
        return super().is_taken(key)


@pytest.fixture
def store() -> AskedStore:
    return AskedStore()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def destination(store: AskedStore, clock: ManualClock) -> StoreDestination:
    return StoreDestination(cast("Store", store), clock=clock)


def test_a_store_that_is_away_is_left_alone_by_all(
    store: AskedStore, clock: ManualClock, destination: StoreDestination
) -> None:
    store.failure = away()
    with pytest.raises(StoreError, match="refused"):
        destination.is_taken("first")
    assert CLOSED_FIRST_S / 2 <= destination.opens_in_s <= CLOSED_FIRST_S
    with pytest.raises(StoreError, match="refused"):
        destination.is_taken("second")
    assert store.asked == ["first"]
    assert destination.failures == 1
    assert "connection refused" in destination.trouble

    store.failure = None
    clock.jump(CLOSED_FIRST_S)
    assert destination.opens_in_s == 0
    assert destination.is_taken("third")
    assert (destination.trouble, destination.opens_in_s) == ("", 0)


def test_each_failure_doubles_the_time_with_jitter_up_to_a_minute(
    store: AskedStore, clock: ManualClock, destination: StoreDestination
) -> None:
    store.failure = away()
    closed_s = CLOSED_FIRST_S
    for number in range(12):
        with pytest.raises(StoreError):
            destination.is_taken(f"{number}")
        assert closed_s / 2 <= destination.opens_in_s <= closed_s
        clock.jump(destination.opens_in_s + 1e-6)
        closed_s = min(2 * closed_s, CLOSED_MAX_S)
    assert closed_s == CLOSED_MAX_S
    assert len(store.asked) == 12

    store.failure = None
    assert destination.is_taken("works")
    store.failure = away()
    with pytest.raises(StoreError):
        destination.is_taken("fails")
    assert destination.opens_in_s <= CLOSED_FIRST_S


def test_the_times_differ() -> None:
    """Or all archivers would come back at once."""
    found = set()
    for _ in range(20):
        store = AskedStore()
        store.failure = away()
        destination = StoreDestination(cast("Store", store), clock=ManualClock())
        with pytest.raises(StoreError):
            destination.is_taken("key")
        found.add(destination.opens_in_s)
    assert len(found) > 1


def test_what_was_under_way_together_fails_once(clock: ManualClock) -> None:
    """A restart of the store does not close it for a minute because eight files were on their way."""
    store = Late()
    store.failure = away()
    destination = StoreDestination(cast("Store", store), clock=clock)

    def ask(number: int) -> None:
        with pytest.raises(StoreError):
            destination.is_taken(f"{number}")

    with ThreadPoolExecutor(TOGETHER) as threads:
        list(threads.map(ask, range(TOGETHER)))
    assert len(store.asked) == destination.failures == TOGETHER
    assert destination.opens_in_s <= CLOSED_FIRST_S


def test_what_is_refused_concerns_one_key(store: AskedStore, destination: StoreDestination) -> None:
    store.failure = refused()
    with pytest.raises(StoreError, match="403"):
        destination.is_taken("secret")
    assert (destination.opens_in_s, destination.trouble, destination.failures) == (0, "", 1)
    store.failure = None
    assert destination.is_taken("mine")


@pytest.mark.parametrize(
    "answer", [refused(), FileNotFoundError(2, "no such object"), FileExistsError(17, "taken")]
)
def test_a_store_that_answers_is_not_away_any_more(
    answer: Exception, store: AskedStore, clock: ManualClock, destination: StoreDestination
) -> None:
    """What health says of it is what it said last."""
    store.failure = away()
    with pytest.raises(StoreError):
        destination.is_taken("key")
    clock.jump(CLOSED_FIRST_S)
    store.failure = answer
    with pytest.raises(type(answer)):
        destination.is_taken("key")
    assert destination.trouble == ""


def test_what_mends_it_is_told_with_it(store: AskedStore, destination: StoreDestination) -> None:
    hint = "Renew the credentials."
    store.failure = StoreError("put", "s3://b/k", "400 ExpiredToken", is_passing=True, hint=hint)
    with pytest.raises(StoreError):
        destination.is_taken("key")
    assert destination.trouble.endswith("ExpiredToken (Renew the credentials.)")


@pytest.fixture
def opened(proxy: FaultProxy, bucket: str) -> Iterator[StoreDestination]:
    """The bucket of this test, in a store that is one."""
    flags = [f"--bucket={bucket}", f"--endpoint-url={proxy.endpoint_url}", "--store-timeout=5s"]
    destinations = Destinations(load(StoreOptions, "nsq_to_s3", flags, {}))
    yield destinations.open(f"s3://{bucket}")
    destinations.close()


def facts_of(content: bytes) -> FileFacts:
    return FileFacts(
        size_bytes=len(content),
        records=3,
        first_ts_ns=1,
        last_ts_ns=None,
        content_bytes=20,
        sha256=hashlib.sha256(content).hexdigest(),
    )


def test_what_the_writer_knows_of_parts_is_used(
    proxy: FaultProxy,
    bucket: str,
    archive: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file is not read but to be sent."""
    flags = [f"--bucket={bucket}", f"--endpoint-url={proxy.endpoint_url}", "--part-size=5MiB"]
    options = load(StoreOptions, "nsq_to_s3", [*flags, "--multipart-threshold=5MiB"], {})
    content = bytes(range(256)) * (6 << 12)
    source = tmp_path / "source"
    with contextlib.closing(Destinations(options)) as destinations:
        destination = destinations.open(f"s3://{bucket}")
        source.write_bytes(b"small")
        destination.place(source, "shows-what-the-store-knows", facts_of(b"small"), ABOUT)
        source.write_bytes(content)
        digest = Digest(destination.part_bytes)
        digest.update(content)
        monkeypatch.setattr("nsqtools.stores.body.Stretch.take_checksums", None)
        facts = facts_of(content).with_sums(digest)
        destination.place(source, "key", facts, ABOUT)
        destination.confirm("key", facts)
    assert proxy.count("PUT", "partNumber=") == 2
    assert archive.read("key") == content


def test_an_object_says_what_is_in_it(
    opened: StoreDestination, archive: Bucket, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    facts = facts_of(b"content")
    opened.place(source, "a/key.jsonl.zst", facts, ABOUT)
    opened.place(source, "a/key.jsonl.zst", facts, ABOUT)  # the same again is no other
    opened.confirm("a/key.jsonl.zst", facts)
    content_type, told = archive.head("a/key.jsonl.zst")
    assert content_type == "application/zstd"
    assert told == {
        "topic": "clicks",
        "channel": "archive",
        "host": "h%C3%B6st",
        "format": "jsonl",
        "compression": "zstd",
        "records": "3",
        "first-ts": "1",
        "raw-bytes": "20",
        "sha256": facts.sha256,
        "file": "u",
    }


def test_another_file_of_the_same_content_is_another_object(
    opened: StoreDestination, archive: Bucket, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    opened.place(source, "key", facts_of(b"content"), ABOUT)
    with pytest.raises(FileExistsError):
        opened.place(source, "key", facts_of(b"content"), replace(ABOUT, unique="v"))
    assert archive.head("key")[1]["file"] == "u"


def test_a_manifest_is_json(opened: StoreDestination, archive: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"{}")
    opened.place(source, "key.manifest.json", facts_of(b"{}"))
    assert archive.head("key.manifest.json")[0] == "application/json"


def test_each_bucket_is_opened_once_and_a_folder_is_none(bucket: str) -> None:
    destinations = Destinations(load(StoreOptions, "nsq_to_s3", [f"--bucket={bucket}"], {}))
    assert destinations.open("s3://other") is destinations.open("s3://other")
    assert destinations.open("s3://other").describe() == "s3://other"
    long = "x" * 900
    assert destinations.open("s3://other").location(long) == f"s3://other/{long}"
    with pytest.raises(ArchiveError, match="no bucket") as raised:
        destinations.open("/var/log/nsq")
    assert "--work-dir" in raised.value.hint
    destinations.close()
