"""The frozen encoder over the patches of a slice, batch by batch, with the cache before it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from st_gchb._errors import DamageError, EncoderError
from st_gchb._logging import logger, track
from st_gchb.pp._ahead import read_ahead
from st_gchb.pp._cache import Features, content_key, load_features, store_features
from st_gchb.pp._damage import Damage
from st_gchb.pp._engine import Engine
from st_gchb.pp._patches import choose_level, whole_patches
from st_gchb.pp._slides import Slice
from st_gchb.pp._stain import Restain

Damaged = Literal["raise", "nan"]

_BLURRED = 4
"""Patches enlarged more than this are called blurred."""


def embed_slices(
    slices: list[Slice],
    sides: list[float],
    engine: Engine,
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
    features = np.empty((sum(len(slide.rows) for slide in slices), engine.encoder.n_features), dtype=np.float32)
    left_out: list[npt.NDArray[np.int64]] = []
    for slide, side, restain in zip(slices, sides, restains or [None] * len(slices), strict=True):
        damage = Damage(slide.name, slide.image.name, len(slide.rows))
        try:
            features[slide.rows] = _embed_slice(slide, side, engine, folder, damage, damaged, restain)
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
    engine: Engine,
    folder: Path | None,
    damage: Damage,
    damaged: Damaged,
    restain: Restain | None,
) -> Features:
    """Features of one slice; NaN where pixels cannot be decoded, which ``damage`` then tells."""
    encoder, pace = engine.encoder, engine.pace
    shape = (len(slide.rows), encoder.n_features)
    key = _cache_key(slide, side, engine, restain) if folder is not None else None
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
    made = whole_patches(slide, side, encoder.input_px, pace.batch_size, pace.memory_mb, damage)
    with closing(read_ahead(made)) as ahead:
        batches = track(ahead, f"Patches of {slide.name}", -(-len(slide.rows) // pace.batch_size))
        # Where damage is an error there will be no features: the rest is read to say what is damaged.
        wanted = (batch for batch in batches if not (damage.rows and damaged == "raise"))
        for rows, found in engine.run(wanted, recolors):
            features[rows] = found
            done[rows] = True
    if not np.isfinite(features[done]).all():
        remedy = " Numbers of half precision may be too small for it: pass precision='float32'." if pace.mixed else ""
        raise EncoderError(f"encoder {encoder.name!r} gives NaN or infinite features for slice {slide.name!r}.{remedy}")
    if folder is not None and key is not None and done.all():
        store_features(folder, key, features)
    return features


def _cache_key(slide: Slice, side: float, engine: Engine, restain: Restain | None) -> str | None:
    """Key of cached features; None where the image has no hash, since it cannot be decoded everywhere."""
    try:
        image = slide.image.fingerprint(choose_level(slide.image, side, engine.encoder.input_px))
    except DamageError:
        logger.info("slice %r: features are not cached, since the image is damaged.", slide.name)
        return None
    # Features of unchanged colours keep the keys that they always had.
    colours = {} if restain is None else {"um_per_px": slide.um_per_px, "restain": restain.identity}
    centers = slide.centers_px
    return content_key(image=image, centers=centers, side=side, encoder=engine.identity, views=engine.views, **colours)
