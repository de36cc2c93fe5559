"""A short protocol, and a method that keeps what it was shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from st_gchb.evaluate import Task

QUICK: dict[str, Any] = {"n_top_genes": 20, "seeds": [0], "device": "cpu"}


class Spy:
    """A method that answers with noise, and keeps the tasks that it was given."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __call__(self, task: Task) -> np.ndarray:
        self.tasks.append(task)
        return np.random.default_rng(task.seed).random((task.test.n_obs, len(task.panel)))


@pytest.fixture(autouse=True)
def _coarse(coarse_figures: None) -> None:
    """Every command and report draws; tests/pl look at the pixels."""
