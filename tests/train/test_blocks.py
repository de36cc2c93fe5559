"""Blocks of a large slice: their shape, and that their own spots are represented as in the whole slice."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse

from network_settings import sizes_of
from st_gchb.nn import STGCHBNetwork
from st_gchb.train import GraphDataModule, edges_between, share_of, spatial_blocks, with_halo

KINDS = ("sage", "gcn", "gcn_sum", "none")


def network(kind):
    torch.manual_seed(0)
    sizes = sizes_of(6, 5, image_graph=kind, expression_graph=kind)
    return STGCHBNetwork(sizes).eval()


def random_graph(n, seed, share=0.2):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < share, 1)
    return sparse.csr_matrix((upper | upper.T).astype(np.float32))


# ---- Cut-outs ----


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 1000), share=st.floats(0, 1), data=st.data())
def test_edges_of_a_cut_out_are_those_of_the_matrix(n, seed, share, data):
    graph = random_graph(n, seed, share)
    nodes = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n)), dtype=int)
    local = graph[nodes][:, nodes].tocoo()
    np.testing.assert_array_equal(edges_between(graph, nodes), [local.row, local.col])


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 1000), n_hops=st.integers(0, 3))
def test_a_halo_is_what_powers_of_the_matrix_reach(n, seed, n_hops):
    graph = random_graph(n, seed, 0.1)
    rows = np.random.default_rng(seed).permutation(n)[: max(1, n // 3)]
    reach = np.linalg.matrix_power(graph.toarray() + np.eye(n), n_hops)[rows].any(0)
    nodes = with_halo(graph, rows, n_hops)
    np.testing.assert_array_equal(nodes[: len(rows)], rows)
    assert sorted(nodes) == np.flatnonzero(reach).tolist()


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 300), size=st.integers(1, 80), seed=st.integers(0, 100), columns=st.integers(1, 20))
def test_blocks_hold_every_spot_once_and_no_more_than_their_size(n, size, seed, columns):
    xy = np.column_stack([np.arange(n) % columns, np.arange(n) // columns]) * 100.0
    xy = xy[np.random.default_rng(seed).permutation(n)]
    blocks = spatial_blocks(xy, size)
    assert sorted(np.concatenate(blocks)) == list(range(n))
    assert max(map(len, blocks)) <= size
    assert len(blocks) == -(-n // size)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= np.log2(len(blocks)) + 1
    assert all((np.diff(block) > 0).all() for block in blocks)


def test_blocks_are_compact(make_data):
    data = make_data(((40, 40),))
    blocks = spatial_blocks(data.coordinates, 100)
    assert len(blocks) == 16
    halos = [len(with_halo(data.adjacency, block, 1)) - len(block) for block in blocks]
    # 10 x 10 spots have 44 neighbors around them; 100 spots drawn at random about 600.
    assert max(halos) <= 44


# ---- Exactness ----


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_of_all_blocks_are_those_of_the_whole_graph(make_data, kind):
    """A loss over the spots of each block: the blocks' gradients add up to the whole graph's."""
    data = make_data(((14, 11), (6, 7)))
    net = network(kind)
    whole = data.batch(np.arange(len(data)), 0)
    target = torch.randn(len(data), 4)

    def losses(name, batch, rows):
        out = getattr(net, name)(getattr(batch, name), batch.edge_index, batch.degree)
        return out.hidden[batch.inner], ((out.embedding[batch.inner] - target[rows]) ** 2).sum() / len(data)

    for name in ("image", "expression"):
        hidden, loss = losses(name, whole, np.arange(len(data)))
        expected = torch.autograd.grad(loss, list(getattr(net, name).parameters()), allow_unused=True)
        found = None
        blocks = [rows[block] for rows in data.slices() for block in spatial_blocks(data.coordinates[rows], 30)]
        assert len(blocks) == 8
        for rows in blocks:
            batch = data.batch(rows, net.n_hops)
            assert kind == "none" or len(batch.groups) > len(rows)
            own, loss = losses(name, batch, rows)
            torch.testing.assert_close(own, hidden[rows], atol=1e-5, rtol=1e-5)
            grads = torch.autograd.grad(loss, list(getattr(net, name).parameters()), allow_unused=True)
            found = grads if found is None else [a if a is None else a + b for a, b in zip(found, grads, strict=True)]
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shares_of_several_devices_are_the_whole_step(make_data, kind):
    data, net = make_data(((14, 11),)), network(kind)
    batch = data.batch(np.arange(20, 90), net.n_hops)
    inner = np.argsort(data.order[20:90], kind="stable")
    expected = net.image(batch.image, batch.edge_index, batch.degree).hidden
    seen = []
    for device in range(3):
        part = share_of(batch.edge_index.numpy(), len(batch.groups), inner, net.n_hops, device, 3)
        hidden = net.image.infomax.encoder(batch.image[part.nodes], part.edge_index, batch.degree[part.nodes])
        torch.testing.assert_close(hidden[: part.n_own], expected[part.own], atol=1e-5, rtol=1e-5)
        seen += part.own.tolist()
        assert kind == "none" or len(part.nodes) < len(batch.groups)
    assert sorted(seen) == list(range(70))


# ---- Steps ----


def module(data, **options):
    defaults = {"n_hops": 1, "batch_size": 8, "sampler": "slices", "validation_share": 0.1, "seed": 0, "block_size": 30}
    return GraphDataModule(data, **(defaults | options))


def test_a_step_of_a_large_slice_is_a_block_with_its_halo(data, caplog):
    with caplog.at_level(logging.INFO, logger="st_gchb"):
        made = module(data, pretrain_epochs=1)
    assert "2 of 2 slices have more than 30 spots (block_size): they are cut into 5 blocks" in caplog.text
    steps = made.train_dataloader()
    pretraining = list(steps)
    assert [len(batch.inner) for batch in pretraining] == [22, 21, 21, 21, 21]
    assert all(len(batch.groups) > len(batch.inner) for batch in pretraining)
    joint = list(steps)
    seen = torch.cat([batch.image[batch.rows] for batch in joint])
    torch.testing.assert_close(torch.sort(seen[:, 0]).values, torch.sort(data.image[made.train_idx][:, 0]).values)
    assert {len(batch.inner) for batch in joint} == {21, 22}


def test_a_slice_within_the_limit_is_not_cut_and_nothing_is_said(data, caplog):
    with caplog.at_level(logging.INFO, logger="st_gchb"):
        made = module(data, block_size=64)
    assert [len(own) for own in made.blocks] == [1, 1]
    assert not caplog.text


def test_steps_of_an_epoch_depend_on_its_number_alone(data):
    for sampler in ("slices", "spots"):
        straight, jumping = (module(data, sampler=sampler, pretrain_epochs=1).train_dataloader() for _ in range(2))
        expected = [[batch.image[batch.rows] for batch in straight] for _ in range(4)]
        for epoch in (2, 2, 3, 1, 0):
            jumping.dataset.epoch = epoch
            found = [batch.image[batch.rows] for batch in jumping]
            assert len(found) == len(expected[epoch])
            assert all(torch.equal(a, b) for a, b in zip(found, expected[epoch], strict=True))
