"""TRIPLEX: target, neighbor and global view of a spot, and their fusion."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from st_gchb.baselines import BASELINES, Triplex, TriplexBlocks, TriplexSettings
from st_gchb.errors import DeviceError, InputError, ScaleError, WeightsUnavailableError

PIXELS = {
    "encoder": "resnet18",
    "weights": None,
    "tile_px": 32,
    "tile_um": 40.0,
    "width": 32,
    "neighbor_view": TriplexBlocks(1, 4, 1, 0.1),
    "global_view": TriplexBlocks(2, 4, 1, 0.1),
    "fusion": TriplexBlocks(1, 4, 1, 0.1),
    "epochs": 2,
    "choose_epochs": False,
    "device": "cpu",
}


def small(**settings) -> Triplex:
    return Triplex("small", device="cpu", **{"width": 32, "choose_epochs": False, "epochs": 2, **settings})


def awake(method: Triplex, spots, **settings):
    """Build a network whose heads are not zero, so that predictions tell spots apart."""
    torch.manual_seed(0)
    network = method.build(spots)
    for head in network.heads:
        torch.nn.init.normal_(head.weight)
    return network


def test_shape_and_registration(spots):
    assert BASELINES["triplex"] is Triplex
    predicted = small().fit(spots).predict(replace(spots, targets=None, counts=None))
    assert predicted.shape == spots.targets.shape
    assert predicted.dtype == np.float32
    assert np.isfinite(predicted).all()


def test_training_starts_at_the_mean(spots):
    method = small()
    network = method.build(spots).eval()
    with torch.no_grad():
        predicted = method.infer(network, spots)
    np.testing.assert_allclose(predicted, np.broadcast_to(spots.targets.mean(0), predicted.shape), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"one_slice": False}, {"asked_spots": 7}])
def test_gradients_reach_every_parameter(make_spots, settings):
    spots, method = make_spots(2, 5, 5), small(**settings)
    network = awake(method, spots)
    method.loss(network, spots, np.arange(0, len(spots), 3), np.random.default_rng(0)).backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    zero = [name for name, p in network.named_parameters() if p.grad is not None and not p.grad.any()]
    assert without == []
    assert zero == []


def test_gradients_reach_the_trunk_and_not_its_frozen_copy(spots, narrow_encoder):
    method = Triplex(**PIXELS)
    network = awake(method, spots).train()
    method.loss(network, spots, np.arange(6), np.random.default_rng(0)).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.trunk.parameters())
    assert all(p.grad is None for p in network.frozen.parameters())
    assert not network.frozen.training
    in_steps = {id(p) for group in method.optimizer(network).param_groups for p in group["params"]}
    assert not in_steps & {id(p) for p in network.frozen.parameters()}


def test_learns_twenty_spots_by_heart(few_spots, correlation):
    method = small(epochs=30, lr=5e-3, batch_size=20).fit(few_spots)
    assert correlation(few_spots.targets, method.predict(few_spots)) > 0.9


def test_trains_on_pixels(spots, narrow_encoder):
    method = Triplex(**{**PIXELS, "epochs": 1, "batch_size": 20})
    before = method.build(spots)
    after = method.fit(spots).network
    assert all(torch.equal(a, b) for a, b in zip(before.frozen.parameters(), after.frozen.parameters(), strict=True))
    trained = zip(before.trunk.parameters(), after.trunk.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in trained)
    predicted = method.predict(spots[np.arange(5)])
    assert predicted.shape == (5, 6)
    assert np.isfinite(predicted).all()


def test_seed_decides(spots):
    first, again, other = (small(seed=seed).fit(spots).predict(spots) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("settings", [{}, {"global_view": TriplexBlocks(1, 4, 2, 0.1)}])
def test_permutation_of_spots_permutes_predictions(spots, settings):
    method = small(**settings)
    network = awake(method, spots).eval()
    order = np.random.default_rng(0).permutation(len(spots))
    with torch.inference_mode():
        plain, permuted = method.infer(network, spots), method.infer(network, spots[order])
    assert plain.std(0).min() > 0.01
    np.testing.assert_allclose(permuted, plain[order], atol=1e-4)


def test_predictions_of_a_slice_need_no_other_slice(spots):
    method = small()
    network = awake(method, spots).eval()
    with torch.inference_mode():
        np.testing.assert_allclose(
            method.infer(network, spots[20 + np.arange(20)]), method.infer(network, spots)[20:], atol=1e-4
        )


def test_a_spot_in_a_batch_is_predicted_as_in_its_slice(spots):
    method = small()
    network = awake(method, spots).eval()
    rows = np.array([25, 22, 37])
    with torch.inference_mode():
        whole = method._whole(network, spots, 20 + np.arange(20), rows)
        in_batch, in_slice = method._answers(network, spots, rows, whole)[0], method.infer(network, spots)
    np.testing.assert_allclose(in_batch, in_slice[rows], atol=1e-4)


def moved_features(spots, row: int):
    changed = spots.features.copy()
    changed[row] += 30
    return replace(spots, features=changed)


def heads_at(method, network, spots, row):
    with torch.inference_mode():
        own = np.arange(len(spots))
        rows = np.array([row])
        return [
            head.numpy() for head in method._answers(network, spots, rows, method._whole(network, spots, own, rows))
        ]


def test_views_see_the_spot_two_rings_and_the_slice(make_spots):
    spots, method = make_spots(1, 7, 7), small()
    network = awake(method, spots).eval()
    plain = heads_at(method, network, spots, 0)
    seen = {}
    # Of the spot in the corner: itself, two steps along the edge, and the far corner.
    for name, row in {"itself": 0, "two steps away": 2, "three steps away": 3, "far": 48}.items():
        after = heads_at(method, network, moved_features(spots, row), 0)
        seen[name] = [not np.allclose(a, b, atol=1e-6) for a, b in zip(plain, after, strict=True)]
    assert seen == {
        "itself": [True, True, True, True],
        "two steps away": [True, False, True, True],
        "three steps away": [True, False, False, True],
        "far": [True, False, False, True],
    }


def test_target_patches_alone_are_turned_and_mirrored(spots, narrow_encoder):
    """With pixels, an unchanged step of the same weights differs by the target's augmentation alone."""
    method = Triplex(**PIXELS)
    network = awake(method, spots).eval()
    own, rows = np.arange(20), np.arange(8)
    with torch.inference_mode():
        whole = method._whole(network, spots, own, rows)
        plain = method._answers(network, spots, rows, whole)
        turned = method._answers(network, spots, rows, whole, np.random.default_rng(0))
    assert not torch.allclose(plain[1], turned[1], atol=1e-4)
    torch.testing.assert_close(plain[2], turned[2])
    torch.testing.assert_close(plain[3], turned[3])


def test_tiles_around_a_spot_are_its_block_in_order(spots, narrow_encoder):
    method = Triplex(**{**PIXELS, "tile_um": 50.0})
    network = awake(method, spots).eval()
    tiles = method._of_tiles(network, spots, 5)
    assert tiles.shape == (40, 25, network.trunk.width)
    # The pitch is two tiles: the tile in the middle of the right edge is the own tile of the spot to the right.
    apart = np.linalg.norm(tiles[0, 14] - tiles[1, 12]), np.linalg.norm(tiles[0, 10] - tiles[1, 12])
    assert apart[0] < 0.3 * apart[1]
    assert method._of_tiles(network, spots, 5) is tiles


def test_few_asked_spots_change_steps_and_not_predictions(spots):
    method = small(asked_spots=3)
    network = awake(method, spots).eval()
    rows = np.arange(10)
    with torch.inference_mode():
        steps = [method.loss(network, spots, rows, np.random.default_rng(seed)).item() for seed in (0, 1)]
        np.testing.assert_array_equal(method.infer(network, spots), small().infer(network, spots))
    assert steps[0] != steps[1]


def test_batches_are_of_one_slice_or_of_all(spots):
    rng = np.random.default_rng(0)
    alone = list(small(batch_size=8).batches(spots, rng))
    mixed = list(small(batch_size=8, one_slice=False).batches(spots, rng))
    for batches in (alone, mixed):
        assert sorted(np.concatenate(batches)) == list(range(40))
    assert all(len(np.unique(spots.slices[rows])) == 1 for rows in alone)
    assert any(len(np.unique(spots.slices[rows])) == 2 for rows in mixed)


def test_loss_is_that_of_the_publication(spots, monkeypatch):
    method = small()
    network = awake(method, spots).eval()
    rows = np.arange(5)
    heads = [torch.full((5, 6), value, dtype=torch.float32) for value in (1.0, 2.0, 3.0, 5.0)]
    monkeypatch.setattr(method, "_answers", lambda *_: tuple(heads))
    loss = method.loss(network, replace(spots, targets=np.zeros_like(spots.targets)), rows, np.random.default_rng(0))
    assert loss.item() == pytest.approx(1 + 0.7 * (4 + 9 + 25) + 0.3 * (1 + 4 + 16))


def test_positions_are_of_the_places_around(spots):
    torch.manual_seed(0)
    generate = small(width=4).build(spots).positions
    grid = torch.tensor([[0, 0], [1, 0], [2, 0], [2, 3]])
    x = torch.randn(4, 4)
    plain = generate(x, grid) - x
    changed = x.clone()
    changed[0] += 1
    differs = ((generate(changed, grid) - changed) - plain).abs().amax(1) > 1e-4
    assert differs.tolist() == [True, True, False, False]
    with torch.no_grad():
        generate.convolution.weight.zero_()
        generate.convolution.bias.zero_()
    torch.testing.assert_close(generate(x, grid), x)


def test_spots_that_share_a_place_are_averaged(spots):
    torch.manual_seed(0)
    generate = small(width=4).build(spots).positions
    grid = torch.tensor([[0, 0], [0, 0], [1, 0]])
    x = torch.randn(3, 4)
    merged = torch.stack([x[:2].mean(0), x[2]])
    torch.testing.assert_close((generate(x, grid) - x)[1:], (generate(merged, grid[1:]) - merged))


def test_presets():
    published, little = Triplex.presets["published"], Triplex.presets["small"]
    assert (published.encoder, published.width, published.tile_px, published.batch_size) == ("resnet18", 512, 224, 128)
    assert (published.lr, published.epochs, published.lr_decay, published.weight_decay) == (1e-4, 200, 0.9, 0.0)
    assert [published.fusion.depth, published.global_view.depth, published.neighbor_view.depth] == [1, 3, 3]
    assert (little.encoder, little.width) == (None, 128)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    schedule = Triplex("published", device="cpu").schedule(optimizer)
    for _ in range(50):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.9e-4)


def test_size_of_the_published_network():
    """As counted from the publication's settings: 29 million parameters at 250 genes, the frozen trunk apart."""
    method = Triplex("published", device="cpu", weights=None)
    targets = SimpleNamespace(targets=np.zeros((2, 250), np.float32))
    network = method.build(targets)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert 28.5e6 < trained < 29.5e6


def test_a_slice_of_one_spot_is_predicted(make_spots, spots):
    method = small().fit(spots)
    alone = make_spots(1, 1, 1)
    assert np.isfinite(method.predict(alone)).all()


def test_bad_input_is_refused_before_training(spots, make_spots, tmp_path):
    with pytest.raises(InputError, match="no patch features"):
        small().fit(replace(spots, features=None))
    with pytest.raises(InputError, match="no image"):
        Triplex(**PIXELS).fit(replace(spots, read=None))
    with pytest.raises(InputError, match="no expression"):
        small().fit(replace(spots, targets=None))
    with pytest.raises(ScaleError):
        Triplex(**{**PIXELS, "tile_um": 4000.0}).fit(spots)
    with pytest.raises(InputError, match=r"fusion=TriplexBlocks\(depth=1, n_heads=5.*width=32"):
        small(fusion=TriplexBlocks(1, 5, 2, 0.1)).fit(spots)
    with pytest.raises(InputError, match="one block at least"):
        small(global_view=TriplexBlocks(0, 4, 2, 0.1)).fit(spots)
    with pytest.raises(WeightsUnavailableError, match="no such weights file"):
        Triplex(**{**PIXELS, "weights": str(tmp_path / "none.pth")}).fit(spots)
    with pytest.raises(InputError, match="fusion"):
        small(fusoin=1)


def test_published_preset_asks_for_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="without a GPU"):
        Triplex("published")


def test_settings_are_hashable():
    assert hash(TriplexSettings()) == hash(TriplexSettings())
