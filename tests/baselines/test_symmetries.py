"""Symmetries of the square, applied to patches."""

from __future__ import annotations

import numpy as np
import pytest

from st_gchb.baselines import N_SYMMETRIES, randomly_transformed, transformed


@pytest.fixture
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (400, 5, 5, 3), dtype=np.uint8)


def test_symmetries_are_eight_different_ones_that_form_a_group(patches):
    one = patches[:1]
    views = [transformed(one, number).tobytes() for number in range(N_SYMMETRIES)]
    assert np.array_equal(transformed(one, 0), one)
    assert len(set(views)) == 8
    for number in range(N_SYMMETRIES):
        again = {transformed(transformed(one, number), other).tobytes() for other in range(N_SYMMETRIES)}
        assert again == set(views)


def test_channels_stay(patches):
    for number in range(N_SYMMETRIES):
        assert np.array_equal(transformed(patches, number).mean((1, 2)), patches.mean((1, 2)))


def test_each_patch_gets_a_symmetry_of_its_own_and_all_are_drawn(patches):
    found = randomly_transformed(patches, np.random.default_rng(1))
    numbers = []
    for before, after in zip(patches, found, strict=True):
        equal = [np.array_equal(transformed(before[None], number)[0], after) for number in range(N_SYMMETRIES)]
        assert sum(equal) == 1
        numbers.append(equal.index(True))
    assert np.bincount(numbers, minlength=8).min() > 25
    assert np.array_equal(found, randomly_transformed(patches, np.random.default_rng(1)))
