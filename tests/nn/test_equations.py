"""Equations 1 to 7 of the paper, transcribed to NumPy from its text, against the package's losses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from st_gchb import nn
from st_gchb.model._presets import PRESETS

PAPER = PRESETS["paper"].loss


# --- the paper, in loops -------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def equation_1(z, corrupted, weight):
    """D(z, h) = sigmoid(z W h), h = sum of the rows of Z."""
    h = z.sum(0)
    total = 0.0
    for i in range(len(z)):
        total += math.log(sigmoid(z[i] @ weight @ h)) + math.log(1.0 - sigmoid(corrupted[i] @ weight @ h))
    return -total


def kernel(x, sigma):
    n = len(x)
    return np.array([[math.exp(-np.sum((x[i] - x[j]) ** 2) / sigma**2) for j in range(n)] for i in range(n)])


def equation_3(k_a, k_b):
    n = len(k_a)
    j = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k_a @ j @ k_b @ j) / (n - 1) ** 2


def equation_4(k_a, k_b):
    return equation_3(k_a, k_b) / math.sqrt((1 + equation_3(k_a, k_a)) * (1 + equation_3(k_b, k_b)))


def equation_5(t_alpha, t_rho, t_l, beta, sigma):
    k_alpha, k_rho, k_l = (kernel(x, sigma) for x in (t_alpha, t_rho, t_l))
    return equation_4(k_alpha, k_rho) - beta * equation_4(k_l, k_rho)


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def equation_6(t_l, g_f, temperature):
    return np.stack([softmax(row) for row in (g_f @ g_f.T + t_l @ t_l.T) / 2 * temperature])


def equation_7(t_l, g_f, temperature):
    target, cross = equation_6(t_l, g_f, temperature), t_l @ g_f.T

    def cross_entropy(logits, targets):
        return np.array([-(t * np.log(softmax(row))).sum() for row, t in zip(logits, targets, strict=True)])

    return np.mean(cross_entropy(cross, target) + cross_entropy(cross.T, target.T))


# --- losses one by one ---------------------------------------------------------------------------------------------


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def tensor(x):
    return torch.from_numpy(np.asarray(x, dtype=np.float64))


def test_equation_1(rng):
    z, corrupted, weight = rng.normal(size=(9, 4)) / 3, rng.normal(size=(9, 4)) / 3, rng.normal(size=(4, 4)) / 3
    h = z.sum(0)
    found = nn.dgi_loss(tensor(z @ weight @ h), tensor(corrupted @ weight @ h), "sum")
    assert found.item() == pytest.approx(equation_1(z, corrupted, weight), abs=1e-8)
    mean = nn.dgi_loss(tensor(z @ weight @ h), tensor(corrupted @ weight @ h), "mean")
    assert mean.item() == pytest.approx(found.item() / 9)


def test_equations_3_and_4(rng):
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(12, 3))
    k_a, k_b = kernel(a, 2.0), kernel(b, 1.5)
    t_a, t_b = nn.gaussian_kernel(tensor(a), 2.0), nn.gaussian_kernel(tensor(b), 1.5)
    np.testing.assert_allclose(t_a.numpy(), k_a, atol=1e-10)
    assert nn.hsic(t_a, t_b).item() == pytest.approx(equation_3(k_a, k_b), abs=1e-10)
    assert nn.nhsic(t_a, t_b).item() == pytest.approx(equation_4(k_a, k_b), abs=1e-10)


def test_equation_5(rng):
    t_alpha, t_rho, t_l = rng.normal(size=(10, 6)), rng.normal(size=(10, 4)), rng.normal(size=(10, 3))
    found = nn.bottleneck_loss(tensor(t_alpha), tensor(t_rho), tensor(t_l), beta=25.0, dependence=nn.nhsic, sigma=10.0)
    assert found.item() == pytest.approx(equation_5(t_alpha, t_rho, t_l, 25.0, 10.0), abs=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equations_6_and_7(rng, temperature):
    t_l, g_f = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    found = nn.literal_alignment_loss(tensor(t_l), tensor(g_f), temperature)
    assert found.item() == pytest.approx(equation_7(t_l, g_f, temperature), abs=1e-8)


# --- the paper preset's joint loss ---------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    settings = nn.NetworkSettings(
        n_features=6,
        n_genes=5,
        n_image_inputs=4,
        n_expression_inputs=3,
        n_hidden=4,
        n_embedding=4,
        image_graph="gcn",
        expression_graph="gcn",
    )
    return nn.STGCHBNetwork(settings).double().eval()


@pytest.fixture
def batch(rng):
    n = 14
    line = np.arange(n - 1)
    edges = np.concatenate([np.stack([line, line + 1]), np.stack([line + 1, line])], axis=1)
    return nn.GraphBatch(
        image=tensor(rng.normal(size=(n, 4)) / 2),
        expression=tensor(rng.normal(size=(n, 3)) / 2),
        edge_index=torch.from_numpy(edges),
        groups=torch.zeros(n, dtype=torch.long),
        rows=torch.tensor([0, 2, 3, 5, 8, 11]),
        inner=torch.arange(n),
    )


def test_the_paper_presets_joint_loss(network, batch, monkeypatch):
    # The corruption is random: a fixed permutation lets both sides see the same one.
    order = torch.randperm(len(batch.image))
    monkeypatch.setattr("st_gchb.nn._networks.permute_rows", lambda x, groups: x[order])
    with torch.no_grad():
        terms = {name: value.item() for name, value in network.loss(batch, PAPER).items()}
        expected = {}
        rows, embedded = batch.rows.numpy(), {}
        for name, branch in (("image", network.image), ("expression", network.expression)):
            inputs = getattr(batch, name)
            out = branch(inputs, batch.edge_index)
            corrupted = branch.infomax.encoder(inputs[order], batch.edge_index).numpy()
            hidden, output = out.hidden.numpy(), out.embedding.numpy()
            expected[f"dgi_{name}"] = equation_1(hidden, corrupted, branch.infomax.weight.numpy())
            expected[f"bottleneck_{name}"] = equation_5(inputs.numpy()[rows], hidden[rows], output[rows], 25.0, 10.0)
            embedded[name] = output[rows]
        expected["alignment"] = equation_7(embedded["expression"], embedded["image"], 1.0)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value, abs=1e-5), name


def test_an_ablation_is_one_setting(network, batch):
    def names(**changed):
        return set(network.loss(batch, replace(PAPER, **changed)))

    everything = names()
    assert everything - names(bottleneck=0.0) == {"bottleneck_image", "bottleneck_expression"}
    assert everything - names(dgi_image=0.0) == {"dgi_image"}
    assert everything - names(dgi_expression=0.0) == {"dgi_expression"}


def test_the_paper_preset_is_the_published_one():
    paper = PRESETS["paper"]
    assert (paper.beta, paper.sigma, paper.dependence, paper.temperature) == (25.0, 10.0, "nhsic", 1.0)
    assert (paper.k, paper.weighting, paper.batch_size, paper.linear_weight) == (50, "mean", 16, 0.0)
