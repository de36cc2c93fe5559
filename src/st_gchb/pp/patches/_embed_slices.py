"""Encoding of the patches of several slices, batch by batch, with a cache of features by content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._errors import DamageError, EncoderError
from st_gchb._logging import logger, track
from st_gchb._options import OnDamage
from st_gchb.pp._stain_normalization import Stain, normalizing, stain_of, stain_record
from st_gchb.pp.encoders import Batch, EncoderRunner
from st_gchb.pp.patches._cache import Features, content_key, load_features, store_features
from st_gchb.pp.patches._feature_maps import Maps, MapsWriter, check_room, is_stored, maps_path, writing
from st_gchb.pp.patches._last_stage import shape_of_maps
from st_gchb.pp.patches._reader import Damage, Rows, choose_level, prefetch, whole_patches
from st_gchb.pp.spots import Slice

_BLURRED = 4
"""Factor of enlargement of patches above which a warning says that they are blurred."""


@dataclass
class _Job:
    """A slice whose patches are to be encoded.

    Parameters
    ----------
    slide
        Spots and image.
    side
        Side of a patch, px.
    stain
        Stain to which colors are normalized; None to leave them unchanged.
    key
        Key of the features in the cache; None if they are not cached.
    features
        Features, ``(n_spots, n_features)``, NaN where they are not computed yet.
    damage
        Spots whose pixels cannot be decoded.
    n_done
        Number of spots with features.
    path
        File of the feature maps before the image encoder's last stage; None if these are not stored.
    known
        Features from the cache if only the maps are missing. They take precedence over recomputed ones, which could
        differ in the last digit, because maps are looked up by the hash of the features.
    opened, maps
        The file of the maps and its writer, while it is being written.
    """

    slide: Slice
    side: float
    stain: Stain | None
    key: str | None
    features: Features
    damage: Damage
    n_done: int = 0
    path: Path | None = None
    known: Features | None = None
    opened: ExitStack = field(default_factory=ExitStack)
    maps: MapsWriter | None = None

    def keep(self, rows: Rows, maps: Maps) -> None:
        """Write the maps of some spots."""
        if self.maps is None and self.path is not None:
            self.maps = self.opened.enter_context(writing(self.path, len(self.features), maps.shape[1:]))
        if self.maps is not None:
            self.maps.put(rows, maps)

    def finish(self) -> None:
        """Complete and close the file of the maps, and restore features that were in the cache."""
        if self.known is not None:
            self.features = self.known
        if self.maps is not None:
            self.maps.finish(self.features)
            self.opened.close()
            self.maps = None


def embed_slices(
    slices: list[Slice],
    sides: list[float],
    runner: EncoderRunner,
    folder: Path | None,
    on_damage: OnDamage,
    stain: Stain | None = None,
) -> tuple[Features, npt.NDArray[np.int64], list[Path]]:
    """Compute the features of all slices, or load them from the cache.

    Parameters
    ----------
    slices
        Slices with their images.
    sides
        Side of a patch of each slice, px of its image.
    runner
        Encoder on a device. If it has a recorder, feature maps are stored too.
    folder
        Folder of the cache; None for no cache.
    on_damage
        ``"raise"``: raise an error if pixels of some spots cannot be decoded; ``"nan"``: exclude these spots.
    stain
        Stain to which the colors of all slices are normalized; None to leave them unchanged.

    Returns
    -------
    features
        Features, ``(n_spots, n_features)`` float32, NaN for excluded spots.
    excluded
        Row numbers of excluded spots.
    files
        Files of the feature maps, one per slice; empty without a recorder.

    Raises
    ------
    CacheError
        The maps cannot be written to ``folder``.
    DamageError
        Pixels of some spots cannot be decoded and ``on_damage`` is ``"raise"``, or those of no spot can be decoded.
    EncoderError
        The encoder returns NaN or infinite features.
    """
    features = np.empty((sum(len(slide.rows) for slide in slices), runner.encoder.n_features), dtype=np.float32)
    jobs, files = [], []
    shape = None if runner.recorder is None else (runner.n_views, *shape_of_maps(runner.encoder))
    try:
        for slide, side in zip(slices, sides, strict=True):
            key = None if folder is None else _cache_key(slide, side, runner, stain)
            empty = np.full((len(slide.rows), runner.encoder.n_features), np.nan, dtype=np.float32)
            found = load_features(folder, key, empty.shape) if folder is not None and key is not None else None
            path = None
            if folder is not None and shape is not None:
                path = maps_path(folder, key or _key(slide, side, runner, stain, on_damage=slide.image.name))
                files.append(path)
            if found is not None:
                logger.info("slice %r: features of %d spots found in %s.", slide.name, len(slide.rows), folder)
            if found is not None and (path is None or is_stored(path, found, shape or ())):
                features[slide.rows] = found
                continue
            _warn_of_blur(slide, side, runner.encoder.input_px)
            if path is not None and shape is not None:
                check_room(path, len(slide.rows), shape)
            damage = Damage(slide.name, slide.image.name, len(slide.rows))
            jobs.append(_Job(slide, side, stain, key, empty, damage, path=path, known=found))
        if jobs:
            _encode(jobs, runner, folder, on_damage)
    finally:
        for slide in slices:
            slide.image.release()
    rows = [np.empty(0, dtype=np.int64)]
    for job in jobs:
        features[job.slide.rows] = job.features
        if job.damage.rows:
            logger.warning("Left out: %s.", job.damage.describe())
            rows.append(job.slide.rows[np.sort(job.damage.rows)])
    excluded = np.concatenate(rows)
    if len(excluded) == len(features):
        raise DamageError(f"no spot is left: {jobs[-1].damage.describe()}. Fetch or export the image again.")
    return features, excluded, files


def _encode(jobs: list[_Job], runner: EncoderRunner, folder: Path | None, on_damage: OnDamage) -> None:
    """Compute the features of all jobs, and cache those of each slice without damage."""
    n_batches = sum(-(-len(job.slide.rows) // runner.options.batch_size) for job in jobs)
    what = f"Patches of {jobs[0].slide.name}" if len(jobs) == 1 else f"Patches of {len(jobs)} slices"

    def take(name: tuple[_Job, Rows], found: Features, maps: Maps | None = None) -> None:
        job, rows = name
        if not np.isfinite(found).all():
            raise _not_finite(job, runner)
        job.features[rows] = found
        job.n_done += len(rows)
        if maps is not None:
            job.keep(rows, maps)
        if job.n_done == len(job.features):
            job.finish()
            if folder is not None and job.key is not None and job.known is None:
                store_features(folder, job.key, job.features)

    with ExitStack() as stack:
        for job in jobs:
            stack.push(job.opened)
        # Prefetching across slices: the next slice is opened while the last patches of the previous one are encoded.
        with closing(prefetch(_batches(jobs, runner, on_damage))) as ahead:
            runner.run(track(ahead, what, n_batches), take)
        for job in jobs:
            # Slices with damaged spots never reach their full count, so their files are completed here.
            job.finish()


def _batches(jobs: list[_Job], runner: EncoderRunner, on_damage: OnDamage) -> Iterator[Batch[tuple[_Job, Rows]]]:
    """Yield batches of patches, slice by slice, so that no more than one image is held in memory."""
    options = runner.options
    for job in jobs:
        recolors = [] if job.stain is None else [normalizing(stain_of(job.slide, job.stain.method), job.stain)]
        try:
            for rows, patches in whole_patches(
                job.slide, job.side, runner.encoder.input_px, options.batch_size, options.memory_mb, job.damage
            ):
                # After damage that raises, the rest is read only to report all damaged regions, and not encoded.
                if not (job.damage.rows and on_damage == "raise"):
                    yield (job, rows), patches, recolors
        finally:
            job.slide.image.release()
        if on_damage == "raise":
            job.damage.check()


def _not_finite(job: _Job, runner: EncoderRunner) -> EncoderError:
    remedy = (
        " Half precision may be too coarse for it. "
        + advise(Fix("precision", "'float32'"), otherwise="Make the reference's features anew in float32.")
        if runner.options.precision != "float32"
        else ""
    )
    return EncoderError(
        f"encoder {runner.encoder.name!r} gives NaN or infinite features for slice {job.slide.name!r}.{remedy}"
    )


def _warn_of_blur(slide: Slice, side: float, input_px: int) -> None:
    if side * _BLURRED < input_px:
        logger.warning(
            "slice %r: a patch has %.0f px and is enlarged to %d: pass the full-resolution image for sharp ones.",
            slide.name,
            side,
            input_px,
        )


def _cache_key(slide: Slice, side: float, runner: EncoderRunner, stain: Stain | None) -> str | None:
    """Compute the key of cached features; None if the image cannot be hashed because it is damaged."""
    try:
        image = slide.image.fingerprint(choose_level(slide.image, side, runner.encoder.input_px))
    except DamageError:
        logger.info("slice %r: features are not cached, since the image is damaged.", slide.name)
        return None
    return _key(slide, side, runner, stain, image=image)


def _key(slide: Slice, side: float, runner: EncoderRunner, stain: Stain | None, **image: str) -> str:
    """Compute the key of features from their specification and an identifier of the image."""
    # Without normalization nothing is added, so that the keys of existing caches remain valid.
    colors = {} if stain is None else {"um_per_px": slide.um_per_px, "restain": stain_record(stain)}
    made = {"side": side, "encoder": runner.identity, "views": runner.n_views}
    return content_key(centers=slide.centers_px, **made, **colors, **image)
