"""Equations 1 to 7, written a second time from the paper in plain NumPy, against the package's losses and network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from st_gchb.model import PRESETS
from st_gchb.nn import (
    GraphBatch,
    NetworkSettings,
    STGCHBNetwork,
    bottleneck_loss,
    cka,
    dgi_loss,
    gaussian_kernel,
    hsic,
    literal_alignment_loss,
    nhsic,
)

# ---- The paper's equations, by name. float64, loops, nothing of the package. ----


def paper_discriminator(node, readout, weight):
    """D(Z_i, h): the bilinear discriminator of deep graph infomax."""
    return 1.0 / (1.0 + math.exp(-float(node @ weight @ readout)))


def paper_dgi(z, z_corrupted, weight):
    """Equation 1 with the read-out h = sum of all Z_i."""
    readout = np.zeros(z.shape[1])
    for node in z:
        readout = readout + node
    total = 0.0
    for node, corrupted in zip(z, z_corrupted, strict=True):
        total += math.log(paper_discriminator(node, readout, weight))
        total += math.log(1.0 - paper_discriminator(corrupted, readout, weight))
    return -total


def paper_kernel(x, sigma):
    """Gaussian kernel; the width's convention exp(-d^2 / sigma^2) is the published code's."""
    n = len(x)
    kernel = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            kernel[i, j] = math.exp(-float(((x[i] - x[j]) ** 2).sum()) / sigma**2)
    return kernel


def paper_hsic(k_a, k_b):
    """Equation 3."""
    n = len(k_a)
    j = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k_a @ j @ k_b @ j) / (n - 1) ** 2


def paper_nhsic(k_a, k_b):
    """Equation 4."""
    return paper_hsic(k_a, k_b) / math.sqrt((1 + paper_hsic(k_a, k_a)) * (1 + paper_hsic(k_b, k_b)))


def paper_bottleneck(t_alpha, t_rho, t_l, beta, sigma):
    """Equation 5 (equation 2 with X = T_alpha, T = T_rho, Y = T_l), the signs as printed."""
    k_alpha, k_rho, k_l = (paper_kernel(t, sigma) for t in (t_alpha, t_rho, t_l))
    return paper_nhsic(k_alpha, k_rho) - beta * paper_nhsic(k_l, k_rho)


def softmax(row):
    shifted = [math.exp(value - max(row)) for value in row]
    return [value / sum(shifted) for value in shifted]


def cross_entropy(logits, target):
    """-sum_j target_j log softmax(logits)_j of one row."""
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(value - top) for value in logits))
    return -sum(t * (value - log_sum) for t, value in zip(target, logits, strict=True))


def paper_alignment(t_l, g_f, temperature):
    """Equations 6 and 7."""
    n = len(t_l)
    sim_cro, sim_spt, sim_img = t_l @ g_f.T, t_l @ t_l.T, g_f @ g_f.T
    target = np.array([softmax(list((sim_img[i] + sim_spt[i]) / 2 * temperature)) for i in range(n)])
    values = [cross_entropy(sim_cro[i], target[i]) + cross_entropy(sim_cro.T[i], target.T[i]) for i in range(n)]
    return sum(values) / n


# ---- The package's functions. ----


def draw(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(size=shape) * scale


def close(found, expected):
    assert math.isfinite(expected)
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("n", [2, 3, 16])
def test_dgi_loss_is_equation_1(n):
    z, corrupted, weight = draw(n, 4, seed=1, scale=0.5), draw(n, 4, seed=2, scale=0.5), draw(4, 4, seed=3)
    logits = [torch.from_numpy(x @ weight @ z.sum(0)) for x in (z, corrupted)]
    close(dgi_loss(*logits, "sum"), paper_dgi(z, corrupted, weight))
    close(dgi_loss(*logits, "mean"), paper_dgi(z, corrupted, weight) / n)


def test_dgi_loss_stays_finite_where_the_sigmoid_saturates():
    logits = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = dgi_loss(logits, -logits, "sum")
    loss.backward()
    assert loss.item() == pytest.approx(1000.0)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("sigma", [0.7, 10.0])
@pytest.mark.parametrize("n", [2, 3, 16])
def test_kernel_hsic_and_nhsic_are_equations_3_and_4(n, sigma):
    x, y = draw(n, 5, seed=n), draw(n, 3, seed=n + 1, scale=4.0)
    k_x, k_y = paper_kernel(x, sigma), paper_kernel(y, sigma)
    t_x, t_y = (gaussian_kernel(torch.from_numpy(a), sigma) for a in (x, y))
    np.testing.assert_allclose(t_x.numpy(), k_x, rtol=1e-9)
    close(hsic(t_x, t_y), paper_hsic(k_x, k_y))
    close(nhsic(t_x, t_y), paper_nhsic(k_x, k_y))
    close(cka(t_x, t_y), paper_hsic(k_x, k_y) / math.sqrt(paper_hsic(k_x, k_x) * paper_hsic(k_y, k_y)))


@pytest.mark.parametrize("beta", [0.0, 1.0, 25.0])
def test_bottleneck_loss_is_equation_5_with_the_printed_signs(beta):
    t_alpha, t_rho, t_l = draw(12, 6, seed=1, scale=3), draw(12, 8, seed=2, scale=2), draw(12, 4, seed=3, scale=2)
    t_l[:, :4] += t_rho[:, :4]
    found = bottleneck_loss(
        *(torch.from_numpy(t) for t in (t_alpha, t_rho, t_l)), beta=beta, dependence=nhsic, sigma=10.0
    )
    close(found, paper_bottleneck(t_alpha, t_rho, t_l, beta, 10.0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [2, 16])
def test_literal_alignment_is_equations_6_and_7(n, temperature):
    t_l, g_f = draw(n, 6, seed=4), draw(n, 6, seed=5)
    found = literal_alignment_loss(torch.from_numpy(t_l), torch.from_numpy(g_f), temperature)
    close(found, paper_alignment(t_l, g_f, temperature))


# ---- The terms that the network of the `paper` preset adds up. ----

PAPER = PRESETS["paper"]


def paper_network(seed=0):
    torch.manual_seed(seed)
    settings = NetworkSettings(
        n_features=7,
        n_genes=5,
        n_image_inputs=PAPER.n_image_components,
        n_expression_inputs=5,
        n_image_adapter=6,
        n_hidden=4,
        n_embedding=8,
        image_graph=PAPER.image_graph,
        expression_graph=PAPER.expression_graph,
        dropout=PAPER.dropout,
    )
    network = STGCHBNetwork(settings).double().eval()
    with torch.no_grad():
        # Wide inputs spread the kernels at sigma = 10, and small weights keep log(1 - D) finite as it is printed.
        for branch in (network.image, network.expression):
            branch.infomax.weight *= 0.02
    return network


def ring(n, offset=0):
    """A slice whose spots lie in a ring: each has two neighbors."""
    i = torch.arange(n)
    edges = torch.stack([i, (i + 1) % n])
    return torch.cat([edges, edges.flip(0)], 1) + offset


def batch_of(sizes, rows=None, seed=6):
    n, starts = sum(sizes), np.cumsum([0, *sizes[:-1]])
    return GraphBatch(
        image=torch.from_numpy(draw(n, 7, seed=seed, scale=15.0)),
        expression=torch.from_numpy(draw(n, 5, seed=seed + 1, scale=10.0)),
        edge_index=torch.cat([ring(size, int(start)) for size, start in zip(sizes, starts, strict=True)], 1),
        groups=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        rows=torch.arange(n) if rows is None else torch.tensor(rows),
        inner=torch.arange(n),
    )


def reverse_within(x, members):
    """A corruption that is known: each slice's rows in reversed order."""
    order = torch.arange(len(x))
    for rows in members:
        order[rows] = rows.flip(0)
    return x[order]


@pytest.fixture
def known_corruption(monkeypatch):
    monkeypatch.setattr("st_gchb.nn._network.permute_rows", reverse_within)


def arrays(branch, inputs, edges):
    out = branch(inputs, edges)
    return [t.detach().numpy() for t in (out.inputs, out.hidden, out.embedding)]


def test_the_paper_preset_adds_the_terms_of_the_paper_with_weight_one():
    loss = PAPER.loss
    assert loss.paper_equations
    assert loss.dependence == "nhsic"
    assert (loss.sigma, loss.beta) == (10.0, 25.0)
    assert loss.dgi_image == loss.dgi_expression == loss.bottleneck == 1.0
    assert set(paper_network().loss(batch_of([6]), loss)) == {
        "alignment",
        "dgi_image",
        "dgi_expression",
        "bottleneck_image",
        "bottleneck_expression",
    }


@pytest.mark.parametrize("rows", [None, [1, 4, 5, 8]], ids=["all spots", "a mini-batch of the slice"])
def test_every_term_of_the_paper_preset(rows, known_corruption):
    network, batch, loss = paper_network(), batch_of([9], rows), PAPER.loss
    terms = {name: term.item() for name, term in network.loss(batch, loss).items()}
    embeddings = {}
    for name in ("image", "expression"):
        branch, inputs = getattr(network, name), getattr(batch, name)
        t_alpha, t_rho, t_l = arrays(branch, inputs, batch.edge_index)
        _, corrupted, _ = arrays(branch, inputs.flip(0), batch.edge_index)
        weight = branch.infomax.weight.detach().numpy()
        # Equation 1 runs over the slice, the other equations over the mini-batch.
        close(terms[f"dgi_{name}"], paper_dgi(t_rho, corrupted, weight))
        part = batch.rows.numpy()
        close(terms[f"bottleneck_{name}"], paper_bottleneck(t_alpha[part], t_rho[part], t_l[part], 25.0, 10.0))
        embeddings[name] = t_l[part]
    close(terms["alignment"], paper_alignment(embeddings["expression"], embeddings["image"], 1.0))


def test_the_terms_are_no_trivial_numbers(known_corruption):
    """The comparison above would say little if DGI were 2 n log 2 or the kernels all ones."""
    terms = paper_network().loss(batch_of([9]), PAPER.loss)
    for name in ("image", "expression"):
        assert abs(terms[f"dgi_{name}"].item() - 18 * math.log(2)) > 0.1
        assert abs(terms[f"bottleneck_{name}"].item()) > 0.01


def test_two_slices_have_their_own_read_outs(known_corruption):
    network, batch = paper_network(), batch_of([5, 7])
    together = network.loss(batch, PAPER.loss)
    for name in ("image", "expression"):
        branch, inputs = getattr(network, name), getattr(batch, name)
        weight = branch.infomax.weight.detach().numpy()
        values = []
        for part, n in ((slice(0, 5), 5), (slice(5, 12), 7)):
            _, z, _ = arrays(branch, inputs[part], ring(n))
            _, corrupted, _ = arrays(branch, inputs[part].flip(0), ring(n))
            values.append(paper_dgi(z, corrupted, weight))
        close(together[f"dgi_{name}"], sum(values) / 2)


def test_pretraining_is_equation_1_alone(known_corruption):
    network, batch = paper_network(), batch_of([9])
    joint, alone = network.loss(batch, PAPER.loss), network.pretraining_loss(batch, PAPER.loss)
    assert set(alone) == {"dgi_image", "dgi_expression"}
    for name, term in alone.items():
        close(term, joint[name].item())


@pytest.mark.parametrize(
    ("left_out", "terms"),
    [
        ({"bottleneck": 0.0}, {"bottleneck_image", "bottleneck_expression"}),
        ({"dgi_image": 0.0}, {"dgi_image"}),
        ({"dgi_expression": 0.0}, {"dgi_expression"}),
    ],
    ids=["ablation A", "ablation C", "ablation D"],
)
def test_an_ablation_leaves_its_term_out_and_no_other(left_out, terms, known_corruption):
    network, batch = paper_network(), batch_of([9])
    whole, ablated = network.loss(batch, PAPER.loss), network.loss(batch, replace(PAPER.loss, **left_out))
    assert set(whole) - set(ablated) == terms
    for name, term in ablated.items():
        close(term, whole[name].item())
