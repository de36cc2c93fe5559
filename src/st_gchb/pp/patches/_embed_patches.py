"""Patch embedding: the features of all spots, written to ``obsm`` together with their specification."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from anndata import AnnData
from torch import Tensor, nn

from st_gchb import __version__
from st_gchb._arguments import Count, Megabytes, Micrometers, PatchSize, PixelSize, checked
from st_gchb._constants import DEFAULT_PATCH_UM, Keys
from st_gchb._options import (
    DEFAULT_ENCODER,
    DEFAULT_ON_DAMAGE,
    DEFAULT_PRECISION,
    DEFAULT_VIEWS,
    OnDamage,
    Precision,
    StainMethod,
    Views,
)
from st_gchb.pp._stain_normalization import Stain, stain_of
from st_gchb.pp.encoders import Encoder, EncoderRunner, EncodingOptions, choose_device, get_encoder
from st_gchb.pp.patches._cache import cache_folder
from st_gchb.pp.patches._embed_slices import embed_slices
from st_gchb.pp.patches._feature_maps import FILES_KEY
from st_gchb.pp.patches._feature_spec import FeatureSpec
from st_gchb.pp.patches._last_stage import check_feature_maps, recorded_maps
from st_gchb.pp.patches._provenance import made_at, made_key
from st_gchb.pp.patches._reader import BATCH_SIZE, MEMORY_MB
from st_gchb.pp.spots import Slice, check_object, resolve_spots, side_px

if TYPE_CHECKING:
    from spatialdata import SpatialData


@checked
def embed_patches(
    data: AnnData | SpatialData,
    *,
    encoder: str | nn.Module | Encoder = DEFAULT_ENCODER,
    weights: str | Path | None = "default",
    patch_um: Micrometers = DEFAULT_PATCH_UM,
    patch_px: PatchSize | None = None,
    n_views: Views = DEFAULT_VIEWS,
    stain_norm: StainMethod | Stain | None = None,
    save_feature_maps: bool = False,
    image: Any = None,
    image_key: str | None = None,
    slice_key: str | None = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
    table: str | None = None,
    shapes: str | None = None,
    batch_size: Count = BATCH_SIZE,
    memory_mb: Megabytes = MEMORY_MB,
    device: str | torch.device = "auto",
    precision: Precision = DEFAULT_PRECISION,
    compiled: bool = False,
    key_added: str = Keys.FEATURES,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    on_damage: OnDamage = DEFAULT_ON_DAMAGE,
    copy: bool = False,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> AnnData | None:
    """Embed the image patch around every spot with a frozen encoder.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]`` in full-resolution px, or SpatialData with an image and spots.
    encoder, weights, transform
        Encoder as in :func:`get_encoder`.
    patch_um
        Side of a patch, µm.
    patch_px
        Side of a patch in px of the full-resolution image, instead of ``patch_um``; the size of a pixel is then not
        needed.
    n_views
        Views over which features are averaged. 4: the rotations of a patch; 8: the rotations and their mirror images;
        1: the patch itself, in a quarter of the time.
    stain_norm
        ``"macenko"``, ``"vahadane"`` or ``"reinhard"``: normalize the stain of each slice to that of the first one,
        which is kept in the specification, so that queries are normalized to it too. A :class:`Stain` from
        :func:`fit_stain`: normalize to that one. None: leave colors unchanged.
    save_feature_maps
        Also store the feature maps before the image encoder's last stage, in files in the cache folder, so that
        ``STGCHB(finetune="last_stage")`` can train that stage. Supported for torchvision's resnet, resnext,
        wide_resnet, convnext, densenet, efficientnet and mobilenet_v2. They take 38 kB (mobilenet_v2) to 401 kB
        (resnet50) per spot and view; pass ``n_views=1`` for many spots.
    image, image_key, slice_key, um_per_px
        Slices and images as in :func:`slices_of`. For SpatialData, ``image`` is the name of the image element (or a
        dict of names by region), and ``um_per_px`` the size of a pixel of its finest scale.
    table, shapes
        For SpatialData: names of the table and of the spots, if there are several.
    batch_size
        Patches per batch.
    memory_mb
        Bound of the decoded pixels in memory, MB; see :func:`read_patches`.
    device
        ``"auto"``, or the name of a torch device, such as ``"cpu"`` or ``"cuda:0"``.
    precision
        ``"bfloat16"`` or ``"float16"``: compute convolutions and matrix products in half precision. It is part of the
        specification, so that queries are encoded alike. On CPUs with bfloat16 units it takes a third of the time;
        float16 is for GPUs.
    compiled
        Compile the encoder with :func:`torch.compile`, which takes seconds to a minute and pays off for several
        thousand patches or more. On a CPU it needs a C++ compiler.
    key_added
        Key in ``obsm`` and ``uns``.
    cache, cache_dir
        Whether and in which folder features are cached by content, so that they are computed once for the same image,
        positions, encoder and weights. The folder is by default ``st_gchb.settings.cache_dir``. Images that are not
        files, such as those of a SpatialData, are decoded one more time to compute the key.
    on_damage
        Treatment of spots whose pixels cannot be decoded. ``"raise"``: raise an error and write nothing. ``"nan"``: set
        their features to NaN and list their names in ``uns[key_added]["excluded"]``, with a warning.
    copy
        Return a copy with the features instead of writing them to ``data``. For a SpatialData the copy is an AnnData.

    Returns
    -------
    AnnData or None
        With ``copy``, the object with the features; otherwise None, and the features are written to ``data`` (for
        SpatialData: to its table). Features are in ``obsm[key_added]``, ``(n_spots, n_features)`` float32, and their
        specification is in ``uns[key_added]``. ``obsm[key_added + "_made"]``, ``(n_spots, 5)``, records the position,
        pixel size and image of each spot, so that features that no longer belong to their spots are detected.

    Raises
    ------
    CoordinateError
        Positions are absent, not finite, or not on the image.
    ImageError, MissingFileError
        A slice has no usable image, or one that can only be decoded whole and is larger than ``memory_mb``.
    DamageError
        Pixels of some spots cannot be decoded; the message says how many spots and which regions.
    ScaleError
        The size of a pixel is not known, and ``patch_px`` is not given.
    EncoderError, WeightsUnavailableError
        The encoder is unknown or cannot be compiled, or its weights are not available.
    CacheError
        There is not enough disk space for the feature maps.
    StainError
        The stain of a slice that is to be normalized cannot be estimated.

    Examples
    --------
    >>> import numpy as np, st_gchb
    >>> from anndata import AnnData
    >>> adata = AnnData(obsm={"spatial": np.array([[60.0, 60.0], [80.0, 90.0]])})
    >>> image = np.full((160, 160, 3), 200, dtype=np.uint8)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", image=image, um_per_px=2.0, cache=False)
    >>> adata.obsm["X_patch"].shape
    (2, 107)
    """
    chosen = choose_device(device)
    check_object(data, spatialdata=True)
    resolved = resolve_spots(data, table, image, shapes)
    slices = resolved.slices(slice_key=slice_key, image_key=image_key, um_per_px=um_per_px)
    sides = [side_px(slide, patch_um, patch_px) for slide in slices]
    image_encoder = get_encoder(encoder, weights, transform=transform)
    if save_feature_maps:
        check_feature_maps(image_encoder, cache=cache, compiled=compiled)
    folder = cache_folder(cache_dir) if cache else None
    options = EncodingOptions(batch_size, chosen, memory_mb, precision, compiled)
    stain = stain_of(slices[0], stain_norm) if isinstance(stain_norm, str) else stain_norm
    rule = FeatureSpec(
        image_encoder.name,
        image_encoder.weights,
        image_encoder.weights_sha256,
        patch_um=None if patch_px else float(patch_um),
        patch_px=float(patch_px) if patch_px else None,
        n_views=n_views,
        n_features=image_encoder.n_features,
        stain_norm=None if stain is None else stain.method,
        stain_target=None if stain is None else stain.numbers,
        precision=None if precision == "float32" else precision,
        feature_maps=save_feature_maps,
    )
    found = encode_patches(slices, sides, rule, image_encoder, options, folder, on_damage)
    target = resolved.target(copy=copy)
    found.write_to(target, key_added)
    return target if copy else None


def encode_patches(
    slices: list[Slice],
    sides: list[float],
    rule: FeatureSpec,
    encoder: Encoder,
    options: EncodingOptions,
    folder: Path | None,
    on_damage: OnDamage,
) -> PatchFeatures:
    """Encode the patches of slices that are open.

    Parameters
    ----------
    slices, sides
        Slices with their images, and the side of a patch of each, px of its image.
    rule, encoder
        Specification of the features, and the encoder that it names.
    options
        Device, precision, batch size and bound of memory.
    folder
        Folder of the cache; None for no cache.
    on_damage
        As in :func:`embed_patches`.

    Returns
    -------
    PatchFeatures
        The features of all spots.

    Raises
    ------
    CacheError, DamageError, EncoderError, StainError
        As for :func:`embed_patches`.
    """
    runner = EncoderRunner(encoder, rule.n_views, options, recorded_maps if rule.feature_maps else None)
    return PatchFeatures(*embed_slices(slices, sides, runner, folder, on_damage, rule.stain), rule, slices)


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Features of the patches of one or several slices, and how they were made.

    Parameters
    ----------
    values
        Features, ``(n_spots, n_features)`` float32, NaN for excluded spots.
    excluded
        Row numbers of spots whose pixels cannot be decoded.
    files
        Files of the feature maps, one per slice; empty if there are none.
    rule
        Specification of the features.
    slices
        The slices with their images.
    """

    values: npt.NDArray[np.float32]
    excluded: npt.NDArray[np.int64]
    files: list[Path]
    rule: FeatureSpec
    slices: list[Slice]

    def write_to(self, adata: AnnData, key: str) -> None:
        """Write features, specification and provenance to an object, as :func:`embed_patches` describes."""
        adata.obsm[key] = self.values
        adata.obsm[made_key(key)] = made_at(self.slices, self.rule)
        adata.uns[key] = self._described()
        if self.files:
            adata.uns[key][FILES_KEY] = np.array([str(file.resolve()) for file in self.files])
        if len(self.excluded):
            adata.uns[key]["excluded"] = adata.obs_names[self.excluded].to_numpy(dtype=str)

    def _described(self) -> dict[str, Any]:
        known = [one.um_per_px * one.scale if one.um_per_px is not None else math.nan for one in self.slices]
        return {
            **self.rule.to_dict(),
            "slices": np.array([one.name for one in self.slices]),
            "um_per_px": np.array(known),
            "st_gchb_version": __version__,
        }
