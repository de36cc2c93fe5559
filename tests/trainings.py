"""Trainings and encoders that take little, for tests of what is made of them and not of how good these are."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest


def shorten_trainings(patch: pytest.MonkeyPatch) -> None:
    """Let every preset train for one epoch, after one of pretraining where it has some."""
    from st_gchb.model import PRESETS

    for name, preset in PRESETS.items():
        short = replace(preset, max_epochs=1, pretrain_epochs=min(preset.pretrain_epochs, 1))
        patch.setitem(PRESETS, name, short)


def shrink_patches(patch: pytest.MonkeyPatch) -> None:
    """Let torchvision's models take patches of 64 px a side: a tenth of the work of 224 px, by the same layers."""
    from st_gchb.pp import get_encoder

    module = importlib.import_module(get_encoder.__module__)
    build = module.torchvision_backbone
    patch.setattr(module, "torchvision_backbone", lambda *options: replace(build(*options), input_px=64))


def narrow_resnet(patch: pytest.MonkeyPatch) -> None:
    """Let torchvision's smallest ResNet have an eighth of its channels, in the same layers: few weights."""
    from torchvision import models

    class Narrow(models.ResNet):
        def _make_layer(self, block: Any, planes: int, *options: Any, **more: Any) -> Any:
            return super()._make_layer(block, planes // 8, *options, **more)

    build = models.get_model

    def narrow(name: str, **options: Any) -> Any:
        if name != "resnet18":
            return build(name, **options)
        return Narrow(models.resnet.BasicBlock, [2, 2, 2, 2])

    patch.setattr(models, "get_model", narrow)


def shrink_sections(patch: pytest.MonkeyPatch) -> None:
    """Let synthetic sections have 8 x 8 spots, whatever is asked for."""
    import st_gchb

    make = st_gchb.datasets.synthetic_tissue
    side = {"n_rows": 8, "n_cols": 8}
    patch.setattr(st_gchb.datasets, "synthetic_tissue", lambda *slices, **options: make(*slices, **options | side))
