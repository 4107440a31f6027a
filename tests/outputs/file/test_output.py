"""An archive as an output: what goes wrong is its own affair, and an answer."""

from __future__ import annotations

import asyncio
import errno
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tests.archive.failing_os import FailingOs
from tests.archive.helpers import NSQD, START_NS, batch_of, spec
from tests.support.clients import until

from nsqtools import durable
from nsqtools.archive.naming import FileNaming
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.space import FreeSpace
from nsqtools.errors import StorageError
from nsqtools.options.system import Space
from nsqtools.outputs import trouble as trouble_module
from nsqtools.outputs.contract import DONE, Again
from nsqtools.outputs.file import output as module
from nsqtools.outputs.file.output import FileOutput
from nsqtools.outputs.trouble import RETRY_FIRST_S
from nsqtools.outputs.workers import Workers
from nsqtools.wire.messages import Messages, encode_payload

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


class Scarce(FreeSpace):
    """A disk with no room, until there is some."""

    is_full = True

    def check(self) -> None:
        if self.is_full:
            raise StorageError("write to", "/disk", OSError(errno.ENOSPC, "5% must stay free"))


async def test_a_disk_with_too_little_room_is_as_a_full_one(tmp_path: Path) -> None:
    """Nothing is written, the output stands, and goes on when there is room."""
    workers, space = Workers(), Scarce([], Space())
    output = FileOutput(spec(tmp_path), workers, sync_interval_s=1.0, rooms=[space])
    answer = await output.deliver([batch_of([b"one"])])
    assert isinstance(answer, Again)
    assert answer.stands
    assert "5% must stay free" in answer.reason
    assert list(tmp_path.iterdir()) == []
    space.is_full = False
    assert await output.deliver([batch_of([b"one"])]) == DONE
    await output.close()
    workers.close()


async def test_what_was_sealed_before_a_commit_failed_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk from which finished files are taken away nothing would ever have made room."""
    create = durable.create

    def no_room_for_another(path: Path, *rest: Any) -> int:
        if "-000001" in path.name:
            raise StorageError("create", path, OSError(errno.ENOSPC, "no room"))
        return create(path, *rest)

    monkeypatch.setattr(durable, "create", no_room_for_another)
    workers = Workers()
    rotation = RotationPolicy(rotate_size_bytes=10)
    output = FileOutput(spec(tmp_path, rotation=rotation), workers, sync_interval_s=1.0)
    assert await output.deliver([batch_of([b"more than it may have"])]) == DONE
    assert isinstance(await output.deliver([batch_of([b"another"], 1)]), Again)
    await until(lambda: (tmp_path / "topic-000000.log").exists())
    monkeypatch.undo()
    assert await output.deliver([batch_of([b"another"], 1)]) == DONE
    await output.close()
    workers.close()


async def test_a_watermark_follows_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself, also while nothing comes; and not any more when files were let go of."""
    monkeypatch.setattr(module, "MARK_INTERVAL_S", 0.02)
    monkeypatch.setattr("nsqtools.archive.watermark.MARGIN_S", 0)
    workers = Workers()

    def until_said() -> int:
        said: int = json.loads(next(tmp_path.glob("*.watermark.json")).read_bytes())["until"]
        return said

    output = FileOutput(spec(tmp_path), workers, sync_interval_s=1.0, watermark=True)
    await output.open()
    first = until_said()
    await until(lambda: until_said() > first)
    assert await output.deliver([batch_of([b"one"])]) == DONE
    await output.abandon()
    held = until_said()
    await asyncio.sleep(1.2)
    assert until_said() == held
    assert output.trouble() == ""


async def test_a_topic_that_went_and_comes_back_in_the_same_process(tmp_path: Path) -> None:
    """The key file was locked until the process ended, and its descriptor stayed open."""
    wanted = replace(spec(tmp_path), keys_max=10)
    workers = Workers()
    once = [batch_of([b"one"])]
    again = [Messages([encode_payload(START_NS, 2, b"%016x" % 0, b"one")], nsqd=NSQD)]
    for messages in (once, again):
        output = FileOutput(wanted, workers, sync_interval_s=1.0)
        await output.open()
        assert await output.deliver(messages) == DONE
        await output.close()
    assert output.counts()["duplicates"] == 1
    assert [path.read_bytes() for path in tmp_path.glob("*.log")] == [b"one\n"]
    workers.close()


async def test_a_file_that_could_not_be_finished_is_no_trouble_when_the_next_one_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was finished with a commit, and not by its time: health said otherwise for as long as no other
    file was, and a run that ends when it is idle did not end."""
    monkeypatch.setattr(trouble_module, "RETRY_FIRST_S", 60.0)
    monkeypatch.setattr(trouble_module, "RETRY_MAX_S", 60.0)
    workers = Workers()
    wanted = replace(spec(tmp_path, rotation=RotationPolicy(rotate_records=2)), keys_max=10)
    output = FileOutput(wanted, workers, sync_interval_s=1.0)
    await output.open()
    assert await output.deliver([batch_of([b"one"])]) == DONE
    with monkeypatch.context() as failing:
        FailingOs(0, failures=1 << 30, only={"pwrite", "fdatasync"}).install(failing)
        output.rotate()
        await until(output.trouble)
    for number, body in enumerate((b"two", b"three"), 1):
        assert await output.deliver([batch_of([body], number)]) == DONE
    assert output.trouble() == ""
    await output.close()
    contents = sorted(path.read_bytes() for path in tmp_path.glob("*.log"))
    assert contents == [b"one\n", b"two\nthree\n"]
    workers.close()
