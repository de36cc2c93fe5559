"""Where image encoders are cut: the rest does what the whole image encoder does, and what cannot be cut is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from st_gchb._errors import EncoderError, InputError
from st_gchb.pp import get_encoder
from st_gchb.pp.encoders import Encoder
from st_gchb.pp.patches import check_feature_maps, first_of, last_stage, recorded_maps, shape_of_maps

PX = 64

pytestmark = pytest.mark.usefixtures("small_patches")
PATCHES = torch.randint(0, 256, (2, 3, PX, PX), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def encoder_of(name):
    made = get_encoder(name, weights=None)
    return Encoder(name, "none", "", PX, 0, made.module)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 256), ("mobilenet_v2", 96), ("efficientnet_b0", 112), ("convnext_tiny", 384), ("densenet121", 1024)],
)
def test_the_stage_does_what_the_image_encoder_does_from_the_last_halving_on(name, channels):
    encoder = encoder_of(name)
    expected = encoder(PATCHES)
    with recorded_maps(encoder.module) as seen:
        features = encoder(PATCHES)
    assert torch.equal(features, expected)
    # As it is used: with batch norm folded into the convolutions.
    with recorded_maps(encoder.module, encoder.folded) as other:
        torch.testing.assert_close(replace(encoder, module=encoder.folded)(PATCHES), features, rtol=1e-3, atol=1e-5)
    (maps,) = seen
    torch.testing.assert_close(other[0], maps, rtol=1e-2, atol=1e-3)
    assert maps.shape == (2, channels, PX // 16, PX // 16)
    assert maps.dtype == torch.float16
    assert shape_of_maps(encoder) == maps.shape[1:]
    assert len(seen) == 1
    # To the last bit, where maps are not rounded.
    exact = []
    first_of(encoder.module).register_forward_pre_hook(lambda _, x: exact.append(x[0].clone()))
    encoder(PATCHES)
    stage = last_stage(encoder.module)
    with torch.inference_mode():
        assert torch.equal(stage(exact[0]), features)
    # What halves the maps for the last time is in the stage.
    after = []
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d | nn.AvgPool2d):
            layer.register_forward_hook(lambda _, inputs, x: after.append((inputs[0].shape[-1], x.shape[-1])))
    with torch.inference_mode():
        stage(exact[0])
    assert (PX // 16, PX // 32) in after


def test_the_image_encoder_is_left_whole():
    image_encoder = get_encoder("resnet18", weights=None).module
    before = list(image_encoder.state_dict())
    stage = last_stage(image_encoder)
    assert list(image_encoder.state_dict()) == before
    assert {name.split(".")[0] for name in stage.state_dict()} == {"layer4"}
    own, copied = ({value.data_ptr() for value in one.parameters()} for one in (image_encoder, stage))
    assert not own & copied


class Own(nn.Module):
    """A module of the caller's with a last stage of its own."""

    def __init__(self):
        super().__init__()
        self.inner = resnet18(weights=None)

    def transform(self, patches):
        return patches.float()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("name", ["texture", "squeezenet1_1", "own", "own resnet"])
def test_what_cannot_be_cut_is_refused_with_what_can(name):
    if name == "own":
        encoder = get_encoder(Own())
    elif name == "own resnet":
        encoder = get_encoder(resnet18(weights=None), transform=lambda patches: patches.float())
    else:
        encoder = get_encoder(name, None)
    with pytest.raises(EncoderError, match=r"no last stage.*layer4.*mobilenet_v2.*leave save_feature_maps= out"):
        check_feature_maps(encoder, cache=True, compiled=False)


def test_arguments_that_do_not_go_together_are_refused():
    encoder = replace(encoder_of("mobilenet_v2"))
    for arguments, message in (
        ({"cache": False}, "cache folder"),
        ({"compiled": True}, "compiled=False"),
    ):
        given = {"cache": True, "compiled": False} | arguments
        with pytest.raises(InputError, match=message):
            check_feature_maps(encoder, **given)
    check_feature_maps(encoder, cache=True, compiled=False)
