"""An archiver that stands still for longer than the message timeout, and is ended then."""

from __future__ import annotations

import re
import signal
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

import pytest
from tests.crash.accounting import bodies_of
from tests.pipeline.helpers import publish, until_settled, until_stats
from tests.programs.nsq_to_file.helpers import archiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nsqd import StartNsqd

pytestmark = pytest.mark.slow

MANY = [b"message %d" % number for number in range(500)]


@pytest.mark.parametrize("flags", [[], ["--no-dedupe"]], ids=["once", "at-least-once"])
async def test_what_is_archived_again_is_counted_to_the_last_answer(
    flags: list[str], start_nsqd: StartNsqd, folder: Path
) -> None:
    """nsqd delivers what has timed out into the same connection: all copies come in one, and the answers
    to their FINs only behind SIGTERM."""
    nsqd = await start_nsqd(msg_timeout="300ms")
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await publish(nsqd, MANY[0])
        await until_settled(nsqd, 1)  # it has told nsqd that it is ready
        tool.send(signal.SIGSTOP)
        await publish(nsqd, *MANY[1:])
        await until_stats(nsqd, lambda now: now["timeout_count"] > 0)
        tool.send(signal.SIGTERM)
        tool.send(signal.SIGCONT)
        assert await tool.end(None) == 0, tool.told
    copies = Counter(chain.from_iterable(map(bodies_of, folder.glob("t*.log"))))
    assert copies.keys() == set(MANY)
    found = re.search(r"duplicates=(\d+).* possible_duplicates=(\d+)", tool.told)
    assert found is not None, tool.told
    known, possible = map(int, found.groups())
    assert possible > 0
    assert copies.total() - len(MANY) + known <= possible
    if not flags:
        assert copies.total() == len(MANY)
    async with archiver(folder, *flags, nsqd=nsqd) as tool:
        await until_settled(nsqd, len(MANY))
        assert await tool.end(signal.SIGTERM) == 0


async def test_an_nsqd_that_sent_again_what_timed_out_is_not_given_up(
    start_nsqd: StartNsqd, folder: Path
) -> None:
    """It did so each time that msg_timeout was over, and the process reads all of it in a moment."""
    nsqd = await start_nsqd(msg_timeout="1s")
    bodies = [b"%d" % number for number in range(2500)]
    async with archiver(folder, "--max-in-flight=2500", nsqd=nsqd) as tool:
        await publish(nsqd, bodies[0])
        await until_settled(nsqd, 1)
        tool.send(signal.SIGSTOP)
        await publish(nsqd, *bodies[1:])
        await until_stats(nsqd, lambda now: now["timeout_count"] > 8 * len(bodies))
        tool.send(signal.SIGCONT)
        await until_settled(nsqd, len(bodies))
        assert await tool.end(signal.SIGTERM) == 0, tool.told
    assert "far more messages" not in tool.told
    assert Counter(chain.from_iterable(map(bodies_of, folder.glob("t*.log")))) == Counter(bodies)
