"""The same as `test_failing_disk`, from outside: the kernel refuses call N of each thread."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.archive.helpers import read_bodies
from tests.programs.archive.helpers import archive_of
from tests.programs.archive.test_failing_disk import BODIES, COMMANDS, COMMITS, whole
from tests.support.kernel import Refusal, refusal_of, refuse_those_of, run_traced

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.slow

READING = ("openat", "newfstatat,statx", "getdents64", "lseek", "read", "close")
WRITING = ("pwrite64", "fdatasync", "fsync", "unlink,unlinkat")
RENAMING = ("rename,renameat,renameat2", "fchmod", "fchown", "utimensat")
CALLS = {
    "verify": READING,
    "repair": (*READING, *WRITING, "link,linkat", "flock"),
    "index": (*READING, *WRITING, "link,linkat", "flock", "fchmod", "fchown", "utimensat"),
    "compact": (*READING, *WRITING, *RENAMING),
}


def prepare(name: str, folder: Path) -> None:
    """Two files for this command."""
    for half in ("a", "b"):
        path = archive_of(folder / half, "jsonl", COMMANDS[name][0], COMMITS)
        if name == "repair":
            path.write_bytes(path.read_bytes() + b"cut off")


async def run(name: str, folder: Path, flags: Sequence[str]) -> tuple[int, str]:
    return await run_traced(flags, "archive", name, *COMMANDS[name][1], str(folder))


async def run_with(name: str, refusal: Refusal) -> None:
    """A command that is refused the call: what was there is there, and the exit code says how it went."""
    folder = refusal.folder
    prepare(name, folder)
    status, told = await run(name, folder, refusal.flags)
    what = f"{refusal} {status} {told}"
    if refusal.is_of_the_folder:
        assert status in (0, 4, 5), what
        assert "Traceback" not in told, what
    if name != "repair":
        assert whole(folder), what
    for half in ("a", "b"):
        visible = (folder / half).glob("topic*")
        assert all(read_bodies(path)[0] == BODIES for path in visible), what


@pytest.mark.parametrize(
    ("name", "call", "number"),
    [
        ("compact", "fdatasync", 1),
        ("index", "link,linkat", 1),
        ("repair", "pwrite64", 1),
        ("verify", "read", 1),
        ("index", "lseek", 1),
    ],
)
async def test_a_kernel_that_refuses_a_call(
    name: str, call: str, number: int, tmp_path: Path
) -> None:
    refusal = refusal_of(tmp_path, call, number)
    await run_with(name, refusal)
    assert refusal.came


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name, calls in CALLS.items() for call in calls]
)
async def test_a_kernel_that_refuses_any_call(name: str, call: str, tmp_path: Path) -> None:
    recorded = refusal_of(tmp_path, call, 0)
    prepare(name, recorded.folder)
    status, told = await run(name, recorded.folder, recorded.recording)
    assert status == 0, told
    await refuse_those_of(recorded, partial(run_with, name))
