from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from tests.programs.archive.helpers import Ran

from nsqtools.cli.archive import SUITE
from nsqtools.cli.command import execute

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Ran]:
    """Runs a command in this process."""

    def call(name: str, *words: object) -> Ran:
        capsysbinary.readouterr()
        code = execute(SUITE.commands[name], list(map(str, words)))
        sys.stdout.flush()
        found = capsysbinary.readouterr()
        return Ran(code, found.out, found.err.decode())

    return call
