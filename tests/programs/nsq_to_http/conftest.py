from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """For dead letters alone."""
    made = tmp_path / "dead"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """What `configure` installs goes again: its stream ends with the test."""
    root, ours = logging.getLogger(), logging.getLogger("nsqtools")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
