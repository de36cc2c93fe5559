"""Tissue at sizes of a pixel that nobody means: an answer or a typed error, and soon."""

from __future__ import annotations

import numpy as np
import pytest

from st_gchb._errors import CoordinateError, InputError, STGCHBError
from st_gchb.pp import find_tissue, fit_stain, tile_tissue
from st_gchb.pp.tissue import read_roi

SLIDE = np.full((120, 150, 3), 240, dtype=np.uint8)
SLIDE[30:100, 40:120] = np.random.default_rng(0).integers((120, 60, 130), (200, 140, 200), (70, 80, 3))
SIZES = [1e-3, 0.02, 100.0, 1e4]


@pytest.mark.parametrize("um_per_px", SIZES)
def test_tissue(um_per_px):
    tissue = find_tissue(SLIDE, um_per_px=um_per_px, min_area_um2=1e-6)
    assert tissue.mask.ndim == 2
    assert tissue.um_per_px >= um_per_px
    fine = find_tissue(SLIDE, um_per_px=um_per_px, resolution_um=1e-3)
    assert fine.mask.shape == SLIDE.shape[:2]


@pytest.mark.parametrize("um_per_px", SIZES)
@pytest.mark.parametrize("door", [fit_stain, lambda *args, **given: tile_tissue(*args, **given, tissue="all")])
def test_other_doors(um_per_px, door):
    try:
        result = door(SLIDE, um_per_px=um_per_px)
    except STGCHBError as error:
        result = error
    if isinstance(result, STGCHBError):
        assert len(str(result)) > 50
    else:
        assert getattr(result, "n_obs", 1) > 0


@pytest.mark.parametrize(
    "roi",
    [
        [[[0, 0], [1]], [[0, 0], [9, 0], [9, 9]]],
        [(0, 0), (1e308, 0), (1e308, 1e308)],
        [(0, 0), (np.inf, 0), (9, 9)],
        [(0, 0), (9, 0)],
        [(0, 0, 0)] * 4,
        {"type": "Polygon"},
        "tissue",
        7,
        [None],
    ],
)
def test_regions_that_are_none(roi):
    with pytest.raises((InputError, CoordinateError), match="roi="):
        read_roi(roi, (120, 150))
