"""THItoGene: its layers against plain loops, and the method on tiny tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from st_gchb._errors import InputError, ScaleError, SliceError, STGCHBError
from st_gchb.baselines import (
    DynamicConvolution,
    GraphAttention,
    PrimaryCapsules,
    Routing,
    THItoGene,
    THItoGeneNetwork,
    squash,
    with_loops,
)

TINY = {"device": "cpu", "patch_px": 32, "batch_size": 64, "choose_epochs": False}
FEATURES = TINY | {"from_features": True}


def ready(spots, **options):
    """Train the method for two epochs, and make its head depend on the spots more than so few epochs do."""
    method = THItoGene(epochs=2, **options).fit(spots)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(method.network.head.weight)
    return method


@pytest.fixture(scope="module")
def trained(spots):
    return ready(spots, **TINY)


@pytest.fixture
def of_seed():
    torch.manual_seed(0)


# ---- Layers ----


@pytest.mark.parametrize("stride", [2, 4])
def test_dynamic_convolution_is_a_convolution_by_each_patchs_own_kernel(of_seed, stride):
    layer = DynamicConvolution(3, 5, side=4, stride=stride, n_kernels=3).eval()
    patches = torch.rand(6, 3, 14, 18)
    found = layer(patches)
    for patch, own in zip(patches, found, strict=True):
        context = layer.context(patch.mean((1, 2))[None])[0]
        kernel = sum(
            share * one for share, one in zip(layer.of_kernel(context).softmax(0), layer.kernels, strict=True)
        ).reshape(5, 3, 4, 4)
        kernel = kernel * torch.sigmoid(layer.of_place(context)).reshape(4, 4)
        seen = patch * torch.sigmoid(layer.of_input(context))[:, None, None]
        out = functional.conv2d(seen[None], kernel, stride=stride)[0]
        out = out * torch.sigmoid(layer.of_output(context))[:, None, None]
        torch.testing.assert_close(own, out)
    assert not torch.allclose(layer(patches[:1].flip(1)), found[:1].flip(1))


def test_squashed_vectors_keep_their_direction_and_are_shorter_than_1():
    v = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0], [300.0, 0.0]], requires_grad=True)
    found = squash(v)
    lengths = torch.tensor([5.0, 0.5, 0.0, 300.0])
    torch.testing.assert_close(found.norm(dim=1), 1 - torch.exp(-lengths))
    torch.testing.assert_close(found[0] / found[0].norm(), torch.tensor([0.6, 0.8]))
    found.sum().backward()
    assert torch.isfinite(v.grad).all()


def test_routing_is_that_of_the_loop(of_seed):
    layer = Routing(3, 4, 5, 6)
    nn.init.normal_(layer.prior)
    capsules = torch.randn(2, 3, 4)
    found = layer(capsules)
    for n in range(2):
        votes = {(k, j): capsules[n, j] @ layer.maps[k, j] for k in range(5) for j in range(3)}
        sums = [sum(votes[k, j] for j in range(3)) for k in range(5)]
        for k in range(5):
            total = torch.zeros(6)
            for j in range(3):
                agreement = torch.stack([votes[m, j] @ sums[m] for m in range(5)]) / 6**0.5
                total = total + (agreement.softmax(0)[k] + layer.prior[k, j]) * votes[k, j]
            torch.testing.assert_close(found[n, k], squash(total))


CHAIN = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
"""Neighbor and spot of a chain of three spots."""


@pytest.mark.parametrize(("over", "sums"), [("neighbors", [1.0, 1.0, 1.0]), ("receivers", [0.5, 2.0, 0.5])])
def test_weights_of_graph_attention_sum_to_1_over_what_is_asked(over, sums):
    """With equal scores, and 1 as every value, the output is the sum of the weights of a spot."""
    layer = GraphAttention(1, 2, 1, 0.0, over)
    for weights, value in ((layer.values.weight, 1.0), (layer.of_neighbor, 0.0), (layer.of_spot, 0.0)):
        nn.init.constant_(weights, value)
    found = layer(torch.ones(3, 1), CHAIN)
    torch.testing.assert_close(found, torch.tensor(sums)[:, None].expand(3, 2))


def test_graph_attention_is_that_of_the_loop(of_seed):
    layer = GraphAttention(4, 2, 3, 0.0, "neighbors")
    x = torch.randn(3, 4)
    found = layer(x, CHAIN).reshape(3, 2, 3)
    values = (x @ layer.values.weight.T).reshape(3, 2, 3)
    for spot, neighbors in {0: [1], 1: [0, 2], 2: [1]}.items():
        for head in range(2):
            scores = torch.stack(
                [
                    functional.leaky_relu(
                        values[n, head] @ layer.of_neighbor[head] + values[spot, head] @ layer.of_spot[head], 0.01
                    )
                    for n in neighbors
                ]
            )
            expected = sum(w * values[n, head] for w, n in zip(scores.softmax(0), neighbors, strict=True))
            torch.testing.assert_close(found[spot, head], functional.elu(expected))


def test_a_spot_without_neighbors_asks_itself():
    edges = with_loops(np.array([[0, 2], [2, 0]]), 4)
    assert sorted(zip(*edges.tolist(), strict=True)) == [(0, 2), (1, 1), (2, 0), (3, 3)]
    assert with_loops(CHAIN.numpy(), 3).shape == (2, 4)


# ---- Sizes ----


def test_sizes_of_the_publication():
    """The release counts 63.6 million parameters with 785 genes; its map before the capsules is 9 x 9."""
    settings = THItoGene("published", device="cpu").settings
    with torch.device("meta"):
        network = THItoGeneNetwork(PrimaryCapsules(settings), nn.Linear(settings.head_hidden, 785), settings)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert settings.map_px == 9
    assert settings.width == 1408
    assert count == pytest.approx(63.6e6, rel=0.001)
    assert (settings.epochs, settings.lr, settings.choose_epochs) == (200, 1e-5, False)


def test_small_has_the_same_architecture():
    small = THItoGene(device="cpu").settings
    assert (small.map_px, small.width, small.choose_epochs) == (9, 160, True)
    with torch.device("meta"):
        network = THItoGeneNetwork(PrimaryCapsules(small), nn.Linear(small.head_hidden, 785), small)
        large = THItoGene("published", device="cpu").settings
        published = THItoGeneNetwork(PrimaryCapsules(large), nn.Linear(large.head_hidden, 785), large)
    names = {name for name, _ in network.named_parameters()}
    others = {name for name, _ in published.named_parameters()}
    assert names == {name for name in others if not name.startswith(("blocks.2", "blocks.3"))}
    assert sum(parameter.numel() for parameter in network.parameters()) < 0.6e6


def test_shapes(spots, trained):
    network = trained.network
    patches, _ = trained.inputs(network, spots, np.arange(7))
    capsules = network.embedding(patches)
    assert capsules.shape == (7, 8, 8)
    assert network.routing(capsules).shape == (7, 8, 16)
    assert (capsules.norm(dim=-1) < 1).all()
    predicted = trained.predict(spots)
    assert (predicted.shape, predicted.dtype) == ((40, 6), np.float32)


# ---- Training ----


@pytest.mark.parametrize("options", [TINY, FEATURES])
def test_gradients_reach_every_parameter(spots, options):
    method = THItoGene(**options | {"dropout": 0.0})
    torch.manual_seed(1)
    network = method.build(spots).train()
    # Its weights start at 0, which no gradient passes in the first step.
    nn.init.normal_(network.head.weight)
    method.loss(network, spots, np.arange(20), np.random.default_rng(0)).backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-10]
    assert unreached == []


def test_the_first_prediction_is_the_training_mean(spots):
    network = THItoGene(**FEATURES).build(spots).eval()
    assert torch.equal(network.head.weight, torch.zeros(6, 128))
    np.testing.assert_allclose(network.head.bias.detach(), spots.targets.mean(0), rtol=1e-5)


@pytest.mark.parametrize(("options", "epochs", "lr"), [(TINY, 100, 1e-3), (FEATURES, 100, 3e-3)])
def test_twenty_spots_are_learned_by_heart(make_spots, correlation, options, epochs, lr):
    spots = make_spots(1, 5, 4)
    method = THItoGene(**options | {"dropout": 0.0, "epochs": epochs, "lr": lr}).fit(spots)
    assert correlation(spots.targets, method.predict(spots)) > 0.9


def test_the_number_of_epochs_is_chosen(spots):
    method = THItoGene(**FEATURES | {"choose_epochs": True, "epochs": 3}).fit(spots)
    assert 1 <= method.n_epochs <= 3


def test_seeds(spots):
    first, again, other = (THItoGene(epochs=1, **TINY, seed=seed).fit(spots).predict(spots) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


# ---- Prediction ----


@pytest.mark.parametrize("options", [TINY, FEATURES])
def test_a_permutation_of_spots_permutes_predictions(spots, options):
    method = ready(spots, **options)
    order = np.random.default_rng(0).permutation(len(spots))
    expected = method.predict(spots)
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(method.predict(spots[order]), expected[order], rtol=1e-4)


def test_slices_do_not_see_each_other(spots, trained):
    alone = np.concatenate([trained.predict(spots[rows]) for rows in spots.by_slice])
    np.testing.assert_allclose(alone, trained.predict(spots), rtol=1e-5)


def test_spots_of_a_slice_do(spots, trained):
    """Attention is over the whole slice: without one of its spots, even the farthest is predicted differently."""
    rows = spots.by_slice[0]
    whole, without = trained.predict(spots[rows]), trained.predict(spots[rows[:-1]])
    assert (np.abs(whole[:-1] - without).max(1) > 1e-6).all()


def test_positions_count_from_the_corner_of_the_slice(make_spots):
    spots = make_spots(1, 5, 4)
    method = ready(spots, **FEATURES)
    moved = replace(spots, positions=spots.positions + [400.0, 80.0])
    np.testing.assert_array_equal(method.predict(moved), method.predict(spots))
    turned = replace(spots, positions=spots.positions[:, ::-1].copy())
    assert not np.allclose(method.predict(turned), method.predict(spots))


def test_large_slices_are_taken_in_parts(spots, monkeypatch):
    sizes = []
    network_inputs = THItoGene.inputs

    def noted(self, network, spots, rows):
        sizes.append(len(rows))
        return network_inputs(self, network, spots, rows)

    monkeypatch.setattr(THItoGene, "inputs", noted)
    method = THItoGene(epochs=2, **FEATURES | {"batch_size": 8}).fit(spots)
    assert sizes == [8] * 4
    sizes.clear()
    predicted = method.predict(spots)
    assert max(sizes) <= 8
    assert sum(sizes) == 40
    assert (np.ptp(predicted, axis=0) > 0).all()


def test_spots_without_neighbors_are_predicted(spots, trained):
    graph = spots.graph.tolil()
    graph[3] = 0
    graph[:, 3] = 0
    assert np.isfinite(trained.predict(replace(spots, graph=graph.tocsr()))).all()
    one = spots[np.array([5])]
    assert trained.predict(one).shape == (1, 6)
    bare = replace(spots, graph=sparse.csr_matrix((40, 40)))
    assert np.isfinite(trained.predict(bare)).all()


def test_the_released_normalization_is_another_method(spots):
    predicted = [ready(spots, **FEATURES, attention_over=over).predict(spots) for over in ("neighbors", "receivers")]
    assert not np.allclose(*predicted)


# ---- Bad input ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_over": "spots"}, "attention_over='spots'.*'neighbors' or 'receivers'"),
        ({"n_primary": 7}, "n_primary=7.*56 channels; expected 64"),
        ({"patch_px": 20}, "patch_px=20 leaves nothing.*larger patches"),
        ({"patch_px": 3}, "patch_px=3 leaves nothing"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"n_capsule": 4}, "n_capsule.*'n_capsules'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        THItoGene(device="cpu", **settings)


BAD = {
    "no expression": (lambda spots: replace(spots, targets=None), TINY, InputError, "thitogene.*no expression"),
    "no pixels": (lambda spots: replace(spots, read=None), TINY, InputError, "no image"),
    "no features": (lambda spots: replace(spots, features=None), FEATURES, InputError, "no patch features"),
    "large patches": (lambda spots: spots, TINY | {"patch_um": 2e3}, ScaleError, "no larger than the slide"),
    "a slice of one spot": (lambda spots: spots[np.arange(21)], FEATURES, SliceError, "'S2'.*1 spots.*neighbor"),
    "no graph": (
        lambda spots: replace(spots, graph=sparse.csr_matrix((40, 40))),
        FEATURES,
        SliceError,
        "'S1'.*20 spots.*neighbor",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_needs_is_checked_before_training(spots, name, monkeypatch):
    spoil, options, error, message = BAD[name]
    monkeypatch.setattr(THItoGene, "build", None)
    with pytest.raises(STGCHBError, match=message) as caught:
        THItoGene(**options).fit(spoil(spots))
    assert isinstance(caught.value, error)


def test_other_features_than_those_of_training(make_spots, spots):
    method = THItoGene(epochs=1, **FEATURES).fit(spots)
    with pytest.raises(InputError, match="5 patch features.*12"):
        method.predict(make_spots(n_features=5))
