"""Features of the patches of all spots, written to ``obsm`` with the rule by which they were made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from st_gchb import __version__
from st_gchb._arguments import Count, Megabytes, Micrometers, PatchSize, PixelSize, Seed, Versions, checked
from st_gchb._constants import DEFAULT_PATCH_UM, Keys
from st_gchb._settings import settings
from st_gchb.pp._stain_normalization import Restain, Stain, StainMethod, jitter_factors, stain_of
from st_gchb.pp.encoders import Encoder, Engine, Pace, Precision, Views, choose_device, get_encoder
from st_gchb.pp.patches._cache import cache_folder
from st_gchb.pp.patches._embed_slices import OnDamage, embed_slices
from st_gchb.pp.patches._feature_maps import FILES_KEY
from st_gchb.pp.patches._feature_spec import FeatureSpec, is_stain_key, stain_key
from st_gchb.pp.patches._last_stage import check_feature_maps, tapped
from st_gchb.pp.patches._provenance import made_at, made_key
from st_gchb.pp.patches._reader import MEMORY_MB
from st_gchb.pp.spots import Slice, resolve, side_px

if TYPE_CHECKING:
    from spatialdata import SpatialData


@checked
def embed_patches(
    data: AnnData | SpatialData,
    *,
    encoder: str | nn.Module | Encoder = "resnet50",
    weights: str | Path | None = "default",
    patch_um: Micrometers = DEFAULT_PATCH_UM,
    patch_px: PatchSize | None = None,
    n_views: Views = 4,
    stain_norm: StainMethod | Stain | None = None,
    stain_augment: Versions = 0,
    stain_seed: Seed | None = None,
    save_feature_maps: bool = False,
    image: Any = None,
    image_key: str | None = None,
    slice_key: str | None = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
    table: str | None = None,
    shapes: str | None = None,
    batch_size: Count = 64,
    memory_mb: Megabytes = MEMORY_MB,
    device: str | torch.device = "auto",
    precision: Precision = "float32",
    compiled: bool = False,
    key_added: str = Keys.FEATURES,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    on_damage: OnDamage = "raise",
    copy: bool = False,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> AnnData | None:
    """Cut a patch around every spot and pass it through a frozen encoder.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]`` in full-resolution px, or SpatialData with an image and spots.
    encoder, weights, transform
        As :func:`get_encoder` takes them.
    patch_um
        Side of a patch, µm.
    patch_px
        Side of a patch in px of the full-resolution image, instead of ``patch_um``; the size of a pixel is then not
        needed.
    n_views
        4: mean over the patch's rotations; 8: and over its mirrored rotations; 1: the patch as it is, in a quarter of
        the time.
    stain_norm
        ``"macenko"``, ``"vahadane"`` or ``"reinhard"``: move the colors of each slice to those of the first one, whose
        stain is kept in the rule, so that a query's are moved there too. A :class:`Stain` of :func:`fit_stain`: move
        them to that one. None: leave colors as they are.
    stain_augment
        For training: encode the patches this many times more, each slice every time as if more or less of each dye had
        been used. Training draws from these versions; each takes as long as the features themselves.
    stain_seed
        Seed of these versions; by default ``st_gchb.settings.seed``.
    save_feature_maps
        Also keep the maps before the trunk's last stage, in files of the cache folder, so that
        ``STGCHB(finetune="last_stage")`` can train it. For torchvision's resnet, resnext, wide_resnet, convnext,
        densenet, efficientnet and mobilenet_v2; 38 kB (mobilenet_v2) to 401 kB (resnet50) a spot and view, so pass
        ``n_views=1`` where there are many.
    image, image_key, slice_key, um_per_px
        As :func:`slices_of` takes them. For SpatialData, ``image`` names the image element (or is a dict of names by
        region), and ``um_per_px`` is the size of its finest scale's pixels.
    table, shapes
        For SpatialData: names of the table and of the spots, where there are several.
    batch_size
        Patches at once.
    memory_mb
        Bound of the decoded pixels that are held, MB; see :func:`read_patches`.
    device
        ``"auto"``, or as torch names it, such as ``"cpu"`` or ``"cuda:0"``.
    precision
        ``"bfloat16"`` or ``"float16"``: convolutions and products in half precision, which is part of the rule: a query
        is encoded alike. On CPUs with units for bfloat16, that takes a third of the time; float16 is for GPUs.
    compiled
        Have torch compile the encoder first, which takes from seconds to a minute and pays from some thousand patches
        on. Needs a C++ compiler on a CPU.
    key_added
        Key in ``obsm`` and ``uns``.
    cache, cache_dir
        Whether and where features are kept by content: the same image, positions, encoder and weights are not computed
        twice. The folder is by default ``st_gchb.settings.cache_dir``. Pixels that are in no file, as those of a
        SpatialData, are decoded once more for that.
    on_damage
        What becomes of spots whose pixels cannot be decoded. ``"raise"``: an error, and nothing is written. ``"nan"``:
        their features are NaN and their names are in ``uns[key_added]["excluded"]``, with a warning.
    copy
        Return a copy with the features instead of writing them to ``data``. A SpatialData gives an AnnData.

    Returns
    -------
    AnnData or None
        With ``copy``, the object with features in ``obsm[key_added]``, ``(n_spots, n_features)`` float32, and how they
        were made in ``uns[key_added]``; versions in other stains in ``obsm[key_added + "_stain1"]`` and so on. Each
        spot's position, size of a pixel and image are kept in ``obsm[key_added + "_made"]``, ``(n_spots, 5)``: where
        the object changes afterwards, features of other places are refused.
        Otherwise these are written to ``data`` (for SpatialData: to its table).

    Raises
    ------
    CoordinateError
        Positions are absent, not finite, or do not lie on the image.
    ImageError, MissingFileError
        A slice has no usable image, or one that can only be decoded whole and is larger than ``memory_mb``.
    DamageError
        Pixels of some spots cannot be decoded: how many, and where.
    ScaleError
        The size of a pixel is not known, and ``patch_px`` is not given.
    EncoderError, WeightsUnavailableError
        The encoder is unknown, cannot be compiled, or its weights are not to be had.
    CacheError
        There is no room for the maps.
    StainError
        The stain of a slice that is to be normalized cannot be told.

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
    stain_seed = settings.seed if stain_seed is None else stain_seed
    chosen = choose_device(device)
    resolved = resolve(data, table=table, image=image, shapes=shapes)
    slices = resolved.slices(slice_key=slice_key, image_key=image_key, um_per_px=um_per_px)
    sides = [side_px(slide, patch_um, patch_px) for slide in slices]
    trunk = get_encoder(encoder, weights, transform=transform)
    if save_feature_maps:
        check_feature_maps(trunk, cache=cache, stain_augment=stain_augment, compiled=compiled)
    folder = cache_folder(cache_dir) if cache else None
    pace = Pace(batch_size, chosen, memory_mb, precision, compiled)
    engine = Engine(trunk, n_views, pace, tapped if save_feature_maps else None)
    stain = stain_of(slices[0], stain_norm) if isinstance(stain_norm, str) else stain_norm
    made = {}
    for version in range(stain_augment + 1):
        restains = [_restain(slide.name, stain, version, stain_seed) for slide in slices]
        name = stain_key(key_added, version) if version else key_added
        made[name], excluded, files = embed_slices(slices, sides, engine, folder, on_damage, restains)
    size = (
        {"patch_um": None, "patch_px": float(patch_px)} if patch_px else {"patch_um": float(patch_um), "patch_px": None}
    )
    rule = FeatureSpec(
        trunk.name,
        trunk.weights,
        trunk.weights_sha256,
        **size,
        n_views=n_views,
        n_features=trunk.n_features,
        stain_norm=None if stain is None else stain.method,
        stain_target=None if stain is None else stain.numbers,
        stain_augment=stain_augment or None,
        precision=None if precision == "float32" else precision,
        feature_maps=save_feature_maps,
    )
    target = resolved.target(copy=copy)
    for key in [key for key in target.obsm if is_stain_key(key, key_added)]:
        del target.obsm[key]
    for key, features in made.items():
        target.obsm[key] = features
    target.obsm[made_key(key_added)] = made_at(slices, rule)
    target.uns[key_added] = _provenance(rule, slices)
    if files:
        target.uns[key_added][FILES_KEY] = np.array([str(file.resolve()) for file in files])
    if len(excluded):
        target.uns[key_added]["excluded"] = target.obs_names[excluded].to_numpy(dtype=str)
    return target if copy else None


def _restain(name: str, stain: Stain | None, version: int, seed: int) -> Restain | None:
    """What is done to the colors of a slice; None where nothing is."""
    if stain is None and version == 0:
        return None
    return Restain(stain, jitter_factors(name, version, seed) if version else None)


def _provenance(rule: FeatureSpec, slices: list[Slice]) -> dict[str, Any]:
    known = [slide.um_per_px * slide.scale if slide.um_per_px is not None else math.nan for slide in slices]
    return {
        **rule.to_dict(),
        "slices": np.array([slide.name for slide in slices]),
        "um_per_px": np.array(known),
        "st_gchb_version": __version__,
    }
