"""Encoding of the patches of several slices, batch by batch, with a cache of features by content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._compat import cpu_supports
from st_gchb._errors import DamageError, EncoderError
from st_gchb._logging import logger, track
from st_gchb._options import OnDamage
from st_gchb.pp._stain_normalization import Stain, normalizing, stain_of, stain_record
from st_gchb.pp.encoders import EncoderRunner, EncodingOptions, RunnerBatch
from st_gchb.pp.patches._cache import Features, content_key, load_features, store_features
from st_gchb.pp.patches._damage import Damage
from st_gchb.pp.patches._feature_maps import Maps, MapsWriter, check_room, is_stored, maps_path, writing
from st_gchb.pp.patches._last_stage import shape_of_maps
from st_gchb.pp.patches._reader import patches_of_sizes
from st_gchb.pp.patches._size_batches import PatchRead, Rows, choose_level
from st_gchb.pp.patches._threads import prefetch
from st_gchb.pp.spots import Slice

_BLURRED = 4
"""Factor of enlargement of patches above which a warning says that they are blurred."""


@dataclass(frozen=True, eq=False)
class PartToEncode:
    """One encoder at one patch size, for all slices.

    Parameters
    ----------
    runner
        Encoder on a device. If it has a recorder, feature maps are stored too.
    sides
        Side of a patch of each slice, px of its image.
    """

    runner: EncoderRunner
    sides: list[float]


@dataclass
class _Job:
    """A slice whose patches are to be encoded with one encoder at one size.

    Parameters
    ----------
    slide
        Spots and image.
    runner
        Encoder.
    columns
        Columns of the features among those of all parts.
    side
        Side of a patch, px.
    key
        Key of the features in the cache; None if they are not cached.
    features
        Features, ``(n_spots, n_features)``, NaN where they are not computed yet.
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
    runner: EncoderRunner
    columns: slice
    side: float
    key: str | None
    features: Features
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


@dataclass
class _SliceJobs:
    """The parts of the features of a slice that are to be computed; their patches are read together.

    Parameters
    ----------
    slide
        Spots and image.
    jobs
        Parts of the features that are not in the cache.
    """

    slide: Slice
    jobs: list[_Job]

    def __post_init__(self) -> None:
        # Encoders that take patches of the same size share them.
        sizes = dict.fromkeys((job.side, job.runner.encoder.input_px) for job in self.jobs)
        self.reads = [
            PatchRead(*size, Damage(self.slide.name, self.slide.image.name, len(self.slide.rows))) for size in sizes
        ]
        self.users = [[job for job in self.jobs if (job.side, job.runner.encoder.input_px) == size] for size in sizes]

    @property
    def damage(self) -> Damage:
        """Spots of which some patch cannot be decoded."""
        return Damage.union([read.damage for read in self.reads])


def embed_slices(
    slices: list[Slice],
    parts: list[PartToEncode],
    folder: Path | None,
    on_damage: OnDamage,
    stain: Stain | None = None,
) -> tuple[Features, npt.NDArray[np.int64], list[Path]]:
    """Compute the features of all slices, or load them from the cache.

    Parameters
    ----------
    slices
        Slices with their images.
    parts
        Encoders and patch sizes, in the order of the columns.
    folder
        Folder of the cache; None for no cache. Each part of a slice is cached by itself.
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
    widths = [part.runner.encoder.n_features for part in parts]
    ends = np.cumsum(widths).tolist()
    columns = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    features = np.empty((sum(len(slide.rows) for slide in slices), sum(widths)), dtype=np.float32)
    work, files = [], []
    try:
        for i, slide in enumerate(slices):
            keys = _Keys(slide, folder, stain)
            found = [
                _job_of(slide, part.runner, own, part.sides[i], keys, features)
                for part, own in zip(parts, columns, strict=True)
            ]
            files += [path for _, path in found if path is not None]
            jobs = [job for job, _ in found if job is not None]
            _log_cached(slide, len(parts) - sum(job.known is None for job in jobs), len(parts), folder)
            if jobs:
                work.append(_SliceJobs(slide, jobs))
        if work:
            _encode(work, folder, on_damage, stain)
    finally:
        for slide in slices:
            slide.image.release()
    rows = [np.empty(0, dtype=np.int64)]
    for one in work:
        for job in one.jobs:
            features[one.slide.rows, job.columns] = job.features
        if one.damage.rows:
            logger.warning("Left out: %s.", one.damage.describe())
            rows.append(one.slide.rows[np.sort(one.damage.rows)])
            # A spot that one part leaves out has no features at all.
            features[rows[-1]] = np.nan
    excluded = np.concatenate(rows)
    if len(excluded) == len(features):
        raise DamageError(f"no spot is left: {work[-1].damage.describe()}. Fetch or export the image again.")
    return features, excluded, files


def _job_of(
    slide: Slice, runner: EncoderRunner, columns: slice, side: float, keys: _Keys, features: Features
) -> tuple[_Job | None, Path | None]:
    """Fill in the features of a part from the cache, or return a job that computes them; and the file of their maps."""
    folder = keys.folder
    empty = np.full((len(slide.rows), runner.encoder.n_features), np.nan, dtype=np.float32)
    key = None if folder is None else keys.cached(side, runner)
    found = load_features(folder, key, empty.shape) if folder is not None and key is not None else None
    path, shape = None, None
    if folder is not None and runner.recorder is not None:
        shape = (runner.n_views, *shape_of_maps(runner.encoder))
        path = maps_path(folder, key or keys.of(side, runner, on_damage=slide.image.name))
    if found is not None and (path is None or is_stored(path, found, shape or ())):
        features[slide.rows, columns] = found
        return None, path
    _warn_of_blur(slide, side, runner.encoder.input_px)
    if path is not None and shape is not None:
        check_room(path, len(slide.rows), shape)
    return _Job(slide, runner, columns, side, key, empty, path=path, known=found), path


def _log_cached(slide: Slice, n_cached: int, n_parts: int, folder: Path | None) -> None:
    """Tell of how many encoders and patch sizes the features of a slice were found in the cache."""
    if n_cached:
        part = "" if n_cached == n_parts else f", for {n_cached} of {n_parts} encoders and patch sizes"
        logger.info("slice %r: features of %d spots found in %s%s.", slide.name, len(slide.rows), folder, part)


def _encode(work: list[_SliceJobs], folder: Path | None, on_damage: OnDamage, stain: Stain | None) -> None:
    """Compute the features of all jobs, and cache those of each slice without damage."""
    jobs = [job for one in work for job in one.jobs]
    _warn_of_precision(jobs[0].runner.options)
    n_batches = sum(-(-len(job.slide.rows) // job.runner.options.batch_size) for job in jobs)
    what = f"Patches of {work[0].slide.name}" if len(work) == 1 else f"Patches of {len(work)} slices"

    def take(name: tuple[_Job, Rows], found: Features, maps: Maps | None = None) -> None:
        job, rows = name
        if not np.isfinite(found).all():
            raise _not_finite(job)
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
        with closing(prefetch(_batches(work, on_damage, stain))) as ahead:
            EncoderRunner.run_all(track(ahead, what, n_batches), take)
        for job in jobs:
            # Slices with damaged spots never reach their full count, so their files are completed here.
            job.finish()


def _batches(
    work: list[_SliceJobs], on_damage: OnDamage, stain: Stain | None
) -> Iterator[RunnerBatch[tuple[_Job, Rows]]]:
    """Yield batches of patches, slice by slice, so that no more than one image is held in memory."""
    for one in work:
        options = one.jobs[0].runner.options
        recolors = [] if stain is None else [normalizing(stain_of(one.slide, stain.method), stain)]
        try:
            for size, rows, patches in patches_of_sizes(one.slide, one.reads, options.batch_size, options.memory_mb):
                # After damage that raises, the rest is read only to report all damaged regions, and not encoded.
                if on_damage == "raise" and any(read.damage.rows for read in one.reads):
                    continue
                for job in one.users[size]:
                    yield job.runner, (job, rows), patches, recolors
        finally:
            one.slide.image.release()
        if on_damage == "raise":
            one.damage.check()


def _warn_of_precision(options: EncodingOptions) -> None:
    """Warn if the CPU only emulates the half precision, which is then slower than float32."""
    precision = options.precision
    if precision == "float32" or options.device.type != "cpu" or cpu_supports(precision):
        return
    logger.warning(
        "This CPU does not support %s in hardware: encoding can take more than ten times as long as in float32. %s",
        precision,
        advise(
            Fix("precision", "'float32'"),
            otherwise="Encode on another machine, or make the reference's features anew in float32.",
        ),
    )


def _not_finite(job: _Job) -> EncoderError:
    remedy = (
        " Half precision may be too coarse for it. "
        + advise(Fix("precision", "'float32'"), otherwise="Make the reference's features anew in float32.")
        if job.runner.options.precision != "float32"
        else ""
    )
    return EncoderError(
        f"encoder {job.runner.encoder.name!r} gives NaN or infinite features for slice {job.slide.name!r}.{remedy}"
    )


def _warn_of_blur(slide: Slice, side: float, input_px: int) -> None:
    if side * _BLURRED < input_px:
        logger.warning(
            "slice %r: a patch has %.0f px and is enlarged to %d: pass the full-resolution image for sharp ones.",
            slide.name,
            side,
            input_px,
        )


class _Keys:
    """Keys under which the features of a slice are cached.

    Parameters
    ----------
    slide
        Spots and image.
    folder
        Folder of the cache; None for no cache.
    stain
        Stain to which colors are normalized; None to leave them unchanged.
    """

    def __init__(self, slide: Slice, folder: Path | None, stain: Stain | None) -> None:
        self.slide, self.folder, self.stain = slide, folder, stain
        self._fingerprints: dict[int, str | None] = {}

    def cached(self, side: float, runner: EncoderRunner) -> str | None:
        """Compute the key of cached features; None if the image cannot be hashed because it is damaged."""
        image = self._fingerprint(choose_level(self.slide.image, side, runner.encoder.input_px))
        return None if image is None else self.of(side, runner, image=image)

    def of(self, side: float, runner: EncoderRunner, **image: str) -> str:
        """Compute the key of features from their specification and an identifier of the image."""
        # Without normalization nothing is added, so that the keys of existing caches remain valid.
        stain = self.stain
        colors = {} if stain is None else {"um_per_px": self.slide.um_per_px, "restain": stain_record(stain)}
        made = {"side": side, "encoder": runner.identity, "views": runner.n_views}
        return content_key(centers=self.slide.centers_px, **made, **colors, **image)

    def _fingerprint(self, level: int) -> str | None:
        """Hash the image, or the pixels of a level; once, though several parts ask for it."""
        # Of a file all bytes are hashed, whatever the level.
        level = 0 if self.slide.image.content_hash is not None else level
        if level not in self._fingerprints:
            try:
                self._fingerprints[level] = self.slide.image.fingerprint(level)
            except DamageError:
                logger.info("slice %r: features are not cached, since the image is damaged.", self.slide.name)
                self._fingerprints[level] = None
        return self._fingerprints[level]
