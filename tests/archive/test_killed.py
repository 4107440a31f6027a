"""kill -9 at every step of a file's life, and of its recovery: each message once, nothing left over.

A child process commits, rotates and finishes; it kills itself before call N that it makes to the
operating system. Then recovery runs, killed at some call, too, until it comes to its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import COUNTED, FoldersApart
from tests.archive.helpers import batch_of, claims, read_bodies, spec, visible
from tests.archive.test_manifest import assert_fits
from tests.test_publish import NoLinks

from nsqtools import durable, publish
from nsqtools.archive.files import MANIFEST_SUFFIX
from nsqtools.archive.manifest import manifest_name
from nsqtools.archive.recovery import recover
from nsqtools.archive.rotation import RotationPolicy
from nsqtools.archive.writer import ArchiveWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from nsqtools.archive.writer import ArchiveSpec

MESSAGES = 5
ACKNOWLEDGED = struct.Struct("<I")
EXIT_DONE = 7
CALLS_MAX = 1000
# A kill before each call takes minutes for all that is written: `make test` makes every other one.
at_calls = pytest.mark.parametrize(
    "step", [pytest.param(1, id="each", marks=pytest.mark.soak), pytest.param(2, id="every other")]
)


class DeadlyOs:
    """A module `os` in which call N kills the process."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at = kill_at
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in COUNTED | {"listdir", "chmod"}:
            return real

        def call(*args: Any, **options: Any) -> Any:
            if self._calls == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self._calls += 1
            return real(*args, **options)

        return call


def install(kill_at: int, links: str) -> None:
    deadly: Any = DeadlyOs(kill_at)
    vars(durable)["os"] = deadly
    if links == "no links":
        deadly = NoLinks(deadly, errno.EPERM)
    elif links == "folders apart":
        deadly = FoldersApart(deadly)
    vars(publish)["os"] = deadly


def in_child(kill_at: int, links: str, work: Callable[[int], None]) -> tuple[bool, int]:
    """Run `work(pipe)` in a child; whether it came to its end, and what it acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            install(kill_at, links)
            work(writing)
            status = EXIT_DONE
        os._exit(status)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - of a descriptor
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    done = os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_DONE
    assert killed or done, f"the child failed with {status}"
    return done, ACKNOWLEDGED.unpack(told[-ACKNOWLEDGED.size :])[0] if told else 0


def archive(wanted: ArchiveSpec, pipe: int) -> None:
    """Commit one by one, with a file finished in between and the rest at the end."""
    writer = ArchiveWriter(wanted)
    for number in range(MESSAGES):
        writer.commit([batch_of([b"%d" % number], number)])
        os.write(pipe, ACKNOWLEDGED.pack(number + 1))
        writer.finish()
    writer.close()
    while writer.finish() is not None:
        pass


def recover_all(work: Path, pipe: int) -> None:
    assert not any(result.failed for result in recover(work))


@pytest.mark.slow
@at_calls
@pytest.mark.parametrize(
    ("record_format", "compression", "links", "manifest"),
    [
        ("framed", "zstd", "links", True),
        ("jsonl", "gzip", "no links", True),
        ("lines", "none", "folders apart", False),
        ("lines", "zstd", "folders apart", True),
    ],
)
def test_killed_at_calls(
    record_format: str, compression: str, links: str, *, manifest: bool, step: int, tmp_path: Path
) -> None:
    kill_at = kills_of_recovery = 0
    for kill_at in range(0, CALLS_MAX, step):
        output, work = tmp_path / f"{kill_at}", tmp_path / f"{kill_at}-work"
        output.mkdir()  # as a program does at its start
        wanted = spec(
            output,
            record_format,
            compression,
            work_dir=work,
            rotation=RotationPolicy(rotate_records=3),
            compact=True,
            manifest=manifest,
        )
        done, acknowledged = in_child(kill_at, links, partial(archive, wanted))
        for recovery_kill_at in (kill_at % 37, CALLS_MAX):
            ended, _ = in_child(recovery_kill_at, links, partial(recover_all, work))
            kills_of_recovery += not ended
        check(output, work, acknowledged, manifest=manifest)
        if done:
            break
    assert acknowledged == MESSAGES
    assert kill_at > 80
    assert kills_of_recovery > 40 // step


def check(output: Path, work: Path, acknowledged: int, *, manifest: bool) -> None:
    """Every acknowledged message stands in one finished file, once; each file has its manifest where one
    is wanted; nothing else is left."""
    bodies = []
    manifests = {path for path in visible(output) if path.name.endswith(MANIFEST_SUFFIX)}
    files = [path for path in visible(output) if path not in manifests]
    wanted = files if manifest else []
    assert manifests == {path.with_name(manifest_name(path.name)) for path in wanted}
    for path in files:
        if manifest:
            assert_fits(path)
        found, damage = read_bodies(path)
        assert damage is None
        assert path.name.startswith("topic-"), path
        bodies += found
    # What was written and not acknowledged may be there: nsqd delivers it again.
    expected = [b"%d" % number for number in range(MESSAGES)]
    assert bodies in (expected[:acknowledged], expected[: acknowledged + 1])
    assert visible(work) == []
    assert claims(work) == []
