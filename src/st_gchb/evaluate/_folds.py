"""Splits by slice, patient or block of a slice, and held-out spots without their expression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from sklearn.neighbors import NearestNeighbors

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._errors import ArgumentError, SliceError
from st_gchb._options import DEFAULT_HELD_OUT, DEFAULT_SPLIT, HeldOut, Split
from st_gchb.io import column_of, sections_of, spot_centers
from st_gchb.pp.graph import spacing_of
from st_gchb.pp.patches import feature_keys

_NO_NAME = ("", "nan", "None", "<NA>")
"""Text of an empty or missing value after a column is converted to text."""

GAP_PITCHES = 2
"""Distance from a held-out block, in pitches, up to which spots are left out of training: two rings of neighbors."""
_LEAST_BLOCK = 10
"""Fewest spots of a block, and of its training spots."""
_ROUNDING = 1e-6
"""Share of a distance that is due to rounding: spots exactly two pitches away are trained on."""


@dataclass(frozen=True)
class Fold:
    """One split of the spots.

    Parameters
    ----------
    name
        The slice, patient or block that is held out.
    train, test
        Rows of the AnnData.
    """

    name: str
    train: np.ndarray
    test: np.ndarray


@checked
def leave_one_out(
    adata: AnnData,
    by: HeldOut = DEFAULT_HELD_OUT,
    *,
    slice_key: str = Keys.SLICE,
    patient_key: str = Keys.PATIENT,
) -> list[Fold]:
    """Hold out every slice, or every patient with all of their slices, once.

    Parameters
    ----------
    adata
        Spots of several slices.
    by
        Unit that is held out.
    slice_key, patient_key
        Columns of ``obs`` with slices and patients.

    Returns
    -------
    list of Fold
        One fold per slice or patient.

    Raises
    ------
    SliceError
        There is only one slice or patient, a spot has none, or a slice belongs to two patients.

    Examples
    --------
    >>> import anndata, pandas as pd
    >>> obs = pd.DataFrame({"slice": ["A", "A", "B", "B"]}, index=list("wxyz"))
    >>> [fold.name for fold in leave_one_out(anndata.AnnData(obs=obs))]
    ['A', 'B']
    """
    key = slice_key if by == "slice" else patient_key
    for needed in dict.fromkeys((key, slice_key)):
        if needed not in adata.obs:
            found = list(adata.obs.columns)[:12]
            raise SliceError(f"Leaving one {by} out needs obs[{needed!r}]; found {found}. Add or name the column.")
    sections = sections_of(adata, slice_key)
    sections.check_at_least(2, "leaving it out needs")
    slices = sections.rows
    members = slices if by == "slice" else _patients(adata, slices, slice_key, patient_key)
    if len(members) < 2:
        raise SliceError(
            f"obs[{key!r}] holds {len(members)} {by}; leaving one out needs at least 2. Pass more, or leave blocks of "
            "a slice out instead (split='blocks')."
        )
    everything = np.arange(adata.n_obs)
    return [Fold(name, np.setdiff1d(everything, rows), rows) for name, rows in members.items()]


@checked
def leave_blocks_out(adata: AnnData, *, slice_key: str = Keys.SLICE) -> list[Fold]:
    """Hold out each quadrant of each slice once, and train on the others of the same slice.

    A slice is divided at the median x and at the median y of its spots. Spots nearer to the held-out quadrant than two
    pitches, twice the distance of neighboring spots, are left out of training: they share neighbors with it.

    Parameters
    ----------
    adata
        Spots of one slice or more, with positions in ``obsm["spatial"]``, in full-resolution px.
    slice_key
        Column of ``obs`` with slices.

    Returns
    -------
    list of Fold
        Four folds per slice, named by slice and block, such as ``"A1, top left"``.

    Raises
    ------
    SliceError
        A block, or what is left beyond its gap, has fewer than 10 spots.

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.evaluate import leave_blocks_out
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=10, n_cols=10, n_genes=20)
    >>> [fold.name for fold in leave_blocks_out(adata)]
    ['S1, top left', 'S1, top right', 'S1, bottom left', 'S1, bottom right']
    """
    if slice_key not in adata.obs:
        found = list(adata.obs.columns)[:12]
        raise SliceError(f"Leaving blocks out needs obs[{slice_key!r}]; found {found}. Add or name the column.")
    centers, folds = spot_centers(adata), []
    for name, rows in sections_of(adata, slice_key).rows.items():
        blocks = block_splits(centers[rows]) if len(rows) >= _LEAST_BLOCK else [("whole", rows[:0], rows)]
        for block, stay, out in blocks:
            if min(len(stay), len(out)) < _LEAST_BLOCK:
                raise SliceError(
                    f"Slice {name!r} is too small for blocks with a gap of {GAP_PITCHES} pitches: of its {len(rows)} "
                    f"spots, {len(out)} are in the block {block!r} and {len(stay)} beyond its gap; expected at least "
                    f"{_LEAST_BLOCK} each. Leave whole slices out instead (split='section'), or drop this one."
                )
            folds.append(Fold(f"{name}, {block}", rows[stay], rows[out]))
    return folds


def block_splits(centers: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Divide positions into quadrants, and leave out a gap around each.

    Parameters
    ----------
    centers
        Positions of the spots of one slice, ``(n_spots, 2)`` as x, y in px.

    Returns
    -------
    list of tuple
        Name of each quadrant that holds spots, rows of the spots at least two pitches away from it, and rows of its
        spots.
    """
    right, low = (centers > np.median(centers, axis=0)).T
    gap = GAP_PITCHES * spacing_of(centers) * (1 - _ROUNDING)
    blocks = []
    for name, inside in {
        "top left": ~right & ~low,
        "top right": right & ~low,
        "bottom left": ~right & low,
        "bottom right": right & low,
    }.items():
        if inside.any():
            distance = NearestNeighbors(n_neighbors=1).fit(centers[inside]).kneighbors(centers)[0][:, 0]
            blocks.append((name, np.flatnonzero(~inside & (distance >= gap)), np.flatnonzero(inside)))
    return blocks


def check_folds(adata: AnnData, folds: Sequence[Fold], *, slice_key: str = Keys.SLICE) -> list[Fold]:
    """Validate folds that the caller made.

    Raises
    ------
    SliceError
        There is none, two have one name, or the rows of one are no rows of the object, are there twice, or are both
        trained on and held out; or there is no column with the slices.
    """
    column_of(adata, slice_key, "slice_key", SliceError)
    if not folds:
        raise SliceError("folds=[] holds no fold; expected at least one.")
    names = [fold.name for fold in folds]
    if len(set(names)) < len(names):
        raise SliceError(f"folds: found the names {names}; expected another one for each fold.")
    for fold in folds:
        for what, rows in (("train", np.asarray(fold.train)), ("test", np.asarray(fold.test))):
            whole = rows.ndim == 1 and len(rows) and rows.dtype.kind in "iu"
            if not whole or rows.min() < 0 or rows.max() >= adata.n_obs or len(np.unique(rows)) < len(rows):
                raise SliceError(
                    f"Fold {fold.name!r}: {what} is an array of shape {rows.shape} and type {rows.dtype}; expected "
                    f"different row numbers from 0 to {adata.n_obs - 1}."
                )
        both = np.intersect1d(fold.train, fold.test)
        if len(both):
            raise SliceError(
                f"Fold {fold.name!r}: {len(both)} spots, first {str(adata.obs_names[both[0]])!r}, are both trained on "
                "and held out. Take them out of train."
            )
    return list(folds)


def split_folds(
    adata: AnnData, split: Split, by: HeldOut, *, slice_key: str = Keys.SLICE, patient_key: str = Keys.PATIENT
) -> list[Fold]:
    """Build the folds of an evaluation.

    Raises
    ------
    ArgumentError
        Blocks of patients are asked for.
    SliceError
        The spots cannot be split so.
    """
    if split == "section":
        return leave_one_out(adata, by, slice_key=slice_key, patient_key=patient_key)
    if by != DEFAULT_HELD_OUT:
        raise ArgumentError(f"split='blocks' holds out parts of slices; expected by='slice', found by={by!r}.")
    return leave_blocks_out(adata, slice_key=slice_key)


def hold_one_out(
    adata: AnnData, held_out: str, *, split: Split = DEFAULT_SPLIT, slice_key: str = Keys.SLICE
) -> list[Fold]:
    """Build the single fold that holds one slice or block out.

    Raises
    ------
    SliceError
        The slice or block does not exist, or is the only one.
    """
    folds = split_folds(adata, split, DEFAULT_HELD_OUT, slice_key=slice_key)
    chosen = [fold for fold in folds if fold.name == held_out]
    if not chosen:
        unit = "slice" if split == "section" else "block"
        found = sorted(fold.name for fold in folds)
        raise SliceError(f"obs[{slice_key!r}] has no {unit} {held_out!r}; found {found}.")
    return chosen


def _patients(adata: AnnData, slices: dict[str, np.ndarray], slice_key: str, patient_key: str) -> dict[str, np.ndarray]:
    """Find the rows of each patient, and require that each slice belongs to a single patient.

    Raises
    ------
    SliceError
        A spot has no patient, or a slice has spots of several patients.
    """
    column = column_of(adata, patient_key, "patient_key", SliceError)
    names = column.astype(str).str.strip()
    unknown = (column.isna() | names.isin(_NO_NAME)).to_numpy()
    without = [name for name, rows in slices.items() if unknown[rows].any()]
    if without:
        raise SliceError(
            f"Slices {without} have spots without a patient: obs[{patient_key!r}] is empty for {int(unknown.sum())} of "
            f"{adata.n_obs} spots. Fill the column, drop these slices, or leave one slice out instead (by='slice')."
        )
    owners = {name: sorted(set(names.iloc[rows])) for name, rows in slices.items()}
    split = {name: patients for name, patients in owners.items() if len(patients) > 1}
    if split:
        raise SliceError(
            f"Slices belong to one patient each, but obs[{patient_key!r}] names more for {split}. Correct the column, "
            f"or give sections of two patients two names in obs[{slice_key!r}]."
        )
    return {patient: np.flatnonzero(names == patient) for patient in dict.fromkeys(names)}


def hide_expression(adata: AnnData, features_key: str | None = None) -> AnnData:
    """Copy spots without expression: with positions, images and, if ``features_key`` is given, patch features."""
    hidden = AnnData(obs=adata.obs.copy())
    for key in (Keys.SPATIAL, *(feature_keys(adata, features_key) if features_key is not None else ())):
        hidden.obsm[key] = np.array(adata.obsm[key])
        if key in adata.uns:
            hidden.uns[key] = adata.uns[key]
    return hidden
