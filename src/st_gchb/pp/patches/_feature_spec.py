"""Specification of patch features: encoder, patch size, views and stain; and the encoder that it describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from st_gchb._advice import Fix, advise
from st_gchb._arguments import Count, Micrometers, PatchSize, checked
from st_gchb._errors import EncoderError, MissingKeyError
from st_gchb._options import Precision, StainMethod, Views
from st_gchb.io import one_number
from st_gchb.pp._stain_normalization import Stain
from st_gchb.pp.encoders import Encoder, get_encoder, is_known

EARLIER_NAMES = {"views": "n_views", "tail": "feature_maps"}
"""Current names of fields that earlier versions stored under other names."""

LAZYSLIDE = "lazyslide:"
"""Start of the names of encoders whose features :func:`~st_gchb.io.read_lazyslide` read."""


@checked
@dataclass(frozen=True)
class FeatureSpec:
    """Specification of patch features, by which the features of a query are computed like those of its reference.

    It describes one encoder at one patch size; :class:`FeatureSet` describes several.

    Parameters
    ----------
    encoder
        Name of the encoder.
    weights
        ``"default"``, ``"none"``, ``"module"``, or the path of a file.
    weights_sha256
        Hash of the image encoder's tensors.
    patch_um, patch_px
        Side of a patch in µm, or in px of the full-resolution image; the other one is None.
    n_views
        Number of views over which features are averaged: 1, 4 (rotations) or 8 (and mirrored rotations).
    n_features
        Features per patch.
    stain_norm, stain_target
        Method and numbers of the :class:`Stain` to which slides are normalized; None without normalization.
    precision
        Half precision in which the encoder computes; None for float32.
    feature_maps
        Whether the feature maps before the image encoder's last stage are stored too.
    """

    encoder: str
    weights: str
    weights_sha256: str
    patch_um: Micrometers | None
    patch_px: PatchSize | None
    n_views: Views
    n_features: Count
    stain_norm: StainMethod | None = None
    stain_target: tuple[float, ...] | None = None
    precision: Precision | None = None
    feature_maps: bool = False

    @property
    def stain(self) -> Stain | None:
        """The stain to which slides are normalized; None without normalization."""
        return None if self.stain_norm is None else Stain(self.stain_norm, self.stain_target or ())

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict of strings, numbers and lists, as ``uns`` and JSON store them, without empty fields."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in plain.items() if value is not None and value is not False}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> FeatureSpec:
        """Read the specification from ``uns["X_patch"]`` or the result of :meth:`to_dict`.

        Raises
        ------
        MissingKeyError
            A field is absent, as for features that were not computed by :func:`embed_patches`.
        EncoderError
            The stored value is not a dict, a field is not a number where one is expected, or there are several parts,
            which :class:`FeatureSet` reads.

        Examples
        --------
        >>> from st_gchb.pp import FeatureSpec
        >>> rule = FeatureSpec("texture", "default", "e3b0", 150.0, None, 1, 107)
        >>> FeatureSpec.from_uns(rule.to_dict()) == rule
        True
        """
        if not isinstance(stored, Mapping):
            raise EncoderError(
                f"the stored rule of the features is a {type(stored).__name__}; expected the dict that "
                "pp.embed_patches writes to uns. Run pp.embed_patches again."
            )
        stored = {EARLIER_NAMES.get(key, key): value for key, value in stored.items()}
        if np.ndim(stored.get("encoder", "")):
            names = list(map(str, np.ravel(np.asarray(stored["encoder"], object))))
            raise EncoderError(
                f"the stored rule of the features describes {len(names)} parts, of the encoders {names}; expected one. "
                "Read it with pp.FeatureSet.from_uns."
            )
        needed = ("encoder", "weights", "weights_sha256", "n_views", "n_features")
        missing = [key for key in needed if key not in stored]
        if missing or ("patch_um" in stored) == ("patch_px" in stored):
            raise MissingKeyError(
                f"the stored features have no {missing or 'patch size'} (found {sorted(map(str, stored))}); expected "
                "what pp.embed_patches writes to uns. Run pp.embed_patches again."
            )
        sizes = {key: _number(stored, key) if key in stored else None for key in ("patch_um", "patch_px")}
        precision: Any = str(stored["precision"]) if "precision" in stored else None
        stain: Any = str(stored["stain_norm"]) if "stain_norm" in stored else None
        return cls(
            encoder=str(stored["encoder"]),
            weights=str(stored["weights"]),
            weights_sha256=str(stored["weights_sha256"]),
            patch_um=sizes["patch_um"],
            patch_px=sizes["patch_px"],
            n_views=cast("Views", _count(stored, "n_views")),
            n_features=_count(stored, "n_features"),
            stain_norm=stain,
            stain_target=None if stain is None else _numbers(stored.get("stain_target", ())),
            precision=precision,
            feature_maps="feature_maps" in stored,
        )


def _number(stored: Mapping[str, Any], key: str) -> float:
    """Read a finite number of a stored specification, of any type to which files convert it."""
    number = one_number(stored[key])
    if number is None or not math.isfinite(number):
        raise EncoderError(
            f"the stored rule of the features has {key} = {str(stored[key])[:60]!r}; expected a number, as "
            "pp.embed_patches writes it. Run pp.embed_patches again."
        )
    return number


def _count(stored: Mapping[str, Any], key: str) -> int:
    """Read a whole number of a stored specification."""
    number = _number(stored, key)
    if not number.is_integer() or number < 0:
        raise EncoderError(
            f"the stored rule of the features has {key} = {number:g}; expected a whole number, as pp.embed_patches "
            "writes it. Run pp.embed_patches again."
        )
    return int(number)


def _numbers(values: Any) -> tuple[float, ...]:
    """Read the numbers of a stored stain."""
    found = [one_number(value) for value in np.ravel(np.asarray(values, dtype=object))]
    if None in found:
        raise EncoderError(
            f"the stored rule of the features has stain_target = {str(values)[:60]!r}; expected numbers, as "
            "pp.embed_patches writes them. Run pp.embed_patches again."
        )
    return tuple(number for number in found if number is not None)


def encoder_of_spec(
    rule: FeatureSpec,
    *,
    encoder: nn.Module | Encoder | None = None,
    weights: str | Path | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Encoder:
    """Build the encoder of a specification and validate its weights.

    Parameters and errors are those of :func:`embed_patches_like`.
    """
    if encoder is None and rule.encoder.startswith("module:"):
        raise EncoderError(
            f"the features were made with a module of the caller's ({rule.encoder!r}), which is not stored. "
            + advise(
                Fix("encoder", why="with it again"),
                otherwise="Make them first: st_gchb.pp.embed_patches_like(query, model.rules_.features, encoder=...).",
            )
        )
    if encoder is None and rule.encoder.startswith(LAZYSLIDE) and not is_known(rule.encoder):
        model, _, side = rule.encoder.removeprefix(LAZYSLIDE).rpartition(", ")
        raise EncoderError(
            f"the features were made by LazySlide, with its model {model!r} on tiles of {side}, {rule.patch_um} µm, "
            "and the query has none. Make them the same way: zs.pp.tile_tissues and zs.tl.feature_extraction, "
            f"wsi.write(), then st_gchb.io.read_lazyslide(store, features={model!r})."
        )
    if encoder is None and not is_known(rule.encoder):
        raise EncoderError(
            f"the features were made with the encoder {rule.encoder!r}, which is not registered in this process. "
            f"Register its factory first: st_gchb.pp.register_encoder({rule.encoder!r}, factory), or import the module "
            "that does so."
        )
    stored = None if rule.weights == "none" else rule.weights
    found = get_encoder(encoder or rule.encoder, weights if weights is not None else stored, transform=transform)
    if found.weights_sha256 != rule.weights_sha256:
        raise EncoderError(
            f"encoder {rule.encoder!r}: the weights {found.weights!r} have the hash {found.weights_sha256[:12]}..., "
            f"the features were made with {rule.weights_sha256[:12]}... ({rule.weights!r}). "
            + advise(Fix("weights", why="with the file used then"), otherwise="Make the reference's features anew.")
        )
    return found
