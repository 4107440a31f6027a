"""Runs that end by themselves: after so many messages, and when none comes any more."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.pipeline.helpers import archive_options, archived, publish, until_settled
from tests.support.nsqd import PATIENCE_S
from tests.support.peer import Peer, fins, messages
from tests.support.web import channel_stats

from nsqtools.lifecycle import Lifecycle
from nsqtools.pipeline.batch import Idle, Quota
from nsqtools.programs.nsq_to_file import run as program
from nsqtools.programs.nsq_to_file.run import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nsqd import Nsqd

TEN = [b"message %d" % number for number in range(10)]


class FakeConsumer:
    """Counts what it is allowed."""

    def __init__(self, in_flight: int = 0) -> None:
        self.in_flight = in_flight
        self.allowed: list[int] = []

    def allow(self, messages: int, *, strictly: bool) -> None:
        assert strictly
        self.allowed.append(messages)


def quota_of(messages: int, *consumers: FakeConsumer) -> tuple[Quota, list[bool]]:
    reached: list[bool] = []
    quota = Quota(messages, lambda: reached.append(True))
    for consumer in consumers:
        quota.enter(cast("Any", consumer))
    return quota, reached


# What is asked for


def test_no_more_is_asked_for_than_is_wanted() -> None:
    one = FakeConsumer()
    quota, reached = quota_of(10, one)
    assert one.allowed[-1] == 10
    one.in_flight = 6
    quota.settling(cast("Any", one), 4)
    assert one.allowed[-1] == 6, "before the answer: 2 that it holds, and 4 more"
    one.in_flight = 2
    quota.done(4)
    assert one.allowed[-1] == 6
    assert not reached
    quota.done(6)
    assert (quota.left, reached) == (0, [True])
    quota.done(3)
    assert (quota.left, reached, one.allowed[-1]) == (0, [True], 2)


def test_topics_share_what_is_wanted() -> None:
    several = [FakeConsumer(), FakeConsumer(5), FakeConsumer()]
    quota, _ = quota_of(11, *several)
    assert sum(each.allowed[-1] for each in several) == 11
    assert several[1].allowed[-1] >= 5
    quota.leave(cast("Any", several[1]))
    assert [each.allowed[-1] for each in (several[0], several[2])] in ([5, 6], [6, 5])


@pytest.mark.parametrize(("wanted", "topics"), [(1, 3), (2, 3), (4, 6), (5, 7), (3, 9)])
def test_fewer_than_topics_go_round(wanted: int, topics: int) -> None:
    several = [FakeConsumer() for _ in range(topics)]
    quota, _ = quota_of(wanted, *several)
    for _ in range(2 * topics):
        quota.share()
        assert sum(each.allowed[-1] for each in several) == wanted
    assert all(max(each.allowed[-2 * topics :]) == 1 for each in several), "nobody is forgotten"


# When nothing comes


def test_idle_is_quiet_for_long_enough() -> None:
    idle = Idle(10.0)
    times = itertools.count()

    def look(received: int, *, quiet: bool = True) -> bool:
        return idle.is_over(is_quiet=quiet, received=received, now_s=float(next(times)))

    assert not any(look(0) for _ in range(10))
    assert not look(1), "a message came in the last moment"
    assert not any(look(1) for _ in range(9))
    assert not look(1, quiet=False), "it is in flight"
    assert not any(look(1) for _ in range(10))
    assert look(1)


# Against a broker


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without signals, which belong to the tests."""
    monkeypatch.setattr(
        program, "Lifecycle", lambda timeout_s: Lifecycle(timeout_s, handle_signals=False)
    )


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with Peer() as made:
        yield made


async def ends(folder: Path, *flags: str) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await run(archive_options(folder / "archive", "--progress=never", *flags))


@pytest.mark.usefixtures("lives")
async def test_ends_when_so_many_are_done(
    nsqd: Nsqd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And leaves the others with nsqd."""
    caplog.set_level(logging.INFO, "nsqtools")
    await publish(nsqd, *TEN)
    assert await ends(tmp_path, f"--nsqd-tcp-address={nsqd.tcp_address}", "--max-messages=4") == 0
    assert len(archived(tmp_path / "archive")) == 4
    left: dict[str, int] | None = await channel_stats(nsqd, "t", "archive")
    assert left is not None
    assert left["depth"] == 6
    assert "all messages that were wanted are done" in caplog.text


async def test_an_end_by_itself_forces_none_that_was_asked_for() -> None:
    """The last message may be done after SIGTERM."""
    async with Lifecycle(1.0, handle_signals=False) as life:
        life.stop("SIGTERM")
        life.end("all messages that were wanted are done")
        assert not life.forced.is_set()


@pytest.mark.usefixtures("lives")
async def test_ends_when_nothing_comes(nsqd: Nsqd, tmp_path: Path) -> None:
    await publish(nsqd, *TEN)
    flags = [f"--nsqd-tcp-address={nsqd.tcp_address}", "--exit-when-idle=300ms"]
    assert await ends(tmp_path, *flags) == 0
    assert archived(tmp_path / "archive") == TEN
    await until_settled(nsqd, 10)
    assert await ends(tmp_path, *flags, "--max-messages=99") == 0, "with nothing at all, too"


@pytest.mark.usefixtures("lives")
async def test_an_nsqd_that_is_away_is_not_idle(tmp_path: Path) -> None:
    """Nobody knows what it has."""
    flags = ["--nsqd-tcp-address=127.0.0.1:1", "--exit-when-idle=50ms"]
    task = asyncio.create_task(
        run(archive_options(tmp_path / "archive", "--progress=never", *flags))
    )
    await asyncio.wait([task], timeout=0.5)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("lives")
async def test_rdy_gets_less_before_the_answers(peer: Peer, tmp_path: Path) -> None:
    """Or nsqd would send others in their place."""
    options = archive_options(
        tmp_path / "archive",
        f"--nsqd-tcp-address={peer.address}",
        "--channel=c",
        "--max-messages=5",
        "--progress=never",
    )
    task = asyncio.create_task(run(options))
    nsqd = await peer.subscribed()
    await nsqd.expect(b"RDY 5")
    nsqd.send(messages(1, 2, 3))
    await nsqd.expect(b"RDY 2", *fins(1, 2, 3))
    nsqd.send(messages(4, 5))
    await nsqd.expect(b"RDY 0", *fins(4, 5), b"CLS")
    nsqd.respond(b"CLOSE_WAIT")
    nsqd.end()
    assert await task == 0
    assert len(archived(tmp_path / "archive")) == 5
