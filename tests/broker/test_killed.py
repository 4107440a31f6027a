"""kill -9 before every call that the broker makes to the disk: what it answered OK to is there.

A child process runs a broker that publishes, acknowledges, rolls and removes segments and rewrites
journals; it kills itself before call N. Then the folder is opened again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from tests.broker.test_failing_disk import (
    CALLS,
    ROUNDS,
    Reader,
    is_durable,
    options_of,
    put,
    what_is_there,
)
from tests.support.disks import open_files

from nsqtools import durable
from nsqtools.broker import files, journal, recovery, segment, upkeep
from nsqtools.broker.server import Broker
from nsqtools.wire.commands import fin

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_durable"]

STEP = 7
EXIT_DONE = 7


class DeadlyOs:
    """A module `os` in which call N kills the process."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self._calls = itertools.count()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            if next(self._calls) == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call


async def live(folder: Path, told: int, *, is_durable: bool) -> None:
    """Says `+N` for each message answered with OK, `?N` for what it is about to acknowledge, and `-N`
    for what was acknowledged for good: a thread may kill the process in between."""
    reader = Reader(finishes=True)
    async with Broker(options_of(folder, is_durable=is_durable)) as broker:
        topic = broker.topic("t")
        channel, _ = topic.channel("read"), topic.channel("unread")
        channel.subscribe(reader)
        channel.ready(reader)
        await broker.keep(topic)
        for number in range(ROUNDS):
            if await put(broker, number):
                os.write(told, b"+%d\n" % number)
            finished = []
            # The first message is never answered for: it is carried over, again and again.
            for one, message_id in reader.got[1:]:
                if one in reader.finished:
                    continue
                os.write(told, b"?%d\n" % one)
                if not channel.finish(reader, fin([message_id])):
                    reader.finished.add(one)
                    finished.append(one)
            topic.flush()
            os.write(told, b"".join(b"-%d\n" % one for one in finished))
            await asyncio.sleep(0.01)


def in_child(folder: Path, kill_at: int, *, is_durable: bool) -> tuple[bool, str]:
    """Whether it came to its end, and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            deadly: Any = DeadlyOs(kill_at)
            for module in (durable, files, journal, recovery, segment):
                vars(module)["os"] = deadly
            vars(upkeep)["PASS_INTERVAL_S"] = 0.01
            vars(journal)["COMPACT_BYTES"] = 200
            asyncio.run(live(folder, writing, is_durable=is_durable))
            os._exit(EXIT_DONE)
        os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - of a descriptor
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    done = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_DONE
    assert killed or done, f"the child failed with {status}"
    return done, said


def test_a_life_that_is_not_cut_lets_go_of_its_log(tmp_path: Path, is_durable: bool) -> None:
    done, said = in_child(tmp_path, 1 << 30, is_durable=is_durable)
    assert done
    assert said.count("+") == ROUNDS
    topic = tmp_path / "t.topic"
    first = min(topic.glob("*.log"))
    assert int(first.stem) > min(channel_numbers(topic / "unread.channel"))


def channel_numbers(path: Path) -> set[int]:
    """The messages that a channel keeps copies of."""
    state, _ = journal.Journal(path, open_files()).load()
    return set(state.carried)


def check(folder: Path, kill_at: int, *, is_durable: bool) -> bool:
    """One life; False when it came to its end."""
    folder.mkdir()
    done, said = in_child(folder, kill_at, is_durable=is_durable)
    lines = said.split()
    good = {int(line[1:]) for line in lines if line[0] == "+"}
    finished = {int(line[1:]) for line in lines if line[0] == "-"}
    maybe_finished = {int(line[1:]) for line in lines if line[0] == "?"}
    found = asyncio.run(what_is_there(folder))
    assert good <= set(found["unread"]), f"killed before call {kill_at}: lost"
    assert len(found["unread"]) == len(set(found["unread"])), f"call {kill_at}: twice"
    assert good - maybe_finished <= set(found["read"]), f"killed before call {kill_at}: lost"
    assert not finished & set(found["read"]), f"call {kill_at}: acknowledged, and there again"
    assert len(found["read"]) == len(set(found["read"])), f"call {kill_at}: twice"
    return not done


@pytest.mark.slow
def test_killed_before_a_call(tmp_path: Path, is_durable: bool) -> None:
    for kill_at in itertools.count(3, STEP):
        if not check(tmp_path / str(kill_at), kill_at, is_durable=is_durable):
            assert kill_at > 10 * STEP
            return


@pytest.mark.soak
def test_killed_before_any_call(tmp_path: Path, is_durable: bool) -> None:
    for kill_at in itertools.count():
        if not check(tmp_path / str(kill_at), kill_at, is_durable=is_durable):
            return
