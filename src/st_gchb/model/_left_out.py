"""Query spots that have no features, since their pixels cannot be decoded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from anndata import AnnData

from st_gchb._errors import DamageError


def is_whole(adata: AnnData, key: str) -> np.ndarray:
    """Which spots are not among those that :func:`~st_gchb.pp.embed_patches` left out, ``(n_spots,)``."""
    stored = adata.uns.get(key)
    # What is no mapping is refused where the features' rule is read.
    told = stored.get("left_out", ()) if isinstance(stored, Mapping) else ()
    names = np.atleast_1d(told).astype(str)
    return np.asarray(~adata.obs_names.isin(names))


def leave_out(light: AnnData, source: AnnData, key: str, damaged: str) -> tuple[AnnData, AnnData, np.ndarray]:
    """Drop these spots from a query, so that the others' neighbours are spots that exist.

    Parameters
    ----------
    light, source
        The query's light copy, and the object that it is of; the same rows.
    key
        Key of the features.
    damaged
        ``"raise"`` where every spot has to be there.

    Returns
    -------
    tuple
        Both without these spots, and the names of these, ``(n_left_out,)``.

    Raises
    ------
    DamageError
        Spots are left out, and none may be; or none is left.
    """
    keep = is_whole(light, key)
    names = light.obs_names[~keep].to_numpy(dtype=str)
    if keep.all():
        return light, source, names
    if damaged == "raise" or not keep.any():
        raise DamageError(
            f"{len(names)} of {len(keep)} spots have no features, since their pixels cannot be decoded (first: "
            f"{names[:3].tolist()}). Drop them: query = query[~query.obs_names.isin(query.uns[{key!r}]['left_out'])]."
            "copy(); or fetch the image again."
        )
    return light[keep].copy(), source[keep], names
