"""Share of spots that are flagged as outliers in sections of other tissue or in another stain."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb.evaluate import hide_expression, leave_one_out
from st_gchb.model import STGCHB
from st_gchb.pp import slices_of
from studies._stains import recolored

logger = logging.getLogger("st_gchb.studies")


def foreign_sections(
    adata: AnnData,
    others: Mapping[str, AnnData],
    *,
    n_top_genes: int = 1000,
    seed: int | None = None,
    slice_key: str = "slice",
    features_key: str = "X_patch",
    device: str = "auto",
    weights: str | None = None,
) -> pd.DataFrame:
    """Leave the last slice out, and predict this slice, the slice in another stain, and other sections.

    The other stain is the same section with its eosin replaced by the brown of diaminobenzidine.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features and images of at least two slices.
    others
        Sections of other tissue by name, with positions and image, one slice each in ``obs["slice"]``.
    n_top_genes, slice_key, features_key, device
        Same as for :func:`~st_gchb.evaluate.evaluate`.
    seed
        Seed of the model; by default ``st_gchb.settings.seed``.
    weights
        Path of the encoder's weights file, if it has moved since the features were computed.

    Returns
    -------
    pandas.DataFrame
        One row per section: ``section``, ``spots``, ``outliers`` (share of flagged spots) and ``confidence`` (median).
    """
    fold = leave_one_out(adata, slice_key=slice_key)[-1]
    own = hide_expression(adata[fold.test], features_key)
    bare = hide_expression(adata[fold.test])
    train = adata[fold.train].copy()
    STGCHB.setup_anndata(train, slice_key=slice_key, features_key=features_key)
    model = STGCHB(train, n_top_genes=n_top_genes, seed=st_gchb.settings.seed if seed is None else seed)
    model.train(enable_progress_bar=False, enable_checkpointing=False, accelerator=device)
    rows = []
    (section,) = slices_of(bare, slice_key)
    height, width = section.image.shape_px
    stained = recolored(np.asarray(section.image.read(0, 0, height, 0, width)))
    moved = bare.copy()
    moved.obsm["spatial"] = section.centers_px
    queries: list[tuple[str, AnnData, dict[str, Any]]] = [
        (fold.name, own, {}),
        (f"{fold.name}, eosin as brown", moved, {"image": stained, "um_per_px": section.um_per_px}),
        *((name, hide_expression(other), {"slice_key": "slice"}) for name, other in others.items()),
    ]
    for name, query, more in queries:
        options = {"slice_key": slice_key, "weights": weights} | more
        answer = model.predict(query, **options)
        flagged, confidence = answer.obs["st_gchb_outlier"], answer.obs["st_gchb_confidence"]
        rows.append((name, answer.n_obs, float(flagged.mean()), float(confidence.median())))
        logger.info("%s: %.1f %% of %d spots flagged as outliers.", name, 100 * flagged.mean(), answer.n_obs)
    return pd.DataFrame(rows, columns=["section", "spots", "outliers", "confidence"])
