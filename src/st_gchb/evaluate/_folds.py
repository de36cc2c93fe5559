"""Splits by slice or patient, and the tables that each side of a split may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from anndata import AnnData

from st_gchb._constants import Keys
from st_gchb._errors import InputError, SliceError
from st_gchb.pp._graph import slice_members


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


def leave_one_out(
    adata: AnnData,
    by: Literal["slice", "patient"] = "slice",
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
        What is held out.
    slice_key, patient_key
        Columns of ``obs``.

    Raises
    ------
    SliceError
        If there is one slice or patient only, or a spot has none.

    Examples
    --------
    >>> import anndata, pandas as pd
    >>> obs = pd.DataFrame({"slice": ["A", "A", "B", "B"]}, index=list("wxyz"))
    >>> [fold.name for fold in leave_one_out(anndata.AnnData(obs=obs))]
    ['A', 'B']
    """
    if by not in ("slice", "patient"):
        raise InputError(f"by={by!r} is unknown; expected 'slice' or 'patient'.")
    key = slice_key if by == "slice" else patient_key
    if key not in adata.obs:
        raise SliceError(
            f"Leaving one {by} out needs obs[{key!r}]; found {list(adata.obs.columns)[:12]}. Add or name the column."
        )
    members = slice_members(adata, key)
    if len(members) < 2:
        raise SliceError(f"obs[{key!r}] holds {len(members)} {by}; leaving one out needs at least 2.")
    everything = np.arange(adata.n_obs)
    return [Fold(name, np.setdiff1d(everything, rows), rows) for name, rows in members.items()]


def hide_expression(adata: AnnData, features_key: str) -> AnnData:
    """What a held-out slice may show to a method: positions, images and patch features, no expression."""
    hidden = AnnData(obs=adata.obs.copy())
    for key in (Keys.SPATIAL, features_key):
        hidden.obsm[key] = np.array(adata.obsm[key])
    for key in (Keys.SPATIAL, features_key):
        if key in adata.uns:
            hidden.uns[key] = adata.uns[key]
    return hidden
