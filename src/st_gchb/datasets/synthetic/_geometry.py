"""Validate real spot positions and layers that serve as the geometry of synthetic tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from st_gchb._constants import VISIUM_SPOT_DIAMETER_UM, Keys
from st_gchb._errors import CoordinateError, InputError, MissingKeyError, ScaleError, SliceError
from st_gchb._matrices import dense_of
from st_gchb.datasets.synthetic._anatomy import LAYER_NAMES
from st_gchb.io import Library, column_of, libraries_of

SIDE_PX = 3000
"""Length of the longer side of an image that is drawn for a given geometry, px."""

_PITCH_UM = 100.0
_ASIDE_UM = 300.0


@dataclass(frozen=True)
class Geometry:
    """Spot positions and layers of one slice.

    Parameters
    ----------
    name
        Name of the slice that the positions come from.
    centers_um
        Spot centers as x, y from the corner of the image, ``(n_spots, 2)``, µm.
    layers
        Names of layers, ``(n_spots,)``; empty for spots without a layer.
    array
        Array positions, if known, indexed by the names of the spots.
    pitch_um, diameter_um
        Distance between neighboring spots and their diameter, µm.
    """

    name: str
    centers_um: NDArray[np.float64]
    layers: NDArray[np.str_]
    array: pd.DataFrame

    pitch_um: float = _PITCH_UM
    diameter_um: float = VISIUM_SPOT_DIAMETER_UM

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the image, µm."""
        width, height = self.centers_um.max(axis=0) + _ASIDE_UM
        return float(width), float(height)

    @property
    def um_per_px(self) -> float:
        """Pixel size at which the longer side of the image has ``SIDE_PX``, µm."""
        return max(self.size_um) / SIDE_PX


def geometries(given: ad.AnnData | Sequence[ad.AnnData]) -> list[Geometry]:
    """Validate the ``geometry`` argument, and split it by slice.

    Parameters
    ----------
    given
        One object with one or more slices, or one object per slice.

    Returns
    -------
    list of Geometry
        One entry per slice.

    Raises
    ------
    InputError
        The argument is empty or not AnnData.
    MissingKeyError
        A column is missing.
    CoordinateError
        Coordinates are missing or not finite.
    SliceError
        A slice has fewer than two known layers.
    ScaleError
        The pixel size is not stated.
    """
    objects = [given] if isinstance(given, ad.AnnData) else list(given)
    if not objects or not all(isinstance(adata, ad.AnnData) for adata in objects):
        kinds = [type(adata).__name__ for adata in objects]
        raise InputError(
            f"geometry: found {kinds or 'nothing'}; expected AnnData, as datasets.dlpfc_geometry gives it."
        )
    return [part for adata in objects for part in _split(adata)]


def _split(adata: ad.AnnData) -> list[Geometry]:
    for column in (Keys.SLICE, "layer"):
        if column not in adata.obs:
            raise MissingKeyError(
                f"geometry.obs: there is no column {column!r}; found {list(adata.obs.columns)}. Spots need a slice and "
                "a layer; datasets.dlpfc_geometry gives both."
            )
    stored = adata.obsm.get(Keys.SPATIAL, np.empty((0, 0)))
    centers = np.asarray(dense_of(stored, "geometry.obsm['spatial']", CoordinateError), dtype=np.float64)
    if centers.shape != (adata.n_obs, 2) or not np.isfinite(centers).all() or not adata.n_obs:
        raise CoordinateError(
            f"geometry.obsm['spatial']: found shape {centers.shape} for {adata.n_obs} spots; expected finite x, y of "
            "at least one spot."
        )
    names = column_of(adata, Keys.SLICE, "geometry").astype(str).to_numpy()
    return [_one(adata, centers, names == name, name) for name in dict.fromkeys(names)]


def _one(adata: ad.AnnData, centers: NDArray[np.float64], rows: NDArray[np.bool_], name: str) -> Geometry:
    column = column_of(adata, "layer", "geometry")
    layers = column.astype(object).where(column.notna(), "").astype(str).to_numpy()[rows]
    if len(set(layers) & set(LAYER_NAMES)) < 2:
        raise SliceError(
            f"geometry, slice {name!r}: found the layers {sorted(set(layers))}; expected at least two of {LAYER_NAMES}."
        )
    library = libraries_of(adata).get(name, Library(name))
    um_per_px = library.factor(Keys.UM_PER_PX)
    if um_per_px is None:
        raise ScaleError(
            f"geometry.uns['spatial'][{name!r}]['scalefactors']['microns_per_pixel'] is absent; expected the size of a "
            "pixel in µm."
        )
    at = centers[rows] * float(um_per_px)
    columns = [column for column in ("array_row", "array_col") if column in adata.obs]
    return Geometry(name, at - at.min(axis=0) + _ASIDE_UM, layers, adata.obs.loc[rows, columns])
