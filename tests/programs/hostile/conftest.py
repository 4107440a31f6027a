from __future__ import annotations

import pytest
from tests.support.stores import ENVIRONMENT


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a store, and none that this machine may have."""
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
