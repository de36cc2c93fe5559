"""Features of several encoders and patch sizes side by side: their specifications, and the columns of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from anndata import AnnData

from st_gchb._arguments import checked
from st_gchb._errors import EncoderError, InputError
from st_gchb.pp._stain_normalization import Stain
from st_gchb.pp.patches._feature_spec import FeatureSpec

OF_EACH_PART = ("encoder", "weights", "weights_sha256", "patch_um", "patch_px", "n_features")
"""Fields that differ between parts. With several parts they are stored as lists with one entry per part."""


@dataclass(frozen=True)
class FeaturePart:
    """Features of one encoder at one patch size, as columns of a feature matrix.

    Parameters
    ----------
    spec
        Specification of these features.
    columns
        Columns of the feature matrix.
    name
        Name for readers, such as ``"mobilenet_v2, 80 µm"``; each part of a set has another.
    """

    spec: FeatureSpec
    columns: slice
    name: str

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.spec.encoder

    @property
    def patch_um(self) -> float | None:
        """Side of a patch, µm; None if it is given in px."""
        return self.spec.patch_um

    @property
    def patch_px(self) -> float | None:
        """Side of a patch in px of the full-resolution image; None if it is given in µm."""
        return self.spec.patch_px


@checked
@dataclass(frozen=True)
class FeatureSet:
    """Specifications of the features that a feature matrix holds side by side, one for each encoder and patch size.

    All patch sizes of the first encoder come first, then those of the second one, and so on. Views, stain and precision
    are the same for all.

    Parameters
    ----------
    specs
        Specification of each part, in the order of the columns.

    Raises
    ------
    InputError
        There are no specifications, two are the same, or they are not those of each encoder at each patch size.

    Examples
    --------
    >>> from st_gchb.pp import FeatureSet, FeatureSpec
    >>> specs = [FeatureSpec("texture", "default", "e3b0", um, None, 1, 107) for um in (80.0, 150.0)]
    >>> [(part.name, part.columns) for part in FeatureSet(specs).parts]
    [('texture, 80 µm', slice(0, 107, None)), ('texture, 150 µm', slice(107, 214, None))]
    """

    specs: Sequence[FeatureSpec]

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", tuple(self.specs))
        if not self.specs:
            raise InputError("FeatureSet: specs is empty; expected the specification of at least one part.")
        expected = [replace(one, patch_um=um, patch_px=px) for one in self.encoders for um, px in self._sizes]
        units = {spec.patch_px is None for spec in self.specs}
        if list(self.specs) != expected or len({_shared(spec) for spec in self.specs}) > 1 or len(units) > 1:
            raise InputError(
                f"FeatureSet: found the parts {self.names}; expected each encoder at each patch size once, all sizes "
                "of an encoder side by side, with the same views, stain and precision, and all sizes in one unit."
            )
        if self.feature_maps and len(self.specs) > 1:
            raise InputError(f"FeatureSet: feature maps go with a single part; found {len(self.specs)}: {self.names}.")

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def first(self) -> FeatureSpec:
        """Specification of the first part; views, stain, precision and the unit of patch sizes are those of all."""
        return self.specs[0]

    @property
    def encoders(self) -> list[FeatureSpec]:
        """Specification of each encoder's first part, in the order of the columns."""
        found = {(spec.encoder, spec.weights_sha256): spec for spec in reversed(self.specs)}
        return list(reversed(found.values()))

    @property
    def sizes(self) -> list[float]:
        """Sides of a patch, in the order of the columns: in µm, or in px if :attr:`in_px`."""
        return [cast("float", um if px is None else px) for um, px in self._sizes]

    @property
    def in_px(self) -> bool:
        """True if patch sizes are in px of the full-resolution image instead of µm."""
        return self.first.patch_px is not None

    @property
    def n_features(self) -> int:
        """Features of all parts together, the width of the feature matrix."""
        return sum(spec.n_features for spec in self.specs)

    @property
    def columns(self) -> list[slice]:
        """Columns of each part in the feature matrix."""
        ends = np.cumsum([spec.n_features for spec in self.specs]).tolist()
        return [slice(end - spec.n_features, end) for end, spec in zip(ends, self.specs, strict=True)]

    @property
    def names(self) -> list[str]:
        """Name of each part for readers, such as ``"mobilenet_v2, 80 µm"``."""
        twice = Counter(one.encoder for one in self.encoders)
        # Of two encoders with one name, such as one architecture with two weights, the hash tells which is meant.
        called = [f"{s.encoder} {s.weights_sha256[:8]}" if twice[s.encoder] > 1 else s.encoder for s in self.specs]
        return [f"{name}, {size_of(spec)}" for name, spec in zip(called, self.specs, strict=True)]

    @property
    def parts(self) -> list[FeaturePart]:
        """Specification, columns and name of each part."""
        return [FeaturePart(*one) for one in zip(self.specs, self.columns, self.names, strict=True)]

    @property
    def stain(self) -> Stain | None:
        """The stain to which slides are normalized; None without normalization."""
        return self.first.stain

    @property
    def feature_maps(self) -> bool:
        """True if the feature maps before the image encoder's last stage are stored too."""
        return any(spec.feature_maps for spec in self.specs)

    @property
    def _sizes(self) -> list[tuple[float | None, float | None]]:
        """Sides of a patch in µm and in px, one of them None, in the order of the columns."""
        return list(dict.fromkeys((spec.patch_um, spec.patch_px) for spec in self.specs))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict of strings, numbers and lists, as ``uns`` and JSON store them, without empty fields.

        For one part this is the dict of its specification. For several, fields that differ between parts are lists with
        one entry per part.
        """
        if len(self.specs) == 1:
            return self.first.to_dict()
        plain = [spec.to_dict() for spec in self.specs]
        return plain[0] | {key: [one[key] for one in plain] for key in OF_EACH_PART if key in plain[0]}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> FeatureSet:
        """Read the specifications from ``uns["X_patch"]`` or the result of :meth:`to_dict`.

        Raises
        ------
        MissingKeyError
            A field is absent, as for features that were not computed by :func:`embed_patches`.
        EncoderError
            The stored value is not a dict, a field is not what is expected, or the parts do not belong together.

        Examples
        --------
        >>> from st_gchb.pp import FeatureSet, FeatureSpec
        >>> specs = [FeatureSpec("texture", "default", "e3b0", um, None, 1, 107) for um in (80.0, 150.0)]
        >>> FeatureSet.from_uns(FeatureSet(specs).to_dict()).names
        ['texture, 80 µm', 'texture, 150 µm']
        """
        if not isinstance(stored, Mapping) or np.ndim(stored.get("encoder", "")) == 0:
            return cls([FeatureSpec.from_uns(stored)])
        listed = {key: list(np.ravel(np.asarray(stored[key], object))) for key in OF_EACH_PART if key in stored}
        lengths = {key: len(values) for key, values in listed.items()}
        if len(set(lengths.values())) > 1 or not lengths["encoder"]:
            raise EncoderError(
                f"the stored rule of the features has {lengths} entries; expected one of each for every part, as "
                "pp.embed_patches writes them. Run pp.embed_patches again."
            )
        each = ({key: values[i] for key, values in listed.items()} for i in range(lengths["encoder"]))
        specs = [FeatureSpec.from_uns({**stored, **own}) for own in each]
        try:
            return cls(specs)
        except InputError as error:
            raise EncoderError(f"the stored rule of the features: {error} Run pp.embed_patches again.") from error


def size_of(spec: FeatureSpec) -> str:
    """Write the side of a patch with its unit, such as ``"80 µm"``."""
    return f"{spec.patch_um:g} µm" if spec.patch_px is None else f"{spec.patch_px:g} px"


def _shared(spec: FeatureSpec) -> tuple[Any, ...]:
    """Return the fields that all parts have in common."""
    return spec.n_views, spec.stain_norm, spec.stain_target, spec.precision, spec.feature_maps


def feature_parts(adata: AnnData, key: str) -> FeatureSet | None:
    """Read which encoder and patch size each column of a feature matrix comes from.

    Parameters
    ----------
    adata
        Object with features in ``obsm[key]``.
    key
        Key of the features.

    Returns
    -------
    FeatureSet or None
        The parts of the matrix; None if it was not made by :func:`embed_patches`.

    Raises
    ------
    MissingKeyError, EncoderError
        As for :meth:`FeatureSet.from_uns`; or the matrix does not have the columns of its parts.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.pp.patches import FeatureSet, FeatureSpec, feature_parts
    >>> specs = [FeatureSpec("texture", "default", "e3b0", um, None, 1, 107) for um in (80.0, 150.0)]
    >>> adata = AnnData(obsm={"X_patch": np.zeros((4, 214))}, uns={"X_patch": FeatureSet(specs).to_dict()})
    >>> {part.patch_um: adata.obsm["X_patch"][:, part.columns].shape for part in feature_parts(adata, "X_patch").parts}
    {80.0: (4, 107), 150.0: (4, 107)}
    """
    if key not in adata.uns:
        return None
    found = FeatureSet.from_uns(adata.uns[key])
    check_width(found, np.shape(adata.obsm[key])[1], key)
    return found


def check_width(features: FeatureSet, width: int, key: str) -> None:
    """Validate that a feature matrix has as many columns as its parts together.

    Raises
    ------
    EncoderError
        It has more or fewer, so that it is not known which column belongs to which part.
    """
    if width != features.n_features:
        raise EncoderError(
            f"obsm[{key!r}] has {width} columns, and uns[{key!r}] describes {features.n_features} "
            f"({'; '.join(features.names)}). Run pp.embed_patches again."
        )
