"""A bucket of each test's own, in both stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.stores.conftest import _environment, bucket, opened, proxy, server, store
from tests.support.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.stores import StoreServer

__all__ = ["_environment", "bucket", "opened", "proxy", "server", "store"]


@pytest.fixture
def archive(server: StoreServer, bucket: str) -> Iterator[Bucket]:
    """What readers see of the bucket."""
    with Bucket(server, bucket) as shown:
        yield shown
