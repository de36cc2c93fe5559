"""Patch embedding: the features of all spots, written to ``obsm`` together with their specification."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    DEFAULT_ENCODERS,
    DEFAULT_ON_DAMAGE,
    DEFAULT_PRECISION,
    OnDamage,
    Precision,
    StainMethod,
    Views,
)
from st_gchb.io import check_object
from st_gchb.pp._stain_normalization import Stain, stain_of
from st_gchb.pp.encoders import Encoder, EncoderRunner, EncodingOptions, choose_device
from st_gchb.pp.patches._cache import cache_folder
from st_gchb.pp.patches._embed_slices import PartToEncode, embed_slices
from st_gchb.pp.patches._feature_maps import FILES_KEY
from st_gchb.pp.patches._feature_set import OF_EACH_PART, FeatureSet
from st_gchb.pp.patches._given_parts import check_one_part, encoders_of, features_of, sizes_of
from st_gchb.pp.patches._last_stage import check_feature_maps, recorded_maps
from st_gchb.pp.patches._provenance import made_at, made_key
from st_gchb.pp.patches._reader import BATCH_SIZE, MEMORY_MB
from st_gchb.pp.spots import Slice, resolve_spots, side_px

if TYPE_CHECKING:
    from spatialdata import SpatialData


@checked
def embed_patches(
    data: AnnData | SpatialData,
    *,
    encoder: str | nn.Module | Encoder | Sequence[str | nn.Module | Encoder] = DEFAULT_ENCODERS,
    weights: str | Path | None | Sequence[str | Path | None] = "default",
    patch_um: Micrometers | Sequence[Micrometers] = DEFAULT_PATCH_UM,
    patch_px: PatchSize | Sequence[PatchSize] | None = None,
    n_views: Views | None = None,
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
    """Embed the image patch around every spot with a frozen encoder, or several.

    With several encoders or patch sizes, the features of all stand side by side, those of each as if it were alone: all
    sizes of the first encoder, then all sizes of the second one. :class:`FeatureSet` knows which columns are whose.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]`` in full-resolution px, or SpatialData with an image and spots.
    encoder, weights, transform
        Encoder as in :func:`get_encoder`, or a sequence of encoders. ``weights`` is then one value for all, or a
        sequence with one for each; ``transform`` goes with a single encoder.
    patch_um
        Side of a patch, µm, or a sequence of several. Sizes that are read from the same level of the image share its
        decoded pixels, so that it is decoded once.
    patch_px
        Side of a patch in px of the full-resolution image, or a sequence, instead of ``patch_um``; the size of a pixel
        is then not needed.
    n_views
        Views over which features are averaged. 1: the patch itself; 4: its rotations, in four times the time; 8: the
        rotations and their mirror images. None: 1 if texture features, which depend on no direction, are among them,
        otherwise 4.
    stain_norm
        ``"macenko"``, ``"vahadane"`` or ``"reinhard"``: normalize the stain of each slice to that of the first one,
        which is kept in the specification, so that queries are normalized to it too. A :class:`Stain` from
        :func:`fit_stain`: normalize to that one. None: leave colors unchanged.
    save_feature_maps
        Also store the feature maps before the image encoder's last stage, in files in the cache folder, so that
        ``STGCHB(finetune="last_stage")`` can train that stage. Supported for torchvision's resnet, resnext,
        wide_resnet, convnext, densenet, efficientnet and mobilenet_v2, one of them at one patch size. They take 38 kB
        (mobilenet_v2) to 401 kB (resnet50) per spot and view; pass ``n_views=1`` for many spots.
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
        specification, so that queries are encoded alike. On CPUs that support bfloat16 in hardware it takes a third of
        the time; float16 is for GPUs.
    compiled
        Compile the encoder with :func:`torch.compile`, which takes seconds to a minute and pays off for several
        thousand patches or more. On a CPU it needs a C++ compiler.
    key_added
        Key in ``obsm`` and ``uns``.
    cache, cache_dir
        Whether and in which folder features are cached by content, so that they are computed once for the same image,
        positions, encoder and weights. The folder is by default ``st_gchb.settings.cache_dir``. Images that are not
        files, such as those of a SpatialData, are decoded one more time to compute the key. Each encoder and patch
        size is cached by itself: if one is added, only that one is computed.
    on_damage
        Treatment of spots whose pixels cannot be decoded. ``"raise"``: raise an error and write nothing. ``"nan"``: set
        their features to NaN and list their names in ``uns[key_added]["excluded"]``, with a warning. Of several patch
        sizes, one that cannot be decoded excludes the spot.
    copy
        Return a copy with the features instead of writing them to ``data``. For a SpatialData the copy is an AnnData.

    Returns
    -------
    AnnData or None
        With ``copy``, the object with the features; otherwise None, and the features are written to ``data`` (for
        SpatialData: to its table). Features are in ``obsm[key_added]``, ``(n_spots, n_features)`` float32, and their
        specification is in ``uns[key_added]``, where :meth:`FeatureSet.from_uns` reads it.
        ``obsm[key_added + "_made"]``, ``(n_spots, 5)``, records the position,
        pixel size and image of each spot, so that features that no longer belong to their spots are detected.

    Raises
    ------
    CoordinateError
        Positions are absent, not finite, or not on the image.
    ImageError, MissingFileError
        A slice has no usable image, or one that can only be decoded whole and is larger than ``memory_mb``.
    DamageError
        Pixels of some spots cannot be decoded; the message says how many spots and which regions.
    InputError
        There is no encoder or patch size, one is given twice, or ``weights`` has another length than ``encoder``.
    ScaleError
        The size of a pixel is not known, and ``patch_px`` is not given; or a patch is larger than a slide.
    EncoderError, WeightsUnavailableError
        The encoder is unknown or cannot be compiled, or its weights are not available; or feature maps are asked of
        several encoders or patch sizes.
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
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=80, image=image, um_per_px=2.0, cache=False)
    >>> adata.obsm["X_patch"].shape
    (2, 107)
    >>> options = {"image": image, "um_per_px": 2.0, "cache": False}
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=(80, 150), **options)
    >>> adata.obsm["X_patch"].shape, st_gchb.pp.FeatureSet.from_uns(adata.uns["X_patch"]).names
    ((2, 214), ['texture, 80 µm', 'texture, 150 µm'])
    """
    chosen = choose_device(device)
    check_object(data, spatialdata=True)
    sizes = sizes_of(patch_um, patch_px)
    resolved = resolve_spots(data, table, image, shapes)
    slices = resolved.slices(slice_key=slice_key, image_key=image_key, um_per_px=um_per_px)
    # Before encoders are built, which may take a download.
    for slide in slices:
        for um, px in sizes:
            side_px(slide, um or 0.0, px)
    encoders = encoders_of(encoder, weights, transform)
    if save_feature_maps:
        check_one_part(encoders, sizes)
        check_feature_maps(encoders[0], cache=cache, compiled=compiled)
    folder = cache_folder(cache_dir) if cache else None
    options = EncodingOptions(batch_size, chosen, memory_mb, precision, compiled)
    stain = stain_of(slices[0], stain_norm) if isinstance(stain_norm, str) else stain_norm
    rule = features_of(encoders, sizes, n_views, stain, precision, feature_maps=save_feature_maps)
    found = encode_patches(slices, rule, encoders, options, folder, on_damage)
    target = resolved.target(copy=copy)
    found.write_to(target, key_added)
    return target if copy else None


def encode_patches(
    slices: list[Slice],
    rule: FeatureSet,
    encoders: list[Encoder],
    options: EncodingOptions,
    folder: Path | None,
    on_damage: OnDamage,
) -> PatchFeatures:
    """Encode the patches of slices that are open.

    Parameters
    ----------
    slices
        Slices with their images.
    rule, encoders
        Specifications of the features, and the encoders that they name, in the order of ``rule.encoders``.
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
    CacheError, DamageError, EncoderError, ScaleError, StainError
        As for :func:`embed_patches`.
    """
    recorder = recorded_maps if rule.feature_maps else None
    runners = [EncoderRunner(encoder, rule.first.n_views, options, recorder) for encoder in encoders]
    sides = [[side_px(slide, spec.patch_um or 0.0, spec.patch_px) for slide in slices] for spec in rule.specs]
    # All sizes of an encoder come one after the other.
    users = [runner for runner in runners for _ in rule.sizes]
    parts = [PartToEncode(*one) for one in zip(users, sides, strict=True)]
    return PatchFeatures(*embed_slices(slices, parts, folder, on_damage, rule.stain), rule, slices)


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
        Specifications of the features.
    slices
        The slices with their images.
    """

    values: npt.NDArray[np.float32]
    excluded: npt.NDArray[np.int64]
    files: list[Path]
    rule: FeatureSet
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
        rule = self.rule.to_dict()
        several = {key: np.array(rule[key]) for key in OF_EACH_PART if isinstance(rule.get(key), list)}
        return {
            **rule,
            **several,
            "slices": np.array([one.name for one in self.slices]),
            "um_per_px": np.array(known),
            "st_gchb_version": __version__,
        }
