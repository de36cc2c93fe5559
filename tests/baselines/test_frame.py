"""The frame of published methods: tiny tissue, and what all of them share."""

from __future__ import annotations

import numpy as np


def test_made_up_tissue_can_be_learned(make_spots, correlation):
    """Expression follows color and features, on held-out spots as on training spots."""
    train, test = make_spots(), make_spots(1, 6, 6)
    assert (len(train), len(test)) == (40, 36)
    for read in (lambda spots: spots.features, lambda spots: spots.pixels(8, 60.0)[np.arange(len(spots))].mean((1, 2))):
        known, asked = (np.c_[np.ones(len(spots)), read(spots)] for spots in (train, test))
        weights = np.linalg.lstsq(known, train.targets, rcond=1e-3)[0]
        assert correlation(test.targets, asked @ weights) > 0.6


def test_selected_spots_keep_their_pixels(spots):
    rows = np.array([31, 4, 17])
    assert np.array_equal(spots[rows].pixels(8, 60.0)[np.arange(3)], spots.pixels(8, 60.0)[rows])
    assert spots[rows].grid.min() >= 0
    assert spots.graph.sum(1).max() == 4
