"""`check`: what a store can do is told in words, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nsqtools.stores.check import check
from nsqtools.stores.failures import NO_STORE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.faults import FaultProxy
    from tests.support.stores import StoreServer

    from nsqtools.stores.client import Store


def problems(store: Store) -> dict[str, str]:
    return {one.step: one.problem for one in check(store, "t/") if not one.is_fine}


def test_a_good_store(store: Store, server: StoreServer) -> None:
    steps = [one.step for one in check(store, "t/")]
    assert steps[0] == "write"
    assert steps[-1] == "remove"
    found = problems(store)
    if server.has_conditions:
        assert not found
    else:
        assert list(found) == ["refuse to overwrite"]
        assert "does not know If-None-Match" in found["refuse to overwrite"]
    assert list(store.list()) == []


@pytest.mark.parametrize(
    ("words", "step", "permission"),
    [
        (("PUT",), "write", "s3:PutObject on arn:aws:s3:::bucket-"),
        (("GET", "/t/"), "read back", "s3:GetObject on arn:aws:s3:::bucket-"),
        (("GET", "list-type=2"), "list", "s3:ListBucket on arn:aws:s3:::bucket-"),
        (("GET", "?uploads"), "list unfinished uploads", "s3:ListBucketMultipartUploads"),
        (("DELETE",), "remove", "s3:DeleteObject on arn:aws:s3:::bucket-"),
    ],
)
def test_a_permission_that_is_missing_is_named(
    store: Store, proxy: FaultProxy, words: tuple[str, ...], step: str, permission: str
) -> None:
    proxy.fail_with(403, "AccessDenied", *words, times=100)
    found = next(one for one in check(store, "t/") if one.step == step)
    assert "403 AccessDenied" in found.problem
    assert permission in found.hint


@pytest.mark.parametrize("status", [404, 405])
def test_what_is_no_store_is_suspected(store: Store, proxy: FaultProxy, status: int) -> None:
    """A web server, or the console of a store, at a port of its own."""
    proxy.fail("status", status=status, body=b"<html><h1>No such page</h1></html>", times=100)
    found = {one.step: one.hint for one in check(store, "t/")}
    if status == 404:  # a look at the key is answered as it should be
        assert found["write"] == NO_STORE
    assert found["list"] == NO_STORE


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "the answer says no LastModified"),
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, "was never written"),
    ],
)
def test_what_has_every_page_is_no_store(
    store: Store, proxy: FaultProxy, headers: dict[str, str], told: str
) -> None:
    proxy.fail("status", status=200, body=b"<html>Welcome</html>", times=100, headers=headers)
    found = {one.step: one for one in check(store, "t/")}
    assert told in found["write"].problem
    assert found["write"].hint == found["list"].hint == NO_STORE


def test_a_bucket_that_is_missing(
    opened: Callable[..., Store], server: StoreServer, bucket: str
) -> None:
    client = server.client()
    client.delete_bucket(Bucket=bucket)
    client.close()
    # Not through the proxy: rclone's server answers before it has read the body, and hangs up.
    first = check(opened(f"--endpoint-url={server.endpoint_url}"), "t/")[0]
    assert "NoSuchBucket" in first.problem
    assert "--bucket" in first.hint


def test_a_store_that_forgets(store: Store, proxy: FaultProxy) -> None:
    proxy.fail("forget", "PUT")
    assert "is not there, though it was written" in problems(store)["look"]
