"""Hist2ST against its publication; what it has in common with HisToGene is tested in test_slice_methods.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from st_gchb.baselines import CountHeads, Hist2ST, Spots, augmented_copy, lattice_edges, size_factors, zinb_loss
from st_gchb.errors import GraphError, InputError

TINY = {"patch_px": 16, "stem_px": 4, "patch_um": 80.0, "choose_epochs": False, "epochs": 2, "device": "cpu"}


def test_the_published_network_has_the_published_size(spots):
    """The released notebook prints 75.8 M parameters for 785 genes; positions have 128 rows here, and 64 there."""
    wide = replace(spots, targets=np.zeros((len(spots), 785), np.float32))
    with torch.device("meta"):
        network = Hist2ST("published", device="cpu").build(wide)
    count = sum(values.numel() for values in network.parameters()) - 2 * 64 * 1024
    assert round(count / 1e6, 1) == 75.8
    assert network.embedding(torch.zeros(2, 112, 112, 3, device="meta")).shape == (2, 1024)


def test_counts_follow_the_zero_inflated_negative_binomial():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (30, 4)).astype(float)
    mean, dispersion = rng.uniform(0.1, 20, (30, 4)), rng.uniform(0.1, 20, (30, 4))
    logit = rng.normal(size=(30, 4))
    dropout = 1 / (1 + np.exp(-logit))
    density = (1 - dropout) * stats.nbinom.pmf(counts, dispersion, dispersion / (dispersion + mean))
    expected = -np.log(density + dropout * (counts == 0))
    found = zinb_loss(*map(torch.from_numpy, (counts, mean, dispersion, logit)))
    assert np.allclose(found.numpy(), expected)


@pytest.mark.parametrize("mean", [1e-5, 1e6])
@pytest.mark.parametrize("dispersion", [1e-4, 1e4])
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_the_loss_of_counts_is_finite_at_its_limits(mean, dispersion, logit):
    values = [torch.full((2,), value, requires_grad=True) for value in (mean, dispersion, logit)]
    loss = zinb_loss(torch.tensor([0.0, 5000.0]), *values)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(value.grad).all() for value in values)


def test_size_factors_are_those_of_the_slice(spots):
    rows = np.array([21, 25])
    totals = spots.counts.sum(1)
    assert np.allclose(size_factors(spots, rows), totals[rows] / np.median(totals[20:]))
    empty = replace(spots, counts=np.zeros_like(spots.counts))
    assert np.array_equal(size_factors(empty, rows), [1.0, 1.0])


def test_edges_are_single_steps_of_a_square_array(make_spots):
    """Diagonals are left out, which a spot graph holds; rows are numbered within the part, and parts see themselves."""
    spots = make_spots(2, 4, 4)
    gaps = np.linalg.norm(spots.positions[:, None] - spots.positions, axis=2)
    same = spots.slices[:, None] == spots.slices
    wide = replace(spots, graph=sparse.csr_matrix((gaps < 60) & same))
    own = np.arange(16, 32)
    assert wide.graph[16:, 16:].nnz == 16 + 2 * (24 + 18)
    neighbor, spot = lattice_edges(wide, own)
    assert len(spot) == 2 * 24
    assert np.allclose(gaps[own][:, own][neighbor, spot], 40)
    assert set(lattice_edges(wide, own[:2]).ravel()) == {0, 1}
    assert lattice_edges(wide, np.array([0, 31])).shape == (2, 0)


def test_edges_of_a_hexagonal_array():
    row, column = np.divmod(np.arange(49), 7)
    positions = np.column_stack([column + row % 2 / 2, row * np.sqrt(0.75)]) * 100
    gaps = np.linalg.norm(positions[:, None] - positions, axis=2)
    spots = Spots(np.repeat("a", 49), positions, sparse.csr_matrix(gaps < 160))
    _, spot = lattice_edges(spots, np.arange(49))
    assert np.bincount(spot).max() == 6


def test_a_spot_sees_its_neighbors_and_not_itself(spots):
    network = Hist2ST(n_graph_layers=1, **TINY).build(spots).eval()
    edges = torch.from_numpy(lattice_edges(spots, np.arange(20)))
    tokens = torch.randn(20, network.lstm.input_size, requires_grad=True)
    network.look_around(tokens, edges)[0].sum().backward()
    assert np.array_equal(np.flatnonzero(tokens.grad.abs().sum(1)), [1, 4])


def test_a_spot_without_neighbors_is_predicted(make_spots):
    """In the released code it makes all of its slice not a number."""
    spots = make_spots()
    graph = spots.graph.tolil()
    graph[3], graph[:, 3] = 0, 0
    alone = replace(spots, graph=sparse.csr_matrix(graph))
    alone.graph.eliminate_zeros()
    assert np.isfinite(Hist2ST(**TINY).fit(alone).predict(alone)).all()


def test_copies_are_turned_alike_and_corners_are_black():
    patches = torch.full((3, 20, 20, 3), 200, dtype=torch.uint8)
    patches[:, :10, :10, 0] = 50
    seen = {"gray": 0, "corner": 0}
    for seed in range(60):
        copy = augmented_copy(patches, np.random.default_rng(seed))
        assert copy.shape == patches.shape
        assert copy.dtype == torch.uint8
        assert torch.equal(copy[0], copy[1])
        seen["gray"] += bool((copy[..., 0] == copy[..., 2]).all())
        seen["corner"] += bool((copy[0, 0, 0] == 0).all())
    assert 1 <= seen["gray"] <= 15
    assert seen["corner"] > 40


def test_the_loss_has_the_published_parts(spots):
    """Squared error, a quarter of the counts' and half of the copies' distance, each with its weight."""
    rows = np.arange(20)

    def loss(**settings):
        torch.manual_seed(0)
        method = Hist2ST(**TINY, dropout=0.0, start_at_mean=False, **settings)
        network = method.build(spots).eval()
        value = method.loss(network, spots, rows, np.random.default_rng(0)).item()
        with torch.inference_mode():
            return value, np.square(method.infer(network, spots)[rows] - spots.targets[rows]).mean()

    none, squared = loss(zinb_weight=0.0, distillation_weight=0.0)
    assert np.isclose(none, squared, rtol=1e-4)
    counts, copies = loss(distillation_weight=0.0)[0] - none, loss(zinb_weight=0.0)[0] - none
    assert counts > 0
    assert copies > 0
    assert np.isclose(loss()[0], none + counts + copies, rtol=1e-4)
    assert np.isclose(loss(zinb_weight=1.0, distillation_weight=0.0)[0], none + 4 * counts, rtol=1e-4)
    assert np.isclose(loss(zinb_weight=0.0, distillation_weight=1.0)[0], none + 2 * copies, rtol=1e-4)


def test_small_starts_at_the_moments_of_the_counts():
    """What is drawn from a distribution of counts is found again, by genes."""
    rng = np.random.default_rng(0)
    mean, dispersion, extra = np.array([0.5, 4.0, 20.0]), np.array([1.0, 2.0, 5.0]), np.array([0.01, 0.01, 0.3])
    drawn = rng.negative_binomial(dispersion, dispersion / (dispersion + mean), (20000, 3))
    heads = CountHeads(4, 3)
    heads.start_at(drawn.astype(np.float32))
    found = heads(torch.randn(1, 4))
    assert np.allclose(found[0].detach(), mean, rtol=0.05)
    assert np.allclose(found[1].detach(), dispersion, rtol=0.15)
    heads.start_at((drawn * (rng.random(drawn.shape) > extra)).astype(np.float32))
    found = heads(torch.randn(1, 4))[2].sigmoid().squeeze().detach().numpy()
    assert found[2] > 5 * found[1]


def test_published_counts_start_anywhere(spots):
    sizes = np.concatenate([size_factors(spots, rows) for rows in spots.by_slice])
    for preset, starts in (("small", True), ("published", False)):
        method = Hist2ST(preset, **TINY, channels=4, out_channels=1, n_blocks=1, n_copies=0)
        found = method.build(spots).count_heads.mean.bias.detach().exp().numpy()
        assert np.allclose(found, (spots.counts / sizes[:, None]).mean(0), rtol=1e-3) == starts


def test_features_have_no_copies(spots):
    assert Hist2ST(from_features=True, **TINY).build(spots).copy_weight is None
    assert Hist2ST(n_copies=0, **TINY).build(spots).copy_weight is None


def test_the_graph_is_whole_where_attention_is_in_parts(make_spots):
    """Parts cut attention, and no edge: tokens of the parts are put back in their order before the graph layers."""
    spots = make_spots(1, 6, 6)
    method = Hist2ST(from_features=True, **TINY).fit(spots)
    network = method.network
    network.blocks = torch.nn.Identity()
    whole = method.predict(spots)
    method.settings = replace(method.settings, batch_size=5)
    assert np.allclose(method.predict(spots), whole, atol=1e-5)


def test_the_learning_rate_falls_in_steps():
    method = Hist2ST(device="cpu")
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = method.schedule(optimizer)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.allclose([rates[0], rates[49], rates[50], rates[100]], [1, 1, 0.9, 0.81])


def test_bad_input(spots):
    def fit(**changes):
        method = Hist2ST(**TINY)
        method.build = None  # what fails later fails otherwise
        method.fit(replace(spots, **changes))

    with pytest.raises(InputError, match="counts="):
        fit(counts=None)
    for wrong in (-1.0, np.inf, np.nan):
        counts = spots.counts.copy()
        counts[3, 2] = wrong
        with pytest.raises(InputError, match="raw counts"):
            fit(counts=counts)
    lonely = spots.graph.tolil()
    lonely[20:] = 0
    with pytest.raises(GraphError, match="'S2'"):
        fit(graph=sparse.csr_matrix(lonely))


def test_patches_that_cannot_be_cut():
    with pytest.raises(InputError, match="patch_px=56"):
        Hist2ST(patch_px=54, device="cpu")
    with pytest.raises(InputError, match="patch_px=7"):
        Hist2ST(patch_px=3, device="cpu")
