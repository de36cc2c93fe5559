from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _coarse(coarse_figures: None) -> None:
    """Every study draws; tests/pl look at the pixels."""
