"""Graph encoders against dense matrices, corruption, heads, and the network around them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from network_settings import loss_of, sizes_of
from st_gchb.nn import (
    AffineInput,
    GraphBatch,
    GraphEncoder,
    Part,
    ProjectionHead,
    STGCHBNetwork,
    members_of,
    permute_rows,
)

KINDS = ("sage", "gcn", "gcn_sum", "none")


def random_graph(n, seed=0, share=0.3):
    """Symmetric adjacency without self-loops; the last spot has no neighbor."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < share, 1)
    upper[:, -1] = False
    adjacency = torch.from_numpy((upper | upper.T).astype(np.float64))
    return adjacency, adjacency.nonzero().T.contiguous()


def encoder(kind, n_tail=0):
    torch.manual_seed(0)
    made = GraphEncoder(5, 4, kind, n_tail).double()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # biases of 0 would hide where they are added
    return made


def dense(made, x, a):
    """The layer as its formula says, with dense matrices."""
    n, weights = len(a), dict(made.conv.named_parameters())
    if made.kind == "sage":
        mean = a / a.sum(1, keepdim=True).clamp_min(1) @ x
        z = mean @ weights["lin_l.weight"].T + weights["lin_l.bias"] + x @ weights["lin_r.weight"].T
    elif made.kind == "gcn":
        own = a + torch.eye(n)
        root = torch.diag(own.sum(1) ** -0.5)
        z = root @ own @ root @ (x @ weights["lin.weight"].T) + weights["bias"]
    else:
        z = x @ weights["weight"].T + weights["bias"]
        z = (a + torch.eye(n)) @ z if made.kind == "gcn_sum" else z
    slope = made.activation.weight
    return torch.where(z > 0, z, slope * z)


@pytest.mark.parametrize("n_tail", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_encoder_is_its_matrix_formula(kind, n_tail):
    a, edges = random_graph(12)
    assert a[-1].sum() == 0  # a spot without neighbors is covered
    x = torch.randn(12, 5, dtype=torch.float64)
    made = encoder(kind, n_tail)
    adapted = x if not n_tail else x @ made.tail.weight.T + made.tail.bias
    torch.testing.assert_close(made(x, edges), dense(made, adapted, a.double()))


@pytest.mark.parametrize("kind", KINDS)
def test_n_hops_is_how_far_a_representation_looks(kind):
    """On a path of spots: what lies beyond n_hops changes nothing, neither its features nor its being there."""
    n = 9
    i = torch.arange(n - 1)
    edges = torch.cat([torch.stack([i, i + 1]), torch.stack([i + 1, i])], 1)
    x = torch.randn(n, 5, dtype=torch.float64)
    made = encoder(kind)
    whole = made(x, edges)[0]
    keep = made.n_hops + 1
    degree = torch.bincount(edges[1])
    cut = edges[:, (edges < keep).all(0)]
    torch.testing.assert_close(made(x[:keep], cut, degree[:keep])[0], whole)
    if made.n_hops:
        fewer = edges[:, (edges < keep - 1).all(0)]
        assert not torch.allclose(made(x[: keep - 1], fewer, degree[: keep - 1])[0], whole)
    if kind == "gcn":  # the trap: a node at the rim has lost a neighbor, and counts too few
        assert not torch.allclose(made(x[:keep], cut)[0], whole)


@settings(max_examples=40, deadline=None)
@given(groups=st.lists(st.integers(0, 3), min_size=1, max_size=30), seed=st.integers(0, 1000))
def test_corruption_shuffles_each_slice_by_itself(groups, seed):
    torch.manual_seed(seed)
    groups = torch.tensor(groups)
    x = torch.arange(len(groups))[:, None]
    shuffled = permute_rows(x, members_of(groups))[:, 0]
    assert sorted(shuffled.tolist()) == list(range(len(groups)))
    assert (groups[shuffled] == groups).all()


def test_corruption_does_shuffle():
    torch.manual_seed(0)
    x, groups = torch.arange(200)[:, None], torch.arange(200) % 2
    first, second = permute_rows(x, members_of(groups)), permute_rows(x, members_of(groups))
    assert (first == x).float().mean() < 0.1
    assert not torch.equal(first, second)


def test_the_fixed_map_is_affine_and_has_nothing_to_train():
    x = torch.randn(4, 3)
    pca, scale = AffineInput(3, 2), AffineInput(3, None)
    offset, matrix = torch.randn(3), torch.randn(3, 2)
    pca.load_state_dict({"offset": offset, "matrix": matrix})
    scale.load_state_dict({"offset": offset, "matrix": matrix[:, 0]})
    torch.testing.assert_close(pca(x), (x - offset) @ matrix)
    torch.testing.assert_close(scale(x), (x - offset) * matrix[:, 0])
    assert scale.n_out == 3
    assert not list(pca.parameters())


def test_the_projection_head_is_linear_then_gelu_residual_then_layer_norm():
    head = ProjectionHead(4, 6, dropout=0.5).double()
    z = torch.randn(5, 4, dtype=torch.float64)
    p = z @ head.project.weight.T + head.project.bias
    residual = F.gelu(p) @ head.block[1].weight.T + head.block[1].bias
    expected = F.layer_norm(p + residual, (6,))
    torch.testing.assert_close(head.eval()(z), expected)
    assert not torch.allclose(head.train()(z), expected)


# ---- The network ----


def network(**options):
    torch.manual_seed(0)
    net = STGCHBNetwork(sizes_of(6, 5, n_expression_inputs=3, **options)).eval()
    for branch in (net.image, net.expression):
        torch.nn.init.normal_(branch.fixed.matrix)
    return net


def batch(n=10, rows=None, inner=None):
    _, edges = random_graph(n)
    return GraphBatch(
        image=torch.randn(n, 6, generator=torch.Generator().manual_seed(1)),
        expression=torch.randn(n, 3, generator=torch.Generator().manual_seed(2)),
        edge_index=edges,
        groups=torch.zeros(n, dtype=torch.long),
        rows=torch.arange(n) if rows is None else rows,
        inner=torch.arange(n) if inner is None else inner,
    )


def test_embeddings_have_length_1_and_come_from_raw_inputs():
    net, (_, edges) = network(), random_graph(10)
    features, expression = torch.randn(10, 6), torch.randn(10, 5)
    for found, raw, branch in (
        (net.embed_image(features, edges), features, net.image),
        (net.embed_expression(expression, edges), expression, net.expression),
    ):
        assert found.shape == (10, 4)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(10))
        direct = branch(branch.fixed(raw), edges).embedding
        torch.testing.assert_close(found, direct / direct.norm(dim=1, keepdim=True))


def test_n_hops_of_the_network_is_that_of_its_wider_branch():
    assert network(image_graph="none", expression_graph="none").n_hops == 0
    assert network(image_graph="sage", expression_graph="none").n_hops == 1
    assert network(image_graph="none", expression_graph="gcn").n_hops == 1


def test_a_weight_scales_its_term_alone():
    net, one = network(), loss_of(dgi_image=1.0, dgi_expression=1.0, bottleneck=1.0)
    twice = loss_of(dgi_image=2.0, dgi_expression=3.0, bottleneck=4.0)
    torch.manual_seed(5)
    single = net.loss(batch(), one)
    torch.manual_seed(5)
    weighted = net.loss(batch(), twice)
    factors = {"alignment": 1, "dgi_image": 2, "dgi_expression": 3, "bottleneck_image": 4, "bottleneck_expression": 4}
    assert set(single) == set(factors)
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * single[name])


def test_terms_of_weight_0_are_absent():
    assert set(network().loss(batch(), loss_of())) == {"alignment"}
    assert network().pretraining_loss(batch(), loss_of()) == {}


def test_nodes_outside_rows_and_inner_count_only_as_neighbors():
    """The halo of a mini-batch must be in no term: a far node changes nothing, whatever it holds."""
    net, settings = network(), loss_of(dgi_image=1.0, dgi_expression=1.0, bottleneck=1.0)
    rows = torch.tensor([0, 1, 2])
    one, other = batch(rows=rows, inner=rows), batch(rows=rows, inner=rows)
    near = set(one.edge_index[0, (one.edge_index[1] < 3)].tolist()) | {0, 1, 2}
    far = [i for i in range(10) if i not in near]
    assert 9 in far
    other.image[far], other.expression[far] = 50.0, -50.0
    first, second = net.loss(one, settings), net.loss(other, settings)
    for name in ("alignment", "bottleneck_image", "bottleneck_expression"):
        torch.testing.assert_close(first[name], second[name])
    for name in ("image", "expression"):
        branch = getattr(net, name)
        out = branch(getattr(one, name), one.edge_index)
        readout = torch.sigmoid(out.hidden[:3].mean(0))
        torch.manual_seed(9)
        negative = branch.infomax.encoder(permute_rows(out.inputs, one.members), one.edge_index)
        torch.manual_seed(9)
        found = branch.dgi(out, one, paper_equations=False)
        weight = branch.infomax.weight
        expected = -(
            torch.log(torch.sigmoid(out.hidden[:3] @ weight @ readout))
            + torch.log(1 - torch.sigmoid(negative[:3] @ weight @ readout))
        ).mean()
        torch.testing.assert_close(found, expected)


def test_a_batch_moves_whole():
    one = batch()
    one.degree = torch.ones(10)
    one.part = Part(torch.arange(10), one.edge_index, n_own=5, n_nodes=10, n_devices=2)
    moved = vars(one.to("meta"))
    share, several = moved.pop("part"), [*moved.pop("members"), *moved.pop("inner_members")]
    tensors = [share.nodes, share.edge_index, *several, *moved.values()]
    assert all(value.device.type == "meta" for value in tensors)
    assert len(several) == 2
    assert (share.n_own, share.n_nodes, share.n_devices) == (5, 10, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reads_no_number_from_the_device(kind):
    """Tensors of the meta device hold no numbers: whatever asks for one, and so would wait for a GPU, fails."""
    settings = loss_of(dgi_image=1.0, dgi_expression=1.0, bottleneck=1.0)
    one = batch()
    one.degree = torch.ones(10)
    for loss in (settings, replace(settings, paper_equations=True, dependence="nhsic", sigma=10.0)):
        net = network(image_graph=kind, expression_graph=kind, n_image_adapter=3).train().to("meta")
        for step in (net.pretraining_loss, net.loss):
            torch.stack(list(step(one.to("meta"), loss).values())).sum().backward()


def test_gradients_reach_both_branches_and_not_the_fixed_maps():
    net = network().train()
    settings = loss_of(dgi_image=1.0, dgi_expression=1.0, bottleneck=1.0)
    torch.stack(list(net.loss(batch(), settings).values())).sum().backward()
    missing = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
