"""hist2RNA at the level of spots: a perceptron on the features of a frozen encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from st_gchb.baselines import BASELINES, Hist2RNA
from st_gchb.errors import InputError, NotTrainedError


@pytest.fixture(scope="module")
def trained(spots):
    return Hist2RNA(epochs=5, choose_epochs=False).fit(spots)


def test_a_prediction_for_every_spot_and_gene(spots, trained):
    found = trained.predict(spots)
    assert found.shape == spots.targets.shape
    assert found.dtype == np.float32
    assert BASELINES["hist2rna"] is Hist2RNA


def test_pixels_are_not_needed(make_spots):
    spots = make_spots(pixels=False)
    assert Hist2RNA(epochs=1).fit(spots).predict(spots).shape == (40, 6)


def test_it_is_the_published_convolutions_over_a_sequence_of_one(spots):
    """Of a kernel of 5 with two zeros of padding, only the middle sees a sequence of length 1."""
    network = Hist2RNA().build(spots)
    dense = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    convolutions = [nn.Conv1d(12, 256, 5, padding=2), nn.Conv1d(256, 512, 1), nn.Conv1d(512, 512, 1)]
    with torch.no_grad():
        for convolution, layer in zip(convolutions, dense, strict=False):
            convolution.weight[..., convolution.kernel_size[0] // 2] = layer.weight
            convolution.bias.copy_(layer.bias)
    features = torch.from_numpy(spots.features)
    maps = features[..., None]
    for convolution in convolutions:
        maps = convolution(maps).relu()
    torch.testing.assert_close(network(features), dense[-1](maps.mean(2)), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter(spots):
    method = Hist2RNA()
    network = method.build(spots)
    method.loss(network, spots, np.arange(8), np.random.default_rng(0)).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_twenty_spots_are_learned_by_heart(few_spots, correlation):
    method = Hist2RNA(epochs=100, choose_epochs=False).fit(few_spots)
    assert correlation(few_spots.targets, method.predict(few_spots)) > 0.9


def test_held_out_spots_are_predicted(make_spots, correlation):
    train, test = make_spots(), make_spots(1, 6, 6)
    assert correlation(test.targets, Hist2RNA().fit(train).predict(test)) > 0.6


def test_same_seed_same_result(spots, trained):
    settings = {"epochs": 5, "choose_epochs": False}
    assert np.array_equal(Hist2RNA(**settings).fit(spots).predict(spots), trained.predict(spots))
    assert not np.allclose(Hist2RNA(seed=1, **settings).fit(spots).predict(spots), trained.predict(spots), atol=1e-3)


def test_spots_are_predicted_each_by_itself(spots, trained):
    order = np.random.default_rng(0).permutation(len(spots))
    np.testing.assert_allclose(trained.predict(spots[order]), trained.predict(spots)[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trained.predict(spots[order[:3]]), trained.predict(spots)[order[:3]], rtol=1e-4)


def test_presets(spots):
    small, published = Hist2RNA.presets["small"], Hist2RNA.presets["published"]
    assert small.widths == published.widths == (256, 512, 512)
    assert (published.epochs, published.patience, published.batch_size, published.lr) == (500, 20, 12, 1e-4)
    assert (small.epochs, small.batch_size, small.lr) == (50, 32, 1e-3)
    found = [Hist2RNA(name).optimizer(nn.Linear(1, 1)).defaults["weight_decay"] for name in ("small", "published")]
    assert found == [0.001, 0.01]
    assert Hist2RNA("published", epochs=3, device="auto").fit(spots).n_epochs <= 3


def test_as_published_a_tenth_of_the_spots_chooses_by_squared_error(spots):
    method = Hist2RNA("published")
    (part,) = method.inner(spots)
    assert len(part) == 4
    assert not np.array_equal(part, Hist2RNA("published", seed=1).inner(spots)[0])
    truth = np.ones((4, 2))
    assert method.goodness(truth, truth) > method.goodness(truth, truth + 1) == -1
    assert len(Hist2RNA().inner(spots)[0]) == 20


def test_regularization_pulls_weights_to_zero(spots):
    """L2 is part of the method: predictions spread less than without it."""
    spread = [
        Hist2RNA(epochs=40, choose_epochs=False, l2=l2).fit(spots).predict(spots).std(0).mean() for l2 in (0.0, 0.01)
    ]
    assert spread[1] < spread[0]


def test_bad_input_is_refused(make_spots, spots, trained):
    with pytest.raises(InputError, match="no patch features"):
        Hist2RNA().fit(replace(spots, features=None))
    with pytest.raises(InputError, match="no expression"):
        Hist2RNA().fit(replace(spots, targets=None))
    with pytest.raises(InputError, match="have 5 features, and the training spots had 12"):
        trained.predict(make_spots(n_features=5))
    with pytest.raises(InputError, match="no patch features"):
        trained.predict(replace(spots, features=None))
    with pytest.raises(NotTrainedError):
        Hist2RNA().predict(spots)


@pytest.mark.parametrize(
    "setting",
    [{"widths": ()}, {"widths": (8, 0)}, {"l2": -1.0}, {"l2": float("nan")}, {"validation_share": 1.0}, {"lr": 0.0}],
)
def test_bad_settings_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        Hist2RNA(**setting)
