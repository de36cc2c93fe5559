"""Mini-batches: halo, sizes, order, and the validation patch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from network_settings import sizes_of
from st_gchb.nn import STGCHBNetwork
from st_gchb.train import GraphDataModule, TrainingData

KINDS = ("sage", "gcn", "gcn_sum", "none")


def module(data, **options):
    defaults = {"n_hops": 1, "batch_size": 16, "sampler": "spots", "validation_share": 0.0, "seed": 0}
    return GraphDataModule(data, **(defaults | options))


def network(kind):
    torch.manual_seed(0)
    sizes = sizes_of(6, 5, image_graph=kind, expression_graph=kind)
    return STGCHBNetwork(sizes).eval()


def whole_graph(data):
    return data.batch(np.arange(len(data)), 0)


def spots_of(data, batch):
    """Rows of the training data behind the spots that a batch aligns: its features are unique."""
    found = [torch.nonzero((data.image == row).all(1)).item() for row in batch.image[batch.rows]]
    return np.array(found, dtype=int)


# ---- Halo ----


@pytest.mark.parametrize("sampler", ["spots", "slices"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_of_a_mini_batch_are_those_of_the_whole_graph(data, kind, sampler):
    net = network(kind)
    whole = whole_graph(data)
    steps = module(data, n_hops=net.n_hops, sampler=sampler).train_dataloader()
    for batch in steps:
        spots = spots_of(data, batch)
        for name in ("image", "expression"):
            branch = getattr(net, name)
            expected = branch(getattr(whole, name), whole.edge_index)
            found = branch(getattr(batch, name), batch.edge_index, batch.degree)
            torch.testing.assert_close(found.hidden[batch.rows], expected.hidden[spots], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.embedding[batch.rows], expected.embedding[spots], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_infomax_sees_only_nodes_with_their_whole_neighborhood(data, kind):
    net = network(kind)
    whole = whole_graph(data)
    expected = net.image(whole.image, whole.edge_index).hidden
    batch = next(iter(module(data, n_hops=net.n_hops).train_dataloader()))
    found = net.image(batch.image, batch.edge_index, batch.degree).hidden
    spots = [torch.nonzero((data.image == row).all(1)).item() for row in batch.image[batch.inner]]
    torch.testing.assert_close(found[batch.inner], expected[spots], atol=1e-5, rtol=1e-5)


def test_a_batch_holds_its_spots_their_halo_and_nothing_else(data):
    rows = np.array([0, 9])
    for n_hops, reach in ((0, 0.0), (1, 1.0), (2, 2.0)):
        batch = data.batch(rows, n_hops)
        steps = data.coordinates / 100
        near = np.abs(steps[:, None] - steps[None, rows]).max(2).min(1) <= reach
        assert len(batch.image) == (near & (data.groups == 0)).sum()
        assert len(batch.expression) == len(batch.groups) == len(batch.image)
        assert batch.edge_index.numel() == 0 or batch.edge_index.max() < len(batch.image)


@pytest.mark.parametrize("sampler", ["spots", "slices"])
def test_no_edge_of_a_batch_joins_two_slices(data, sampler):
    for batch in module(data, sampler=sampler, n_hops=2).train_dataloader():
        assert (batch.groups[batch.edge_index[0]] == batch.groups[batch.edge_index[1]]).all()


def test_the_slices_sampler_gives_a_slices_spots_with_its_whole_graph(data):
    for batch in module(data, sampler="slices", batch_size=10).train_dataloader():
        assert len(batch.groups.unique()) == 1
        group = int(batch.groups[0])
        assert len(batch.image) == (data.groups == group).sum() == len(batch.inner)
        assert batch.edge_index.shape[1] == data.adjacency[data.groups == group].nnz


# ---- Sizes ----


def plain(sizes):
    """Slices of the given numbers of spots without any edge."""
    n = sum(sizes)
    return TrainingData(
        image=torch.arange(n, dtype=torch.float32)[:, None],
        expression=torch.zeros(n, 1),
        adjacency=sparse.csr_matrix((n, n)),
        groups=np.repeat(np.arange(len(sizes)), sizes),
        coordinates=np.random.default_rng(n).random((n, 2)),
    )


STEPS = {
    "sizes": st.lists(st.integers(2, 40), min_size=1, max_size=3),
    "batch_size": st.integers(2, 50),
    "sampler": st.sampled_from(["spots", "slices"]),
}


@settings(max_examples=120, deadline=None)
@given(**STEPS, seed=st.integers(0, 100))
def test_no_step_has_one_spot_and_every_spot_is_seen_once(sizes, batch_size, sampler, seed):
    data = plain(sizes)
    steps = module(data, batch_size=batch_size, sampler=sampler, seed=seed, n_hops=0).train_dataloader()
    parts = [batch.image[batch.rows, 0].int().tolist() for batch in steps]
    assert min(map(len, parts)) >= 2
    # A rest is spread over the other steps, which makes them at most half as large again.
    assert max(map(len, parts)) <= max(3, 1.5 * batch_size + 1)
    assert sorted(sum(parts, [])) == list(range(sum(sizes)))


@settings(max_examples=80, deadline=None)
@given(**STEPS, share=st.floats(0, 0.5, allow_subnormal=False))
def test_training_and_validation_steps_never_have_one_spot(sizes, batch_size, sampler, share):
    data = plain(sizes)
    made = module(data, batch_size=batch_size, sampler=sampler, validation_share=share, n_hops=0)
    validation = [batch.image[batch.rows, 0].int().tolist() for batch in made.val_dataloader()]
    training = [batch.image[batch.rows, 0].int().tolist() for batch in made.train_dataloader()]
    assert all(len(part) >= 2 for part in training + validation)
    assert sorted(sum(validation, [])) == made.val_idx.tolist()
    assert not set(sum(training, [])) & set(made.val_idx)


# ---- Order ----


def orders(made, n_epochs=2):
    steps = made.train_dataloader()
    return [[batch.image[batch.rows].numpy() for batch in steps] for _ in range(n_epochs)]


def same(first, second):
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("sampler", ["spots", "slices"])
def test_the_same_seed_gives_the_same_steps_and_each_epoch_another_order(data, sampler):
    one, again, other = (
        orders(module(data, sampler=sampler, seed=s, validation_share=0.1, batch_size=20)) for s in (3, 3, 4)
    )
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert not same(one[0], one[1])
    assert not same(one[0], other[0])


def test_the_order_does_not_hang_on_anyone_elses_random_numbers(data):
    one = orders(module(data))
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert same(one[0], orders(module(data))[0])


@pytest.mark.parametrize("sampler", ["spots", "slices"])
def test_validation_steps_are_always_the_same(data, sampler):
    made = module(data, sampler=sampler, validation_share=0.3, batch_size=8)
    steps = made.val_dataloader()
    first = [batch.image[batch.rows].numpy() for batch in steps]
    assert same(first, [batch.image[batch.rows].numpy() for batch in steps])


# ---- Validation patch ----


@pytest.mark.parametrize("seed", range(5))
def test_the_validation_spots_are_one_compact_patch_in_each_slice(data, seed):
    made = module(data, validation_share=0.2, seed=seed)
    assert not set(made.train_idx) & set(made.val_idx)
    assert sorted([*made.train_idx, *made.val_idx]) == list(range(len(data)))
    assert (made.n_train, made.n_val) == (len(made.train_idx), len(made.val_idx))
    for group in (0, 1):
        rows = np.flatnonzero(data.groups == group)
        chosen = made.val_idx[data.groups[made.val_idx] == group]
        assert len(chosen) == round(0.2 * len(rows))
        assert connected_components(data.adjacency[chosen][:, chosen])[0] == 1
        # Compact: some spot has all of them nearer than any spot that was left out.
        rest = np.setdiff1d(rows, chosen)
        xy = data.coordinates
        inside = np.linalg.norm(xy[chosen][:, None] - xy[chosen][None], axis=2).max(1)
        outside = np.linalg.norm(xy[chosen][:, None] - xy[rest][None], axis=2).min(1)
        assert (inside <= outside).any()


def test_a_compact_patch_shares_few_edges_with_the_training_spots(make_data):
    data = make_data(((20, 20),))
    made = module(data, validation_share=0.1)
    scattered = np.random.default_rng(0).choice(400, made.n_val, replace=False)

    def cut(rows):
        return data.adjacency[rows][:, np.setdiff1d(np.arange(400), rows)].nnz

    assert cut(made.val_idx) < 0.5 * cut(scattered)


def test_without_a_share_every_spot_is_for_training(data):
    made = module(data)
    assert made.val_dataloader() == []
    assert made.train_idx.tolist() == list(range(len(data)))


def test_a_slice_too_small_for_two_validation_spots_has_none():
    made = module(plain([100, 9]), validation_share=0.1)
    assert set(made.data.groups[made.val_idx]) == {0}


# ---- Pretraining ----


@pytest.mark.parametrize("sampler", ["spots", "slices"])
def test_pretraining_epochs_give_whole_slices_and_the_next_ones_mini_batches(data, sampler):
    made = module(data, sampler=sampler, pretrain_epochs=2, validation_share=0.1, batch_size=16)
    steps = made.train_dataloader()
    for _ in range(2):
        for group, batch in enumerate(steps):
            rows = np.flatnonzero(data.groups == group)
            torch.testing.assert_close(batch.image, data.image[rows])
            assert len(batch.inner) == len(rows)
            assert batch.edge_index.shape[1] == data.adjacency[rows].nnz
        assert group == 1
    sizes = [len(batch.rows) for batch in steps]
    assert len(sizes) > 2
    assert sum(sizes) == made.n_train
