"""The frozen encoder over the patches of a slice, batch by batch, with the cache before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from st_gchb._errors import EncoderError, InputError
from st_gchb._logging import logger, track
from st_gchb.pp._cache import Features, content_key, load_features, store_features
from st_gchb.pp._encoders import Encoder
from st_gchb.pp._patches import choose_level, read_patches
from st_gchb.pp._slides import Slice
from st_gchb.pp._stain import Restain

_CPU_BATCH = 8
"""Patches that go through the encoder together on a CPU: feature maps of more do not stay in its caches (64 MobileNetV2
patches take twice the time of 8 times 8)."""
_BLURRED = 4
"""Patches enlarged more than this are called blurred."""


def embed_slices(
    slices: list[Slice],
    sides: list[float],
    encoder: Encoder,
    views: int,
    batch_size: int,
    device: torch.device,
    folder: Path | None,
    restains: Sequence[Restain | None] | None = None,
) -> Features:
    """Features of all slices, ``(n_spots, n_features)``, from the cache where they are there."""
    features = np.empty((sum(len(slide.rows) for slide in slices), encoder.n_features), dtype=np.float32)
    for slide, side, restain in zip(slices, sides, restains or [None] * len(slices), strict=True):
        try:
            features[slide.rows] = _embed_slice(slide, side, encoder, views, batch_size, device, folder, restain)
        finally:
            slide.image.release()
    return features


def _embed_slice(
    slide: Slice,
    side: float,
    encoder: Encoder,
    views: int,
    batch_size: int,
    device: torch.device,
    folder: Path | None,
    restain: Restain | None,
) -> Features:
    shape = (len(slide.rows), encoder.n_features)
    key = ""
    if folder is not None:
        key = content_key(
            image=slide.image.fingerprint(choose_level(slide.image, side, encoder.input_px)),
            centers=slide.centers_px,
            side=side,
            encoder=encoder.identity,
            views=views,
            # Features of unchanged colours keep the keys that they always had.
            **({} if restain is None else {"um_per_px": slide.um_per_px, "restain": restain.identity}),
        )
        cached = load_features(folder, key, shape)
        if cached is not None:
            logger.info("slice %r: features of %d spots found in %s.", slide.name, len(slide.rows), folder)
            return cached
    if side * _BLURRED < encoder.input_px:
        logger.warning(
            "slice %r: a patch has %.0f px and is enlarged to %d: pass the full-resolution image for sharp ones.",
            slide.name,
            side,
            encoder.input_px,
        )
    recolors = [] if restain is None else restain.maps(slide)
    features = np.empty(shape, dtype=np.float32)
    module = replace(encoder, module=encoder.module.to(device))
    at_once = _CPU_BATCH if device.type == "cpu" else batch_size
    batches = read_patches(slide, side, encoder.input_px, batch_size)
    for rows, patches in track(batches, f"Patches of {slide.name}", -(-len(slide.rows) // batch_size)):
        tensor = torch.from_numpy(patches).permute(0, 3, 1, 2).to(device)
        for recolor in recolors:
            tensor = recolor(tensor)
        parts = [torch.stack([module(view) for view in _views(part, views)]).mean(0) for part in tensor.split(at_once)]
        features[rows] = torch.cat(parts).cpu().numpy()
    if not np.isfinite(features).all():
        raise EncoderError(f"encoder {encoder.name!r} gives NaN or infinite features for slice {slide.name!r}.")
    if folder is not None:
        store_features(folder, key, features)
    return features


def _views(patches: Tensor, views: int) -> list[Tensor]:
    rotated = [torch.rot90(patches, turns, dims=(2, 3)) for turns in range(min(views, 4))]
    return rotated + [view.flip(3) for view in rotated] if views == 8 else rotated


def choose_device(device: str) -> torch.device:
    """Turn ``"auto"`` or torch's name of a device into a device that is there.

    Raises
    ------
    InputError
        There is no such device here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device!r} is not usable here ({error}); pass 'auto' or 'cpu'.") from error
    return chosen
