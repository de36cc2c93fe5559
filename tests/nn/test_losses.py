"""Properties of the losses that hold whatever the numbers are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from st_gchb.nn import (
    alignment_loss,
    bottleneck_loss,
    cka,
    gaussian_kernel,
    hsic,
    literal_alignment_loss,
    median_bandwidth,
    nhsic,
)

SEEDS = st.integers(0, 2**31 - 1)


def draw(n, d, seed, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)) * scale)


def kernels(n, seed, scale=1.0):
    return [gaussian_kernel(x, median_bandwidth(x)) for x in (draw(n, 4, seed, scale), draw(n, 3, seed + 1, scale))]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 20), seed=SEEDS, scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_hsic_is_symmetric_non_negative_and_blind_to_the_order_of_spots(n, seed, scale):
    k_a, k_b = kernels(n, seed, scale)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    for measure in (hsic, nhsic, cka):
        value = measure(k_a, k_b).item()
        assert value >= -1e-12
        assert value == pytest.approx(measure(k_b, k_a).item(), abs=1e-10)
        shuffled = measure(k_a[order][:, order], k_b[order][:, order]).item()
        assert value == pytest.approx(shuffled, abs=1e-10)


def test_hsic_sees_which_spots_belong_together():
    x = draw(30, 2, 0)
    k = gaussian_kernel(x, median_bandwidth(x))
    order = torch.from_numpy(np.random.default_rng(1).permutation(30))
    assert hsic(k, k) > 3 * hsic(k, k[order][:, order])


@settings(max_examples=20, deadline=None)
@given(n=st.integers(3, 64), seed=SEEDS)
def test_cka_of_itself_is_1_and_nhsic_is_far_from_it(n, seed):
    k, other = kernels(n, seed)
    assert cka(k, k).item() == pytest.approx(1.0)
    assert cka(k, other).item() <= 1 + 1e-9
    own = hsic(k, k).item()
    assert nhsic(k, k).item() == pytest.approx(own / (1 + own))
    assert nhsic(k, k).item() < 0.35


def test_nhsic_hardly_normalizes():
    """The "1 +" of equation 4 outweighs HSIC itself at the paper's batch size."""
    k, _ = kernels(16, 0)
    assert 0 < nhsic(k, k).item() < 0.15


def test_cka_of_a_representation_without_variance_is_0_and_not_nan():
    flat = torch.ones(5, 3, dtype=torch.float64)
    k = gaussian_kernel(flat, median_bandwidth(flat))
    assert cka(k, gaussian_kernel(draw(5, 2, 0), 1.0)).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_hsic_of_fewer_than_two_spots_is_refused(n):
    one = torch.ones(n, n)
    with pytest.raises(ValueError, match=f"at least 2 spots, found {n}.*[Mm]erge"):
        hsic(one, one)


@pytest.mark.parametrize("sigma", [None, 10.0])
def test_the_bottleneck_of_one_spot_is_refused(sigma):
    with pytest.raises(ValueError, match="at least 2 spots, found 1"):
        bottleneck_loss(draw(1, 3, 0), draw(1, 3, 1), draw(1, 3, 2), beta=1.0, dependence=cka, sigma=sigma)


def test_the_median_bandwidth_is_the_median_distance_between_different_spots():
    x = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3
    assert median_bandwidth(x).item() == pytest.approx(2.0)
    y = draw(15, 4, 3)  # 105 pairs: the median is one of them
    distances = [math.dist(y[i].tolist(), y[j].tolist()) for i in range(15) for j in range(i)]
    assert median_bandwidth(y).item() == pytest.approx(sorted(distances)[52])


def test_the_median_bandwidth_follows_the_scale_and_gives_no_gradient():
    x = draw(10, 3, 4).requires_grad_()
    sigma = median_bandwidth(x)
    assert not sigma.requires_grad
    assert median_bandwidth(10 * x).item() == pytest.approx(10 * sigma.item())
    k = gaussian_kernel(x, sigma)
    torch.testing.assert_close(gaussian_kernel(10 * x, median_bandwidth(10 * x)), k)


def test_the_bottleneck_takes_each_representation_by_its_own_bandwidth():
    """With the median heuristic, the scale of a representation must not matter."""
    t = [draw(12, d, d) for d in (5, 4, 3)]
    options = {"beta": 5.0, "dependence": cka, "sigma": None}
    value = bottleneck_loss(*t, **options)
    torch.testing.assert_close(bottleneck_loss(100 * t[0], t[1], 0.01 * t[2], **options), value)
    fixed = options | {"sigma": 1.0}
    assert abs(bottleneck_loss(100 * t[0], t[1], t[2], **fixed) - bottleneck_loss(*t, **fixed)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [None, 10.0])
@pytest.mark.parametrize("n", [2, 3, 17, 132])
def test_the_bottleneck_and_its_gradient_are_those_of_the_plain_formula_bit_for_bit(n, sigma, dtype):
    """The gradient in closed form adds its terms in the order of automatic differentiation, which keeps all bits."""
    parts = [draw(n, d, d).to(dtype) for d in (64, 256, 128)]

    def plain(inputs, hidden, output):
        a, b, c = [gaussian_kernel(x, sigma or median_bandwidth(x)) for x in (inputs, hidden, output)]
        return cka(a, b) - 5.0 * cka(c, b)

    def fused(inputs, hidden, output):
        return bottleneck_loss(inputs, hidden, output, beta=5.0, dependence=cka, sigma=sigma)

    found = []
    for loss in (plain, fused):
        leaves = [parts[0], parts[1].clone().requires_grad_(), parts[2].clone().requires_grad_()]
        value = loss(*leaves)
        (0.05 * value).backward()
        found.append([value, leaves[1].grad, leaves[2].grad])
    for expected, ours in zip(*found, strict=True):
        assert torch.equal(expected, ours)


def test_the_bottleneck_of_spots_that_all_coincide_has_a_finite_gradient():
    hidden, output = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    bottleneck_loss(torch.zeros(4, 5), hidden, output, beta=5.0, dependence=cka, sigma=None).backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(output.grad).all()


def test_the_bottleneck_passes_a_gradient_to_its_inputs_where_these_are_trained():
    inputs = draw(9, 4, 0).requires_grad_()
    bottleneck_loss(inputs, draw(9, 3, 1), draw(9, 2, 2), beta=5.0, dependence=cka, sigma=None).backward()
    assert inputs.grad.abs().max() > 0


def test_the_kernel_has_a_gradient_where_spots_coincide():
    x = torch.zeros(4, 2, requires_grad=True)
    gaussian_kernel(x, median_bandwidth(x)).sum().backward()
    assert torch.isfinite(x.grad).all()


# ---- Alignment ----


def soft_cross_entropy(logits, target):
    return -(target * torch.log_softmax(logits, 1)).sum(1).mean()


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_soft_alignment_is_the_formula_on_unit_vectors(temperature):
    t_l, g_f = draw(8, 5, 0, scale=7.0), draw(8, 5, 1, scale=0.3)
    a, b = t_l / t_l.norm(dim=1, keepdim=True), g_f / g_f.norm(dim=1, keepdim=True)
    target = torch.softmax((a @ a.T + b @ b.T) / 2 / temperature, 1)
    logits = a @ b.T / temperature
    expected = (soft_cross_entropy(logits, target) + soft_cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(alignment_loss(t_l, g_f, temperature), expected)


def test_hard_alignment_takes_each_spots_own_pair():
    t_l, g_f = F.normalize(draw(8, 5, 0)), F.normalize(draw(8, 5, 1))
    logits = t_l @ g_f.T / 0.2
    expected = (soft_cross_entropy(logits, torch.eye(8)) + soft_cross_entropy(logits.T, torch.eye(8))) / 2
    torch.testing.assert_close(alignment_loss(t_l, g_f, 0.2, soft_targets=False), expected)


def test_soft_targets_become_hard_where_spots_differ_and_spread_where_they_are_alike():
    apart = torch.eye(6, dtype=torch.float64)
    hard = alignment_loss(apart, apart, 0.05, soft_targets=False)
    assert alignment_loss(apart, apart, 0.05).item() == pytest.approx(hard.item(), abs=1e-6)
    # Three spots alike: as hard targets they cannot be told apart, as soft ones they share the target.
    alike = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    soft = alignment_loss(alike, alike, 0.05).item()
    assert soft == pytest.approx(3 / 4 * math.log(3), abs=1e-6)
    moved = torch.tensor([[1.0, 0.4], [1, -0.4], [1, 0], [0, 1]], dtype=torch.float64)
    gradients = []
    for soft_targets in (True, False):
        z = moved.clone().requires_grad_()
        alignment_loss(z, z.detach(), 0.2, soft_targets=soft_targets).backward()
        gradients.append(z.grad.norm().item())
    assert gradients[0] < gradients[1]


def test_no_gradient_flows_through_the_targets():
    t_l, g_f = draw(6, 4, 2).requires_grad_(), draw(6, 4, 3).requires_grad_()
    alignment_loss(t_l, g_f, 0.2).backward()
    a, b = (x.detach().clone().requires_grad_() for x in (t_l, g_f))
    u, v = F.normalize(a, dim=1), F.normalize(b, dim=1)
    target = torch.softmax((u @ u.T + v @ v.T).detach() / 2 / 0.2, 1)
    logits = u @ v.T / 0.2
    ((soft_cross_entropy(logits, target) + soft_cross_entropy(logits.T, target)) / 2).backward()
    torch.testing.assert_close(t_l.grad, a.grad)
    torch.testing.assert_close(g_f.grad, b.grad)


def test_the_literal_form_differs_as_its_documentation_says():
    """Long vectors make the literal soft targets one-hot; the unit sphere does not know of length."""
    t_l, g_f = draw(6, 16, 0), draw(6, 16, 1)
    torch.testing.assert_close(alignment_loss(9 * t_l, g_f, 0.2), alignment_loss(t_l, g_f, 0.2))
    assert abs(literal_alignment_loss(3 * t_l, g_f) - literal_alignment_loss(t_l, g_f)) > 0.1
    t_l = t_l.requires_grad_()
    literal_alignment_loss(t_l, g_f).backward()
    assert torch.isfinite(t_l.grad).all()
