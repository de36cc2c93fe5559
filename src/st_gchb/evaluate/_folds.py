"""Splits by slice or patient, and held-out slices without their expression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._errors import SliceError
from st_gchb._options import DEFAULT_HELD_OUT, HeldOut
from st_gchb.io import column_of
from st_gchb.pp.patches import feature_keys
from st_gchb.pp.spots import sections_of

_NO_NAME = ("", "nan", "None", "<NA>")
"""Text of an empty or missing value after a column is converted to text."""


@dataclass(frozen=True)
class Fold:
    """One split of the spots.

    Parameters
    ----------
    name
        The slice or patient that is held out.
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
        raise SliceError(f"obs[{key!r}] holds {len(members)} {by}; leaving one out needs at least 2.")
    everything = np.arange(adata.n_obs)
    return [Fold(name, np.setdiff1d(everything, rows), rows) for name, rows in members.items()]


def hold_one_out(adata: AnnData, held_out: str, *, slice_key: str = Keys.SLICE) -> list[Fold]:
    """Build the single fold that holds one slice out.

    Raises
    ------
    SliceError
        The slice does not exist, or is the only one.
    """
    folds = leave_one_out(adata, "slice", slice_key=slice_key)
    chosen = [fold for fold in folds if fold.name == held_out]
    if not chosen:
        raise SliceError(f"obs[{slice_key!r}] has no slice {held_out!r}; found {sorted(fold.name for fold in folds)}.")
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
