"""ST-Net: a DenseNet on each patch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from st_gchb.baselines import BASELINES, STNet, STNetSettings, transformed
from st_gchb.errors import DeviceError, EncoderError, InputError, WeightsUnavailableError

TINY = {"patch_px": 32, "growth": 4, "blocks": (1, 1, 1, 1), "channels": 8, "device": "cpu"}
"""Of the same architecture, and done in a second."""


@pytest.fixture(scope="module")
def trained(spots):
    return STNet(epochs=3, choose_epochs=False, **TINY).fit(spots)


def test_a_prediction_for_every_spot_and_gene(spots, trained):
    found = trained.predict(spots)
    assert found.shape == spots.targets.shape
    assert found.dtype == np.float32
    assert BASELINES["st-net"] is STNet


def test_training_starts_at_the_mean_profile(spots):
    """The last layer has weights of 0, and each gene's mean in the training spots as bias."""
    method = STNet(**TINY)
    network = method.build(spots).eval()
    expected = np.tile(spots.targets.mean(0), (len(spots), 1))
    with torch.inference_mode():
        np.testing.assert_allclose(method.infer(network, spots), expected, rtol=1e-5)


def test_gradients_reach_every_parameter(spots):
    """At the first step only the last layer learns, since its weights are 0; from then on, all do."""
    method = STNet(**TINY)
    network = method.build(spots)
    torch.nn.init.normal_(network.head.weight)
    method.loss(network, spots, np.arange(8), np.random.default_rng(0)).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_loss_is_the_sum_over_spots_of_the_mean_over_genes(spots):
    method = STNet(**TINY)
    network = method.build(spots).eval()
    rows = np.arange(3, 11)
    expected = np.square(spots.targets[rows] - spots.targets.mean(0)).mean(1).sum()
    assert float(method.loss(network, spots, rows, np.random.default_rng(0))) == pytest.approx(expected, rel=1e-4)


def test_twenty_spots_are_learned_by_heart(few_spots, correlation):
    wider = {**TINY, "growth": 8, "channels": 32}
    method = STNet(epochs=60, choose_epochs=False, batch_size=20, lr=1e-2, **wider).fit(few_spots)
    assert correlation(few_spots.targets, method.predict(few_spots)) > 0.9


def test_held_out_spots_are_predicted(make_spots, correlation):
    train, test = make_spots(), make_spots(1, 6, 6)
    method = STNet(epochs=40, choose_epochs=False, batch_size=10, lr=1e-2, **TINY).fit(train)
    assert correlation(test.targets, method.predict(test)) > 0.4


def test_same_seed_same_result(spots, trained):
    settings = {"epochs": 3, "choose_epochs": False, **TINY}
    assert np.array_equal(STNet(**settings).fit(spots).predict(spots), trained.predict(spots))
    assert not np.allclose(STNet(seed=1, **settings).fit(spots).predict(spots), trained.predict(spots), atol=1e-3)


def test_spots_are_predicted_each_by_itself(spots, trained):
    order = np.random.default_rng(0).permutation(len(spots))
    np.testing.assert_allclose(trained.predict(spots[order]), trained.predict(spots)[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.predict(spots[order[:3]]), trained.predict(spots)[order[:3]], rtol=1e-4)


def test_predictions_do_not_change_when_patches_are_turned_or_mirrored(spots):
    """The mean over the eight symmetries of the square has none of them left; a single view has."""
    method = STNet(**TINY)
    method.network = method.build(spots).eval()
    torch.nn.init.normal_(method.network.head.weight)
    # Each patch is darker towards one corner, and differs from all of its other views.
    slope = np.linspace(0, 150, 32)[:, None] + np.linspace(0, 60, 32)
    patches = (slope[..., None] + np.linspace(0, 40, len(spots))[:, None, None, None]).astype(np.uint8)
    patches = np.broadcast_to(patches, (len(spots), 32, 32, 3))
    with torch.inference_mode():
        single = [method.network(torch.from_numpy(transformed(patches, n).copy())).numpy() for n in range(8)]
    differences = [np.abs(view - single[0]).max() for view in single[1:]]
    views = [transformed(patches, number) for number in range(8)]
    expected, *found = [method.predict(replace(spots, read=lambda out_px, patch_um, view=view: view)) for view in views]
    assert max(np.abs(prediction - expected).max() for prediction in found) < 1e-3 * min(differences)


def test_training_patches_are_turned_and_mirrored(spots, monkeypatch):
    method = STNet(**TINY)
    network, seen = method.build(spots), []
    monkeypatch.setattr(network, "forward", lambda patches: seen.append(patches) or torch.zeros(len(patches), 6))
    rows, everything = np.arange(20), spots.pixels(32, 150.0)[np.arange(20)]
    method.loss(network, spots, rows, np.random.default_rng(0))
    numbers = [
        [np.array_equal(transformed(before[None], number)[0], after) for number in range(8)].index(True)
        for before, after in zip(everything, seen[0].numpy(), strict=True)
    ]
    assert len(set(numbers)) > 4


def test_channels_are_standardized_as_in_the_training_patches(spots):
    network = STNet(**TINY).build(spots)
    pixels = spots.pixels(32, 150.0)[np.arange(len(spots))] / 255
    np.testing.assert_allclose(network.trunk.mean.flatten(), pixels.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(network.trunk.std.flatten(), pixels.std((0, 1, 2)), rtol=1e-4)


def test_blank_patches_are_no_division_by_zero(spots):
    blank = replace(spots, read=lambda out_px, patch_um: np.full((len(spots), out_px, out_px, 3), 255, np.uint8))
    assert np.isfinite(STNet(epochs=1, choose_epochs=False, **TINY).fit(blank).predict(blank)).all()


def test_presets():
    small, published = STNet.presets["small"], STNet.presets["published"]
    assert (published.trunk, published.weights, published.patch_px) == ("densenet121", "default", 224)
    assert (published.lr, published.momentum, published.batch_size, published.epochs) == (1e-6, 0.9, 32, 50)
    assert published.nested
    assert (small.trunk, small.patch_px, small.momentum) == ("densenet", 112, None)
    adam, sgd = (STNet(**settings).optimizer(torch.nn.Linear(1, 1)) for settings in ({}, {"momentum": 0.9}))
    assert isinstance(adam, torch.optim.Adam)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.9


def test_the_small_network_has_a_third_of_a_million_weights(spots):
    network = STNet(device="cpu").build(spots)
    assert 0.25e6 < sum(value.numel() for value in network.parameters()) < 0.45e6
    assert network.trunk(torch.zeros(1, 112, 112, 3, dtype=torch.uint8)).shape[2:] == (3, 3)


def test_as_published_four_parts_of_the_slices_choose_by_squared_error(make_spots):
    spots = make_spots(5, 2, 2)
    method = STNet(nested=True, **TINY)
    parts = method.inner(spots)
    assert [len(part) for part in parts] == [8, 4, 4, 4]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(spots)))
    assert [len(set(spots.slices[part])) for part in parts] == [2, 1, 1, 1]
    assert [len(part) for part in method.inner(spots[np.arange(8)])] == [4, 4]
    assert len(method.inner(spots[np.arange(4)])) == 1
    truth = np.ones((4, 2))
    assert method.goodness(truth, truth) > method.goodness(truth, truth + 1) == -1
    assert len(STNet(**TINY).inner(spots)) == 1
    assert STNet(nested=True, epochs=2, **TINY).fit(spots).n_epochs in (1, 2)


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_of_densenet121_are_read_from_a_file(tmp_path, spots, form):
    """Of the published network, all but the last layer; 7.21 million parameters for 250 genes."""
    torch.manual_seed(3)
    state = torchvision.models.densenet121().state_dict()
    path = tmp_path / ("densenet121.safetensors" if form == "safetensors" else "densenet121.pth")
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    wide = replace(spots, targets=np.random.default_rng(0).random((len(spots), 250), np.float32))
    method = STNet("published", weights=str(path), device="cpu")
    network = method.build(wide)
    assert torch.equal(network.trunk.layers.conv0.weight, state["features.conv0.weight"])
    assert torch.equal(network.trunk.layers.norm5.bias, state["features.norm5.bias"])
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 2) == 7.21
    assert all(value.requires_grad for value in network.parameters())
    if form == "torch":
        loss = method.loss(network.train(), wide, np.arange(2), np.random.default_rng(0))
        loss.backward()
        assert network.head.weight.grad.any()


def test_another_trunk_keeps_its_folded_batch_norm(spots, weights_path):
    settings = {"trunk": "mobilenet_v2", "weights": str(weights_path), "train_norm": False, "patch_px": 32}
    network = STNet(**settings, device="cpu").build(spots).train()
    assert network.head.in_features == 1280
    assert not network.trunk.layers[0][1].training


def test_bad_weights_are_refused(tmp_path, spots):
    published = {"preset": "published", "device": "cpu"}
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(EncoderError, match="not those of encoder 'densenet121'"):
        STNet(weights=str(tmp_path / "other.safetensors"), **published).fit(spots)
    with pytest.raises(WeightsUnavailableError, match="no such weights file"):
        STNet(weights=str(tmp_path / "none.pth"), **published).fit(spots)
    with pytest.raises(EncoderError, match="densenet"):
        STNet(trunk="densnet121", **published).fit(spots)


def test_spots_without_image_or_expression_are_refused(make_spots):
    with pytest.raises(InputError, match="no image"):
        STNet(**TINY).fit(make_spots(pixels=False))
    with pytest.raises(InputError, match="no expression"):
        STNet(**TINY).fit(replace(make_spots(), targets=None))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_published_preset_asks_for_a_gpu():
    with pytest.raises(DeviceError, match="preset='small'"):
        STNet("published")


@pytest.mark.parametrize(
    "setting", [{"patch_px": 31}, {"patch_um": 0.0}, {"patch_um": float("nan")}, {"batch_size": 1}, {"epochs": 0}]
)
def test_bad_settings_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        STNet(**setting)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"'smal'.*'small'"):
        STNet("smal")
    with pytest.raises(InputError, match=r"'grow'.*'growth'"):
        STNet(grow=3)
    assert STNetSettings().trunk == "densenet"
