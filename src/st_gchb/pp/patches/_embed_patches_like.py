"""Features of further patches, made as those of others were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from torch import Tensor, nn

from st_gchb._arguments import checked
from st_gchb.pp.encoders import Encoder
from st_gchb.pp.patches._embed_patches import embed_patches
from st_gchb.pp.patches._feature_spec import FeatureSpec, encoder_of_spec

if TYPE_CHECKING:
    from spatialdata import SpatialData


@checked(keywords=lambda: embed_patches)
def embed_patches_like(
    data: AnnData | SpatialData,
    rule: FeatureSpec,
    *,
    encoder: nn.Module | Encoder | None = None,
    weights: str | Path | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> AnnData | None:
    """Make features as others were made.

    Parameters
    ----------
    data
        As in :func:`embed_patches`.
    rule
        Rule of the features to be matched.
    encoder
        The module, where the rule's encoder was one (it has no name to find it by).
    weights
        Path of the weights file, where it has moved since.
    transform
        As in :func:`get_encoder`.
    options
        Passed to :func:`embed_patches`: where image, spots, cache and device are, ``memory_mb``, ``on_damage``.

    Returns
    -------
    AnnData or None
        As :func:`embed_patches`.

    Raises
    ------
    EncoderError
        The encoder's weights are not those of the rule, or its module was not given.
    WeightsUnavailableError
        The rule's weights file has moved and ``weights`` was not given.

    Examples
    --------
    >>> import numpy as np, st_gchb
    >>> from anndata import AnnData
    >>> pixels = np.full((160, 160, 3), 200, dtype=np.uint8)
    >>> options = {"image": pixels, "um_per_px": 2.0, "cache": False}
    >>> first, second = (AnnData(obsm={"spatial": np.array([[60.0, 60.0]])}) for _ in range(2))
    >>> st_gchb.pp.embed_patches(first, encoder="texture", **options)
    >>> rule = st_gchb.pp.FeatureRule.from_uns(first.uns["X_patch"])
    >>> st_gchb.pp.embed_by_rule(second, rule, **options)
    >>> bool((first.obsm["X_patch"] == second.obsm["X_patch"]).all())
    True
    """
    trunk = encoder_of_spec(rule, encoder=encoder, weights=weights, transform=transform)
    size = {"patch_px": rule.patch_px} if rule.patch_px is not None else {"patch_um": rule.patch_um}
    return embed_patches(
        data,
        encoder=trunk,
        n_views=rule.n_views,
        stain_norm=rule.stain,
        save_feature_maps=rule.feature_maps,
        precision=rule.precision or "float32",
        **size,
        **options,
    )
