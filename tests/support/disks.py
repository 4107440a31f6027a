"""Disks: a real filesystem that is small, one that refuses, and files whose work is done at once."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from nsqtools.broker.files import OpenFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def at_once(function: Callable[[], None]) -> None:
    """What defers nothing."""
    function()


def open_files(open_max: int = 64) -> OpenFiles:
    """Files of a broker whose syncing thread is this one."""
    return OpenFiles(open_max, at_once)


def small_filesystem(folder: Path, size: str) -> Iterator[Path]:
    """A filesystem of this size, such as `256k`, in a new folder, for a fixture; the test is skipped
    where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small filesystem is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
