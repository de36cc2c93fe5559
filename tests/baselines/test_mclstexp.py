"""mclSTExp: contrast of patches with spots in sentences, and retrieval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from st_gchb.baselines import BASELINES, MclSTExp, MclSTExpSettings
from st_gchb.errors import DeviceError, EncoderError, InputError, ScaleError

PIXELS = {"encoder": "resnet18", "weights": None, "patch_px": 32, "patch_um": 100.0}


def small(**settings) -> MclSTExp:
    plain = {"width": 16, "n_heads": 2, "head_width": 8, "choose_epochs": False, "epochs": 3}
    return MclSTExp("small", device="cpu", **{**plain, **settings})


def built(method: MclSTExp, spots):
    torch.manual_seed(0)
    return method.build(spots)


def test_shape_and_registration(spots):
    assert BASELINES["mclstexp"] is MclSTExp
    predicted = small().fit(spots).predict(replace(spots, targets=None, counts=None))
    assert predicted.shape == spots.targets.shape
    assert predicted.dtype == np.float32
    # Means of measured expression lie between the smallest and the largest.
    assert (predicted >= spots.targets.min(0) - 1e-5).all()
    assert (predicted <= spots.targets.max(0) + 1e-5).all()


@pytest.mark.parametrize("settings", [{}, PIXELS, {"depth": 2, "normalized": False, "temperature": 1.0}])
def test_gradients_reach_every_parameter(spots, settings):
    method = small(**settings)
    network = built(method, spots).train()
    method.loss(network, spots, np.arange(20), np.random.default_rng(0)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_position_rows_learn_where_spots_are(spots):
    method = small()
    network = built(method, spots)
    method.loss(network, spots, np.arange(20), np.random.default_rng(0)).backward()
    # Slices of 4 columns and 5 rows.
    for table, n in ((network.positions.x, 4), (network.positions.y, 5)):
        assert table.weight.grad[:n].any(1).all()
        assert not table.weight.grad[n:].any()


def test_learns_twenty_spots_by_heart(few_spots, correlation):
    method = small(epochs=150, lr=3e-3, width=32, n_retrieved=1).fit(few_spots)
    assert correlation(few_spots.targets, method.predict(few_spots)) > 0.9


def test_seed_decides(spots):
    first, again, other = (small(seed=seed).fit(spots).predict(spots) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("settings", [{}, PIXELS])
def test_each_patch_is_predicted_by_itself(spots, make_spots, settings):
    # All spots are retrieved: which are the nearest may change with the last digit.
    method = small(**settings, epochs=1, n_retrieved=40, retrieved_share=None).fit(spots)
    query = make_spots(1, 4, 5)
    order = np.random.default_rng(0).permutation(len(query))
    together = method.predict(query)
    assert together.std(0).min() > 1e-3
    np.testing.assert_allclose(method.predict(query[order]), together[order], atol=1e-4)
    np.testing.assert_allclose(method.predict(query[np.array([7])]), together[[7]], atol=1e-4)


def test_order_of_the_reference_decides_its_sentences_alone(spots):
    """Whole slices are the same sentences in any order of the spots; successive spots, as published, are not."""
    order = np.random.default_rng(0).permutation(len(spots))
    embedded = {}
    for size in (None, 8):
        method = small(sentence=size)
        plain, permuted = (built(method, given).eval().embed_reference() for given in (spots, spots[order]))
        embedded[size] = torch.allclose(plain[order], permuted, atol=1e-5)
    assert embedded == {None: True, 8: False}


def test_spots_of_a_sentence_attend_to_each_other(spots):
    method = small()
    network = built(method, spots).eval()
    plain = network.embed_reference()
    # Of one gene: the same for all would vanish in the layer norm.
    network.expression[0, 0] += 5
    changed = (network.embed_reference() - plain).abs().amax(1) > 1e-5
    assert changed[:20].all()
    assert not changed[20:].any()


@pytest.mark.parametrize("order", [1, 2])
def test_retrieval_is_that_of_the_publication(spots, order):
    method = small(n_retrieved=3, distance_order=order)
    network = built(method, spots).eval()
    # As after training, embeddings differ in length.
    torch.nn.init.uniform_(network.spot_projection.norm.weight, 0.1, 3)
    with torch.inference_mode():
        predicted = method.infer(network, spots)
        reference = network.embed_reference().numpy()
        query = network.embed_patches(torch.from_numpy(spots.features)).numpy()
    cosine = (query @ reference.T) / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(reference, axis=1)
    for row in range(len(spots)):
        nearest = np.argsort(-cosine[row])[:3]
        weights = np.linalg.norm(reference[nearest] - query[row], ord=order, axis=1) ** -2.0
        expected = weights @ spots.targets[nearest] / weights.sum()
        np.testing.assert_allclose(predicted[row], expected, rtol=1e-4)


def test_equal_embeddings_give_finite_predictions(spots, monkeypatch):
    method = small()
    network = built(method, spots).eval()
    monkeypatch.setattr(network, "embed_reference", lambda: network.embed_patches(torch.from_numpy(spots.features)))
    with torch.inference_mode():
        np.testing.assert_allclose(method.infer(network, spots), spots.targets, atol=1e-3)


def test_loss_contrasts_both_ways(spots, monkeypatch):
    by_spot, by_patch = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 4.0]])

    def loss(**settings):
        method = small(**settings)
        network = built(method, spots)
        monkeypatch.setattr(network, "embed_spots", lambda *_: by_spot)
        monkeypatch.setattr(network, "embed_patches", lambda *_: by_patch)
        return method.loss(network, spots, np.arange(2), np.random.default_rng(0)).item()

    def expected(scores):
        rows, cols = (np.log(np.exp(each).sum(1)) - np.diag(each) for each in (scores, scores.T))
        return (rows.mean() + cols.mean()) / 2

    plain = by_spot.numpy() @ by_patch.numpy().T
    lengths = np.linalg.norm(by_spot, axis=1)[:, None] * np.linalg.norm(by_patch, axis=1)
    assert loss(normalized=False, temperature=1.0) == pytest.approx(expected(plain), rel=1e-5)
    assert loss(normalized=True, temperature=0.5) == pytest.approx(expected(plain / lengths / 0.5), rel=1e-5)


def test_pixels_are_augmented_in_training_alone(spots):
    method = small(**PIXELS)
    rows = np.arange(4)
    plain = method._patches(spots, rows)
    assert torch.equal(plain, torch.from_numpy(spots.pixels(32, 100.0)[rows]))
    one, same, other = (method._patches(spots, rows, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one.shape == plain.shape
    assert one.dtype == torch.uint8
    assert torch.equal(one, same)
    assert not any(torch.equal(a, b) for a, b in zip(one, plain, strict=True))
    assert not torch.equal(one, other)
    # Turned by any angle, corners are black.
    assert sum(not patch[0, 0].any() for patch in one) >= 1


def test_batches_are_of_one_slice_or_of_all(spots):
    rng = np.random.default_rng(0)
    alone = list(small(batch_size=8).batches(spots, rng))
    mixed = list(small(batch_size=8, one_slice=False).batches(spots, rng))
    for batches in (alone, mixed):
        assert sorted(np.concatenate(batches)) == list(range(40))
    assert all(len(np.unique(spots.slices[rows])) == 1 for rows in alone)
    assert [spots.slices[rows[0]] for rows in alone] != sorted(spots.slices[rows[0]] for rows in alone)
    assert any(len(np.unique(spots.slices[rows])) == 2 for rows in mixed)


def test_presets():
    published, little = MclSTExp.presets["published"], MclSTExp.presets["small"]
    assert published == MclSTExpSettings(
        epochs=90,
        choose_epochs=False,
        batch_size=128,
        lr=1e-4,
        encoder="densenet121",
        patch_px=224,
        width=256,
        depth=2,
        n_heads=8,
        head_width=64,
        position_scale=1.0,
        temperature=1.0,
        normalized=False,
        one_slice=False,
        sentence=32,
        n_retrieved=200,
        retrieved_share=None,
        distance_order=1,
        weight_decay=1e-3,
    )
    assert (little.encoder, little.width, little.choose_epochs) == (None, 128, True)
    optimizer = MclSTExp("published", device="cpu").optimizer(torch.nn.Linear(1, 1))
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 1e-3


def test_size_of_the_published_network(make_spots):
    """The publication's, at 785 genes: 116.1 million with 2 x 65,536 position rows, of which there are 2 x 128 here."""
    spots = make_spots(1, 2, 2)
    wide = replace(spots, targets=np.zeros((4, 785), np.float32))
    network = MclSTExp("published", device="cpu", weights=None).build(wide)
    n = sum(p.numel() for p in network.parameters()) + 2 * (65_536 - 128) * 785
    assert n == pytest.approx(116.1e6, rel=2e-3)
    # Pixels are scaled to 0 to 1 alone, without ImageNet's constants.
    assert not network.trunk.mean.any()


def test_number_of_retrieved_spots(spots):
    assert small()._n_retrieved(40) == 4
    assert small()._n_retrieved(5) == 1
    assert small()._n_retrieved(9000) == 200
    assert small(retrieved_share=None, n_retrieved=40)._n_retrieved(40) == 40


def test_bad_input_is_refused_before_training(spots):
    with pytest.raises(InputError, match="n_retrieved=200, and there are 40 training spots"):
        small(retrieved_share=None).fit(spots)
    with pytest.raises(InputError, match="no patch features"):
        small().fit(replace(spots, features=None))
    with pytest.raises(InputError, match="no image"):
        small(**PIXELS).fit(replace(spots, read=None))
    with pytest.raises(InputError, match="no expression"):
        small().fit(replace(spots, targets=None))
    with pytest.raises(InputError, match="1 training spots"):
        small().fit(spots[np.array([0])])
    with pytest.raises(InputError, match="batches of 1"):
        small(batch_size=1).fit(spots)
    with pytest.raises(InputError, match="expected 1 or 2"):
        small(distance_order=3).fit(spots)
    with pytest.raises(ScaleError):
        small(**{**PIXELS, "patch_um": 40_000.0}).fit(spots)
    with pytest.raises(EncoderError, match="unknown encoder"):
        small(**{**PIXELS, "encoder": "densenet122"}).fit(spots)
    with pytest.raises(InputError, match="temperature"):
        small(temperatur=1)


def test_published_preset_asks_for_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="without a GPU"):
        MclSTExp("published")
