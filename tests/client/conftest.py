from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.peer import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as peer:
        yield peer
