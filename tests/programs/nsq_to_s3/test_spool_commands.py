"""`nsqtools spool` beside a running nsq_to_s3, and after it."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import FailingOs
from tests.pipeline.helpers import publish
from tests.programs.nsq_to_s3.test_run import TEN, flags, parts, tool, until_acknowledged

from nsqtools.errors import StorageError
from nsqtools.options import load
from nsqtools.programs.spool import ls, upload
from nsqtools.programs.spool.options import SpoolLsOptions, SpoolUploadOptions

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bucket import Bucket
    from tests.support.faults import FaultProxy
    from tests.support.nsqd import Nsqd
    from tests.support.programs import Program

__all__ = ["flags", "tool"]


def state_of(spool: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Of its one file, as `ls` tells it."""
    assert ls.run(load(SpoolLsOptions, "x", ["--json", str(spool)], {})) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(parts(spool)[0])
    return str(said["state"])


async def test_what_is_in_use_is_left_and_told(
    nsqd: Nsqd,
    archive: Bucket,
    proxy: FaultProxy,
    tool: Program,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spool = tmp_path / "spool"
    options = load(
        SpoolUploadOptions, "x", [f"--endpoint-url={proxy.endpoint_url}", str(spool)], {}
    )
    await publish(nsqd, *TEN)
    await tool.start(*flags)
    await until_acknowledged(nsqd, tool)
    assert state_of(spool, capsys) == ls.IN_USE
    assert await asyncio.to_thread(upload.run, options) == 0
    assert capsys.readouterr().out == "0 files done, 0 failed, 1 in use by a running nsq_to_s3\n"
    assert archive.keys() == []
    await tool.kill()
    assert state_of(spool, capsys) == ls.WAITING
    assert await asyncio.to_thread(upload.run, options) == 0
    assert capsys.readouterr().out.endswith("\n1 file done, 0 failed\n")
    assert archive.all_bodies(tmp_path) == TEN
    assert parts(spool) == []


def test_a_spool_that_the_disk_does_not_show_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a fault of ours."""
    spool = tmp_path / "spool"
    spool.mkdir()
    FailingOs(0, code=errno.EIO, only={"stat"}, below=spool).install_everywhere(monkeypatch)
    with pytest.raises(StorageError, match=f"look at {spool}: Input/output error"):
        ls.run(load(SpoolLsOptions, "x", [str(spool)], {}))


def test_what_was_set_aside_is_listed_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.topic.0123456789abcdef.part.bad", "b.0123456789abcdef.part.bad.1"]
    for name in names:
        (tmp_path / name).write_bytes(b"damaged")
    (tmp_path / "part.bad.txt").write_bytes(b"somebody else's")
    assert ls.run(load(SpoolLsOptions, "x", ["--json", str(tmp_path)], {})) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["topic"], one["state"], one["size_bytes"]) for one in said] == [
        ("a.topic", ls.DAMAGED, 7),
        ("b", ls.DAMAGED, 7),
    ]
    assert upload.run(load(SpoolUploadOptions, "x", [str(tmp_path)], {})) == 5
    told = capsys.readouterr()
    assert told.out == "0 files done, 0 failed\n"
    for name in names:
        line = (
            f"{tmp_path / name}: damaged, set aside and not uploaded: see `nsqtools archive repair`"
        )
        assert f"{line}\n" in told.err
        assert (tmp_path / name).exists()
