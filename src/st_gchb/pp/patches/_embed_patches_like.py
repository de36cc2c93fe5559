"""Patch embedding by an existing specification, so that a query's features match those of its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from torch import Tensor, nn

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_ON_DAMAGE, OnDamage
from st_gchb.io import TOLERANCE, Sections
from st_gchb.pp.encoders import Encoder, EncodingOptions, choose_device
from st_gchb.pp.patches._cache import cache_folder
from st_gchb.pp.patches._embed_patches import PatchFeatures, embed_patches, encode_patches
from st_gchb.pp.patches._feature_set import FeatureSet
from st_gchb.pp.patches._feature_spec import FeatureSpec
from st_gchb.pp.patches._given_parts import encoders_of_set
from st_gchb.pp.patches._last_stage import check_feature_maps
from st_gchb.pp.patches._reader import BATCH_SIZE, MEMORY_MB
from st_gchb.pp.spots import Slice, side_px

if TYPE_CHECKING:
    from spatialdata import SpatialData


_DECIDED = ("patch_um", "patch_px", "n_views", "stain_norm", "save_feature_maps", "precision")
"""Arguments of :func:`embed_patches` that follow from the specification."""


@checked(keywords=lambda: embed_patches, decided=_DECIDED)
def embed_patches_like(
    data: AnnData | SpatialData,
    rule: FeatureSpec | FeatureSet,
    *,
    encoder: nn.Module | Encoder | None | Sequence[nn.Module | Encoder | None] = None,
    weights: str | Path | None | Sequence[str | Path | None] = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> AnnData | None:
    """Embed the patch around every spot by an existing specification.

    Parameters
    ----------
    data
        Object to embed, as in :func:`embed_patches`.
    rule
        Specification of the features to match, or the specifications of several encoders and patch sizes.
    encoder
        The encoder, needed if it was a module of the caller's, which cannot be found by name. For several encoders,
        one for each, None where it is found by name.
    weights
        Path of the weights file, needed if it has moved. For several encoders with weights, one for each, None where
        it has not moved.
    transform
        Transformation of the patches, as in :func:`get_encoder`.
    options
        Further arguments of :func:`embed_patches` that are not part of the specification, such as ``image``,
        ``device``, ``cache_dir``, ``memory_mb`` or ``on_damage``.

    Returns
    -------
    AnnData or None
        As for :func:`embed_patches`.

    Raises
    ------
    InputError
        One encoder or file is given, and there are several for which it may be meant.
    EncoderError
        The encoder's weights are not those of the specification, or its module was not given.
    WeightsUnavailableError
        The weights file has moved and ``weights`` was not given.

    Examples
    --------
    >>> import numpy as np, st_gchb
    >>> from anndata import AnnData
    >>> pixels = np.full((160, 160, 3), 200, dtype=np.uint8)
    >>> options = {"image": pixels, "um_per_px": 2.0, "cache": False}
    >>> first, second = (AnnData(obsm={"spatial": np.array([[60.0, 60.0]])}) for _ in range(2))
    >>> st_gchb.pp.embed_patches(first, encoder="texture", patch_um=80, **options)
    >>> rule = st_gchb.pp.FeatureSpec.from_uns(first.uns["X_patch"])
    >>> st_gchb.pp.embed_patches_like(second, rule, **options)
    >>> bool((first.obsm["X_patch"] == second.obsm["X_patch"]).all())
    True
    """
    rule = rule if isinstance(rule, FeatureSet) else FeatureSet([rule])
    size: dict[str, Any] = {"patch_px" if rule.in_px else "patch_um": rule.sizes}
    return embed_patches(
        data,
        encoder=encoders_of_set(rule, encoder=encoder, weights=weights, transform=transform),
        n_views=rule.first.n_views,
        stain_norm=rule.stain,
        save_feature_maps=rule.feature_maps,
        precision=rule.first.precision or "float32",
        **size,
        **options,
    )


@dataclass(frozen=True)
class FeatureOptions:
    """Options of encoding that are not part of a specification of features, as :func:`embed_patches` takes them.

    Parameters
    ----------
    build
        Function that gives the encoders of specifications. It is called only if patches are to be encoded.
    device, memory_mb, on_damage
        As in :func:`embed_patches`.
    cache, cache_dir
        As in :func:`embed_patches`.
    """

    build: Callable[[FeatureSet], list[Encoder]] = encoders_of_set
    device: str = "auto"
    memory_mb: float = MEMORY_MB
    on_damage: OnDamage = DEFAULT_ON_DAMAGE
    cache: bool = True
    cache_dir: str | Path | None = None


def tell_tiles(slices: list[Slice], sections: Sections, rule: FeatureSet) -> None:
    """Compare the tiles of LazySlide with the patches that are cut around their centers, and warn of tiles not covered.

    Parameters
    ----------
    slices
        Slices with their images.
    sections
        The same slices with their entries in ``uns["spatial"]``.
    rule
        Specifications of the features.
    """
    for slide in slices:
        library = sections.libraries[slide.name]
        side_px = library.factor(Keys.SPOT_DIAMETER) if Keys.LAZYSLIDE in library.metadata else None
        um = None if slide.um_per_px is None else slide.um_per_px * slide.scale
        if side_px is None or um is None:
            continue
        sizes = [size * um if rule.in_px else size for size in rule.sizes]
        told = (
            f"slice {slide.name!r}: LazySlide's tiles are {side_px * um:.4g} µm wide ({side_px:.4g} px of {um:.4g} µm)"
        )
        patches = " and ".join(f"{size:.4g} µm" for size in sizes)
        if max(sizes) * TOLERANCE < side_px * um:
            logger.warning(
                "%s; the model sees patches of %s around their centers, and nothing of a tile beyond these. Lay "
                "tiles of at most %.4g µm.",
                told,
                patches,
                max(sizes),
            )
        else:
            logger.info("%s; the model sees patches of %s around their centers.", told, patches)


def features_like(slices: list[Slice], rule: FeatureSet, options: FeatureOptions) -> PatchFeatures:
    """Encode the patches of slices that are open, by existing specifications.

    Parameters
    ----------
    slices
        Slices with their images.
    rule
        Specifications of the features to match.
    options
        Options that do not change the features.

    Returns
    -------
    PatchFeatures
        The features of all spots.

    Raises
    ------
    CacheError, DamageError, EncoderError, ScaleError, StainError, WeightsUnavailableError
        As for :func:`embed_patches_like`.
    """
    device = choose_device(options.device)
    # Before encoders are built.
    for slide in slices:
        for spec in rule.specs:
            side_px(slide, spec.patch_um or 0.0, spec.patch_px)
    encoders = options.build(rule)
    if rule.feature_maps:
        check_feature_maps(encoders[0], cache=options.cache, compiled=False)
    folder = cache_folder(options.cache_dir) if options.cache else None
    how = EncodingOptions(BATCH_SIZE, device, options.memory_mb, rule.first.precision or "float32")
    # The weights files may have moved.
    here = [one.weights for one in encoders for _ in rule.sizes]
    rule = FeatureSet([replace(spec, weights=weights) for spec, weights in zip(rule.specs, here, strict=True)])
    return encode_patches(slices, rule, encoders, how, folder, options.on_damage)
