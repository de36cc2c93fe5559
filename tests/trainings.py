"""Trainings, encoders and sections that take little, for tests of what is made of them."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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


SMALL_TEXTURE_PX = 40
"""Side of the patches that the texture encoder takes in the tests, px: an eighth of the area of its own 112 x 112."""


def set_texture_patches(patch: pytest.MonkeyPatch, side: int | None = None) -> None:
    """Let the texture encoder take patches of so many pixels a side, by the same layers; by default of its own size."""
    from st_gchb.pp import get_encoder

    module = importlib.import_module(get_encoder.__module__)
    own = importlib.import_module(f"{module.__package__}._texture")
    # Features of patches of another size are others, in the cache too.
    version = own.TEXTURE_VERSION if side is None else f"{own.TEXTURE_VERSION}, {side} px"
    patch.setattr(module, "TEXTURE_INPUT_PX", side or own.TEXTURE_INPUT_PX)
    patch.setattr(module, "TEXTURE_VERSION", version)


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


def draw_sections_once(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the image of a synthetic section be drawn once by all processes that have this folder in common."""
    module = importlib.import_module("st_gchb.datasets.synthetic._synthetic_tissue")
    draw = module.render

    def render(anatomy: Any, cells: Any, vessels: Any, um_per_px: float, rng: Any, *more: Any) -> Any:
        asked = (anatomy, cells, vessels, um_per_px, rng.bit_generator.state, more)
        path = folder / f"{hashlib.sha256(pickle.dumps(asked)).hexdigest()}.npy"
        if not path.exists():
            written = path.with_suffix(f".{os.getpid()}.npy")
            np.save(written, draw(anatomy, cells, vessels, um_per_px, rng, *more))
            written.replace(path)
        return np.load(path)

    patch.setattr(module, "render", render)


def choose_panels_once(patch: pytest.MonkeyPatch) -> None:
    """Let the most variable genes of an expression be found once: scanpy takes 10 ms for each slice, however small."""
    from st_gchb.pp.expression import choose_panel

    module = importlib.import_module(choose_panel.__module__)
    find, found = vars(module)["_most_variable"], {}

    def most_variable(log_values: Any, slices: Any, n_top_genes: int) -> Any:
        parts = (log_values.data, log_values.indices, log_values.indptr, slices)
        hashes = [hashlib.sha256(np.ascontiguousarray(part).view(np.uint8)).digest() for part in parts]
        key = (*hashes, *((part.dtype, part.shape) for part in parts), log_values.shape, n_top_genes)
        if key not in found:
            found[key] = find(log_values, slices, n_top_genes)
        return found[key].copy()

    patch.setattr(module, "_most_variable", most_variable)


def shrink_sections(patch: pytest.MonkeyPatch) -> None:
    """Let synthetic sections have 6 x 6 spots, whatever is asked for."""
    import st_gchb

    make = st_gchb.datasets.synthetic_tissue
    side = {"n_rows": 6, "n_cols": 6}
    patch.setattr(st_gchb.datasets, "synthetic_tissue", lambda *slices, **options: make(*slices, **options | side))
