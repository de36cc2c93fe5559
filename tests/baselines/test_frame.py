"""The frame of published methods: tiny tissue, and what all of them share."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from st_gchb.baselines import Baseline, TrainingSettings, compact_parts, region_batches, spread_parts
from st_gchb.errors import InputError


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


def test_pixels_are_opened_once(make_spots):
    """Every step asks for pixels, of all spots or of some: the slides are read at the first alone."""
    spots = make_spots(1)
    first = spots.pixels(8, 60.0)
    assert spots[np.arange(5)].pixels(8, 60.0).source is spots.pixels(8, 60.0).source is first.source
    assert spots.pixels(16, 60.0).source is not first.source


@pytest.mark.parametrize(
    "setting", [{"epochs": 0}, {"batch_size": 0}, {"patience": 0}, {"lr": 0.0}, {"lr": float("nan")}]
)
def test_settings_that_train_nothing(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        TrainingSettings(**setting)


@pytest.mark.parametrize("split", [spread_parts, compact_parts])
@pytest.mark.parametrize("size", [1, 7, 20, 21])
def test_parts_of_slices(make_spots, split, size):
    """Every spot is in one part, of one slice and no more than ``size``; the order of the spots does not matter."""
    spots = make_spots(pixels=False)
    parts = list(split(spots, size))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(spots)))
    assert max(map(len, parts)) <= size
    assert all(len(set(spots.slices[part])) == 1 for part in parts)
    assert len(parts) == 2 or size < 20
    order = np.random.default_rng(0).permutation(len(spots))
    other = {frozenset(order[part]) for part in split(spots[order], size)}
    assert other == {frozenset(part) for part in parts}


def test_parts_are_spread_or_compact(make_spots):
    spots = make_spots(1, 12, 12, pixels=False)
    extents = [
        np.mean([np.ptp(spots.positions[part], axis=0) for part in split(spots, 20)])
        for split in (spread_parts, compact_parts)
    ]
    assert extents[0] > 2 * extents[1]


def test_a_region_hangs_together(make_spots):
    spots = make_spots(2, 12, 12, pixels=False)
    regions = list(region_batches(spots, 30, np.random.default_rng(0)))
    assert [len(rows) for rows in regions] == [30, 30]
    assert {spots.slices[rows[0]] for rows in regions} == {"S1", "S2"}
    assert all(connected_components(spots[rows].graph)[0] == 1 for rows in regions)
    assert [len(rows) for rows in region_batches(spots, 144, np.random.default_rng(0))] == [144, 144]


class Waxing(Baseline):
    """A method whose prediction of the inner spots is best after three epochs."""

    name = "waxing"
    presets: ClassVar = {"small": TrainingSettings(epochs=12), "published": TrainingSettings(choose_epochs=False)}

    def __init__(self, *args, parts=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.parts, self.runs = parts, []

    def build(self, spots):
        self.runs.append((len(spots), 0))
        return torch.nn.Linear(1, 1)

    def batches(self, spots, rng):
        self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + 1)
        yield np.arange(len(spots))

    def loss(self, network, spots, rows, rng):
        return network(torch.ones(1, 1)).square().sum()

    def infer(self, network, spots):
        return np.full((len(spots), 6), self.runs[-1][1], dtype=np.float32)

    def inner(self, spots):
        return super().inner(spots) if self.parts is None else self.parts

    def goodness(self, measured, predicted):
        best = 3 if len(measured) == 20 else 6
        return -abs(float(predicted[0, 0]) - best)


def test_epochs_are_chosen_on_the_last_slice_and_all_spots_are_trained_anew(spots):
    method = Waxing().fit(spots)
    assert method.n_epochs == 3
    assert method.runs == [(20, 12), (40, 3)]


def test_patience_ends_the_run_that_chooses(spots):
    method = Waxing(patience=2).fit(spots)
    assert method.n_epochs == 3
    assert method.runs == [(20, 5), (40, 3)]


def test_inner_parts_count_by_their_spots(make_spots):
    spots = make_spots(3)
    parts = [np.arange(20), np.arange(20, 50)]
    method = Waxing(parts=parts).fit(spots)
    assert method.n_epochs == 6
    assert method.runs == [(40, 12), (30, 12), (60, 6)]
    assert Waxing(parts=parts, patience=2).fit(spots).n_epochs == 5, "the shorter of two runs ends after five epochs"


def test_too_few_spots_to_choose_epochs_are_refused(spots):
    few = spots[np.arange(3)]
    with pytest.raises(InputError, match=r"3 training spots, 2 are held out.*choose_epochs=False"):
        Waxing().fit(few)
    assert Waxing(choose_epochs=False).fit(few).n_epochs == 12
