"""The last stage of an image encoder: recording of the maps that enter it, and the stage as a separate module."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from st_gchb._compat import torchvision_models
from st_gchb._errors import EncoderError, InputError
from st_gchb.pp.encoders import Encoder, backbone_without_weights
from st_gchb.pp.patches._feature_spec import FeatureSpec, encoder_of_spec

models = torchvision_models()

_FIRST: dict[type[nn.Module], str] = {
    models.ResNet: "layer4.0.conv1",
    models.ConvNeXt: "features.6.1",
    models.DenseNet: "features.transition3.norm",
    models.EfficientNet: "features.6.0.block.0.0",
    models.MobileNetV2: "features.14.conv.0.0",
}
"""Path of the first layer of the last stage, by model family: the layer that halves the maps for the last time (in
ConvNeXt preceded by a layer norm). Families are excluded if their stages are not sequential, or if the last stage is
little more than the head.
"""


def check_feature_maps(encoder: Encoder, *, cache: bool, compiled: bool) -> None:
    """Validate that feature maps can be stored.

    Parameters
    ----------
    encoder
        Encoder whose last stage is to be trained.
    cache, compiled
        As in :func:`embed_patches`.

    Raises
    ------
    InputError
        There is no cache, or the encoder is to be compiled.
    EncoderError
        The encoder's last stage cannot be separated; the message lists supported families.
    """
    if not cache:
        raise InputError(
            "save_feature_maps=True with cache=False: feature maps lie in the cache folder. Leave cache= out; "
            "cache_dir= names another folder."
        )
    if compiled:
        raise InputError(
            "save_feature_maps=True with compiled=True: what goes into the last stage cannot be seen in a compiled "
            "encoder. Pass compiled=False, or leave save_feature_maps= out."
        )
    if encoder.transform is not None or _path_of(encoder.module) is None:
        raise EncoderError(
            f"encoder {encoder.name!r} has no last stage that can be trained by itself; expected a torchvision model "
            "of the families resnet, resnext, wide_resnet (layer4), convnext, densenet, efficientnet or mobilenet_v2. "
            "Name one of these, or leave save_feature_maps= out: its features can be used as they are."
        )


@contextmanager
def recorded_maps(image_encoder: nn.Module, used: nn.Module | None = None) -> Iterator[list[Tensor]]:
    """Collect the feature maps that enter the last stage of an image encoder.

    The output of the image encoder is not affected: its features remain bitwise identical.

    Parameters
    ----------
    image_encoder
        Image encoder of a supported family.
    used
        Module derived from it that is actually called, such as one with folded batch norm; None for the encoder itself.

    Yields
    ------
    list of torch.Tensor
        List that receives the maps of each forward pass, ``(b, c, h, w)`` float16.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Copied before the stage runs, because it may modify its input in place.
        seen.append(inputs[0].to(torch.float16, copy=True))

    hook = first_of(image_encoder, used).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def shape_of_maps(encoder: Encoder) -> tuple[int, int, int]:
    """Determine channels, height and width of the feature maps of one patch."""
    device = next(encoder.module.parameters()).device
    patch = torch.zeros(1, 3, encoder.input_px, encoder.input_px, dtype=torch.uint8, device=device)
    with recorded_maps(encoder.module) as seen:
        encoder(patch)
    _, c, h, w = seen[0].shape
    return c, h, w


def last_stage(image_encoder: nn.Module) -> nn.Module:
    """Extract the last stage of an image encoder with everything after it, a module from feature maps to features.

    It is a copy of the image encoder in which all layers before the stage are replaced by identities, so that its
    features are bitwise the same.

    Examples
    --------
    >>> from st_gchb.pp.patches._last_stage import last_stage
    >>> from st_gchb.pp.encoders._backbones import backbone_without_weights
    >>> sorted({name.split(".")[0] for name in last_stage(backbone_without_weights("resnet18")).state_dict()})
    ['layer4']
    """
    stage = copy.deepcopy(image_encoder)
    inside = stage
    for name in (_path_of(image_encoder) or "").split("."):
        before = [other for other, _ in inside.named_children()]
        for other in before[: before.index(name)]:
            setattr(inside, other, nn.Identity())
        inside = inside.get_submodule(name)
    return stage


def stage_of_spec(rule: FeatureSpec) -> nn.Module:
    """Build the pretrained last stage of the encoder of a specification; errors as for :func:`encoder_of_spec`."""
    return last_stage(encoder_of_spec(rule).module)


def stage_without_weights(rule: FeatureSpec) -> nn.Module:
    """Build the architecture of the last stage, into which trained weights are then loaded."""
    return last_stage(backbone_without_weights(rule.encoder))


def first_of(image_encoder: nn.Module, used: nn.Module | None = None) -> nn.Module:
    """Find the first layer of an image encoder's last stage, or the corresponding one in a module derived from it."""
    return (image_encoder if used is None else used).get_submodule(_path_of(image_encoder) or "")


def _path_of(module: nn.Module) -> str | None:
    return next((path for family, path in _FIRST.items() if isinstance(module, family)), None)
