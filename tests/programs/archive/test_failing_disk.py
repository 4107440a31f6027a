"""A disk that fails at call N, under every command of `nsqtools archive`.

What cannot be read or written is told, with the table's exit code, the other files have their turn, and
nothing that was there is lost.
"""

from __future__ import annotations

from itertools import chain, count, islice
from typing import TYPE_CHECKING

import pytest
from tests.archive.failing_os import EVERY, FAULTS, FailingOs
from tests.archive.helpers import FORMATS, read_bodies
from tests.programs.archive.helpers import Ran, archive_of, numbered

from nsqtools.archive.files import BESIDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Ran]

pytestmark = pytest.mark.slow

COMMITS = numbered(40)
BODIES = list(chain.from_iterable(batch.bodies for commit in COMMITS for batch in commit))
COMMANDS = {
    "ls": ("zstd", []),
    "cat": ("zstd", []),
    "verify": ("gzip", []),
    "repair": ("gzip", []),
    "index": ("gzip", ["--replace"]),
    "compact": ("zstd", ["--replace"]),
}
# Part of all N for `make test`, a prime.
STEP = 7
# Of a command on two files; more means that it does not end.
CALLS_MAX = 2000


def whole(folder: Path) -> bool:
    """Whether each message is there once at least, in files that are whole."""
    for half in ("a", "b"):
        files = [path for path in (folder / half).iterdir() if not path.name.endswith(BESIDE)]
        visible = [path for path in files if not path.name.startswith(".")]
        if not visible or any(read_bodies(path) != (BODIES, None) for path in visible):
            return False
    return True


def fails(
    run: Run,
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail_at: int,
    record_format: str = "jsonl",
) -> bool:
    """A run of the command on two files, with one call that fails; whether any did."""
    compression, flags = COMMANDS[name]
    for half in ("a", "b"):
        path = archive_of(folder / half, record_format, compression, COMMITS)
        if name == "repair":
            path.write_bytes(path.read_bytes() + b"cut off")
    code = FAULTS[fail_at % len(FAULTS)]
    failing = FailingOs(fail_at, code=code, only=EVERY, below=folder)
    with monkeypatch.context() as patched:
        failing.install_everywhere(patched)
        ran = run(name, *flags, folder)
    what = f"N={fail_at} {failing.failed} {ran.code} {ran.err}"
    assert ran.code in ((0, 4, 5) if failing.failed or name == "repair" else (0,)), what
    assert "Traceback" not in ran.err, what
    assert "fault" not in ran.err, what
    if name != "repair":
        assert whole(folder), what
    return bool(failing.failed)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fails_at_call_n(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fail_at in islice(count(0, STEP), CALLS_MAX // STEP):
        if not fails(run, name, tmp_path / str(fail_at), monkeypatch, fail_at):
            assert fail_at > 2 * STEP, "it makes more calls"
            return
    raise AssertionError("it makes no so many calls")


@pytest.mark.soak
@pytest.mark.parametrize("record_format", FORMATS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fails_at_every_call(
    name: str, record_format: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fail_at in range(CALLS_MAX):
        if not fails(run, name, tmp_path / str(fail_at), monkeypatch, fail_at, record_format):
            return
    raise AssertionError("it makes no so many calls")
