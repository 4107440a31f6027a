"""A request that hangs keeps none of its neighbours, and is neither sent twice nor forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.programs.nsq_to_http.helpers import (
    counted,
    delivering,
    publish,
    stats,
    until_settled,
    until_stats,
)
from tests.support.clients import until
from tests.support.endpoints import Endpoint, Received, serving

from nsqtools.outputs.http import delivery as delivery_module
from nsqtools.outputs.http import outcome as outcome_module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.nsqd import Nsqd

# So many that deliveries of many messages have begun.
QUICK = [b"%d" % number for number in range(400)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "LATE_S", 0.05)
    monkeypatch.setattr("nsqtools.outputs.http.output.LATE_S", 0.05)
    monkeypatch.setattr(outcome_module, "BACKOFF_FIRST_S", 0.02)


class Hanging:
    """An endpoint that keeps what begins with `hang` until it may answer, with a status."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.status = 200

    async def answer(self, one: Received) -> web.Response:
        if one.body.startswith(b"hang"):
            await self.may_answer.wait()
            return web.Response(status=self.status)
        return web.Response()


@pytest.fixture
async def hanging() -> Hanging:
    return Hanging()


@pytest.fixture
async def endpoint(hanging: Hanging) -> AsyncIterator[Endpoint]:
    async with serving(hanging.answer) as endpoint:
        yield endpoint
        hanging.may_answer.set()


def hung(endpoint: Endpoint) -> list[bytes]:
    return [body for body in endpoint.bodies if body.startswith(b"hang")]


@pytest.mark.parametrize("status", [200, 503])
async def test_its_neighbours_are_settled(
    nsqd: Nsqd, hanging: Hanging, endpoint: Endpoint, status: int
) -> None:
    hanging.status = status
    async with delivering(nsqd, f"--post={endpoint.url()}", "--n=4"):
        await publish(nsqd, *QUICK)
        await until_settled(nsqd, 400)
        await publish(nsqd, *QUICK[:60], b"hang 1", *QUICK[:60], b"hang 2", *QUICK[:60])
        await until(lambda: len(endpoint.received) == 400 + 182)
        await until_stats(nsqd, lambda now: now["in_flight_count"] == 2)
        await asyncio.sleep(0.2)  # asked for again and again
        assert sorted(hung(endpoint)) == [b"hang 1", b"hang 2"]
        hanging.status = status
        hanging.may_answer.set()
        if status != 200:
            await until(lambda: len(hung(endpoint)) >= 4)
            hanging.status = 200
        await until_settled(nsqd, 582)
        assert (await stats(nsqd))["requeue_count"] == 0


async def test_with_several_endpoints_each_gets_it_once(
    nsqd: Nsqd, hanging: Hanging, endpoint: Endpoint
) -> None:
    async with serving() as other:
        flags = (f"--post={endpoint.url()}", f"--post={other.url()}", "--mode=all", "--n=4")
        async with delivering(nsqd, *flags):
            await publish(nsqd, *QUICK)
            await until_settled(nsqd, 400)
            await publish(nsqd, *QUICK[:30], b"hang", *QUICK[:30])
            await until_stats(nsqd, lambda now: now["in_flight_count"] == 1)
            await asyncio.sleep(0.2)
            hanging.may_answer.set()
            await until_settled(nsqd, 461)
        assert sorted(other.bodies) == sorted(endpoint.bodies)
        assert hung(endpoint) == hung(other) == [b"hang"]


async def test_at_the_end_it_is_waited_for(
    nsqd: Nsqd, hanging: Hanging, endpoint: Endpoint
) -> None:
    async with delivering(nsqd, f"--post={endpoint.url()}", "--n=4"):
        await publish(nsqd, *QUICK)
        await until_settled(nsqd, 400)
        await publish(nsqd, *QUICK[:30], b"hang", *QUICK[:30])
        await until_stats(nsqd, lambda now: now["in_flight_count"] == 1)
        asyncio.get_running_loop().call_later(0.3, hanging.may_answer.set)
    now = await stats(nsqd)
    assert (now["depth"], now["in_flight_count"], now["requeue_count"]) == (0, 0, 0)
    assert hung(endpoint) == [b"hang"]


async def test_one_endpoint_refused_it_and_another_is_busy(nsqd: Nsqd) -> None:
    """The one that refused it is not asked again."""

    def busy(_: Received) -> web.Response:
        return web.Response(status=429 if len(two.received) < 4 else 200)

    async with serving(status=404) as one, serving(busy) as two:
        flags = (f"--post={one.url()}", f"--post={two.url()}", "--mode=all")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, b"x")
            await until_stats(nsqd, lambda now: now["deferred_count"] == 1)
            assert counted(run, "rejected") == 1
        assert (one.bodies, two.bodies) == ([b"x"], [b"x"] * 4)


async def test_one_endpoint_hangs_and_another_said_when(
    nsqd: Nsqd, hanging: Hanging, endpoint: Endpoint
) -> None:
    """The one that said when is not asked before, however often the message asks for its answer."""

    def later(one: Received) -> web.Response:
        is_late = one.body == b"hang" and len(hung(other)) == 1
        return web.Response(status=408 if is_late else 200, headers={"Retry-After": "1"})

    async with serving(later) as other:
        flags = (f"--post={endpoint.url()}", f"--post={other.url()}", "--mode=all", "--n=4")
        async with delivering(nsqd, *flags) as run:
            await publish(nsqd, *QUICK)
            await until_settled(nsqd, 400)
            await publish(nsqd, *QUICK[:30], b"hang", *QUICK[:30])
            await until_stats(nsqd, lambda now: now["in_flight_count"] == 1)
            await asyncio.sleep(0.5)
            assert hung(other) == [b"hang"]
            hanging.may_answer.set()
            await until_settled(nsqd, 461)
            assert hung(other) == [b"hang"] * 2
            assert counted(run, "retries") == 1


async def test_all_of_many_endpoints_hang(nsqd: Nsqd, hanging: Hanging, endpoint: Endpoint) -> None:
    """Each message waits for each of them, and comes to each of them once."""
    flags = ("--mode=all", "--n=4", "--max-in-flight=60")
    posts = [f"--post={endpoint.url(f'/{number}')}" for number in range(16)]
    hangs = [b"hang %d" % number for number in range(60)]
    async with delivering(nsqd, *flags, *posts) as run:
        await publish(nsqd, *QUICK)
        await until_settled(nsqd, 400)
        await publish(nsqd, *hangs)
        await until(lambda: len(hung(endpoint)) == 4)
        await asyncio.sleep(0.3)
        hanging.may_answer.set()
        await until_settled(nsqd, 460)
        await asyncio.sleep(0.3)  # what is sent and not waited for
        assert counted(run, "requests") == 460 * 16
        assert sorted(hung(endpoint)) == sorted(hangs * 16)
