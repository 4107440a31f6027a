"""Putting files into stores: whole, once, never over another, whatever happens on the way."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from nsqtools.digest import Digest
from nsqtools.errors import StorageError, StoreError
from nsqtools.stores.body import Stretch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.faults import FaultProxy, Kind
    from tests.support.stores import StoreServer

    from nsqtools.digest import PartSums
    from nsqtools.stores.client import Store

SMALL = b"message\n" * 4000
LARGE = b"".join(b"%d\n" % number for number in range(1_700_000))  # 12.5 MB, three parts of 5 MiB
PART_BYTES = 5 << 20
IN_PARTS = ("--part-size=5MiB", "--multipart-threshold=5MiB", "--store-timeout=5s")


class Sample:
    """A finished file."""

    def __init__(self, folder: Path, content: bytes, name: str = "file") -> None:
        self.path = folder / name
        self.path.write_bytes(content)
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.parts: PartSums | None = None

    def take_parts(self) -> None:
        """What the writer of a file hands over with it."""
        digest = Digest(PART_BYTES)
        digest.update(self.content)
        self.parts = digest.parts

    def put(self, store: Store, key: str = "t/file.zst") -> None:
        store.put(
            self.path,
            key,
            size_bytes=len(self.content),
            sha256=self.sha256,
            metadata={"topic": "orders", "host": "h\xf6st"},
            content_type="application/zstd",
            parts=self.parts,
        )

    def confirm(self, store: Store, key: str = "t/file.zst") -> None:
        store.confirm(key, len(self.content), self.sha256)

    def read(self, store: Store, key: str = "t/file.zst") -> bytes:
        with store.open(key) as file:
            return file.read()


def unfinished(store: Store) -> list[str]:
    """Keys of uploads that are neither completed nor aborted."""
    return [one["Key"] for one in store._unfinished("")]


def put_in_the_end(sample: Sample, store: Store) -> None:
    """A second try, where the first failed in a way that passes."""
    try:
        sample.put(store)
    except StoreError as error:
        if not error.is_passing:
            raise
        sample.put(store)


@pytest.fixture
def small(tmp_path: Path) -> Sample:
    return Sample(tmp_path, SMALL)


@pytest.fixture
def large(tmp_path: Path) -> Sample:
    assert len(LARGE) > 2 * 5 << 20
    return Sample(tmp_path, LARGE)


@pytest.fixture
def parted(opened: Callable[..., Store]) -> Store:
    """A store that gets what is larger than 5 MiB in parts."""
    return opened(*IN_PARTS)


def test_a_file_that_is_gone_since_it_was_put(store: Store, small: Sample) -> None:
    """Whoever removes it, and then fails, puts it again."""
    small.put(store)
    small.path.unlink()
    small.put(store)
    small.sha256 = "0" * 64
    for key in ("t/file.zst", "t/other.zst"):  # another's, and nobody's
        with pytest.raises(StorageError, match="No such file"):
            small.put(store, key)


def test_a_small_file_is_one_request(store: Store, proxy: FaultProxy, small: Sample) -> None:
    small.put(store)
    assert proxy.count("PUT") == 1
    small.confirm(store)
    assert small.read(store) == SMALL
    stored = store.head("t/file.zst")
    assert stored.size_bytes == len(SMALL)
    assert stored.metadata == {"topic": "orders", "host": "höst", "sha256": small.sha256}


def test_an_empty_file_is_an_object(store: Store, tmp_path: Path) -> None:
    empty = Sample(tmp_path, b"", "empty")
    empty.put(store)
    empty.confirm(store)
    assert empty.read(store) == b""


def test_a_large_file_goes_in_parts(parted: Store, proxy: FaultProxy, large: Sample) -> None:
    large.put(parted)
    assert proxy.count("PUT", "partNumber=") == 3
    large.confirm(parted)
    assert large.read(parted) == LARGE
    assert parted.head("t/file.zst").metadata["topic"] == "orders"


def test_the_same_again_is_nothing_to_do(
    parted: Store, proxy: FaultProxy, large: Sample, tmp_path: Path
) -> None:
    small = Sample(tmp_path, SMALL, "small")
    for sample, key in ((small, "s"), (large, "l")):
        sample.put(parted, key)
        before = proxy.count("PUT"), proxy.count("POST")
        sample.put(parted, key)
        assert (proxy.count("PUT"), proxy.count("POST")) == before


@pytest.mark.parametrize("size", ["small", "large"])
def test_another_object_is_never_replaced(parted: Store, tmp_path: Path, size: str) -> None:
    content = {"small": SMALL, "large": LARGE}[size]
    first = Sample(tmp_path, content, "first")
    second = Sample(tmp_path, content[:-1] + b"!", "second")
    first.put(parted)
    with pytest.raises(FileExistsError):
        second.put(parted)
    assert first.read(parted) == content
    with pytest.raises(StoreError, match="another object"):
        second.confirm(parted)


@pytest.mark.parametrize(("content", "looks"), [(SMALL, 1), (LARGE, 2)], ids=["small", "large"])
def test_who_comes_between_look_and_upload_is_not_replaced(
    parted: Store,
    proxy: FaultProxy,
    server: StoreServer,
    tmp_path: Path,
    content: bytes,
    looks: int,
) -> None:
    if not server.has_conditions:
        pytest.skip("this store passes over If-None-Match")
    first = Sample(tmp_path, content, "first")
    second = Sample(tmp_path, content[:-1] + b"!", "second")
    first.put(parted)
    proxy.fail_with(404, "NoSuchKey", "HEAD", times=looks)
    with pytest.raises(FileExistsError):
        second.put(parted)
    assert first.read(parted) == content
    assert not unfinished(parted)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["reset", "reset-midway", "lose-answer", "cut-answer", "stall"])
def test_a_lost_connection_loses_nothing(
    opened: Callable[..., Store], proxy: FaultProxy, tmp_path: Path, content: bytes, kind: Kind
) -> None:
    """And the second try neither fails nor uploads what is there."""
    store = opened(*IN_PARTS[:2], "--store-timeout=2s")
    sample = Sample(tmp_path, content)
    proxy.fail(kind, "PUT")
    put_in_the_end(sample, store)
    sample.confirm(store)
    assert sample.read(store) == content
    assert not unfinished(store)


@pytest.mark.parametrize("kind", ["reset", "lose-answer", "cut-answer", "stall"])
def test_a_completion_in_doubt_is_settled(
    opened: Callable[..., Store], proxy: FaultProxy, large: Sample, kind: Kind
) -> None:
    store = opened(*IN_PARTS[:2], "--store-timeout=2s")
    proxy.fail(kind, "POST", "uploadId=")
    large.put(store)
    large.confirm(store)
    assert large.read(store) == LARGE
    assert not unfinished(store)


@pytest.mark.parametrize("status", [200, 500])
def test_an_error_in_the_answer_to_a_completion_is_one(
    parted: Store, proxy: FaultProxy, large: Sample, status: int
) -> None:
    proxy.fail_with(status, "InternalError", "POST", "uploadId=")
    large.put(parted)
    assert proxy.count("POST", "uploadId=") == 2
    large.confirm(parted)


def test_a_completion_that_cannot_be_settled_is_not_aborted(
    parted: Store, proxy: FaultProxy, large: Sample
) -> None:
    looks = 2  # before the upload, and before it is completed
    proxy.fail("lose-answer", "POST", "uploadId=")
    proxy.fail_with(404, "NoSuchKey", "HEAD", times=looks)
    proxy.fail_with(503, "SlowDown", "HEAD", times=100)
    with pytest.raises(StoreError, match="not known whether") as caught:
        large.put(parted)
    assert caught.value.is_passing
    assert not proxy.count("DELETE")


def test_who_uploads_the_same_meanwhile_leaves_no_parts_behind(
    parted: Store, proxy: FaultProxy, large: Sample
) -> None:
    large.put(parted)
    proxy.fail_with(404, "NoSuchKey", "HEAD")
    large.put(parted)
    assert proxy.count("PUT", "partNumber=1") == 2
    assert not unfinished(parted)
    assert large.read(parted) == LARGE


def test_a_part_is_tried_again_by_itself(parted: Store, proxy: FaultProxy, large: Sample) -> None:
    proxy.fail_with(503, "SlowDown", "PUT", "partNumber=2", times=2)
    large.put(parted)
    assert proxy.count("PUT", "partNumber=2") == 3
    assert proxy.count("PUT", "partNumber=1") == 1
    large.confirm(parted)


def rot(sample: Sample) -> None:
    """Another bit in the middle of the file, as a disk would have it."""
    data = bytearray(sample.content)
    data[len(data) // 2] ^= 1
    sample.path.write_bytes(data)


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def known(request: pytest.FixtureRequest, parted: Store, tmp_path: Path) -> Sample:
    """With checksums of when it was written, and a store that has shown what it says of what it got."""
    sample = Sample(tmp_path, request.param)
    sample.put(parted, "shows-what-the-store-knows")
    sample.take_parts()
    return sample


def test_checksums_of_when_it_was_written_do(
    parted: Store, proxy: FaultProxy, known: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read to be sent, and for nothing else."""
    sent = proxy.count("PUT", "partNumber=")
    monkeypatch.delattr(Stretch, "take_checksums")
    known.put(parted)
    monkeypatch.undo()
    assert proxy.count("PUT", "partNumber=") == sent + (3 if known.content == LARGE else 0)
    known.confirm(parted)
    assert known.read(parted) == known.content


def test_checksums_of_other_parts_are_taken_anew(parted: Store, large: Sample) -> None:
    large.put(parted, "shows-what-the-store-knows")
    digest = Digest(PART_BYTES + 1)
    digest.update(LARGE)
    large.parts = digest.parts
    large.put(parted)
    assert large.read(parted) == LARGE


def test_a_file_that_rotted_since_it_was_written_is_no_object(
    parted: Store, proxy: FaultProxy, known: Sample
) -> None:
    """It is sent, and the answer does not fit: then it is read."""
    rot(known)
    sent = proxy.count("PUT", "t/file.zst")
    with pytest.raises(StoreError, match="is not what it was") as caught:
        known.put(parted)
    assert not caught.value.is_passing
    assert proxy.count("PUT", "t/file.zst") > sent
    assert not parted.is_taken("t/file.zst")
    assert not unfinished(parted)


def test_a_small_file_with_known_checksums_that_was_changed_on_the_way_is_noticed(
    parted: Store, proxy: FaultProxy, small: Sample
) -> None:
    small.put(parted, "shows-what-the-store-knows")
    small.take_parts()
    proxy.fail("corrupt", "PUT", "t/file.zst")
    with pytest.raises(StoreError) as caught:
        small.put(parted)
    assert caught.value.is_passing
    assert not parted.is_taken("t/file.zst")
    small.put(parted)
    assert small.read(parted) == SMALL


def test_a_store_that_has_shown_nothing_is_sent_what_was_read(parted: Store, large: Sample) -> None:
    large.take_parts()
    rot(large)
    with pytest.raises(StoreError, match="is not what it was"):
        large.put(parted)
    assert not parted.is_taken("t/file.zst")


def test_a_part_with_known_checksums_that_was_changed_on_the_way_is_noticed(
    parted: Store, proxy: FaultProxy, large: Sample
) -> None:
    large.put(parted, "shows-what-the-store-knows")
    large.take_parts()
    proxy.fail("corrupt", "PUT", "partNumber=2")
    put_in_the_end(large, parted)
    assert large.read(parted) == LARGE
    assert not unfinished(parted)


def test_an_upload_that_fails_is_aborted(parted: Store, proxy: FaultProxy, large: Sample) -> None:
    proxy.fail_with(403, "AccessDenied", "PUT", "partNumber=2")
    with pytest.raises(StoreError, match="AccessDenied"):
        large.put(parted)
    assert proxy.count("DELETE", "uploadId=") == 1
    assert not unfinished(parted)
    assert not parted.is_taken("t/file.zst")


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_was_changed_on_the_way_is_noticed(
    parted: Store,
    proxy: FaultProxy,
    server: StoreServer,
    tmp_path: Path,
    content: bytes,
    is_first: bool,
) -> None:
    """By the store, from Content-MD5, or by us, from what it says it has."""
    if is_first and server.name == "moto":
        pytest.skip("moto's server checks nothing, and its ETags are not known to be MD5 yet")
    if not is_first:
        Sample(tmp_path, SMALL, "before").put(parted, "before")
    sample = Sample(tmp_path, content)
    proxy.fail("corrupt", "PUT", "t/file.zst")
    with pytest.raises(StoreError) as caught:
        sample.put(parted)
    assert caught.value.is_passing
    assert not parted.is_taken("t/file.zst")
    assert not unfinished(parted)
    sample.put(parted)
    assert sample.read(parted) == content


def test_a_store_that_forgets_is_found_out(store: Store, proxy: FaultProxy, small: Sample) -> None:
    proxy.fail("forget", "PUT")
    small.put(store)
    with pytest.raises(FileNotFoundError):
        small.confirm(store)
    small.put(store)
    small.confirm(store)


def test_a_store_that_knows_no_condition_is_asked_without(
    store: Store, proxy: FaultProxy, small: Sample, tmp_path: Path
) -> None:
    proxy.fail_with(501, "NotImplemented", "PUT")
    small.put(store)
    small.confirm(store)
    Sample(tmp_path, SMALL + b"!", "next").put(store, "next")
    assert proxy.count("PUT") == 3


def test_a_conflict_is_settled(
    store: Store, proxy: FaultProxy, server: StoreServer, small: Sample
) -> None:
    """409: somebody else writes the key at this moment; it may be our own try before."""
    proxy.fail_with(409, "ConditionalRequestConflict", "PUT")
    with pytest.raises(StoreError) as caught:
        small.put(store)
    assert caught.value.is_passing
    small.put(store)
    small.confirm(store)


def test_a_file_that_is_not_what_it_was_is_refused(
    parted: Store, small: Sample, large: Sample
) -> None:
    for sample in (small, large):
        changed = sample.content[:-1] + b"!"
        sample.path.write_bytes(changed)
        with pytest.raises(StoreError, match="SHA-256") as caught:
            sample.put(parted)
        assert not caught.value.is_passing
        sample.path.write_bytes(changed[:-1])
        with pytest.raises(StoreError, match="bytes, not"):
            sample.put(parted)
    assert not parted.is_taken("t/file.zst")
    assert not unfinished(parted)


def test_a_file_that_is_gone_is_the_disks_failure(
    store: Store, small: Sample, tmp_path: Path
) -> None:
    small.path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        small.put(store)


def test_an_object_without_our_metadata_is_read_to_confirm_it(
    store: Store, server: StoreServer, small: Sample
) -> None:
    client = server.client()
    client.put_object(Bucket=store.bucket, Key="plain", Body=SMALL)
    client.put_object(Bucket=store.bucket, Key="other", Body=SMALL[:-1] + b"!")
    client.close()
    small.confirm(store, "plain")
    small.put(store, "plain")
    with pytest.raises(StoreError, match="another object"):
        small.confirm(store, "other")
    with pytest.raises(FileExistsError):
        small.put(store, "other")


def test_only_our_own_old_uploads_are_aborted(
    store: Store, server: StoreServer, bucket: str
) -> None:
    client = server.client()
    for key in ("a/ours", "a/theirs", "b/ours"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    client.close()
    if server.name == "rclone":  # moto's began in 2010, all of them
        assert store.abort_orphans("a/", 3600, lambda key: key.endswith("ours")) == ()
    assert store.abort_orphans("a/", 0, lambda key: key.endswith("ours")) == ("a/ours",)
    assert sorted(unfinished(store)) == ["a/theirs", "b/ours"]
    store.abort_orphans("", 0, lambda _: True)
    assert not unfinished(store)
