"""What this run or another has let go of is finished before its topic flows again."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.archive.helpers import batch_of, spec

from nsqtools import durable
from nsqtools.archive.claims import Claim, claim_paths
from nsqtools.archive.recovery import recover
from nsqtools.archive.writer import ArchiveWriter
from nsqtools.errors import StorageError
from nsqtools.outputs.contract import DONE
from nsqtools.outputs.file.leftovers import Leftovers
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


async def test_what_an_output_has_let_go_of_is_found_by_the_next_open(
    tmp_path: Path, workers: Workers
) -> None:
    """A topic whose run failed is begun anew in the same process: what it acknowledged is not to wait,
    unpublished, for the next start of that."""
    leftovers = Leftovers(tmp_path, workers)
    for body in (b"one", b"two"):
        output = FileOutput(spec(tmp_path), workers, sync_interval_s=1.0, leftovers=leftovers)
        await output.open()
        assert await output.deliver([batch_of([body])]) == DONE
        await output.abandon()
    await FileOutput(spec(tmp_path), workers, sync_interval_s=1.0, leftovers=leftovers).open()
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.log")) == [b"one\n", b"two\n"]
    assert not list(tmp_path.glob("*.part"))
    assert leftovers.failed_of("topic") == 0


async def test_what_another_process_had_in_hand_and_let_go_of_is_finished(
    tmp_path: Path, workers: Workers
) -> None:
    """It was killed while it read a file: that is not to wait for the next start."""
    wanted = replace(spec(tmp_path), keys_max=10)
    dead = FileOutput(wanted, workers, sync_interval_s=1.0)
    await dead.open()
    assert await dead.deliver([batch_of([b"one"])]) == DONE
    await dead.abandon()
    (path,) = claim_paths(tmp_path)
    in_hand = Claim.adopt(path)
    assert in_hand is not None
    leftovers = Leftovers(tmp_path, workers)
    output = FileOutput(wanted, workers, sync_interval_s=1.0, leftovers=leftovers)
    with pytest.raises(StorageError, match="are being finished"):
        await output.open()
    in_hand.close()
    await output.open()
    assert [path.read_bytes() for path in tmp_path.glob("*.log")] == [b"one\n"]
    assert await output.deliver([batch_of([b"one"])]) == DONE
    await output.close()
    assert output.counts()["duplicates"] == 1
    assert len(list(tmp_path.glob("*.log"))) == 1


async def test_a_run_that_lives_is_not_told_of(
    tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="nsqtools")
    living, dead = ArchiveWriter(spec(tmp_path)), ArchiveWriter(spec(tmp_path))
    living.commit([batch_of([b"lives"])])
    assert await Leftovers(tmp_path, workers).finish("topic") == 0
    assert caplog.messages == []
    dead.commit([batch_of([b"was killed"])])
    dead.abandon()
    assert await Leftovers(tmp_path, workers).finish("topic") == 0
    assert [message.partition(" topic=")[0] for message in caplog.messages] == [
        "finishing a file of a run that did not end",
        "recovered a file of a run that did not end",
    ]
    assert all("topic=topic channel=channel " in message for message in caplog.messages)
    living.close()


@pytest.mark.parametrize("topics", [2, 30])
async def test_many_topics_share_a_look_at_what_is_left(
    topics: int, tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start, and when all have let go of their files; a listing for each took minutes."""
    specs = [replace(spec(tmp_path, topic=f"t{number}"), keys_max=10) for number in range(topics)]
    for each in specs:
        dead = ArchiveWriter(each)
        dead.commit([batch_of([b"one"])])
        dead.abandon()
    leftovers = Leftovers(tmp_path, workers)
    listed = FailingOs(only={"listdir"})
    monkeypatch.setattr(durable, "os", listed)
    for number in (2, 3):
        outputs = [
            FileOutput(each, workers, sync_interval_s=1.0, leftovers=leftovers) for each in specs
        ]
        await asyncio.gather(*[output.open() for output in outputs])
        for output in outputs:
            assert await output.deliver([batch_of([b"one"], first=number)]) == DONE
        await asyncio.gather(*[output.abandon() for output in outputs])
    monkeypatch.undo()
    # The work folder and its claims: to find claims, old key files, key files, and strangers' folders;
    # then claims and key files once more.
    assert len(listed.calls) == 11
    assert len(list(tmp_path.glob("*.log"))) == 2 * topics


async def test_a_key_file_that_this_run_has_let_go_of_is_found(
    tmp_path: Path, workers: Workers
) -> None:
    """It is newer than the listing that the start made."""
    wanted = replace(spec(tmp_path), keys_max=10)
    leftovers = Leftovers(tmp_path, workers)
    for _ in range(3):
        output = FileOutput(wanted, workers, sync_interval_s=1.0, leftovers=leftovers)
        await output.open()
        assert await output.deliver([batch_of([b"once"])]) == DONE
        await output.abandon()
    await FileOutput(wanted, workers, sync_interval_s=1.0, leftovers=leftovers).open()
    assert [path.read_bytes() for path in tmp_path.glob("*.log")] == [b"once\n"]


async def test_a_claim_and_a_file_that_cannot_be_read_once_are_known_before_their_topic_flows(
    tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in it is not written again."""
    wanted = replace(spec(tmp_path), keys_max=10)
    dead = ArchiveWriter(wanted)
    assert dead.once is not None
    dead.once.open()
    dead.commit([batch_of([b"once"])])
    dead.abandon()
    for fail_at in range(2):  # to know its topic, to finish it
        failing = FailingOs(fail_at, only={"pread"}, code=errno.EIO)
        copy = tmp_path.with_name(f"{tmp_path.name}-{fail_at}")
        shutil.copytree(tmp_path, copy)
        leftovers = Leftovers(copy, workers)
        copied = replace(wanted, output_dir=copy, work_dir=copy)
        output = FileOutput(copied, workers, sync_interval_s=1.0, leftovers=leftovers)
        with monkeypatch.context() as patched:
            failing.install(patched)
            await output.open()
        assert failing.failed == ["pread"]
        assert await output.deliver([batch_of([b"once"])]) == DONE
        await output.close()
        assert list(recover(copy)) == [], "it is finished"
        assert [path.read_bytes() for path in copy.glob("*.log")] == [b"once\n"]
