"""The frozen encoder over the patches of a slice, batch by batch, with the cache before it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from st_gchb.pp._maps_file import MapsWriter, is_stored, maps_path, writing
from st_gchb.pp._patches import choose_level, whole_patches
from st_gchb.pp._slides import Slice
from st_gchb.pp._stages import Tail, shape_of_maps, tapped
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
    tail: Tail | None = None,
) -> tuple[Features, npt.NDArray[np.int64], list[Path]]:
    """Features of all slices, ``(n_spots, n_features)``, from the cache where they are there, and rows left out.

    With ``tail``, the maps before the trunk's last stage are in the files that come last, one for each slice.

    Raises
    ------
    CacheError
        The maps cannot be written to ``folder``.
    DamageError
        Pixels of some spots cannot be decoded, and ``damaged`` is ``"raise"``; or those of all spots.
    """
    features = np.empty((sum(len(slide.rows) for slide in slices), encoder.n_features), dtype=np.float32)
    left_out: list[npt.NDArray[np.int64]] = []
    files: list[Path] = []
    for slide, side, restain in zip(slices, sides, restains or [None] * len(slices), strict=True):
        damage = Damage(slide.name, slide.image.name, len(slide.rows))
        try:
            patches = Patches(slide, side, encoder, views, pace, damage, damaged, restain)
            if tail is None or folder is None:
                features[slide.rows] = _features(patches, folder)
            else:
                features[slide.rows], file = _features_and_maps(patches, folder)
                files.append(file)
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
    return features, rows, files


@dataclass(frozen=True)
class Patches:
    """The patches of one slice, and how they are encoded; arguments as of :func:`embed_slices`."""

    slide: Slice
    side: float
    encoder: Encoder
    views: int
    pace: Pace
    damage: Damage
    damaged: Damaged
    restain: Restain | None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of their features."""
        return len(self.slide.rows), self.encoder.n_features

    def key(self) -> str | None:
        """Key of cached features; None where the image has no hash, since it cannot be decoded everywhere."""
        try:
            level = choose_level(self.slide.image, self.side, self.encoder.input_px)
            return self._key(image=self.slide.image.fingerprint(level))
        except DamageError:
            logger.info("slice %r: features are not cached, since the image is damaged.", self.slide.name)
            return None

    def key_by_name(self) -> str:
        """Key by the image's name, of what is written in any case and never taken for another's."""
        return self._key(image=self.slide.image.name, damaged=True)

    def _key(self, **image: Any) -> str:
        # Features of unchanged colours keep the keys that they always had.
        restain, slide = self.restain, self.slide
        colours = {} if restain is None else {"um_per_px": slide.um_per_px, "restain": restain.identity}
        made = {"side": self.side, "encoder": self.encoder.identity, "views": self.views}
        return content_key(centers=slide.centers_px, **made, **colours, **image)

    def cached(self, folder: Path | None, key: str | None) -> Features | None:
        """Their features, where they were computed before."""
        if folder is None or key is None:
            return None
        cached = load_features(folder, key, self.shape)
        if cached is not None:
            logger.info("slice %r: features of %d spots found in %s.", self.slide.name, self.shape[0], folder)
        return cached


def _features(patches: Patches, folder: Path | None) -> Features:
    """Features of one slice; NaN where pixels cannot be decoded, which its ``damage`` then tells."""
    key = patches.key() if folder is not None else None
    cached = patches.cached(folder, key)
    if cached is not None:
        return cached
    features, done = _encode(patches, None)
    if folder is not None and key is not None and done.all():
        store_features(folder, key, features)
    return features


def _features_and_maps(patches: Patches, folder: Path) -> tuple[Features, Path]:
    """The same, and the file with the maps before the trunk's last stage."""
    key = patches.key()
    cached = patches.cached(folder, key)
    path = maps_path(folder, key or patches.key_by_name())
    shape = (patches.views, *shape_of_maps(patches.encoder))
    if cached is not None and is_stored(path, cached, shape):
        return cached, path
    with writing(path, patches.shape[0], shape) as maps:
        features, done = _encode(patches, maps)
        if patches.damaged == "raise":
            patches.damage.check()
        # Computed on another device, they would differ in the last digit from those that maps are found by.
        features = features if cached is None else cached
        maps.finish(features)
    if key is not None and done.all() and cached is None:
        store_features(folder, key, features)
    return features, path


def _encode(patches: Patches, maps: MapsWriter | None) -> tuple[Features, npt.NDArray[np.bool_]]:
    """Features of the patches, and which spots have any; their maps are written on the way."""
    slide, side, encoder, pace = patches.slide, patches.side, patches.encoder, patches.pace
    if side * _BLURRED < encoder.input_px:
        logger.warning(
            "slice %r: a patch has %.0f px and is enlarged to %d: pass the full-resolution image for sharp ones.",
            slide.name,
            side,
            encoder.input_px,
        )
    recolors = [] if patches.restain is None else patches.restain.maps(slide)
    features = np.full(patches.shape, np.nan, dtype=np.float32)
    done = np.zeros(len(features), dtype=bool)
    module = replace(encoder, module=encoder.module.to(pace.device))
    at_once = _CPU_BATCH if pace.device.type == "cpu" else pace.batch_size
    made = whole_patches(slide, side, encoder.input_px, pace.batch_size, pace.memory_mb, patches.damage)
    with closing(read_ahead(made)) as batches:
        for rows, pixels in track(batches, f"Patches of {slide.name}", -(-len(slide.rows) // pace.batch_size)):
            if patches.damage.rows and patches.damaged == "raise":
                # There will be no features: the rest is read to say what is damaged.
                continue
            tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pace.device)
            for recolor in recolors:
                tensor = recolor(tensor)
            parts = tensor.split(at_once)
            own = np.split(rows, range(at_once, len(rows), at_once))
            pooled = [_pooled(module, *part, patches.views, maps) for part in zip(parts, own, strict=True)]
            features[rows] = torch.cat(pooled).cpu().numpy()
            done[rows] = True
    if not np.isfinite(features[done]).all():
        raise EncoderError(f"encoder {encoder.name!r} gives NaN or infinite features for slice {slide.name!r}.")
    return features, done


def _pooled(
    module: Encoder, patches: Tensor, rows: npt.NDArray[np.int64], views: int, maps: MapsWriter | None
) -> Tensor:
    """Features of some patches, the mean over their views; their maps are written where they are wanted."""
    if maps is None:
        return torch.stack([module(view) for view in _views(patches, views)]).mean(0)
    with tapped(module.module) as seen:
        features = torch.stack([module(view) for view in _views(patches, views)]).mean(0)
    maps.put(rows, torch.stack(seen, dim=1).cpu().numpy())
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
