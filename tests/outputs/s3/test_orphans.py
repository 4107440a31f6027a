"""Uploads that a kill has cut: ours are aborted, nobody else's are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nsqtools.archive.object_names import KEY_FORMAT, ObjectNaming
from nsqtools.outputs.s3 import orphans
from nsqtools.outputs.s3.orphans import abort_of, abort_old, key_pattern

if TYPE_CHECKING:
    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.stores import StoreServer

    from nsqtools.stores.client import Store


def naming(key_format: str = KEY_FORMAT, host: str = "host.1") -> ObjectNaming:
    return ObjectNaming(host=host, record_format="lines", key_format=key_format)


def test_every_key_of_ours_is_one() -> None:
    keys = naming().format_for("orders", "zstd", revision_needed=True)
    pattern = key_pattern(naming())
    assert pattern is not None
    key = keys.stem(1_700_000_000.0)
    filled = key.replace("<FIRST>", "1").replace("<LAST>", "2").replace("<REV>", "000000")
    assert pattern.fullmatch(filled)
    assert not pattern.fullmatch(filled.replace("host.1", "host-1"))
    assert not pattern.fullmatch(filled.replace("host.1", "hostx1"))
    assert not pattern.fullmatch(f"elsewhere/{filled}")


@pytest.mark.parametrize(
    ("key_format", "key", "is_ours"),
    [
        ("<HOST>%%/<REV>", "host.1%/000001", True),
        ("<HOST>%%/<REV>", "host.1x/000001", False),
        ("a+b/<HOST>/<REV>", "a+b/host.1/7", True),
        ("a+b/<HOST>/<REV>", "aab/host.1/7", False),
    ],
)
def test_what_means_something_in_a_pattern(key_format: str, key: str, is_ours: bool) -> None:
    pattern = key_pattern(naming(key_format))
    assert pattern is not None
    assert (pattern.fullmatch(key) is not None) == is_ours


def test_without_a_host_nobody_can_tell(store: Store) -> None:
    assert key_pattern(naming("<TOPIC>/<REV>")) is None
    assert abort_old(store, naming("<TOPIC>/<REV>")) == 0


def test_old_ones_of_this_host_are_aborted(
    server: StoreServer, archive: Bucket, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = "t/dt=2026-01-01/hour=01/t.host.1.A-B.000000.log.zst"
    others = ["t/dt=2026-01-01/hour=01/t.host-2.A-B.000000.log.zst", "something/else"]
    for key in (ours, *others):
        archive.begin_upload(key)
    if server.name == "rclone":  # moto's uploads were all begun in 2010
        assert abort_old(store, naming()) == 0, "another archiver of this host may be uploading"
    monkeypatch.setattr(orphans, "ORPHANED_S", -60.0)
    assert abort_old(store, naming()) == 1
    assert sorted(archive.unfinished_uploads()) == sorted(others)


def test_those_of_a_key_that_is_taken_now(archive: Bucket, store: Store) -> None:
    for key in ("a/key", "a/key.more"):
        archive.begin_upload(key)
    assert abort_of(store, "a/key") == 1
    assert archive.unfinished_uploads() == ["a/key.more"]


def test_a_store_that_does_not_show_them_is_told(
    proxy: FaultProxy, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fail_with(403, "AccessDenied", "uploads")
    assert abort_old(store, naming()) == 0
    assert "s3:ListBucketMultipartUploads" in caplog.text
