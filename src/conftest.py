"""Examples in docstrings are run as they stand, but for trainings, which take an epoch."""

from __future__ import annotations

import pytest

from trainings import shorten_trainings


@pytest.fixture(autouse=True)
def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_trainings(monkeypatch)
