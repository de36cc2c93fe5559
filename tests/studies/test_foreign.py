"""Sections in other stains, and how many of their spots are flagged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage.color import rgb2hed

import st_gchb
from studies._files import write_foreign
from studies._foreign import foreign_sections
from studies._stains import recolored, restained


def test_factors_of_one_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (600, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(restained(image, [1, 1, 1]), image)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.6, 1.6), min_size=3, max_size=3), st.integers(0, 2**31))
def test_dyes_are_multiplied(factors, seed):
    """In skimage's separation of the dyes, where no channel leaves 0 to 255."""
    pixels = np.random.default_rng(seed).integers(90, 200, (1, 20, 3), dtype=np.uint8)
    moved = restained(pixels, factors)
    inside = ((moved > 3) & (moved < 252)).all(2)[0]
    # skimage cuts amounts below 0: only pixels with all dyes are compared.
    before, after = (rgb2hed(image.astype(float) / 255)[0] for image in (pixels, moved))
    kept = inside & (before > 0.02).all(1)
    np.testing.assert_allclose(after[kept], before[kept] * factors, atol=0.02)


def test_another_stain_is_drawn_in_brown():
    pink = np.full((600, 4, 3), (220, 120, 180), dtype=np.uint8)
    brown = recolored(pink)
    assert brown.shape == pink.shape
    assert brown.dtype == np.uint8
    red, green, blue = brown[0, 0].astype(int)
    assert red > green > blue
    assert (brown == brown[0, 0]).all()
    white = np.full((3, 3, 3), 255, dtype=np.uint8)
    assert (recolored(white) > 250).all()


@pytest.mark.usefixtures("short_trainings")
def test_foreign_sections(tissue, tmp_path):
    other = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, seed=9)
    before = other.copy()
    found = foreign_sections(tissue, {"other": other}, n_top_genes=20, device="cpu")
    assert found["section"].tolist() == ["S3", "S3, eosin as brown", "other"]
    assert found["outliers"].between(0, 1).all()
    assert found["outliers"][1] > max(0.9, found["outliers"][0])
    assert other.obs.equals(before.obs)
    assert set(other.obsm) == set(before.obsm)
    assert "S3, eosin as brown" in write_foreign(found, tmp_path)[1].read_text()
