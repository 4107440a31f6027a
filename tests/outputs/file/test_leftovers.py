"""What this run or another has let go of is finished before its topic flows again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import batch_of, spec

from nsqtools.archive.writer import ArchiveWriter
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
