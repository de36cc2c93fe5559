"""Parts of the patch features that methods take by encoder and patch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from anndata import AnnData

from st_gchb._errors import MissingKeyError
from st_gchb._options import EncoderKind
from st_gchb.pp.patches import feature_parts

_TEXTURE = "texture"


def _columns(adata: AnnData, features_key: str) -> tuple[dict[str, list[slice]], list[str]]:
    """Return the columns of each part by kind of encoder, and the names of the parts.

    Features that were not made by :func:`st_gchb.pp.embed_patches` are one part, as if of an image encoder.
    """
    recorded = adata.uns.get(features_key)
    found = feature_parts(adata, features_key) if isinstance(recorded, Mapping) and "encoder" in recorded else None
    if found is None:
        return {"image": [slice(0, adata.obsm[features_key].shape[1])], "texture": []}, ["an unnamed encoder"]
    by_kind: dict[str, list[slice]] = {"image": [], "texture": []}
    for part in found.parts:
        by_kind["texture" if part.encoder == _TEXTURE else "image"].append(part.columns)
    return by_kind, [part.name for part in found.parts]


def available_kinds(adata: AnnData, features_key: str) -> list[EncoderKind]:
    """Return the kinds of encoders of which there are features."""
    by_kind, _ = _columns(adata, features_key)
    return [kind for kind in get_args(EncoderKind) if all(by_kind[one] for one in _kinds(kind))]


def _kinds(kind: EncoderKind) -> tuple[str, ...]:
    return ("image", "texture") if kind == "both" else (kind,)


def columns_of(adata: AnnData, features_key: str, kind: EncoderKind) -> list[slice]:
    """Return the columns of each part of the features that is of a kind of encoder.

    Raises
    ------
    MissingKeyError
        The features have no part of an image encoder, or of the texture encoder.
    """
    by_kind, names = _columns(adata, features_key)
    if not all(by_kind[one] for one in _kinds(kind)):
        wanted = {
            "image": "an image encoder",
            "texture": "the texture encoder",
            "both": "an image and a texture encoder",
        }
        encoder = {"image": "'mobilenet_v2'", "texture": "'texture'", "both": "('mobilenet_v2', 'texture')"}
        raise MissingKeyError(
            f"obsm[{features_key!r}] holds features of {'; '.join(names)}; expected those of {wanted[kind]}. Run "
            f"st_gchb.pp.embed_patches(adata, encoder={encoder[kind]}, patch_um=(80, 150, 300)), or leave this method "
            "out."
        )
    return [columns for one in _kinds(kind) for columns in by_kind[one]]
