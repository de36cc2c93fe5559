"""Encoders and patch sizes as a caller gives them: one or several of each, and the encoders of a specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from st_gchb._advice import Fix, advise
from st_gchb._errors import EncoderError, InputError
from st_gchb._options import DEFAULT_VIEWS, VIEWS_WITH_TEXTURE, Precision, Views
from st_gchb.pp._stain_normalization import Stain
from st_gchb.pp.encoders import Encoder, get_encoder
from st_gchb.pp.patches._feature_set import FeatureSet
from st_gchb.pp.patches._feature_spec import FeatureSpec, encoder_of_spec

Size = tuple[float | None, float | None]
"""Side of a patch in µm and in px; one of them is None."""


def sizes_of(patch_um: float | Sequence[float], patch_px: float | Sequence[float] | None) -> list[Size]:
    """List the patch sizes that a caller gave.

    Parameters
    ----------
    patch_um, patch_px
        As in :func:`embed_patches`; sizes in px take precedence.

    Returns
    -------
    list of tuple
        Side of each patch in µm and in px, one of them None.

    Raises
    ------
    InputError
        There is no size, or one is given twice.

    Examples
    --------
    >>> from st_gchb.pp.patches._given_parts import sizes_of
    >>> sizes_of((80, 150), None)
    [(80.0, None), (150.0, None)]
    """
    if patch_px is not None:
        return [(None, float(size)) for size in _each_once(patch_px, "patch_px")]
    return [(float(size), None) for size in _each_once(patch_um, "patch_um")]


def encoders_of(
    encoder: str | nn.Module | Encoder | Sequence[str | nn.Module | Encoder],
    weights: str | Path | None | Sequence[str | Path | None],
    transform: Callable[[Tensor], Tensor] | None,
) -> list[Encoder]:
    """Build the encoders that a caller gave.

    Parameters
    ----------
    encoder, weights, transform
        As in :func:`embed_patches`.

    Raises
    ------
    InputError
        There is no encoder, one is given twice, or ``weights`` has another length; or ``transform`` is given with
        several.
    EncoderError, WeightsUnavailableError
        As for :func:`get_encoder`.
    """
    names = _listed(encoder)
    if not names:
        raise InputError(f"There is no encoder. {advise(Fix('encoder', why='with at least one'))}")
    if transform is not None and len(names) > 1:
        raise InputError(
            f"transform= goes with one encoder, and there are {len(names)}. Set it as the attribute 'transform' of the "
            "module that needs it."
        )
    found = [
        get_encoder(one, its, transform=transform)
        for one, its in zip(names, _aligned(weights, len(names), "weights"), strict=True)
    ]
    kinds = [(one.name, one.weights_sha256) for one in found]
    twice = sorted({name for name, sha in kinds if kinds.count((name, sha)) > 1})
    if twice:
        raise InputError(
            f"The encoder {' and '.join(map(repr, twice))} is given more than once, with the same weights. "
            + advise(Fix("encoder", why="with each encoder once"))
        )
    return found


def views_for(encoders: list[Encoder]) -> Views:
    """Choose the number of views of a patch where a caller does not.

    Texture features are the same for each rotation of a patch. Beside them, the mean of an image encoder's features
    over rotations adds hardly anything to a prediction; without them, it is worth its time.

    Parameters
    ----------
    encoders
        Encoders whose features stand side by side.

    Returns
    -------
    int
        1 if texture features are among them, otherwise 4.

    Examples
    --------
    >>> from st_gchb.pp import get_encoder
    >>> from st_gchb.pp.patches._given_parts import views_for
    >>> image, texture = get_encoder("mobilenet_v2", None), get_encoder("texture")
    >>> views_for([image, texture]), views_for([texture]), views_for([image])
    (1, 1, 4)
    """
    return VIEWS_WITH_TEXTURE if any(one.name == "texture" for one in encoders) else DEFAULT_VIEWS


def features_of(
    encoders: list[Encoder],
    sizes: list[Size],
    n_views: Views | None,
    stain: Stain | None,
    precision: Precision,
    *,
    feature_maps: bool = False,
) -> FeatureSet:
    """Describe the features of each encoder at each patch size.

    Parameters
    ----------
    encoders, sizes
        From :func:`encoders_of` and :func:`sizes_of`.
    n_views
        Views of a patch; None for as many as these encoders need, see :func:`views_for`.
    stain, precision, feature_maps
        As in :class:`FeatureSpec`.

    Returns
    -------
    FeatureSet
        All sizes of the first encoder, then all of the second one, and so on.
    """
    shared: dict[str, Any] = {
        "n_views": views_for(encoders) if n_views is None else n_views,
        "stain_norm": None if stain is None else stain.method,
        "stain_target": None if stain is None else stain.numbers,
        "precision": None if precision == "float32" else precision,
        "feature_maps": feature_maps,
    }
    return FeatureSet(
        [
            FeatureSpec(
                one.name, one.weights, one.weights_sha256, patch_um=um, patch_px=px, n_features=one.n_features, **shared
            )
            for one in encoders
            for um, px in sizes
        ]
    )


def check_one_part(encoders: list[Encoder], sizes: list[Size]) -> None:
    """Validate that features of one encoder at one patch size are made, as feature maps need.

    Raises
    ------
    EncoderError
        There are several; the message names a single part to use.
    """
    if len(encoders) * len(sizes) == 1:
        return
    um, px = sizes[len(sizes) // 2]
    single = Fix("patch_um", f"{um:g}") if px is None else Fix("patch_px", f"{px:g}")
    named = next((one.name for one in encoders if one.name != "texture"), encoders[0].name)
    raise EncoderError(
        f"feature maps go with one encoder at one patch size; there are {len(encoders)} encoders "
        f"({', '.join(one.name for one in encoders)}) at {len(sizes)} sizes. Pass encoder={named!r} and "
        f"{single.argument}={single.value}, or leave save_feature_maps= out."
    )


def encoders_of_set(
    rule: FeatureSet,
    *,
    encoder: nn.Module | Encoder | None | Sequence[nn.Module | Encoder | None] = None,
    weights: str | Path | None | Sequence[str | Path | None] = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> list[Encoder]:
    """Build the encoders of several specifications and validate their weights, in the order of ``rule.encoders``.

    Parameters and errors are those of :func:`embed_patches_like`.
    """
    specs = rule.encoders
    own = _of_specs(encoder, specs, "encoder", _is_module)
    files = _of_specs(weights, specs, "weights", _has_weights)
    return [
        encoder_of_spec(spec, encoder=module, weights=file, transform=transform)
        for spec, module, file in zip(specs, own, files, strict=True)
    ]


def _of_specs(given: Any, specs: list[FeatureSpec], name: str, concerned: Callable[[FeatureSpec], bool]) -> list[Any]:
    """Assign what a caller gave to the encoders: one for each, or one for the only encoder that it can be meant for."""
    if len(specs) == 1 or given is None or isinstance(given, list | tuple):
        return _aligned(given, len(specs), name)
    able = [concerned(spec) for spec in specs]
    if sum(able) != 1:
        raise InputError(
            f"{name}= is one, and the features were made with {len(specs)} encoders "
            f"({', '.join(spec.encoder for spec in specs)}), of which {sum(able)} take it. "
            + advise(Fix(name, why="with a list of one for each, None where it is found as before"))
        )
    return [given if one else None for one in able]


def _is_module(spec: FeatureSpec) -> bool:
    return spec.weights == "module"


def _has_weights(spec: FeatureSpec) -> bool:
    return spec.weights != "module" and spec.encoder != "texture"


def _each_once(given: float | Sequence[float], name: str) -> list[float]:
    """List patch sizes, of which there is at least one, each once."""
    values = _listed(given)
    if not values:
        raise InputError(f"There is no patch size. {advise(Fix(name, why='with at least one'))}")
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise InputError(
            f"The patch size {' and '.join(f'{value:g}' for value in twice)} is given more than once. "
            + advise(Fix(name, why="with each size once"))
        )
    return values


def _aligned(given: Any, n_encoders: int, name: str) -> list[Any]:
    """Return one value for each encoder."""
    if not isinstance(given, list | tuple):
        return [given] * n_encoders
    if len(given) != n_encoders:
        raise InputError(
            f"{name}= has {len(given)} entries for {n_encoders} encoders; expected one for each, or one value for all."
        )
    return list(given)


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]
