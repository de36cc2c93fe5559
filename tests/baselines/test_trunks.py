"""Trunks of pretrained image models."""

from __future__ import annotations

import pytest
import torch

from st_gchb.baselines import Trunk
from st_gchb.errors import EncoderError, WeightsUnavailableError
from st_gchb.pp import get_encoder

PATCHES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("encoder", "width"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_maps_have_the_encoder_s_features_as_mean(encoder, width):
    trunk = Trunk(encoder, None).eval()
    maps = trunk(PATCHES)
    assert maps.shape == (2, width, 2, 2)
    assert trunk.width == width
    expected = get_encoder(encoder, None)(PATCHES.permute(0, 3, 1, 2))
    torch.testing.assert_close(maps.mean((2, 3)), expected, rtol=1e-3, atol=1e-4)


def test_maps_of_densenet_are_those_before_its_last_relu():
    maps = Trunk("densenet121", None).eval()(PATCHES)
    assert maps.min() < 0
    expected = get_encoder("densenet121", None)(PATCHES.permute(0, 3, 1, 2))
    torch.testing.assert_close(maps.relu().mean((2, 3)), expected, rtol=1e-3, atol=1e-4)


def test_all_layers_are_trainable(narrow_encoder):
    trunk = Trunk("resnet18", None)
    trunk(PATCHES).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trunk.parameters())


def test_channels_are_scaled_alone_without_standardization(narrow_encoder):
    trunk = Trunk("resnet18", None, standardize=False)
    assert not trunk.mean.any()
    assert (trunk.std == 1).all()


def test_batch_norm_can_keep_its_statistics(narrow_encoder):
    kept, trained = Trunk("resnet18", None, train_norm=False).train(), Trunk("resnet18", None).train()
    for trunk in (kept, trained):
        trunk(PATCHES)
    assert not kept.layers[1].running_mean.any()
    assert trained.layers[1].running_mean.any()
    assert kept.layers[0].training


def test_stored_weights_are_loaded(weights_path):
    trunk = Trunk("mobilenet_v2", str(weights_path)).eval()
    expected = get_encoder("mobilenet_v2", weights_path)(PATCHES.permute(0, 3, 1, 2))
    torch.testing.assert_close(trunk(PATCHES).mean((2, 3)), expected, rtol=1e-3, atol=1e-4)


def test_bad_trunks_are_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"'squeezenet1_1' is a SqueezeNet.*'densenet121'"):
        Trunk("squeezenet1_1", None)
    with pytest.raises(WeightsUnavailableError, match="no such weights file"):
        Trunk("resnet18", str(tmp_path / "none.safetensors"))
