from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from nsqtools.demo import scenario

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.fixture(autouse=True)
def _commits_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario, "SYNC_INTERVAL_S", 0.02)
