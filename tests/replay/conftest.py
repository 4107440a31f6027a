from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from nsqtools.client import producer

if TYPE_CHECKING:
    from collections.abc import Iterator


class SoonAgain:
    """Connects again after next to nothing."""

    def __init__(self, _rng: object) -> None: ...

    def after(self, _lived_s: float) -> float:
        return 0.001


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "ReconnectDelay", SoonAgain)


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
