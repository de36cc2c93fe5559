"""Simulate cortex-like sections with H&E-like images, and counts that depend on what the images show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from st_gchb._arguments import Count, Limits, Micrometers, PixelSize, Positive, Seed, Weight, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import track
from st_gchb._settings import settings
from st_gchb.datasets._tables import join_slices
from st_gchb.datasets.synthetic._anatomy import Anatomy, anatomy_of, random_anatomy
from st_gchb.datasets.synthetic._cells import place_cells
from st_gchb.datasets.synthetic._geometry import geometries
from st_gchb.datasets.synthetic._render import render
from st_gchb.datasets.synthetic._simulate import Genes, draw_counts, draw_genes, look_under
from st_gchb.io import Library

_MARGIN_UM = 150.0
_MIN_COVERED = 0.5
"""Minimum fraction of tissue of a spot that counts as under tissue."""


Slices = Annotated[int, Limits("a whole number from 1 to 1,000", low=1, high=1000)]
Side = Annotated[int, Limits("a whole number from 4 to 1,000", low=4, high=1000)]
NGenes = Annotated[int, Limits("a whole number from 20 to 100,000", low=20, high=10**5)]


@checked
def synthetic_tissue(
    n_slices: Slices = 3,
    *,
    n_rows: Side = 26,
    n_cols: Side = 23,
    n_genes: NGenes = 300,
    seed: Seed | None = None,
    geometry: ad.AnnData | Sequence[ad.AnnData] | None = None,
    spot_pitch_um: Micrometers = 100.0,
    spot_diameter_um: Micrometers = 55.0,
    um_per_px: PixelSize | None = None,
    counts_per_spot: Positive = 3000.0,
    stain_variation: Weight = 1.0,
    slices_per_patient: Count = 1,
) -> ad.AnnData:
    """Simulate cortex-like sections with images, counts and known expected expression.

    Six layers and white matter differ in the density, size and type of their cells; slices vary in bending, outline,
    tears and stain. The expression of most genes depends on the layer, nuclear density, large neurons, vessels or
    depth, all of which the image shows. ``hidden`` genes vary smoothly in space but independently of the image, so that
    predictions of them should have a correlation of about 0 with the truth; ``housekeeping`` genes are constant.

    Parameters
    ----------
    n_slices
        Number of slices; ignored if ``geometry`` is given.
    n_rows, n_cols
        Rows and columns of the hexagonal array of spots; spots outside the tissue are dropped.
    n_genes
        Number of genes, at least 20.
    seed
        Random seed; the same seed gives bitwise identical tissue. By default ``st_gchb.settings.seed``.
    geometry
        Real spots to use instead of an array: objects returned by :func:`dlpfc_geometry`, one per slice, or one object
        with several slices in ``obs["slice"]``. Requires ``obsm["spatial"]``, ``obs["layer"]`` and ``uns["spatial"]``
        with ``microns_per_pixel``.
    spot_pitch_um, spot_diameter_um
        Distance between neighboring spots and their diameter, µm.
    um_per_px
        Pixel size, µm; by default 1, or with ``geometry`` the size at which images have about 3,000 px.
    counts_per_spot
        Median counts per spot.
    stain_variation
        Variation of the stain between slides; 0 for none.
    slices_per_patient
        Number of consecutive slices from the same patient.

    Returns
    -------
    AnnData
        One row per spot under tissue, in slices ``S1``, ``S2``, ... ``X``: counts, CSR float32, ``(n_spots, n_genes)``.
        ``layers["truth"]``: expected log-normalized expression. ``obs``: ``slice``, ``patient``, ``layer``, ``depth``,
        ``n_nuclei``, array position. ``var``: ``program``, ``layer``. ``obsm["spatial"]``: x, y in px of the
        full-resolution image ``uns["spatial"][slice]["images"]["hires"]``. ``uns["synthetic"]``: marks the data as
        simulated, with seed, counts per spot and geometry.

    Raises
    ------
    InputError, SliceError
        The array is too small to cover tissue, or the geometry has no layers.

    Notes
    -----
    Results on these data describe simulated tissue, even if the spot positions are real.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=40, seed=1)
    >>> adata.n_vars, "truth" in adata.layers
    (40, True)
    """
    seed = settings.seed if seed is None else seed
    genes = draw_genes(n_genes, np.random.default_rng([seed, 1]))
    given = [] if geometry is None else geometries(geometry)
    parts, libraries = [], []
    for i in track(range(len(given) or n_slices), "drawing sections"):
        name = f"S{i + 1}"
        if given:
            at = given[i]
            anatomy = anatomy_of(at.centers_um, at.layers, at.size_um, at.pitch_um, (seed, i))
            plan = Plan(anatomy, at.centers_um, at.array, at.pitch_um, at.diameter_um, um_per_px or at.um_per_px)
        else:
            centers, array = hexagonal_array(n_rows, n_cols, spot_pitch_um)
            width, height = (float(side) + _MARGIN_UM for side in centers.max(axis=0))
            anatomy = random_anatomy(width, height, (seed, i))
            plan = Plan(anatomy, centers, array, spot_pitch_um, spot_diameter_um, um_per_px or 1.0)
        part, image = _slice(plan, genes, counts_per_spot, stain_variation, (seed, i))
        part.obs_names = [f"{name}_{spot}" for spot in part.obs_names]
        part.obs.insert(0, Keys.SLICE, name)
        part.obs.insert(1, Keys.PATIENT, f"P{i // slices_per_patient + 1}")
        parts.append(part)
        libraries.append(_library(name, image, plan.um_per_px, plan.diameter_um))
    adata = join_slices(parts, libraries)
    adata.var = genes.frame()
    adata.uns["synthetic"] = {
        "simulated": True,
        "seed": seed,
        "counts_per_spot": float(counts_per_spot),
        "geometry": "simulated" if not given else ", ".join(at.name for at in given),
    }
    return adata


def hexagonal_array(n_rows: int, n_cols: int, pitch_um: float) -> tuple[NDArray[np.float64], pd.DataFrame]:
    """Create a hexagonal array of spots.

    Returns
    -------
    tuple
        Spot centers as x, y in µm, ``(n_rows * n_cols, 2)``, and their array positions in Visium's numbering.
    """
    row, col = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    col = 2 * col + row % 2
    centers = np.column_stack([col * pitch_um / 2, row * pitch_um * np.sqrt(0.75)]) + _MARGIN_UM
    return centers, pd.DataFrame(
        {"array_row": row, "array_col": col}, index=[f"{c}x{r}" for c, r in zip(col, row, strict=True)]
    )


@dataclass(frozen=True)
class Plan:
    """Anatomy, spot positions and pixel size of a slice to simulate."""

    anatomy: Anatomy
    centers_um: NDArray[np.float64]
    array: pd.DataFrame
    pitch_um: float
    diameter_um: float
    um_per_px: float


def _slice(
    plan: Plan, genes: Genes, counts_per_spot: float, stain_variation: float, key: tuple[int, int]
) -> tuple[ad.AnnData, NDArray[np.uint8]]:
    """Simulate the spots of one slice with counts, and its image."""
    # Separate random streams keep the cells unchanged if only the stain or the sequencing depth changes.
    cells_rng, image_rng, counts_rng = (np.random.default_rng([key[0], purpose, key[1]]) for purpose in (2, 3, 4))
    cells, vessels = place_cells(plan.anatomy, cells_rng)
    image = render(plan.anatomy, cells, vessels, plan.um_per_px, image_rng, stain_variation)
    # Molecules diffuse laterally, so a spot captures the tissue up to half the distance to its neighbors.
    under = look_under(plan.centers_um, plan.anatomy, cells, plan.pitch_um / 2)
    keep = under.covered >= _MIN_COVERED
    if keep.sum() < 2:
        raise InputError(
            f"slice {key[1] + 1}: {keep.sum()} spots lie on tissue; make the array larger (n_rows, n_cols)."
        )
    under, array = under.pick(keep), plan.array[keep]
    counts, truth = draw_counts(genes, under, plan.anatomy, counts_per_spot, counts_rng)
    adata = ad.AnnData(
        counts,
        obs=pd.concat([array, under.frame().set_index(array.index)], axis=1),
        var=pd.DataFrame(index=pd.Index(genes.names)),
        obsm={Keys.SPATIAL: plan.centers_um[keep] / plan.um_per_px},
        layers={"truth": truth},
    )
    return adata, image


def _library(name: str, image: NDArray[np.uint8], um_per_px: float, diameter_um: float) -> Library:
    factors = {
        "tissue_hires_scalef": 1.0,
        Keys.SPOT_DIAMETER: diameter_um / um_per_px,
        Keys.UM_PER_PX: um_per_px,
    }
    return Library(name, {"hires": image}, factors, {"simulated": True})
