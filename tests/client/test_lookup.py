from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from tests.support.lookupd import UNKNOWN, FakeLookupd, listing, lookupds

from nsqtools.ask import ANSWER_BYTES_MAX, new_session
from nsqtools.client.discovery import QUESTIONS_AT_ONCE, Discovery
from nsqtools.client.lookup import (
    Lookupd,
    LookupOptions,
    LookupPoller,
    lookup,
    topics,
)
from nsqtools.errors import ConnectionFailed, OptionsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FAST = LookupOptions(lookupd_poll_interval_s=0.01, poke_spacing_s=0.001)
IMPATIENT = LookupOptions(lookupd_poll_timeout_s=0.2, stragglers_s=0.05)
# The interval is out of the way: what happens, happens because of something else.
SLOW = LookupOptions(lookupd_poll_interval_s=3600, poke_spacing_s=0.001)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What an operator read so far."""
    caplog.set_level(logging.INFO, "nsqtools.lookup")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("h:4161", "http://h:4161/lookup?topic=t"),
        ("[::1]:4161", "http://[::1]:4161/lookup?topic=t"),
        ("http://h", "http://h/lookup?topic=t"),
        ("https://h:1/", "https://h:1/lookup?topic=t"),
        ("https://h:1/nsq/lookup", "https://h:1/nsq/lookup?topic=t"),
        ("http://h:1/find?k=v", "http://h:1/find?k=v&topic=t"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert Lookupd.parse(address).url("lookup", "t") == url


def test_other_endpoints_lie_beside_lookup() -> None:
    assert Lookupd.parse("h:1").url("topics") == "http://h:1/topics"
    assert Lookupd.parse("http://h:1/nsq/lookup").url("topics") == "http://h:1/nsq/topics"
    assert Lookupd.parse("h:1").url("lookup", "a#ephemeral").endswith("?topic=a%23ephemeral")


@pytest.mark.parametrize("address", ["", "h", "::1", "h:x", "h:99999", ":4161", "ftp://h:1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(OptionsError, match="lookupd address"):
        Lookupd.parse(address)


async def test_answers_are_merged() -> None:
    async with lookupds(
        listing(("a", 1), ("::1", 2)), listing(("a", 1), ("b", 3)), UNKNOWN
    ) as all_:
        found = await lookup([fake.address for fake in all_], "t")
    assert found == {"a:1", "[::1]:2", "b:3"}
    request = all_[0].asked[0]
    assert request.startswith("GET /lookup?topic=t HTTP/1.1\r\n")
    assert "Accept: application/vnd.nsq; version=1.0\r\n" in request
    assert "Authorization" not in request


async def test_the_secret_is_sent_as_a_bearer_token() -> None:
    async with lookupds(listing()) as [fake]:
        options = LookupOptions(auth_secret="s3", auth_plaintext=True)
        await lookup([fake.address], "t", options=options)
    assert "Authorization: Bearer s3\r\n" in fake.asked[0]
    assert "s3" not in repr(options)


async def test_the_secret_is_not_sent_in_the_clear_unless_that_is_asked_for() -> None:
    async with lookupds(listing()) as [fake]:
        await lookup([fake.address], "t", options=LookupOptions(auth_secret="s3"))
    assert "Authorization" not in fake.asked[0]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_for_want_of_the_secret_says_why_it_was_not_sent(status: int) -> None:
    async with lookupds((status, b"{}")) as [fake]:
        with pytest.raises(ConnectionFailed, match=f"{status}; the secret was not sent.*https"):
            await lookup([fake.address], "t", options=LookupOptions(auth_secret="s3"))
        with pytest.raises(ConnectionFailed, match=f"status {status}$"):
            await lookup([fake.address], "t")


async def test_a_redirect_takes_the_secret_nowhere_else() -> None:
    async with lookupds(listing(("a", 1)), UNKNOWN) as [other, fake]:
        fake.location = f"http://{other.address}/lookup?topic=t"
        options = LookupOptions(auth_secret="s3", auth_plaintext=True)
        assert await lookup([fake.address], "t", options=options) == {"a:1"}
    assert "Authorization: Bearer s3\r\n" in fake.asked[0]
    assert len(other.asked) == 1
    assert "Authorization" not in other.asked[0]


@pytest.mark.parametrize("address", ["http://me:hunter2@127.0.0.1:1", "http://me:hunter2@h:x"])
async def test_a_password_in_an_address_is_in_no_error(address: str) -> None:
    with pytest.raises((ConnectionFailed, OptionsError)) as raised:
        await lookup([address], "t")
    assert "hunter2" not in str(raised.value)
    assert "me:***@" in str(raised.value)


async def test_topics() -> None:
    one, two = (200, b'{"topics":["a","b"]}'), (200, b'{"topics":["b","c d"]}')
    async with lookupds(one, two) as all_:
        assert await topics([fake.address for fake in all_]) == {"a", "b"}
    assert all_[0].asked[0].startswith("GET /topics HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (404, b"<html>not here</html>"),
        (200, b"<html>"),
        (200, b"{}"),
        (200, listing()[1] + b" " * ANSWER_BYTES_MAX),
        (302, b""),
    ],
)
async def test_one_that_lies_hurts_nothing(
    answer: tuple[int, bytes], said: Callable[[], list[str]]
) -> None:
    async with lookupds(answer, listing(("a", 1))) as all_:
        assert await lookup([fake.address for fake in all_], "t") == {"a:1"}
        assert len(said()) == 1
        with pytest.raises(ConnectionFailed, match=all_[0].address):
            await lookup([all_[0].address], "t")


async def test_one_that_is_no_http_server_hurts_nothing() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x00\x00\x0eE_BAD_PROTOCOL")
        writer.close()

    async with (
        lookupds(listing(("a", 1))) as [good],
        await asyncio.start_server(serve, "127.0.0.1", 0) as server,
    ):
        bad = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await lookup([bad, good.address], "t") == {"a:1"}


async def test_one_that_is_dead_or_hung_hurts_nothing() -> None:
    async with lookupds(listing(("a", 1)), listing(("b", 2))) as [good, hung]:
        hung.gate.clear()
        addresses = [hung.address, "127.0.0.1:1", good.address]
        assert await lookup(addresses, "t", options=IMPATIENT) == {"a:1"}
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            await lookup([hung.address], "t", options=IMPATIENT)


async def test_that_nobody_answered_is_no_empty_answer() -> None:
    with pytest.raises(ConnectionFailed, match=r"no nsqlookupd answered: 127\.0\.0\.1:1: "):
        await topics(["127.0.0.1:1"])
    assert await topics([]) == set()


async def test_bad_entries_are_refused_and_said_once(said: Callable[[], list[str]]) -> None:
    async with (
        lookupds(listing(("a", 1), ("b/c", 2))) as [fake],
        polling(LookupPoller([fake.address], "t", rng=random.Random(1), options=FAST)) as (
            _,
            seen,
        ),
    ):
        await until(lambda: len(seen) >= 3)
    assert set(seen) == {frozenset({"a:1"})}
    assert said() == [
        f"lookupd entries refused address={fake.address} count=1 first='b/c' is not a host"
    ]


@asynccontextmanager
async def polling(
    poller: LookupPoller,
) -> AsyncIterator[tuple[LookupPoller, list[frozenset[str]]]]:
    seen: list[frozenset[str]] = []
    task = asyncio.create_task(poller.run(seen.append))
    try:
        yield poller, seen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to that")


def poller_of(*fakes: FakeLookupd, options: LookupOptions = SLOW) -> LookupPoller:
    return LookupPoller([f.address for f in fakes], "t", rng=random.Random(1), options=options)


async def test_the_fast_answer_is_used_while_another_hangs() -> None:
    async with lookupds(listing(("a", 1)), listing(("b", 2))) as [fast, hung]:
        hung.gate.clear()
        async with polling(poller_of(fast, hung)) as (poller, seen):
            await until(lambda: seen == [{"a:1"}])
            poller.poke()
            await until(lambda: len(seen) == 2)
            hung.gate.set()
            await until(lambda: seen[-1] == {"a:1", "b:2"})


async def test_many_pokes_are_one_question() -> None:
    async with lookupds(listing(("a", 1))) as [fake], polling(poller_of(fake)) as (poller, seen):
        await until(lambda: len(seen) == 1)
        for _ in range(100):
            poller.poke()
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.01)
        assert len(fake.asked) == 2


async def test_it_polls_every_interval() -> None:
    async with (
        lookupds(listing(("a", 1))) as [fake],
        polling(poller_of(fake, options=FAST)) as (_, seen),
    ):
        await until(lambda: len(seen) >= 4)


async def test_a_failure_forgets_nothing_and_is_said_once(
    said: Callable[[], list[str]],
) -> None:
    async with (
        lookupds(listing(("a", 1)), listing(("b", 2))) as [one, two],
        polling(poller_of(one, two, options=FAST)) as (poller, seen),
    ):
        await until(lambda: poller.producers == {"a:1", "b:2"})
        one.answer = (500, b"")
        await until(lambda: poller.failing.get(one.address, 0) >= 3)
        assert seen[-1] == {"a:1", "b:2"}
        one.answer = UNKNOWN
        await until(lambda: poller.producers == {"b:2"})
        assert poller.failing == {}
    messages = [line.partition(" failures=")[0] for line in said()]
    assert messages == ["lookupd failed topic=t", f"lookupd answers again address={one.address}"]


async def test_a_shared_session_stays_open() -> None:
    async with lookupds(listing(("a", 1))) as [fake], new_session() as session:
        await lookup([fake.address], "t", session=session)
        assert not session.closed


async def test_pollers_that_share_a_discovery_have_their_turns_at_each_nsqlookupd() -> None:
    async with (
        lookupds(listing(("a", 1)), listing(("b", 2))) as [fast, hung],
        AsyncExitStack() as stack,
    ):
        hung.gate.clear()
        discovery = Discovery()
        addresses = [fast.address, hung.address]
        seen = []
        for number in range(QUESTIONS_AT_ONCE + 5):
            topic = f"t{number}"
            poller = LookupPoller(addresses, topic, rng=random.Random(1), discovery=discovery)
            seen.append((await stack.enter_async_context(polling(poller)))[1])
        await until(lambda: all(one == [{"a:1"}] for one in seen))
        assert len(hung.asked) == QUESTIONS_AT_ONCE
        hung.gate.set()
        await until(lambda: all(one[-1] == {"a:1", "b:2"} for one in seen))


def test_importing_discovery_does_not_import_aiohttp() -> None:
    code = "import sys, nsqtools.client.lookup; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
