"""An archive as an output: what goes wrong is its own affair, and an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.archive.helpers import batch_of, spec

from nsqtools.archive.naming import FileNaming
from nsqtools.outputs.contract import DONE, Again
from nsqtools.outputs.file.output import RETRY_FIRST_S, FileOutput
from nsqtools.outputs.workers import Workers

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_folder_that_is_a_link_elsewhere_is_tried_again_soon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive, elsewhere = tmp_path / "archive", tmp_path / "elsewhere"
    archive.mkdir()
    elsewhere.mkdir()
    (archive / "topic").symlink_to(elsewhere)
    naming = FileNaming(host="host", filename_format="<TOPIC>/x<REV>.log")
    workers = Workers()
    output = FileOutput(spec(archive, naming=naming), workers, sync_interval_s=1.0)
    answer = await output.deliver([batch_of([b"one"])])
    assert isinstance(answer, Again)
    assert answer.stands
    assert answer.after_s <= RETRY_FIRST_S
    assert "is a link that leads out" in answer.reason
    assert "topic=topic channel=channel" in caplog.text
    (archive / "topic").unlink()
    assert await output.deliver([batch_of([b"one"])]) == DONE
    await output.close()
    assert (archive / "topic" / "x.log").read_bytes() == b"one\n"
    assert not list(elsewhere.iterdir())
    workers.close()
