"""What all topics of a process share of discovery; turns are shown with pollers, in test_lookup."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tests.client.helpers import consumer_of
from tests.support.clients import until
from tests.support.lookupd import listing, lookupds
from tests.support.peer import Peer

from nsqtools.client.discovery import Discovery

if TYPE_CHECKING:
    import pytest

MANY = frozenset(f"h:{number}" for number in range(100))


async def test_of_what_is_listed_no_more_is_held_than_there_is_room_for() -> None:
    discovery = Discovery(listed_max=150)
    assert discovery.listed(frozenset(), MANY) == MANY
    some = discovery.listed(frozenset(), MANY)
    assert len(some) == 50
    assert some < MANY
    # What was held stays, where it is listed still.
    assert discovery.listed(some, MANY | {"a:1"}) == some
    assert discovery.listed(MANY, frozenset()) == frozenset()
    assert discovery.listed(some, MANY) == MANY


async def test_what_is_beyond_the_limit_is_called_when_others_have_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    discovery = Discovery(called_max=2)
    async with Peer() as one, Peer() as two, Peer() as given:
        addresses = [("127.0.0.1", one.port), ("127.0.0.1", two.port)]
        async with lookupds(listing(*addresses)) as [fake]:
            first = consumer_of(lookupd=[fake.address], discovery=discovery)
            second = consumer_of(given, lookupd=[fake.address], discovery=discovery)
            async with contextlib.AsyncExitStack() as stack:
                async with first:
                    await asyncio.gather(one.subscribed(), two.subscribed())
                    await stack.enter_async_context(second)
                    await given.subscribed()  # what the user has named is called in any case
                    await until(lambda: "nsqds beyond the limit of a process wait" in caplog.text)
                    await until(lambda: second.connections == 1)
                await asyncio.gather(one.subscribed(), two.subscribed())
