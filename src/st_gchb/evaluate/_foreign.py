"""Is a section of another tissue or stain flagged? The share of outliers where there should be some, and none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._constants import Keys
from st_gchb._logging import logger
from st_gchb._settings import settings as package_settings
from st_gchb.evaluate._folds import hide_expression, leave_one_out
from st_gchb.evaluate._methods import trained
from st_gchb.pp import slices_of

_BROWN = 4.0
"""Brown for a unit of eosin: with less, what is left would be a pale hematoxylin stain."""

_STRIP = 512
"""Rows of an image that are recolored at once, px."""


@checked
def foreign_sections(
    adata: AnnData,
    others: Mapping[str, AnnData],
    *,
    n_top_genes: Pair = 1000,
    seed: Seed | None = None,
    slice_key: str = Keys.SLICE,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
    weights: str | None = None,
) -> pd.DataFrame:
    """Leave the last slice out, and show the model this slice, the slice in another stain, and other sections.

    The other stain is the same section with its eosin shown as diaminobenzidine's brown.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features and images of at least two slices.
    others
        Sections of other tissue by name, with positions and image, one slice each in ``obs["slice"]``.
    n_top_genes, slice_key, features_key, device
        As :func:`~st_gchb.evaluate.evaluate` takes them.
    seed
        Of the model; by default ``st_gchb.settings.seed``.
    weights
        Path of the encoder's weights file, where it is not where the features were made.

    Returns
    -------
    One row per section: ``section``, ``spots``, ``outliers`` (share of flagged spots) and ``confidence`` (median).

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(3, n_rows=8, n_cols=8, n_genes=60)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", cache=False)
    >>> other = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, seed=1)
    >>> found = st_gchb.evaluate.foreign_sections(adata, {"other": other}, n_top_genes=50)
    >>> found["section"].tolist()
    ['S3', 'S3, eosin as brown', 'other']
    """
    fold = leave_one_out(adata, slice_key=slice_key)[-1]
    own = hide_expression(adata[fold.test], features_key)
    bare = hide_expression(adata[fold.test])
    where = {"slice_key": slice_key, "features_key": features_key}
    settings = {"n_top_genes": n_top_genes, "seed": package_settings.seed if seed is None else seed}
    rows = []
    with trained(adata[fold.train], where, settings, accelerator=device) as model:
        (section,) = slices_of(bare, slice_key)
        height, width = section.image.shape_px
        stained = recolored(np.asarray(section.image.read(0, 0, height, 0, width)))
        moved = bare.copy()
        moved.obsm[Keys.SPATIAL] = section.centers_px
        queries: list[tuple[str, AnnData, dict[str, Any]]] = [
            (fold.name, own, {}),
            (f"{fold.name}, eosin as brown", moved, {"image": stained, "um_per_px": section.um_per_px}),
            *((name, hide_expression(other), {"slice_key": Keys.SLICE}) for name, other in others.items()),
        ]
        for name, query, more in queries:
            options = {"slice_key": slice_key, "weights": weights} | more
            answer = model.predict(query, **options)
            flagged, confidence = answer.obs[Keys.OUTLIER], answer.obs[Keys.CONFIDENCE]
            rows.append((name, answer.n_obs, float(flagged.mean()), float(confidence.median())))
            logger.info("%s: %.1f %% of %d spots flagged as outliers.", name, 100 * flagged.mean(), answer.n_obs)
    return pd.DataFrame(rows, columns=["section", "spots", "outliers", "confidence"])


def recolored(image: np.ndarray) -> np.ndarray:
    """A section as if its eosin were diaminobenzidine, the brown of immunohistochemistry.

    Parameters
    ----------
    image
        H&E, uint8, ``(height, width, 3)``.

    Returns
    -------
    The same, in hematoxylin and brown.
    """
    result = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        stains = rgb2hed(image[start : start + _STRIP])
        stains[..., 2] = _BROWN * stains[..., 1]
        stains[..., 1] = 0.0
        result[start : start + _STRIP] = np.round(255 * np.clip(hed2rgb(stains), 0, 1)).astype(np.uint8)
    return result


def restained(image: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Multiply the amounts of hematoxylin, eosin and the third component of a section.

    Parameters
    ----------
    image
        H&E, uint8, ``(height, width, 3)``.
    factors
        Three factors.

    Returns
    -------
    numpy.ndarray
        The section with other amounts of its dyes, uint8, ``(height, width, 3)``.
    """
    dyes = np.asarray(rgb_from_hed, dtype=np.float64)
    change = np.linalg.inv(dyes) @ np.diag(np.asarray(factors, dtype=np.float64)) @ dyes
    result = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        density = np.log(256.0 / (image[start : start + _STRIP] + 1.0))
        pixels = 256.0 * np.exp(-density @ change) - 1.0
        result[start : start + _STRIP] = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return result
