"""Stores for tests: every one that takes `server` or `store` runs against both of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from tests.support.faults import FaultProxy
from tests.support.stores import ENVIRONMENT, StoreServer

from nsqtools.options import load
from nsqtools.stores.client import Store, open_store
from nsqtools.stores.options import StoreOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NUMBERS = itertools.count()


@pytest.fixture(scope="session", params=("moto", "rclone"))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoreServer]:
    with StoreServer(request.param, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: StoreServer) -> str:
    """A bucket of this test alone."""
    name = f"bucket-{next(_NUMBERS)}"
    client = server.client()
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture
def proxy(server: StoreServer) -> Iterator[FaultProxy]:
    """Stands before the store."""
    with FaultProxy(server.address).serving() as running:
        yield running


@pytest.fixture
def opened(proxy: FaultProxy, bucket: str) -> Iterator[Callable[..., Store]]:
    """Opens stores, through the proxy, with options as a command line has them."""
    stores: list[Store] = []

    def open_one(*flags: str) -> Store:
        given = [f"--bucket={bucket}", f"--endpoint-url={proxy.endpoint_url}", *flags]
        stores.append(open_store(load(StoreOptions, "nsq_to_s3", given, {})))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., Store]) -> Store:
    """The bucket of this test, through the proxy."""
    return opened("--store-timeout=5s")
