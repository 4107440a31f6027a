"""A broker that ends, in order or not, keeps what it answered OK to and nothing that was finished."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.nsqd import OUR_PROGRAM, EmbeddedNsqd, ProcessNsqd
from tests.support.raw import MESSAGE, OK, RawClient, bodies, parse_message
from tests.support.web import channel_stats, post, topic_stats

from nsqtools.broker import files
from nsqtools.broker.accepting import Admission
from nsqtools.wire import commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.nsqd import Flag, Nsqd
    from tests.support.raw import Message


# Longer than any restart here takes.
DEFERRED_MS = 60_000


IN_THIS_PROCESS = [
    pytest.param((EmbeddedNsqd, False), id="clean"),
    pytest.param((EmbeddedNsqd, True), id="copied"),
]
AS_A_PROGRAM = [
    pytest.param((ProcessNsqd, False), id="SIGTERM", marks=pytest.mark.slow),
    pytest.param((ProcessNsqd, True), id="SIGKILL", marks=pytest.mark.slow),
]


@pytest.fixture(params=IN_THIS_PROCESS)
async def ours(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Nsqd, bool]]:
    """Our broker, and whether it is to be killed."""
    where, kill = request.param
    flags: dict[str, Flag] = {"max_bytes_per_file": 4096, "mem_queue_size": 20}
    nsqd: Nsqd
    if where is EmbeddedNsqd:
        nsqd = EmbeddedNsqd(tmp_path / "data", flags)
    else:
        nsqd = ProcessNsqd(OUR_PROGRAM, tmp_path / "data", flags, is_real=False)
    nsqd.data_path.mkdir()
    try:
        await nsqd.start()
        yield nsqd, kill
    finally:
        await nsqd.stop()


@pytest.mark.parametrize("ours", [*IN_THIS_PROCESS, *AS_A_PROGRAM], indirect=True)
async def test_what_was_answered_comes_back_and_what_was_finished_does_not(
    ours: tuple[Nsqd, bool],
) -> None:
    nsqd, kill = ours
    everything = [b"%04d" % number for number in range(400)]
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=100)
        for start in range(0, 400, 20):
            client.send(commands.mpub("t", everything[start : start + 20]))
        answers = 0
        messages: list[Message] = []
        while answers < 20 or len(messages) < 100:
            frame_type, data = await client.frame()
            if frame_type == MESSAGE:
                messages.append(parse_message(data))
            else:
                answers += 1
        # Some finished, some put back, some deferred; the others are in flight when it ends.
        finished, requeued, deferred = messages[:30], messages[30:40], messages[40:50]
        client.send(commands.rdy(0))
        client.finish(*finished)
        for message in requeued:
            client.requeue(message)
        for message in deferred:
            client.requeue(message, DEFERRED_MS)
        assert await client.ask(commands.dpub("t", b"later", DEFERRED_MS)) == OK
        await nsqd.restart(kill=kill)

    channel = await channel_stats(nsqd, "t", "c")
    assert channel["depth"] + channel["deferred_count"] == 371
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=500)
        found = await client.messages(360)
        assert await client.is_quiet()
        client.finish(*found)
        assert await client.is_quiet()
        await nsqd.restart(kill=kill)
    expected = set(everything) - set(bodies(finished)) - set(bodies(deferred))
    assert sorted(bodies(found)) == sorted(expected)
    before = {message.id: message for message in messages}
    for message in found:
        if message.id in before:
            assert message == before[message.id]._replace(attempts=2)
        else:
            assert message.attempts == 1
    channel = await channel_stats(nsqd, "t", "c")
    assert (channel["depth"], channel["deferred_count"]) == (0, 11)


@pytest.mark.parametrize("kill", [False, True])
async def test_a_deferral_goes_on_over_a_restart(tmp_path: Path, kill: bool) -> None:
    nsqd = EmbeddedNsqd(tmp_path / "data", {})
    nsqd.data_path.mkdir()
    await nsqd.start()
    try:
        began_s = time.monotonic()
        async with RawClient(nsqd.tcp_address) as client:
            assert await client.ask(commands.dpub("t", b"x", 1000)) == OK
            await client.subscribe("t", "c")
            assert await client.is_quiet()
            await nsqd.restart(kill=kill)
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c")
            assert (await client.message()).attempts == 1
            assert time.monotonic() - began_s > 1.0
    finally:
        await nsqd.stop()


async def test_a_deferred_message_outlives_a_journal_that_is_cut_anywhere(tmp_path: Path) -> None:
    """The power goes: the message is in the log, and only a part of what was noted of it."""
    nsqd = EmbeddedNsqd(tmp_path / "data", {})
    nsqd.data_path.mkdir()
    await nsqd.start()
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "c", rdy=0)
        await client.publish("t", b"x")
        assert await client.ask(commands.dpub("t", b"later", DEFERRED_MS)) == OK
        await nsqd.restart(kill=True)
    await nsqd.stop()
    path = nsqd.data_path / "t.topic" / "c.channel"
    raw = path.read_bytes()
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        await nsqd.start()
        channel = await channel_stats(nsqd, "t", "c")
        await nsqd.stop()
        assert channel["depth"] + channel["deferred_count"] == 2, size


async def test_channels_and_a_topic_without_one_keep_what_is_theirs(
    ours: tuple[Nsqd, bool],
) -> None:
    nsqd, kill = ours
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish("t", b"1", b"2")
        await post(nsqd, "/channel/create?topic=t&channel=a")
        await client.publish("t", b"3")
        await post(nsqd, "/channel/create?topic=t&channel=b")
        await client.publish("t", b"4")
        await client.publish("alone", b"5")
        await client.publish("gone", b"6")
        await client.publish("t#ephemeral", b"7")
        await post(nsqd, "/topic/delete?topic=gone")
        await post(nsqd, "/channel/create?topic=t&channel=e%23ephemeral")
    await nsqd.restart(kill=kill)
    assert (await topic_stats(nsqd, "alone"))["depth"] == 1
    assert await topic_stats(nsqd, "gone") is None
    assert await topic_stats(nsqd, "t%23ephemeral") is None
    assert await channel_stats(nsqd, "t", "e#ephemeral") is None
    for channel, expected in (("a", [b"1", b"2", b"3", b"4"]), ("b", [b"4"])):
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", channel, rdy=10)
            assert bodies(await client.messages(len(expected))) == expected
            assert await client.is_quiet()


async def test_what_ephemeral_channels_alone_were_given_is_not_the_next_ones(
    ours: tuple[Nsqd, bool],
) -> None:
    nsqd, kill = ours
    state = nsqd.data_path / "t.topic" / "topic.json"
    async with RawClient(nsqd.tcp_address) as client:
        await client.subscribe("t", "e#ephemeral", rdy=10)
        await client.publish("t", b"1", b"2")
        client.finish(*await client.messages(2))
        before = ""
        for body in (b"3", b"4"):
            # Nothing but the time that passes has it kept.
            while not state.exists() or state.read_text() == before:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            before = state.read_text()
            await client.publish("t", body)
            client.finish(*await client.messages(1))
        while state.read_text() == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await nsqd.restart(kill=kill)
    async with RawClient(nsqd.tcp_address) as client:
        await client.publish("t", b"5")
        await client.subscribe("t", "c", rdy=10)
        assert bodies(await client.messages(1)) == [b"5"]
        assert await client.is_quiet()


async def test_ids_are_not_used_again(ours: tuple[Nsqd, bool]) -> None:
    nsqd, kill = ours
    ids: list[bytes] = []
    for _ in range(3):
        async with RawClient(nsqd.tcp_address) as client:
            await client.publish("t", b"x", b"y")
            await client.subscribe("t", "c", rdy=2)
            messages = await client.messages(2)
            ids += [message.id for message in messages]
            client.finish(*messages)
            # Its answer says that the FINs before it were read.
            assert await client.ask(commands.pub("other", b"x")) == OK
        await nsqd.restart(kill=kill)
    assert len(set(ids)) == 6
    assert ids == sorted(ids)


@pytest.mark.slow
async def test_a_broker_killed_while_it_is_busy_loses_nothing(tmp_path: Path) -> None:
    """Publishers and a consumer at full speed, SIGKILL, and every answered message is accounted for."""
    nsqd = ProcessNsqd(OUR_PROGRAM, tmp_path, {"max_bytes_per_file": 65536}, is_real=False)
    await nsqd.start()
    answered: set[bytes] = set()
    finished: set[bytes] = set()
    try:
        for life in range(2):
            busy = asyncio.gather(
                _publish_until_the_end(nsqd, answered, life),
                _consume_until_the_end(nsqd, finished),
            )
            await asyncio.sleep(0.4)
            await nsqd.restart(kill=True)
            await busy
        rest: set[bytes] = set()
        async with RawClient(nsqd.tcp_address) as client:
            await client.subscribe("t", "c", rdy=2500)
            while await _waits(nsqd):
                message = await client.message()
                client.finish(message)
                rest.add(message.body)
    finally:
        await nsqd.stop()
    assert len(answered) > 100
    assert not answered - finished - rest


async def _publish_until_the_end(nsqd: Nsqd, answered: set[bytes], life: int) -> None:
    number = 0
    async with RawClient(nsqd.tcp_address) as client:
        try:
            while True:
                batch = [b"%d-%d" % (life, number + at) for at in range(50)]
                client.send(commands.mpub("t", batch))
                assert await client.frame() == OK
                answered.update(batch)
                number += 50
        except (ConnectionError, asyncio.IncompleteReadError):
            return


async def _consume_until_the_end(nsqd: Nsqd, finished: set[bytes]) -> None:
    async with RawClient(nsqd.tcp_address) as client:
        try:
            await client.subscribe("t", "c", rdy=500)
            while True:
                message = await client.message()
                client.finish(message)
                finished.add(message.body)
        except (ConnectionError, asyncio.IncompleteReadError):
            return


async def _waits(nsqd: Nsqd) -> bool:
    channel = await channel_stats(nsqd, "t", "c")
    return bool(channel["depth"] + channel["in_flight_count"])


@pytest.mark.slow
async def test_the_fixture_for_the_real_nsqd_works(tmp_path: Path) -> None:
    """What NSQD_BINARY names is started like this; here it is our own program behind a script."""
    script = tmp_path / "nsqd"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m nsqtools nsqd "$@"\n')
    script.chmod(0o755)
    data_path = tmp_path / "data"
    data_path.mkdir()
    nsqd = ProcessNsqd((str(script),), data_path, {"msg_timeout": "2s"}, is_real=True)
    try:
        await nsqd.start()
        addresses = nsqd.tcp_address, nsqd.http_address
        async with RawClient(nsqd.tcp_address) as client:
            await client.publish("t", b"x")
        await nsqd.restart(kill=True)
        assert (nsqd.tcp_address, nsqd.http_address) == addresses
        assert (await topic_stats(nsqd, "t"))["depth"] == 1
    finally:
        await nsqd.stop()
    assert any("stopping reason=SIGTERM" in line for line in nsqd.program.log)


class SlowDisk:
    """The module `os`, with a disk whose syncs take a while; counts the descriptors in use."""

    def __init__(self) -> None:
        self.open_now = self.open_most = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, *args: Any) -> int:
        fd = os.open(*args)
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        return fd

    def close(self, fd: int) -> None:
        os.close(fd)
        self.open_now -= 1

    def fdatasync(self, fd: int) -> None:
        time.sleep(0.005)
        os.fdatasync(fd)


async def test_many_topics_start_with_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly what makes room is closed."""
    nsqd = EmbeddedNsqd(tmp_path / "data", {})
    nsqd.data_path.mkdir()
    await nsqd.start()
    try:
        for number in range(80):
            nsqd.broker.topic(f"t{number}")
        await nsqd.stop()
        disk = SlowDisk()
        monkeypatch.setattr(Admission, "of_process", lambda: Admission(64))
        monkeypatch.setattr(files, "os", disk)
        monkeypatch.setattr(files, "close", disk.close)
        await nsqd.start()
        assert len(nsqd.broker.topics) == 80
        assert disk.open_most <= 2 * Admission(64).files_max + 2
    finally:
        await nsqd.stop()


@pytest.mark.parametrize("durable", [False, True])
async def test_publishes_to_many_topics_wait_for_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """One after the other, and at once; none is refused."""
    admission = Admission(1024)
    # The process of the tests has other files, and its connections high numbers.
    admission.files_max = 16
    monkeypatch.setattr(Admission, "of_process", lambda: admission)
    disk = SlowDisk()
    nsqd = EmbeddedNsqd(tmp_path / "data", {"durable": durable})
    nsqd.data_path.mkdir()
    await nsqd.start()
    names = [f"t{number}" for number in range(60)]
    try:
        for name in names:
            nsqd.broker.topic(name).channel("c")
            nsqd.broker.topic(name).channel("d")
            await nsqd.broker.keep(nsqd.broker.topic(name))
        monkeypatch.setattr(files, "os", disk)
        monkeypatch.setattr(files, "close", disk.close)
        async with RawClient(nsqd.tcp_address) as client:
            for name in names[:30]:
                assert await client.ask(commands.pub(name, b"x")) == OK
            client.send(*[commands.pub(name, b"x") for name in names])
            assert await client.frames(60) == [OK] * 60
        # So many are open, as many wait to be closed, and those of a group are on their way.
        assert disk.open_most <= 3 * admission.files_max // 2 + 3
        depths = [topic.channels["c"].depth for topic in nsqd.broker.topics.values()]
        assert sorted(depths) == [1] * 30 + [2] * 30
    finally:
        await nsqd.stop()
