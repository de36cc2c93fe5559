"""The frozen encoder over the patches of a slice, batch by batch, with the cache before it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st_gchb._errors import DamageError, EncoderError, InputError
from st_gchb._logging import logger, track
from st_gchb.pp._ahead import read_ahead
from st_gchb.pp._cache import Features, content_key, load_features, store_features
from st_gchb.pp._damage import Damage
from st_gchb.pp._encoders import Encoder
from st_gchb.pp._patches import choose_level, whole_patches
from st_gchb.pp._slides import Slice
from st_gchb.pp._stain import Restain

Damaged = Literal["raise", "nan"]

_CPU_BATCH = 8
"""Patches that go through the encoder together on a CPU: feature maps of more do not stay in its caches (64 MobileNetV2
patches take twice the time of 8 times 8)."""
_BLURRED = 4
"""Patches enlarged more than this are called blurred."""


@dataclass(frozen=True)
class Pace:
    """How patches are read and passed on; of no account for the features.

    Parameters
    ----------
    batch_size
        Patches at once.
    device
        Where the encoder runs.
    memory_mb
        As :func:`~st_gchb.pp.read_patches` takes it.
    """

    batch_size: int
    device: torch.device
    memory_mb: float


def embed_slices(
    slices: list[Slice],
    sides: list[float],
    encoder: Encoder,
    views: int,
    pace: Pace,
    folder: Path | None,
    damaged: Damaged,
    restains: Sequence[Restain | None] | None = None,
) -> tuple[Features, npt.NDArray[np.int64]]:
    """Features of all slices, ``(n_spots, n_features)``, from the cache where they are there, and rows left out.

    Raises
    ------
    DamageError
        Pixels of some spots cannot be decoded, and ``damaged`` is ``"raise"``; or those of all spots.
    """
    features = np.empty((sum(len(slide.rows) for slide in slices), encoder.n_features), dtype=np.float32)
    left_out: list[npt.NDArray[np.int64]] = []
    for slide, side, restain in zip(slices, sides, restains or [None] * len(slices), strict=True):
        damage = Damage(slide.name, slide.image.name, len(slide.rows))
        try:
            features[slide.rows] = _embed_slice(slide, side, encoder, views, pace, folder, damage, damaged, restain)
        finally:
            slide.image.release()
        if damaged == "raise":
            damage.check()
        if damage.rows:
            logger.warning("Left out: %s.", damage.describe())
            left_out.append(slide.rows[np.sort(damage.rows)])
    rows = np.concatenate([np.empty(0, dtype=np.int64), *left_out])
    if len(rows) == len(features):
        raise DamageError(f"no spot is left: {damage.describe()}. Fetch or export the image again.")
    return features, rows


def _embed_slice(
    slide: Slice,
    side: float,
    encoder: Encoder,
    views: int,
    pace: Pace,
    folder: Path | None,
    damage: Damage,
    damaged: Damaged,
    restain: Restain | None,
) -> Features:
    """Features of one slice; NaN where pixels cannot be decoded, which ``damage`` then tells."""
    shape = (len(slide.rows), encoder.n_features)
    key = _cache_key(slide, side, encoder, views, restain) if folder is not None else None
    if folder is not None and key is not None:
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
    features = np.full(shape, np.nan, dtype=np.float32)
    done = np.zeros(len(features), dtype=bool)
    module = replace(encoder, module=encoder.module.to(pace.device))
    at_once = _CPU_BATCH if pace.device.type == "cpu" else pace.batch_size
    made = whole_patches(slide, side, encoder.input_px, pace.batch_size, pace.memory_mb, damage)
    with closing(read_ahead(made)) as batches:
        for rows, patches in track(batches, f"Patches of {slide.name}", -(-len(slide.rows) // pace.batch_size)):
            if damage.rows and damaged == "raise":
                # There will be no features: the rest is read to say what is damaged.
                continue
            tensor = torch.from_numpy(patches).permute(0, 3, 1, 2).to(pace.device)
            for recolor in recolors:
                tensor = recolor(tensor)
            parts = [
                torch.stack([module(view) for view in _views(part, views)]).mean(0) for part in tensor.split(at_once)
            ]
            features[rows] = torch.cat(parts).cpu().numpy()
            done[rows] = True
    if not np.isfinite(features[done]).all():
        raise EncoderError(f"encoder {encoder.name!r} gives NaN or infinite features for slice {slide.name!r}.")
    if folder is not None and key is not None and done.all():
        store_features(folder, key, features)
    return features


def _cache_key(slide: Slice, side: float, encoder: Encoder, views: int, restain: Restain | None) -> str | None:
    """Key of cached features; None where the image has no hash, since it cannot be decoded everywhere."""
    try:
        image = slide.image.fingerprint(choose_level(slide.image, side, encoder.input_px))
    except DamageError:
        logger.info("slice %r: features are not cached, since the image is damaged.", slide.name)
        return None
    # Features of unchanged colours keep the keys that they always had.
    colours = {} if restain is None else {"um_per_px": slide.um_per_px, "restain": restain.identity}
    centers = slide.centers_px
    return content_key(image=image, centers=centers, side=side, encoder=encoder.identity, views=views, **colours)


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
