"""HisToGene against its publication; what it has in common with Hist2ST is tested in test_slice_methods.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from st_gchb.baselines import HisToGene


def test_the_published_network_has_the_published_size(spots):
    """The released notebook prints 106 M parameters for 785 genes; positions have 128 rows here, and 64 there."""
    wide = replace(spots, targets=np.zeros((len(spots), 785), np.float32))
    with torch.device("meta"):
        network = HisToGene("published", device="cpu").build(wide)
    count = sum(values.numel() for values in network.parameters()) - 2 * 64 * 1024
    assert round(count / 1e6, 1) == 106.6
    assert len(network.blocks) == 8
    assert network.embedding.linear.in_features == 3 * 112 * 112


def test_pixels_are_scaled_in_small_and_raw_as_published(spots):
    for preset, largest in (("small", 1.0), ("published", 255.0)):
        settings = {"width": 4, "n_blocks": 1, "patch_px": 4, "device": "cpu"}
        embedding = HisToGene(preset, **settings).build(spots).embedding
        torch.nn.init.ones_(embedding.linear.weight)
        torch.nn.init.zeros_(embedding.linear.bias)
        white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
        assert torch.allclose(embedding(white), torch.full((1, 4), 48 * largest))


def test_small_starts_at_the_mean_and_published_does_not(spots):
    for preset, starts in (("small", True), ("published", False)):
        method = HisToGene(preset, width=16, n_blocks=1, patch_px=4, device="cpu")
        network = method.build(spots).eval()
        with torch.inference_mode():
            predicted = method.infer(network, spots)
        assert np.allclose(predicted, spots.targets.mean(0), atol=1e-5) == starts


def test_every_slice_is_a_step(spots):
    rows = list(HisToGene(device="cpu").batches(spots, np.random.default_rng(0)))
    assert [len(own) for own in rows] == [20, 20]
    assert {spots.slices[own[0]] for own in rows} == {"S1", "S2"}


def test_the_loss_is_the_squared_error(spots):
    method = HisToGene(patch_px=4, dropout=0.0, device="cpu")
    network = method.build(spots).eval()
    rows = np.arange(20)
    loss = method.loss(network, spots, rows, np.random.default_rng(0))
    with torch.inference_mode():
        predicted = method.infer(network, spots[rows])
    assert np.isclose(loss.item(), np.square(predicted - spots.targets[rows]).mean(), rtol=1e-4)
