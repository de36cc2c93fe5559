"""The study of landmarks: solutions agree where they must, and a loss is found where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from st_gchb.retrieval import median_scale, rbf
from studies import landmarks as study


@pytest.fixture(scope="module")
def spots() -> tuple[np.ndarray, np.ndarray]:
    return study.simulate(300, seed=0)


def test_all_spots_as_landmarks_are_the_exact_solution(spots):
    x, z = spots
    scale = median_scale(x, np.random.default_rng(0))
    at, found = study.with_landmarks(x, z, scale, n_points=300, n_used=300)
    exact = study.exactly(x, z, scale, [1.0])
    other, _ = study.simulate(50, seed=1)
    np.testing.assert_allclose(rbf(other, at, scale) @ found[1.0], rbf(other, x, scale) @ exact[1.0], atol=1e-5)


def test_seeds_draw_other_spots_of_one_tissue(spots):
    x, z = spots
    again, _ = study.simulate(300, seed=0)
    np.testing.assert_array_equal(again, x)
    other, truth = study.simulate(300, seed=1)
    assert not np.array_equal(other, x)
    scale = median_scale(x, np.random.default_rng(0))
    at, found = study.with_landmarks(x, z, scale, n_points=300, n_used=300)
    assert study.correlation(rbf(other, at, scale) @ found[1.0], truth) > 0.1, "the same functions in both"


def test_the_command_writes_the_loss(tmp_path):
    call = ["--spots", "200", "--points", "10", "200", "--used", "50", "1000", "--out", str(tmp_path), "--quiet"]
    assert study.main(call) == 0
    lines = (tmp_path / "landmarks.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines[2:] if line.startswith("|")]
    names = [row[1] for row in rows]
    assert names == ["10 landmarks, solved on 50 spots", "10 landmarks", "200 landmarks", "exact"]
    few, _, many, exact = (float(row[2]) for row in rows)
    assert few < many
    assert many == pytest.approx(exact, abs=0.002)
    assert any("100.0%" in row for row in rows)
