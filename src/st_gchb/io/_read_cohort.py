"""Read many samples of any format into one AnnData of their common genes, one after another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._counts import why_no_counts
from st_gchb._errors import ExpressionError, InputError, SliceError
from st_gchb._logging import all_quiet, logger, steps_quiet, track
from st_gchb._matrices import matrix_of
from st_gchb.io._cohort_genes import GeneList, common_genes
from st_gchb.io._cohort_samples import (
    MADE,
    Options,
    Sample,
    Section,
    check_samples,
    find_sections,
    load,
    naming,
    validate,
)
from st_gchb.io._library import Library, libraries_of, put_libraries
from st_gchb.io._pixel_size import factor_size, spot_sizes
from st_gchb.io._sample_sheet import SampleRow, read_samples
from st_gchb.io._spot_centers import spot_centers
from st_gchb.io.images import is_image_path, open_image

_GROUP = "group"
_KEPT = ("array_row", "array_col", "organism", "tissue", "technology")
"""Columns of ``obs`` that are kept where a sample has them."""
_OF_SLICES = ("slices", "um_per_px", "excluded", "maps")
"""Entries of the features' specification in ``uns`` that speak of single slices or spots."""
_THUMBNAIL_PX = 600
_ALIKE = 1.25
"""Ratio of distances between spots up to which samples are of one technology."""
_USUAL = ("fullres", "hires", "lowres")


@checked
def read_cohort(
    source: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    samples: Sequence[str] | None = None,
    genome: str | None = None,
    allow_missing: bool = False,
) -> AnnData:
    """Read many samples, of any format that :func:`read_section` knows, into one AnnData to train on.

    All samples are validated first, without their counts, so that an error in the last row is found in the first
    minute. Then they are read one after another, and of each only its counts of the genes that all samples have, its
    positions and a small image are kept: patches are later read from the image files.

    Parameters
    ----------
    source
        A sample sheet: a ``.csv`` file with the column ``path`` and, if needed, ``sample`` (name; by default that of
        the file or folder), ``image`` (full-resolution image; for a SpatialData store the name of an element),
        ``patient``, ``um_per_px`` and ``group``. Relative paths start at the folder of the sheet. Or a list of paths:
        Space Ranger folders, SpatialData stores, AnnData files, HEST-1k samples and legacy ST (her2st), mixed. A
        folder with several sections stands for all of them, and ``hest/TENX95`` for one.
    samples
        Names of samples to read; by default all.
    genome, allow_missing
        As in :func:`read_section`.

    Returns
    -------
    AnnData
        ``X``: counts of the common genes, CSR float32, ``(n_spots, n_genes)``; spots without any are dropped.
        ``obs``: ``slice`` (the sample), ``patient`` and ``group`` as far as they are known, positions on the array.
        ``obsm["spatial"]``: x, y in full-resolution px. ``uns["spatial"]``: for each sample the path of its image, the
        size of a pixel, and a thumbnail. ``uns["cohort"]``: a table with a row for each sample, with what was kept and
        dropped of genes, counts and spots. Patch features are kept if all samples have them, made in one way.

    Raises
    ------
    MissingFileError, MissingKeyError, InputError
        The sheet is missing, empty, not text, has no column ``path`` or unknown ones; a file or an image is missing or
        damaged; a sample is there twice. The message begins with the row, counted as a spreadsheet shows it.
    ScaleError
        A row states another size of a pixel than its files.
    ExpressionError
        No gene is common to all samples, as for two organisms; or some samples hold counts and others do not.

    Examples
    --------
    >>> import numpy as np, st_gchb, tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> for seed in (0, 1):
    ...     slide = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20, seed=seed)
    ...     slide.write_h5ad(folder / f"S{seed}.h5ad")
    >>> rows = "sample,path,patient", "A,S0.h5ad,P1", "B,S1.h5ad,P2"
    >>> np.savetxt(folder / "samples.csv", rows, fmt="%s")
    >>> cohort = st_gchb.io.read_cohort(folder / "samples.csv")
    >>> cohort.n_vars, list(cohort.obs["slice"].cat.categories), list(cohort.obs["patient"].cat.categories)
    (20, ['A', 'B'], ['P1', 'P2'])
    >>> cohort.uns["cohort"][["n_spots", "n_genes", "n_genes_dropped"]].to_numpy().tolist()
    [[36, 20, 0], [35, 20, 0]]
    """
    options = Options(genome, allow_missing)
    found = _validated(find_sections(_wanted_rows(read_samples(source), samples)), options, samples)
    genes = common_genes([GeneList(sample.label, sample.genes) for sample in found])
    keep_features = _have_one_rule(found)
    parts = list(_parts(found, genes, options, keep_features))
    _check_values(parts)
    return _joined(parts, genes, keep_features)


def _wanted_rows(rows: list[SampleRow], samples: Sequence[str] | None) -> list[SampleRow]:
    """Drop rows of samples that are not asked for, as far as rows name their samples."""
    if samples is None:
        return rows
    names = [row.sample for row in rows if row.sample is not None]
    if len(names) == len(rows):
        _check_wanted(samples, names)
    return [row for row in rows if row.sample is None or row.sample in set(samples)]


def _check_wanted(samples: Sequence[str], names: list[str]) -> None:
    """Validate that some samples are asked for, and that all of these are there."""
    if not samples:
        raise InputError("samples is empty; expected names of samples, or None for all.")
    missing = sorted(set(samples) - set(names))
    if missing:
        raise InputError(f"there is no sample {', '.join(map(repr, missing[:6]))}; expected some of {names[:12]}.")


def _validated(sections: list[Section], options: Options, wanted: Sequence[str] | None) -> list[Sample]:
    """Validate all sections, and select the samples that are asked for."""
    found: list[Sample] = []
    with all_quiet():
        for section in track(sections, "Checking samples", len(sections)):
            found += validate(section, options)
    check_samples(found)
    if wanted is None:
        return found
    _check_wanted(wanted, [sample.name for sample in found])
    return [sample for sample in found if sample.name in set(wanted)]


def _have_one_rule(found: list[Sample]) -> bool:
    """Return whether all samples hold patch features of one specification; warn if some hold others or none."""
    rules = {sample.features for sample in found}
    if rules == {None}:
        return False
    if len(rules) == 1:
        return True
    logger.warning(
        "Patch features of %d of %d samples are left out: expected features of all, made in one way.",
        sum(sample.features is not None for sample in found),
        len(found),
    )
    return False


@dataclass(frozen=True, eq=False)
class _Part:
    """The part of a sample that is kept.

    Parameters
    ----------
    sample
        The sample.
    counts
        Counts of the common genes, ``(n_spots, n_genes)`` CSR float32.
    obs
        Annotations of the spots, indexed by names that no other sample has.
    obsm
        Positions and, where they are kept, patch features.
    var
        Annotations of the common genes.
    library
        Image and scale factors.
    features
        Specification of the features in ``uns``.
    report
        Row of ``uns["cohort"]``.
    why_no_counts
        Reason why the values are no counts; empty if they are.
    """

    sample: Sample
    counts: sparse.csr_matrix
    obs: pd.DataFrame
    obsm: dict[str, npt.NDArray[Any]]
    var: pd.DataFrame
    library: Library
    features: dict[str, Any]
    report: dict[str, Any]
    why_no_counts: str

    def told(self) -> str:
        """Describe what is kept and what is dropped."""
        report, lost = self.report, self.report["n_spots_dropped"]
        genes = (
            f"{report['n_genes_dropped']} of {report['n_genes']} genes, with {report['counts_dropped']:.1%} of the "
            "counts, dropped since not all samples have them"
            if report["n_genes_dropped"]
            else f"all {report['n_genes']} genes"
        )
        spots = f"; {lost} spots dropped, without counts or features" if lost else ""
        return f"sample {self.sample.name!r}: {report['n_spots']} spots; {genes}{spots}"


def _parts(found: list[Sample], genes: pd.Index, options: Options, keep_features: bool) -> Iterator[_Part]:
    """Read samples one after another, each section once, keep of each what training needs, and report it."""
    section, adata = None, None
    start = time.monotonic()
    for number, sample in enumerate(track(found, "Reading samples", len(found)), start=1):
        if sample.section is not section:
            adata = None  # freed before the next one is read
            with naming(sample.section.label), steps_quiet():
                section, adata = sample.section, load(sample.section, options)
        assert adata is not None
        part = _strip(adata, sample, genes, keep_features)
        left = (time.monotonic() - start) / number * (len(found) - number)
        logger.info("%s (%d of %d%s)", part.told(), number, len(found), f", {left:.0f} s left" if left >= 1 else "")
        yield part


def _strip(adata: AnnData, sample: Sample, genes: pd.Index, keep_features: bool) -> _Part:
    with naming(sample.label):
        if adata.X is None:
            raise ExpressionError(f"{sample.section.path} holds no counts (X is absent); expected those of its spots.")
        rows = np.flatnonzero((adata.obs[Keys.SLICE] == sample.slice).to_numpy())
        matrix = sparse.csr_matrix(matrix_of(adata.X, "X", ExpressionError), dtype=np.float32)[rows]
        counts = matrix[:, adata.var_names.get_indexer(genes)]
        keep = np.asarray(counts.sum(axis=1)).ravel() != 0
        if keep_features:
            keep &= np.isfinite(np.asarray(adata.obsm[Keys.FEATURES])[rows]).all(axis=1)
        if not keep.any():
            raise SliceError("no spot has a count of the genes that all samples have. Leave the sample out.")
        kept = rows[keep]
        library = libraries_of(adata).get(sample.slice, Library(sample.slice))
        part = _Part(
            sample,
            counts if keep.all() else counts[keep],
            _annotations(adata.obs.iloc[kept], sample),
            {Keys.SPATIAL: spot_centers(adata)[kept]}
            | ({key: np.asarray(adata.obsm[key])[kept] for key in (Keys.FEATURES, MADE)} if keep_features else {}),
            adata.var.iloc[adata.var_names.get_indexer(genes)],
            replace(library if keep_features else _with_thumbnail(library), name=sample.name),
            dict(adata.uns.get(Keys.FEATURES, {})) if keep_features else {},
            _report(sample, matrix, counts, library, spot_centers(adata)[kept]),
            why_no_counts(matrix, "X"),
        )
    return part


def _annotations(obs: pd.DataFrame, sample: Sample) -> pd.DataFrame:
    start = f"{sample.name}_"
    names = [str(name) if str(name).startswith(start) else f"{start}{name}" for name in obs.index]
    frame = pd.DataFrame({Keys.SLICE: sample.name}, index=pd.Index(names, dtype=object))
    for key, value in ((Keys.PATIENT, sample.patient), (_GROUP, sample.section.row.group)):
        frame[key] = pd.Series([value] * len(frame), index=frame.index, dtype=object)
    for key in _KEPT:
        if key in obs:
            frame[key] = obs[key].to_numpy()
    return frame


def _report(
    sample: Sample, matrix: sparse.csr_matrix, counts: sparse.csr_matrix, library: Library, centers: np.ndarray
) -> dict[str, Any]:
    whole = float(matrix.sum(dtype=np.float64))
    row, n_kept = sample.section.row, len(centers)
    sizes = [factor_size(library.factors, library.where), *spot_sizes(library.factors, centers, library.where)]
    um_per_px = next((size.um_per_px for size in sizes if size is not None), np.nan)
    nearest = np.asarray(cKDTree(centers).query(centers, k=2)[0])[:, 1] if n_kept > 1 else np.array([np.nan])
    return {
        "path": str(sample.section.path),
        "image": str(library.image_path or ""),
        Keys.PATIENT: sample.patient or "",
        _GROUP: row.group or "",
        "um_per_px": um_per_px,
        "spacing_um": um_per_px * float(np.median(nearest)),
        "n_spots": n_kept,
        "n_spots_dropped": matrix.shape[0] - n_kept,
        "n_genes": matrix.shape[1],
        "n_genes_dropped": matrix.shape[1] - counts.shape[1],
        "counts_dropped": 1 - float(counts.sum(dtype=np.float64)) / whole if whole else 0.0,
    }


def _with_thumbnail(library: Library) -> Library:
    """Keep of the stored images one that is small, if there is an image file, else the one that patches come from."""
    usual = next((key for key in _USUAL if key in library.images), None)
    if usual is None:
        return library
    path = library.image_path
    if path is None or not is_image_path(path):
        return replace(library, images={usual: library.images[usual]})
    name = f"tissue_{usual}_scalef"
    scale = library.factor(name) if usual != "fullres" else library.factor(name) or 1.0
    if scale is None:
        return replace(library, images={})
    pixels, smaller = open_image(np.asarray(library.images[usual])).thumbnail(_THUMBNAIL_PX)
    factors = {key: value for key, value in library.factors.items() if not _is_image_factor(key)}
    return replace(library, images={"hires": pixels}, factors={**factors, "tissue_hires_scalef": scale * smaller})


def _is_image_factor(key: str) -> bool:
    return key.startswith("tissue_") and key.endswith("_scalef")


def _check_values(parts: list[_Part]) -> None:
    """Validate that all samples hold counts, or none does."""
    others = [part for part in parts if part.why_no_counts]
    if not others or len(others) == len(parts):
        return
    first = next(part for part in parts if not part.why_no_counts)
    raise ExpressionError(
        f"{others[0].sample.label}: X holds no counts, as that of {first.sample.label} does: {others[0].why_no_counts} "
        "Write counts into X of every sample."
    )


def _joined(parts: list[_Part], genes: pd.Index, keep_features: bool) -> AnnData:
    """Concatenate what was kept of the samples, and free it on the way."""
    report = pd.DataFrame([part.report for part in parts], index=pd.Index([part.sample.name for part in parts]))
    report.index.name = "sample"
    obs = pd.concat([part.obs for part in parts])
    _tell_patients(parts)
    _tell_spacings(report["spacing_um"])
    for key in (Keys.SLICE, Keys.PATIENT, _GROUP, "organism", "tissue", "technology"):
        if key not in obs or obs[key].isna().all():
            obs = obs.drop(columns=key, errors="ignore")
        else:
            obs[key] = pd.Categorical(obs[key], categories=list(dict.fromkeys(obs[key].dropna())))
    obsm = {key: np.concatenate([part.obsm[key] for part in parts]) for key in parts[0].obsm}
    adata = AnnData(_stacked(parts), obs=obs, var=_common_var(parts, genes), obsm=obsm)
    put_libraries(adata, [part.library for part in parts])
    adata.uns[Keys.COHORT] = report
    if keep_features:
        said = parts[0].features
        adata.uns[Keys.FEATURES] = {key: value for key, value in said.items() if key not in _OF_SLICES}
    logger.info(
        "%d samples, %d spots, %d common genes; uns[%r] says what was dropped of each.",
        len(parts),
        adata.n_obs,
        adata.n_vars,
        Keys.COHORT,
    )
    return adata


def _stacked(parts: list[_Part]) -> sparse.csr_matrix:
    """Stack the counts of all samples, and free each array of theirs once it is copied."""
    matrices = [part.counts for part in parts]
    shape = (sum(matrix.shape[0] for matrix in matrices), matrices[0].shape[1])
    starts = np.cumsum([0, *[matrix.nnz for matrix in matrices]])
    wide = np.int64 if starts[-1] > np.iinfo(np.int32).max else np.int32
    pointers = [matrix.indptr[1:].astype(wide) + wide(start) for matrix, start in zip(matrices, starts, strict=False)]
    indptr = np.concatenate([np.zeros(1, dtype=wide), *pointers])
    data = np.concatenate([matrix.data for matrix in matrices])
    for matrix in matrices:
        matrix.data = np.empty(0, dtype=np.float32)
    indices = np.concatenate([matrix.indices.astype(wide, copy=False) for matrix in matrices])
    stacked = sparse.csr_matrix((data, indices, indptr), shape=shape)
    stacked.sort_indices()
    return stacked


def _common_var(parts: list[_Part], genes: pd.Index) -> pd.DataFrame:
    """Keep annotations of genes on which all samples agree."""
    var = pd.DataFrame(index=genes.copy())
    for key in ("gene_ids", "genome"):
        if all(key in part.var for part in parts):
            columns = [part.var[key].astype(str).to_numpy(object) for part in parts]
            if all((column == columns[0]).all() for column in columns[1:]):
                var[key] = columns[0]
    return var


def _tell_patients(parts: list[_Part]) -> None:
    """Warn of samples without a patient where others have one."""
    missing = [part.sample.name for part in parts if part.sample.patient is None]
    if missing and len(missing) < len(parts):
        logger.warning(
            "The patient of %d of %d samples is not known, such as of %s: whole patients cannot be left out. Name it "
            "in the column 'patient' of a sample sheet.",
            len(missing),
            len(parts),
            ", ".join(missing[:4]),
        )


def _tell_spacings(spacings: pd.Series) -> None:
    """Warn of samples whose spots are farther apart than those of others, as of two technologies."""
    known = spacings.dropna().sort_values()
    if known.empty or known.iloc[-1] <= _ALIKE * known.iloc[0]:
        return
    logger.warning(
        "Spots are %.0f µm apart in %r and %.0f µm in %r: a model has one spot graph for all, in which spots that lie "
        "far apart have no neighbors. Train a model for each technology if there are samples enough.",
        *(known.iloc[0], known.index[0], known.iloc[-1], known.index[-1]),
    )
