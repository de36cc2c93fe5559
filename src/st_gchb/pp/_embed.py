"""The frozen encoder over the patches of a slice, batch by batch, with the cache before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from st_gchb._errors import DamageError, EncoderError
from st_gchb._logging import logger, track
from st_gchb.pp._ahead import read_ahead
from st_gchb.pp._cache import Features, content_key, load_features, store_features
from st_gchb.pp._damage import Damage
from st_gchb.pp._engine import Batch, Engine
from st_gchb.pp._patches import Rows, choose_level, whole_patches
from st_gchb.pp._slides import Slice
from st_gchb.pp._stain import Restain

Damaged = Literal["raise", "nan"]

_BLURRED = 4
"""Patches enlarged more than this are called blurred."""


@dataclass
class _Job:
    """A slice whose patches are to be encoded.

    Parameters
    ----------
    slide, side, restain
        Spots and image, side of a patch in px, what is done to colours.
    key
        Of its features in the cache; None where they are not kept.
    features
        ``(n_spots, n_features)``, NaN where there are none yet.
    damage
        Spots whose pixels cannot be decoded.
    n_done
        Spots with features.
    """

    slide: Slice
    side: float
    restain: Restain | None
    key: str | None
    features: Features
    damage: Damage
    n_done: int = 0


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
    EncoderError
        The encoder gives NaN or infinite features.
    """
    features = np.empty((sum(len(slide.rows) for slide in slices), engine.encoder.n_features), dtype=np.float32)
    jobs = []
    try:
        for slide, side, restain in zip(slices, sides, restains or [None] * len(slices), strict=True):
            key = None if folder is None else _cache_key(slide, side, engine, restain)
            empty = np.full((len(slide.rows), engine.encoder.n_features), np.nan, dtype=np.float32)
            found = load_features(folder, key, empty.shape) if folder is not None and key is not None else None
            if found is not None:
                logger.info("slice %r: features of %d spots found in %s.", slide.name, len(slide.rows), folder)
                features[slide.rows] = found
                continue
            _warn_of_blur(slide, side, engine.encoder.input_px)
            damage = Damage(slide.name, slide.image.name, len(slide.rows))
            jobs.append(_Job(slide, side, restain, key, empty, damage))
        if jobs:
            _encode(jobs, engine, folder, damaged)
    finally:
        for slide in slices:
            slide.image.release()
    rows = [np.empty(0, dtype=np.int64)]
    for job in jobs:
        features[job.slide.rows] = job.features
        if job.damage.rows:
            logger.warning("Left out: %s.", job.damage.describe())
            rows.append(job.slide.rows[np.sort(job.damage.rows)])
    left_out = np.concatenate(rows)
    if len(left_out) == len(features):
        raise DamageError(f"no spot is left: {jobs[-1].damage.describe()}. Fetch or export the image again.")
    return features, left_out


def _encode(jobs: list[_Job], engine: Engine, folder: Path | None, damaged: Damaged) -> None:
    """Fill in the features of all jobs, and keep those of each slice that is whole."""
    n_batches = sum(-(-len(job.slide.rows) // engine.pace.batch_size) for job in jobs)
    what = f"Patches of {jobs[0].slide.name}" if len(jobs) == 1 else f"Patches of {len(jobs)} slices"

    def take(name: tuple[_Job, Rows], found: Features) -> None:
        job, rows = name
        if not np.isfinite(found).all():
            raise _not_finite(job, engine)
        job.features[rows] = found
        job.n_done += len(rows)
        if folder is not None and job.key is not None and job.n_done == len(job.features):
            store_features(folder, job.key, job.features)

    # While the last patches of a slice are encoded, the next slice is opened.
    with closing(read_ahead(_batches(jobs, engine, damaged))) as ahead:
        engine.run(track(ahead, what, n_batches), take)


def _batches(jobs: list[_Job], engine: Engine, damaged: Damaged) -> Iterator[Batch[tuple[_Job, Rows]]]:
    """Patches of one slice after the other; no more than one image is held."""
    pace = engine.pace
    for job in jobs:
        recolors = [] if job.restain is None else job.restain.maps(job.slide)
        try:
            for rows, patches in whole_patches(
                job.slide, job.side, engine.encoder.input_px, pace.batch_size, pace.memory_mb, job.damage
            ):
                # Where damage is an error there will be no features: the rest is read to say what is damaged.
                if not (job.damage.rows and damaged == "raise"):
                    yield (job, rows), patches, recolors
        finally:
            job.slide.image.release()
        if damaged == "raise":
            job.damage.check()


def _not_finite(job: _Job, engine: Engine) -> EncoderError:
    remedy = (
        " Half precision may be too coarse for it: pass precision='float32'."
        if engine.pace.precision != "float32"
        else ""
    )
    return EncoderError(
        f"encoder {engine.encoder.name!r} gives NaN or infinite features for slice {job.slide.name!r}.{remedy}"
    )


def _warn_of_blur(slide: Slice, side: float, input_px: int) -> None:
    if side * _BLURRED < input_px:
        logger.warning(
            "slice %r: a patch has %.0f px and is enlarged to %d: pass the full-resolution image for sharp ones.",
            slide.name,
            side,
            input_px,
        )


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
