"""What published methods that take a whole slice have in common: HisToGene and Hist2ST, pixels and patch features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from st_gchb.baselines import BASELINES
from st_gchb.errors import DeviceError, InputError, NotTrainedError, ScaleError

TINY = {
    "histogene": {"patch_px": 8, "width": 32, "hidden": 32, "head_width": 8},
    "hist2st": {"patch_px": 16, "stem_px": 4, "head_width": 8, "channels": 8},
}
METHODS = pytest.mark.parametrize("name", sorted(TINY))
INPUTS = pytest.mark.parametrize("from_features", [False, True], ids=["pixels", "features"])


def tiny(name, **settings):
    shared = {"patch_um": 80.0, "choose_epochs": False, "epochs": 2, "device": "cpu"}
    return BASELINES[name](**shared | TINY[name] | settings)


def trained_for_a_step(method, spots):
    """Network after one step, by which a head that starts at zero hands gradients on."""
    torch.manual_seed(0)
    network, rng = method.build(spots), np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rows = next(method.batches(spots, rng))
    method.loss(network, spots, rows, rng).backward()
    optimizer.step()
    optimizer.zero_grad()
    method.loss(network, spots, rows, rng).backward()
    return network


@METHODS
@INPUTS
@pytest.mark.parametrize("choose_epochs", [False, True])
def test_held_out_slices_are_predicted(make_spots, name, from_features, choose_epochs):
    train, test = make_spots(3, 4, 4), replace(make_spots(1, 6, 3), targets=None, counts=None)
    method = tiny(name, from_features=from_features, choose_epochs=choose_epochs).fit(train)
    predicted = method.predict(test)
    assert predicted.shape == (18, 6)
    assert predicted.dtype == np.float32
    assert np.isfinite(predicted).all()
    assert method.n_epochs in {1, 2} if choose_epochs else method.n_epochs == 2


@METHODS
@INPUTS
def test_gradients_reach_every_parameter(spots, name, from_features):
    """But the bias of the copies' weights: a number that is added to all of them leaves their softmax as it is."""
    network = trained_for_a_step(tiny(name, from_features=from_features), spots)
    without = [name for name, values in network.named_parameters() if values.grad is None or not values.grad.any()]
    assert set(without) <= {"copy_weight.2.bias"}


@METHODS
@INPUTS
def test_twenty_spots_are_learned_by_heart(few_spots, correlation, name, from_features):
    settings = {"epochs": 60, "lr": 6e-3, "dropout": 0.0, "from_features": from_features}
    if name == "hist2st":
        # No copies, which have tests of their own: less time. Features need no more than one block of attention.
        settings |= {"n_blocks": 1, "lr": 1.2e-2} if from_features else {"epochs": 100}
        settings["n_copies"] = 0
    predicted = tiny(name, **settings).fit(few_spots).predict(few_spots)
    assert correlation(few_spots.targets, predicted) > 0.9


@METHODS
def test_the_seed_decides(spots, name):
    first, again, other = (tiny(name, seed=seed).fit(spots).predict(spots) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@METHODS
@INPUTS
def test_order_and_corner_of_the_spots_do_not_matter(spots, name, from_features):
    """Permuted spots are predicted as before, and so is a slice whose image begins elsewhere on the array."""
    method = tiny(name, from_features=from_features, start_at_mean=False).fit(spots)
    predicted = method.predict(spots)
    order = np.random.default_rng(0).permutation(len(spots))
    assert np.allclose(method.predict(spots[order]), predicted[order], atol=1e-4)
    moved = replace(spots, positions=spots.positions + [4000.0, 40.0])
    assert np.allclose(method.predict(moved), predicted, atol=1e-4)
    assert not np.allclose(predicted[order], predicted, atol=1e-3)


@METHODS
def test_spots_see_their_slice_and_no_other(spots, name):
    """A changed patch changes predictions all over its slice, and none of another slice."""
    method = tiny(name, from_features=True, start_at_mean=False).fit(spots)
    changed = replace(spots, features=spots.features.copy())
    changed.features[0] = spots.features[7]
    difference = np.abs(method.predict(changed) - method.predict(spots)).max(1)
    assert (difference[:20] > 1e-6).all()
    assert difference[20:].max() < 1e-6


@METHODS
def test_positions_are_seen(spots, name):
    method = tiny(name, from_features=True, start_at_mean=False, position_scale=1.0).fit(spots)
    mirrored = replace(spots, positions=spots.positions * [-1.0, 1.0])
    assert not np.allclose(method.predict(mirrored), method.predict(spots), atol=1e-3)


@METHODS
def test_large_slices_are_taken_in_parts(make_spots, name):
    """Neither a step nor a prediction sees more spots at once than ``batch_size``."""
    spots = make_spots(2, 8, 8)
    method = tiny(name, batch_size=20)
    seen = []
    method.inputs = lambda network, some, rows: (
        seen.append(len(rows)) or type(method).inputs(method, network, some, rows)
    )
    predicted = method.fit(spots).predict(spots)
    assert np.isfinite(predicted).all()
    assert max(seen) <= 20
    assert sum(seen[-8:]) == len(spots)
    order = np.random.default_rng(0).permutation(len(spots))
    assert np.allclose(method.predict(spots[order]), predicted[order], atol=1e-4)


@METHODS
def test_features_are_standardized_as_in_training(spots, name):
    """Units of the features do not matter, and held-out spots are not standardized by themselves."""
    method = tiny(name, from_features=True).fit(spots)
    other = replace(spots, features=spots.features * 100 + 7)
    assert np.allclose(tiny(name, from_features=True).fit(other).predict(other), method.predict(spots), atol=1e-3)
    assert not np.allclose(method.predict(other), method.predict(spots), atol=1e-3)


@METHODS
@INPUTS
def test_a_constant_feature_or_a_constant_gene_does_no_harm(spots, name, from_features):
    features, targets = spots.features.copy(), spots.targets.copy()
    features[:, 0], targets[:, 0] = 3.0, 0.0
    flat = replace(spots, features=features, targets=targets)
    assert np.isfinite(tiny(name, from_features=from_features).fit(flat).predict(flat)).all()


@METHODS
def test_bad_input_is_told_before_training(spots, make_spots, name):
    for bare, settings, match in (
        (replace(spots, targets=None), {}, "targets="),
        (make_spots(pixels=False), {}, "no image"),
        (replace(spots, features=None), {"from_features": True}, "embed_patches"),
    ):
        method = tiny(name, **settings)
        method.build = None  # what fails later fails otherwise
        with pytest.raises(InputError, match=match):
            method.fit(bare)
    with pytest.raises(ScaleError, match="S1"):
        tiny(name, patch_um=5000.0).fit(spots)
    with pytest.raises(InputError, match="presets?.*'small'"):
        BASELINES[name]("smal")
    with pytest.raises(InputError, match="'n_blocks'"):
        tiny(name, n_block=3)


@METHODS
def test_bad_queries(spots, make_spots, name):
    with pytest.raises(NotTrainedError, match="fit"):
        tiny(name).predict(spots)
    with pytest.raises(InputError, match="no image"):
        tiny(name).fit(spots).predict(make_spots(pixels=False))
    method = tiny(name, from_features=True).fit(spots)
    with pytest.raises(InputError, match=r"have 11 patch features, and 12"):
        method.predict(replace(spots, features=spots.features[:, 1:]))


@METHODS
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_published_sizes_want_a_gpu(name):
    with pytest.raises(DeviceError, match="device='cpu'"):
        BASELINES[name]("published")
    assert BASELINES[name]("published", device="cpu").settings.choose_epochs is False


@METHODS
def test_small_and_published_are_the_same_architecture(spots, name):
    """Presets differ in sizes and numbers alone: the modules are the same, but for how often one is repeated."""
    kinds = []
    for preset in ("small", "published"):
        with torch.device("meta"):
            network = BASELINES[name](preset, device="cpu").build(spots)
        kinds.append({type(module) for module in network.modules()})
    assert kinds[0] == kinds[1]
